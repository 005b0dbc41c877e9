"""What a process of the workload does (`shardwright.testing.workload` says which roles there are)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shardwright.session import Cluster
from shardwright.session.refresh import Mode
from shardwright.testing.acts import Act, DirectActs, SessionActs
from shardwright.testing.clients import DirectClient, Isolation, LibraryClient, Pause, Unfinished, Way, When
from shardwright.testing.history import Recorder, Seen
from shardwright.testing.spec import Spec

#: Elements and rows are numbered from here on, process by process: no two ever send the same one.
BLOCK = 1_000_000_000


class _Choices:
    """What to do next: keys, pages, numbers, at random from a seed."""

    def __init__(self, spec: Spec, number: int) -> None:
        self.random = random.Random(f"{spec.seed}/{number}")
        self._spec = spec
        self._hot = spec.keys[: max(1, len(spec.keys) // 10)]
        self._pages: dict[Any, int] = defaultdict(int)
        self._next = number * BLOCK
        #: Rows of ours that are there, and some that we have deleted.
        self.rows: dict[Any, list[int]] = defaultdict(list)
        self.gone: dict[Any, list[int]] = defaultdict(list)

    def key(self) -> Any:
        return self.random.choice(self._hot if self.random.random() < 0.5 else self._spec.keys)

    def number(self) -> int:
        self._next += 1
        return self._next

    def page(self, key: Any) -> int:
        return self._pages[key]

    def learn(self, key: Any, page: int, seen: object) -> None:
        """Turn the page when it is full."""
        if isinstance(seen, Seen) and seen.length >= self._spec.page_size and page == self._pages[key]:
            self._pages[key] += 1


class _Application:
    """What the processes that use the library do."""

    def __init__(self, spec: Spec, number: int, client: LibraryClient) -> None:
        self._spec = spec
        self._choices = _Choices(spec, number)
        self._acts = SessionActs(spec)
        self._client = client

    def write(self, way: Way) -> None:
        """One transaction that mostly writes."""
        pick = self._choices.random.random()
        if self._spec.counts and way == "routed" and pick < 0.04:
            table = self._choices.random.choice(self._spec.counts)
            self._client.transaction(way, None, lambda: [self._acts.count(table)])
        elif pick < 0.45:
            self._append(way, with_read=False)
        elif pick < 0.6:
            self._append(way, with_read=True)
        elif pick < 0.72 and self._spec.counted:
            self._count_up(way)
        elif pick < 0.84:
            self._insert(way)
        elif pick < 0.9:
            self._delete(way)
        else:
            self.read(way)

    def read(self, way: Way) -> None:
        """One transaction that only reads."""
        choices, acts = self._choices, self._acts
        pick = choices.random.random()
        key = choices.key()
        known = [row for rows in (choices.rows[key], choices.gone[key]) for row in rows]
        if pick < 0.2 and self._spec.counted:
            counter = choices.random.choice(self._spec.counted)
            self._client.transaction(way, counter[0], lambda: [acts.look(*counter)])
        elif pick < 0.4 and known:
            row = choices.random.choice(known)
            self._client.transaction(way, key, lambda: [acts.find(key, row)])
        else:
            page = choices.page(key)
            (seen,) = self._client.transaction(way, key, lambda: [acts.read(key, page)])
            choices.learn(key, page, seen)

    def _append(self, way: Way, *, with_read: bool) -> None:
        choices, acts = self._choices, self._acts
        key = choices.key()
        page = choices.page(key)

        def make() -> list[Act[Any]]:
            append = acts.append(key, page, choices.number())
            return [append, acts.read(key, page)] if with_read else [append]

        choices.learn(key, page, self._client.transaction(way, key, make)[0])

    def _count_up(self, way: Way) -> None:
        """Two tables in one transaction: a counter, and the list of the same key."""
        choices, acts = self._choices, self._acts
        key, number = choices.random.choice(self._spec.counted)
        page = choices.page(key)
        seen = self._client.transaction(
            way, key, lambda: [acts.add(key, number), acts.append(key, page, choices.number())]
        )
        choices.learn(key, page, seen[1])

    def _insert(self, way: Way) -> None:
        choices = self._choices
        key = choices.key()
        sent: list[int] = []

        def make() -> list[Act[Any]]:
            sent.append(choices.number())
            return [self._acts.insert(key, sent[-1])]

        self._client.transaction(way, key, make)
        choices.rows[key].append(sent[-1])

    def _delete(self, way: Way) -> None:
        choices = self._choices
        key = next((key for key in choices.rows if choices.rows[key]), None)
        if key is None:
            return self._insert(way)
        # Out of the list before it is tried: whatever the outcome is, a row is deleted once.
        row = choices.rows[key].pop(choices.random.randrange(len(choices.rows[key])))
        self._client.transaction(way, key, lambda: [self._acts.delete(key, row)])
        choices.gone[key] = [*choices.gone[key][-3:], row]
        return None


def _paced(stop: threading.Event, rate: float) -> Iterator[None]:
    """Ticks at a rate until told to stop; a process that falls behind does not catch up in a burst."""
    tick = time.monotonic()
    while not stop.is_set():
        yield
        tick = max(tick + 1 / rate, time.monotonic() - 1 / rate)
        stop.wait(max(0.0, tick - time.monotonic()))


def _apply(spec: Spec, role: str, number: int, stop: threading.Event) -> None:
    """The roles that use the library."""
    way: Way = "run" if role == "run" else "routed" if role == "routed" else "pinned"
    refresh: Mode = "never" if role in ("run", "reader") else "listen"
    path = Path(spec.directory) / f"{role}-{number}.history"
    reads = spec.reads if role == "reader" else "strict"
    with (
        Cluster.connect(spec.catalog, application=role, refresh=refresh, reads=reads) as cluster,
        Recorder(path, f"{role}-{number}") as recorder,
    ):
        application = _Application(spec, number, LibraryClient(cluster, spec, recorder))
        work: Callable[[Way], None] = application.read if role == "reader" else application.write
        _say("ready")
        for _ in _paced(stop, spec.rate):
            with contextlib.suppress(Unfinished):
                work(way)


def _direct(spec: Spec, role: str, number: int, stop: threading.Event) -> None:
    """A client without the library: it writes to one server, whatever happens, and lives with the refusals."""
    choices, acts = _Choices(spec, number), DirectActs(spec)
    path = Path(spec.directory) / f"{role}-{number}.history"
    with Recorder(path, f"{role}-{number}") as recorder:
        client = DirectClient(spec.direct[spec.direct_shard], recorder, spec.direct_shard)
        _say("ready")
        for _ in _paced(stop, spec.rate):
            key = choices.random.choice(spec.direct_keys) if choices.random.random() < 0.8 else choices.key()
            page = choices.page(key)
            with contextlib.suppress(Unfinished):
                seen = client.transaction([acts.append(key, page, choices.number())])
                choices.learn(key, page, seen[0])
        client.close()


class _Idler:
    """Transactions that stay open between two statements while everything else goes on."""

    WAYS: Sequence[tuple[str, Isolation, When]] = tuple(
        (way, isolation, when)
        for way in ("pinned", "run", "direct")
        for isolation in ("READ COMMITTED", "REPEATABLE READ")
        for when in ("between", "at the end")
    )

    def __init__(self, spec: Spec, role: str, number: int, cluster: Cluster) -> None:
        self._spec = spec
        self._name = f"{role}-{number}"
        self._number = number
        self._cluster = cluster
        self._failures: list[BaseException] = []
        self._rounds = 0

    def round(self, shard: str, keys: Sequence[Any]) -> None:
        """One transaction of each kind; says ``open`` when all have done their first statement, ``closed`` at the end."""
        self._rounds += 1
        chosen = random.Random(f"{self._spec.seed}/{self._name}/{self._rounds}").sample(keys, len(self.WAYS))
        opened = [threading.Event() for _ in self.WAYS]
        threads = [
            threading.Thread(target=self._one, args=(index, *way, shard, chosen[index], opened[index]))
            for index, way in enumerate(self.WAYS)
        ]
        for thread in threads:
            thread.start()
        for event in opened:
            event.wait()
        _say("open")
        for thread in threads:
            thread.join()
        for failure in self._failures:
            raise failure
        _say("closed")

    def _one(
        self, index: int, way: str, isolation: Isolation, when: When, shard: str, key: Any, opened: threading.Event
    ) -> None:
        name = f"{self._name}-{self._rounds}-{index}"
        # Pages of its own: what others append does not wait for this transaction.
        page = self._number * 10_000 + self._rounds * 100 + index * 2
        numbers = iter(range(page * BLOCK, (page + 1) * BLOCK))

        def wait() -> None:
            opened.set()
            time.sleep(self._spec.idle)

        idle = Pause(when, wait)

        def acts(factory: SessionActs | DirectActs) -> list[Act[Any]]:
            return [factory.append(key, page, next(numbers)), factory.append(key, page + 1, next(numbers))]

        try:
            with (
                Recorder(Path(self._spec.directory) / f"{name}.history", name) as recorder,
                contextlib.suppress(Unfinished),
            ):
                if way == "direct":
                    client = DirectClient(self._spec.direct[shard], recorder, shard)
                    with contextlib.closing(client):
                        client.transaction(acts(DirectActs(self._spec)), isolation=isolation, idle=idle)
                else:
                    factory = SessionActs(self._spec)
                    library = LibraryClient(self._cluster, self._spec, recorder)
                    chosen: Way = "run" if way == "run" else "pinned"
                    library.transaction(chosen, key, lambda: acts(factory), isolation=isolation, idle=idle)
        except BaseException as failure:
            self._failures.append(failure)
            raise
        finally:
            opened.set()


def _idle(spec: Spec, role: str, number: int) -> None:
    with Cluster.connect(spec.catalog, application=role, refresh="never") as cluster:
        idler = _Idler(spec, role, number, cluster)
        _say("ready")
        for line in sys.stdin:
            idler.round(**json.loads(line))


def _say(word: str) -> None:
    print(word, flush=True)


def work(path: Path, role: str, number: int) -> None:
    """Do a role's work until stdin is closed.

    Args:
        path: of the file that `Spec.save` wrote.
        role: which.
        number: of the process; it keeps its elements and its random choices apart from the others'.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # An application has machines of its own: here it must not take the processors from the servers.
    os.nice(10)
    spec = Spec.load(path)
    if role == "idle":
        _idle(spec, role, number)
        return
    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    (_direct if role == "direct" else _apply)(spec, role, number, stop)
