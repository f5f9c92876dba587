# One image for every service: `docker run tollgate run ingest`, `… run meter`, `… init`, `… demo`.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /venv
COPY requirements.lock ./
# Hashes are checked for every wheel: what is tested is what is shipped.
RUN /venv/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY tollgate ./tollgate
COPY services ./services
COPY sandbox ./sandbox
RUN /venv/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="tollgate" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Turns a gateway's log into money, exactly once"
RUN useradd --system --uid 10001 --home-dir /data --create-home tollgate
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TOLLGATE_HTTP__HOST=0.0.0.0
WORKDIR /data
USER 10001
ENTRYPOINT ["tollgate"]
CMD ["--help"]
