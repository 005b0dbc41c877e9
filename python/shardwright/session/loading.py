"""`Loader`: single gets by primary key that become one statement a shard."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import sqlalchemy as sa

from shardwright import errors
from shardwright.session.getting import Identity, deal_out, identities_of
from shardwright.session.waiting import together

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster

M = TypeVar("M")

#: The longest time that a get may wait for others, in seconds.
LONGEST_WINDOW = 0.01


class Loading(Generic[M]):
    """An object that was asked for, and is fetched when somebody needs it."""

    def __init__(self, loader: Loader[M], future: Future[M | None]) -> None:
        self._loader = loader
        self._future = future

    def result(self) -> M | None:
        """The object, detached, or None where there is no such row. Fetches all that were asked for until now.

        Raises:
            SessionError, sqlalchemy.exc.DBAPIError: why its shard did not answer; other shards' keys are not affected.
        """
        self._loader._see_to(self._future)
        return self._future.result()


class Loader(Generic[M]):
    """Coalesces gets by primary key; made by `Cluster.loader`, and may be used from many threads.

    Each batch is read in transactions of its own that begin after its last get, one a shard: a get sees whatever was
    committed before it, and shares no transaction with anybody's writes. Nothing is remembered between batches.

    Args:
        cluster: the cluster.
        entity: a mapped class.
        window: seconds to wait for gets of other threads, 0.01 at most.
        options: loader options of SQLAlchemy for the objects.

    Raises:
        BadOption: the window is too long.
    """

    def __init__(self, cluster: Cluster, entity: type[M], window: float, options: Sequence[Any]) -> None:
        check_window(window)
        self._cluster = cluster
        self._entity = entity
        self._mapper = sa.inspect(entity).mapper
        self._window = window
        self._options = options
        self._sessions = cluster.sessionmaker(expire_on_commit=False)
        self._lock = threading.Lock()
        self._asked: dict[Identity, Future[M | None]] = {}

    def load(self, key: Any) -> Loading[M]:
        """Ask for an object, without fetching it yet.

        Args:
            key: its primary key; a tuple where that has several columns.

        Raises:
            BadKey: it is none.
        """
        (identity,) = identities_of(self._mapper, [key])
        with self._lock:
            future = self._asked.setdefault(identity, Future())
        return Loading(self, future)

    def get(self, key: Any) -> M | None:
        """The object of a key, or None; fetched together with all that were asked for meanwhile.

        Args:
            key: as for `load`.
        """
        return self.load(key).result()

    def get_many(self, keys: Iterable[Any]) -> list[M | None]:
        """The objects of many keys, in their order; None where there is no row.

        Args:
            keys: as for `load`.
        """
        asked = [self.load(key) for key in keys]
        return [one.result() for one in asked]

    def _see_to(self, future: Future[M | None]) -> None:
        """Have a future fetched: by this thread, unless another one has taken it."""
        if self._window and not future.done():
            self._cluster.waiting.pause(self._window)
        with self._lock:
            if future not in self._asked.values():
                return
            asked, self._asked = self._asked, {}
        self._fetch(asked)

    def _fetch(self, asked: dict[Identity, Future[M | None]]) -> None:
        try:
            parts = deal_out(self._cluster, self._mapper, list(asked))
        except BaseException as error:
            for future in asked.values():
                future.set_exception(error)
            raise

        def fetch(part: list[Identity]) -> None:
            try:
                with self._sessions() as session:
                    found = session.get_many(self._entity, part, options=self._options)
            except BaseException as error:  # noqa: BLE001 - raised to each who asked for one of its keys
                for key in part:
                    asked[key].set_exception(error)
                return
            for key, one in zip(part, found, strict=True):
                asked[key].set_result(one)

        together(self._cluster.waiting, [lambda part=part: fetch(part) for part in parts])  # type: ignore[misc]


def check_window(window: float) -> None:
    """Refuse a window that is none.

    Args:
        window: seconds.

    Raises:
        BadOption: it is negative, or longer than `LONGEST_WINDOW`.
    """
    if not 0 <= window <= LONGEST_WINDOW:
        raise errors.BadOption(f"window={window!r} has no meaning", fix=f"give 0 to {LONGEST_WINDOW:g} seconds")
