"""Moesif's own Python SDKs, pointed at a live ingest process by their base URL and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.integration.ingest_rig import IngestRig
from tests.parts.kafka import BrokerSettings

API = """
    import sys
    from datetime import datetime, timezone
    from moesifapi.moesif_api_client import MoesifAPIClient
    from moesifapi.configuration import Configuration
    from moesifapi.models import EventModel, EventRequestModel, EventResponseModel
    url, token = sys.argv[1:]
    Configuration.BASE_URI = url
    api = MoesifAPIClient(token).api
    def event(n):
        now = datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec="milliseconds")
        return EventModel(
            request=EventRequestModel(time=now, uri="https://api.test:443/v1/items?x=1", verb="GET",
                                      headers={"User-Agent": "sdk"}, ip_address="192.0.2.9", body={"a": 1}),
            response=EventResponseModel(time=now, status=200, headers={"Content-Type": "application/json"}),
            user_id=f"user-{n}", company_id="acme", session_token="raw-session-token")
    headers = api.create_event(event(0))
    assert headers["X-Moesif-Config-ETag"]
    headers = api.create_events_batch([event(n) for n in range(1, 20)])
    config = api.get_app_config()
    assert config.headers["X-Moesif-Config-ETag"] == headers["X-Moesif-Config-ETag"]
    print("sent")
"""

ASGI = """
    import asyncio, sys, time
    import httpx
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from moesifasgi import MoesifMiddleware
    url, token = sys.argv[1:]
    async def identify(request, response):
        return "asgi-user"
    app = MoesifMiddleware(
        Starlette(routes=[Route("/hello", lambda request: PlainTextResponse("hi"))]),
        settings={"APPLICATION_ID": token, "BASE_URI": url, "BATCH_SIZE": 5, "IDENTIFY_USER": identify},
    )
    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            for _ in range(5):
                assert (await client.get("/hello?secret=1")).status_code == 200
        await asyncio.sleep(4)
    asyncio.run(main())
    print("sent")
"""


def run_sdk(script: str, rig: IngestRig) -> None:
    # Without this a slip in a setting's name would send events to the vendor's own address: refuse anything but us.
    guard = """
    import socket
    _connect, _resolve = socket.socket.connect, socket.getaddrinfo
    def _local(host):
        if host not in ("127.0.0.1", "localhost", "::1"):
            raise SystemExit(f"an SDK tried to reach {host}")
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _local(address[0])
        return _connect(self, address)
    def getaddrinfo(host, *rest, **more):
        _local(host)
        return _resolve(host, *rest, **more)
    socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
    """
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            textwrap.dedent(guard) + textwrap.dedent(script),
            rig.url,
            rig.token,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "sent" in done.stdout, done.stderr
    assert "tried to reach" not in done.stderr


@pytest.mark.slow
async def test_the_real_sdks_are_counted(broker_settings: BrokerSettings, tmp_path: Path) -> None:
    """moesifapi single and batch, moesifasgi from a live application: every event once, under its own id."""
    rig = IngestRig(broker_settings, tmp_path)
    await rig.prepare()
    rig.start()
    try:
        await asyncio.to_thread(run_sdk, API, rig)
        await asyncio.to_thread(run_sdk, ASGI, rig)
    finally:
        rig.stop()
    log = await rig.read_log()
    assert log.letters == []
    api = [event for event in log.events if event["account"] == "company:acme"]
    assert sorted(event["user"] for event in api) == sorted(f"user-{n}" for n in range(20))
    assert {event["path"] for event in api} == {"/v1/items"}
    asgi = [event for event in log.events if event["user"] == "asgi-user"]
    assert [(event["path"], event["status"]) for event in asgi] == [("/hello", 200)] * 5
    assert len(log.ids) == len(log.events) == 25
    assert not any(event["id_weak"] for event in log.events)
    assert "raw-session-token" not in repr(log.events)
