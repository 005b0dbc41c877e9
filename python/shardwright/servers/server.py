"""One local PostgreSQL server: initdb, start, stop, and the ways in which it can fail."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from shardwright.errors import ConflictError, UnfitServer
from shardwright.servers import binaries, processes
from shardwright.servers.endpoint import Endpoint
from shardwright.servers.ports import free_port
from shardwright.servers.watchdog import Watchdog

#: What a shard needs, with room for many operations side by side. A user's own settings come after it.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "logical",
    "max_connections": "200",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_logical_replication_workers": "16",
    "max_sync_workers_per_subscription": "2",
    "max_worker_processes": "32",
    # before 16 the launcher starts at most one apply worker in this time, over all subscriptions
    "wal_retrieve_retry_interval": "200ms",
    "max_prepared_transactions": "50",
    "shared_buffers": "64MB",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a ",
}

#: And from 18 on, before which there is no such setting.
SETTINGS_18: Mapping[str, str] = {"max_active_replication_origins": "20"}

_CONF = "shardwright.conf"
_NO_DURABILITY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Server(Endpoint):
    """A PostgreSQL server in a directory, run by this process and ended with it unless it is detached.

    Attributes:
        directory: holds ``data`` and ``server.log``.
        bin_dir: where its programs are.
        fsync: whether it survives a crash of the machine.
        given_settings: configuration on top of `SETTINGS`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        bin_dir: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        fsync: bool = True,
        password: str | None = None,
        remove_with_owner: Path | None = None,
    ) -> None:
        """Name a server; nothing is made or started yet.

        Args:
            directory: where it lives; made when absent.
            bin_dir: from `find_binaries`; None finds them.
            port: its TCP port; None takes a free one.
            settings: configuration on top of `SETTINGS`.
            fsync: False makes it quicker and loses data in a crash of the machine.
            password: when given, clients must present it; otherwise everybody on this machine is trusted.
            remove_with_owner: a directory to remove when this process dies without stopping the server.
        """
        self.directory = Path(directory).absolute()
        self.bin_dir = bin_dir or binaries.find_binaries()
        super().__init__("127.0.0.1", port or 0, "postgres", password)
        self.fsync = fsync
        self.given_settings = dict(settings or {})
        self._port_is_given = port is not None
        self._remove = remove_with_owner
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None
        self._given_up = False
        self._busy = threading.Lock()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.directory / "server.log"

    @property
    def pid(self) -> int | None:
        """The process id of the running server, None when it is not running."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        return processes.postmaster(self.data)

    @property
    def is_running(self) -> bool:
        """Whether its main process lives."""
        return self.pid is not None

    def socket_dsn(self, dbname: str = "postgres") -> str | None:
        """A DSN through the Unix socket; None where the directory's path is too long for one."""
        if not self._socket_directory():
            return None
        return f"host={self.data} port={self.port} user={self.user} dbname={dbname}"

    def create(self) -> None:
        """Run initdb, unless the data directory is there already."""
        if (self.data / "PG_VERSION").exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(mode=0o700, exist_ok=True)
        binaries.hand_over(self.data)
        options = ["--no-sync", "--encoding=UTF8", "--locale=C", "--username=postgres", "--no-instructions"]
        if self.password is None:
            self._run("initdb", *options, "--auth=trust")
        else:
            # Without a terminal initdb reads its prompt's answers from stdin: no file with the secret is needed.
            answers = f"{self.password}\n" * 2
            self._run("initdb", *options, "--auth=scram-sha-256", "--pwprompt", answers=answers)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(f"\ninclude '{_CONF}'\n")

    def start(self, timeout: float = 60.0) -> None:
        """Start it (after `create`) and wait until it accepts connections.

        Raises:
            UnfitServer: it does not start; the message holds the end of its log.
        """
        start_all([self], timeout)

    def stop(self, mode: Literal["fast", "immediate"] = "fast", timeout: float = 30.0) -> None:
        """Stop it and wait for its end; harder when it does not end in time. Stopping a stopped server is no error."""
        pid = self.pid
        if pid is not None:
            self.resume()
            for number in (signal.SIGINT, signal.SIGQUIT)[mode == "immediate" :]:
                processes.send(pid, number)
                if self._wait_for_end(pid, timeout):
                    break
            else:
                self.kill()
        self._ended()

    def kill(self) -> None:
        """SIGKILL for all its processes, as when the machine loses power; returns when none is left."""
        pid = self.pid
        if pid is not None:
            family = processes.stop_family(pid)
            for member in family:
                processes.send(member, signal.SIGKILL)
            if not self._wait_for_end(pid, 30) or not processes.wait_gone(family, 30):
                raise ConflictError(f"processes of the server in {self.directory} outlive SIGKILL")
        self._ended()

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start again, on the same port."""
        self.stop(mode)
        self.start()

    def pause(self) -> None:
        """SIGSTOP for all its processes: it holds its connections and answers nothing."""
        if (pid := self.pid) is not None:
            processes.stop_family(pid)

    def resume(self) -> None:
        """SIGCONT for all its processes."""
        if (pid := self.pid) is not None:
            for member in [*processes.children(pid), pid]:
                processes.send(member, signal.SIGCONT)

    def detach(self) -> None:
        """Let the server outlive this process."""
        if self._watchdog is not None:
            self._watchdog.release()
            self._watchdog = None

    def standby(self, directory: str | os.PathLike[str]) -> Server:
        """A streaming standby of this server in another directory, started."""
        copy = Server(
            directory,
            bin_dir=self.bin_dir,
            settings=self.given_settings,
            fsync=self.fsync,
            password=self.password,
            remove_with_owner=Path(directory).absolute() if self._remove else None,
        )
        copy.directory.mkdir(parents=True, exist_ok=True)
        copy.data.mkdir(mode=0o700)
        binaries.hand_over(copy.data)
        secret = {"PGPASSWORD": self.password} if self.password else {}
        flags = ["--checkpoint=fast", "--wal-method=stream", "--no-sync", "--write-recovery-conf"]
        copy._run("pg_basebackup", f"--dbname={self.dsn()}", *flags, env=secret)
        copy.start()
        return copy

    def promote(self) -> None:
        """Make a standby a primary, and wait until it is one."""
        self.execute("SELECT pg_promote(true, 60)")

    # ------------------------------------------------------------ how it is done

    def _start(self, timeout: float) -> None:
        with self._busy:
            if not self._given_up:
                self.create()
                self._start_somewhere(time.monotonic() + timeout)

    def _give_up(self) -> None:
        """Keep a start from beginning, or wait for the end of one that has begun."""
        self._given_up = True
        with self._busy:
            pass

    def _start_somewhere(self, deadline: float) -> None:
        while not self._given_up:
            if not self.port:
                self.port = free_port()
            said = self._launch(deadline)
            if said is None:
                return
            clash = "Address already in use" in said and not self._port_is_given
            # Backends of a server that was killed may still hold its shared memory for a moment.
            lingering = "is still in use" in said
            if not (clash or lingering) or time.monotonic() > deadline:
                raise UnfitServer(
                    f"the PostgreSQL server in {self.directory} does not start: {_last_words(said)}",
                    fix=f"read {self.log}",
                )
            if clash:
                self.port = 0
            else:
                time.sleep(0.1)

    def _launch(self, deadline: float) -> str | None:
        """Start the main process. None when it is ready, else what its log says."""
        values = {
            **SETTINGS,
            **(SETTINGS_18 if int((self.data / "PG_VERSION").read_text()) >= 18 else {}),
            **({} if self.fsync else _NO_DURABILITY),
            **self.given_settings,
            "port": str(self.port),
            "unix_socket_directories": self._socket_directory(),
        }
        lines = (f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items())
        conf = self.data / _CONF
        conf.write_text("".join(lines))
        conf.chmod(0o644)
        with self.log.open("ab") as log, self._reachable_data() as (data, descriptors):
            before = log.tell()
            self._process = subprocess.Popen(
                [self.bin_dir / "postgres", "-D", data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                pass_fds=descriptors,
                start_new_session=True,
                **binaries.identity(),
            )
        self._watchdog = Watchdog(self._process.pid, str(self._remove or ""))
        while self._process.poll() is None and not self._given_up:
            if processes.is_ready(self.data, self._process.pid):
                return None
            if time.monotonic() > deadline:
                self.stop("immediate")
                return "not ready in time\n"
            time.sleep(0.02)
        self.stop("immediate")
        with self.log.open("rb") as log:
            log.seek(before)
            return log.read().decode(errors="replace")

    def _run(self, program: str, *options: str, env: Mapping[str, str] | None = None, answers: str = "") -> None:
        with self._reachable_data() as (data, descriptors):
            done = subprocess.run(
                [self.bin_dir / program, "-D", data, *options],
                input=answers,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                cwd="/",
                env={**_environment(), **(env or {})},
                pass_fds=descriptors,
                start_new_session=True,
                **binaries.identity(),
            )
        if done.returncode != 0:
            raise UnfitServer(f"{program} failed in {self.directory}: {_last_words(done.stderr)}")

    @contextlib.contextmanager
    def _reachable_data(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The data directory's name for the server's user, and the descriptors that the server must inherit for it."""
        if binaries.can_enter(self.data):
            yield str(self.data), ()
            return
        # Root may keep its directories where the unprivileged user cannot walk (below /root, or in a mktemp -d).
        # A descriptor that was opened before the privileges are dropped leads there nevertheless.
        opened = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{opened}", (opened,)
        finally:
            os.close(opened)

    def _socket_directory(self) -> str:
        # A Unix socket's address holds 107 bytes.
        fits = len(os.fsencode(self.data / ".s.PGSQL.65535")) <= 107
        return str(self.data) if fits and "," not in str(self.data) and binaries.can_enter(self.data) else ""

    def _wait_for_end(self, pid: int, timeout: float) -> bool:
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                return False
            return True
        return processes.wait_gone([pid], timeout)

    def _ended(self) -> None:
        self.detach()
        self._process = None


def start_all(servers: Sequence[Server], timeout: float = 60.0) -> None:
    """Start servers side by side and wait until all accept connections; when one fails, none is left running.

    Raises:
        UnfitServer: one does not start.
    """
    # In threads even for one: Ctrl-C is raised in the main thread only, so it cannot fall between the making of a
    # process and our knowing of it.
    with ThreadPoolExecutor(max_workers=max(1, min(len(servers), (os.cpu_count() or 2) * 2))) as pool:
        starts = []
        try:
            for server in servers:
                server._given_up = False
                starts.append(pool.submit(server._start, timeout))
            for start in starts:
                start.result()
        except BaseException:
            # The pool alone will not do: it does not know of a thread whose making was interrupted.
            for server in servers:
                server._given_up = True
            for server in servers:
                server._give_up()
            stop_all(servers, "immediate")
            raise


def stop_all(servers: Iterable[Server], mode: Literal["fast", "immediate"] = "fast") -> None:
    """Stop servers side by side."""
    servers = list(servers)
    with ThreadPoolExecutor(max_workers=max(1, len(servers))) as pool:
        for stop in [pool.submit(server.stop, mode) for server in servers]:
            stop.result()


def _environment() -> dict[str, str]:
    # Variables of libpq or of the locale must not leak into a server or its tools.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _last_words(text: str) -> str:
    lines = [re.sub(r"^.*?\[\d+\] *", "", line).strip() for line in text.strip().splitlines()]
    telling = [line for line in lines if line and "database system is shut down" not in line]
    return "; ".join(telling[-3:]) or "it said nothing"
