"""A catalog server and N shard servers in one directory, for development, the demo and tests."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from shardwright.errors import BadOption, LocalClusterBusy
from shardwright.servers.binaries import find_binaries
from shardwright.servers.server import Server, start_all, stop_all

_MARK = ".shardwright-local"  # this directory is ours; made first
_FILE = "cluster.json"  # written last: without it the directory is half-made
_MOST_SHARDS = 64


class LocalCluster:
    """Servers that make a cluster. As a context manager it stops them at the end.

    Attributes:
        directory: holds a directory for each server.
        catalog: the catalog's server.
        shards: the shards' servers by name: s1, s2, ...
    """

    def __init__(self, directory: Path, catalog: Server, shards: Mapping[str, Server]) -> None:
        """Name a cluster; use `create`, `open` or `temporary`."""
        self.directory = directory
        self.catalog = catalog
        self.shards = dict(shards)
        self._temporary = False
        self._made_directory = False
        self._claim: int | None = None

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        shards: int,
        *,
        pg_bin: str | os.PathLike[str] | None = None,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        remove_with_owner: Path | None = None,
    ) -> LocalCluster:
        """Claim an empty directory for a new cluster; nothing runs yet.

        Args:
            directory: made when absent.
            shards: how many, 1 to 64.
            pg_bin: a directory with PostgreSQL's programs; None takes the embedded package.
            fsync: False makes it quicker and loses data in a crash of the machine.
            settings: configuration on top of `server.SETTINGS`.
            remove_with_owner: a directory to remove when this process dies without stopping the servers.

        Raises:
            BadOption: the number makes no sense, or the directory holds something else.
            LocalClusterBusy: another process works on it.
            MissingExtra, UnfitServer: there is no PostgreSQL to start.
        """
        if not 1 <= shards <= _MOST_SHARDS:
            raise BadOption(f"{shards} shards cannot be started: it must be 1 to {_MOST_SHARDS}", fix="give --shards N")
        bin_dir = find_binaries(pg_bin)
        place = Path(directory).absolute()
        made = not place.exists()
        if not made and not place.is_dir():
            raise BadOption(f"{place} is no directory", fix="give --dir a new or an empty directory")

        def server(name: str) -> Server:
            return Server(
                place / name, bin_dir=bin_dir, fsync=fsync, settings=settings, remove_with_owner=remove_with_owner
            )

        cluster = cls(place, server("catalog"), {name: server(name) for name in names(shards)})
        cluster._made_directory = made
        place.mkdir(parents=True, exist_ok=True)
        cluster._claim = _claim(place)
        try:
            if (place / _MARK).exists() and not (place / _FILE).exists():
                _empty(place)  # a start that was killed left it half-made
            if any(place.iterdir()):
                raise BadOption(f"{place} is not empty", fix="give --dir a new or an empty directory")
            (place / _MARK).touch()
        except BaseException:
            if not cluster.is_made:
                cluster.purge()
            os.close(cluster._claim)
            raise
        return cluster

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *, claim: bool = False) -> LocalCluster:
        """A cluster that was made before, running or not.

        Args:
            directory: where it was made.
            claim: True in order to start or stop it.

        Raises:
            BadOption: there is none.
            LocalClusterBusy: it was to be claimed, and another process works on it.
        """
        place = Path(directory).absolute()
        if not (place / _FILE).exists():
            raise BadOption(
                f"there is no local cluster in {place}", fix=f"shardwright dev up --dir {shlex.quote(str(place))}"
            )
        held = _claim(place) if claim else None
        about = json.loads((place / _FILE).read_text())
        bin_dir = Path(about["bin_dir"])
        if not bin_dir.exists():  # the environment was made anew
            bin_dir = find_binaries()

        def server(name: str) -> Server:
            return Server(
                place / name,
                bin_dir=bin_dir,
                port=about["ports"][name],
                fsync=about["fsync"],
                settings=about["settings"],
            )

        cluster = cls(place, server("catalog"), {name: server(name) for name in about["ports"] if name != "catalog"})
        cluster._claim = held
        return cluster

    @classmethod
    def temporary(
        cls, shards: int, *, pg_bin: str | os.PathLike[str] | None = None, fsync: bool = True
    ) -> LocalCluster:
        """A new cluster in a temporary directory, which goes when it is stopped or its owner dies."""
        directory = tempfile.mkdtemp(prefix="sw-")
        try:
            cluster = cls.create(directory, shards, pg_bin=pg_bin, fsync=fsync, remove_with_owner=Path(directory))
        except BaseException:
            shutil.rmtree(directory)
            raise
        cluster._temporary = cluster._made_directory = True
        return cluster

    @property
    def servers(self) -> dict[str, Server]:
        """All servers by name, the catalog's first."""
        return {"catalog": self.catalog, **self.shards}

    @property
    def is_made(self) -> bool:
        """Whether it was brought up once."""
        return (self.directory / _FILE).exists()

    def dsns(self) -> dict[str, str]:
        """The shards' DSNs by name."""
        return {name: server.dsn() for name, server in self.shards.items()}

    def start(self) -> None:
        """Start all servers that do not run; when one fails, those are stopped again."""
        start_all([server for server in self.servers.values() if not server.is_running])

    def save(self) -> None:
        """Record a new cluster as made, so that `open` finds it."""
        about = {
            "bin_dir": str(self.catalog.bin_dir),
            "fsync": self.catalog.fsync,
            "settings": dict(self.catalog.given_settings),
            "ports": {name: server.port for name, server in self.servers.items()},
        }
        draft = self.directory / f".{_FILE}"
        draft.write_text(json.dumps(about, indent=2) + "\n")
        draft.replace(self.directory / _FILE)

    def detach(self) -> None:
        """Let the servers outlive this process."""
        for server in self.servers.values():
            server.detach()

    def add_shard(self) -> tuple[str, Server]:
        """One more server, started; its name and itself. It is not yet a shard of the catalog."""
        name = names(len(self.shards) + 1)[-1]
        model = self.catalog
        server = Server(
            self.directory / name,
            bin_dir=model.bin_dir,
            fsync=model.fsync,
            settings=model.given_settings,
            remove_with_owner=self.directory if self._temporary else None,
        )
        server.start()
        self.shards[name] = server
        if self.is_made:
            self.save()
        return name, server

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop all servers; a temporary cluster's directory goes too."""
        stop_all(self.servers.values(), mode)
        if self._temporary:
            self.purge()

    def purge(self) -> None:
        """Stop the servers and remove all that was made: the directory too, unless it was there before."""
        stop_all(self.servers.values(), "immediate")
        if not (self.directory / _MARK).exists():
            return
        if self.is_made or self._made_directory:
            shutil.rmtree(self.directory)
        else:
            _empty(self.directory)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate" if self._temporary else "fast")


def names(shards: int) -> list[str]:
    """The names of N shards."""
    return [f"s{number}" for number in range(1, shards + 1)]


def _claim(place: Path) -> int:
    """Keep other processes from bringing up or taking down the cluster in a directory, until this one ends."""
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise LocalClusterBusy(
            f"another process is bringing up or taking down the cluster in {place}", fix="wait for it"
        ) from None
    return held


def _empty(place: Path) -> None:
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
