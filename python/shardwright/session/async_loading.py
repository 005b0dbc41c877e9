"""`AsyncLoader`: what `Loader` is, for the tasks of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import sqlalchemy as sa

from shardwright.session.getting import Identity, deal_out, identities_of
from shardwright.session.loading import check_window

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster
    from shardwright.session.pools import AsyncDriver

M = TypeVar("M")


class AsyncLoader(Generic[M]):
    """Coalesces the gets of tasks by primary key; made by `Cluster.async_loader`, for one event loop.

    What tasks ask for in one turn of the loop is fetched together, in transactions of its own that begin afterwards, one
    a shard: a get sees whatever was committed before it. Nothing is remembered between batches; objects are detached, and
    the same get of two tasks gives them the same object.

    Args:
        cluster: the cluster.
        entity: a mapped class.
        window: seconds to wait for gets of other tasks, 0.01 at most; 0: until the loop's next turn.
        options: loader options of SQLAlchemy for the objects.
        driver: of the sessions.

    Raises:
        BadOption: the window is too long, or there is no such driver.
        MissingExtra: the driver is not installed.
    """

    def __init__(
        self, cluster: Cluster, entity: type[M], window: float, options: Sequence[Any], driver: AsyncDriver
    ) -> None:
        check_window(window)
        self._cluster = cluster
        self._entity = entity
        self._mapper = sa.inspect(entity).mapper
        self._window = window
        self._options = options
        self._sessions = cluster.async_sessionmaker(driver=driver, expire_on_commit=False)
        self._asked: dict[Identity, asyncio.Future[M | None]] = {}
        self._fetching: set[asyncio.Task[None]] = set()

    async def get(self, key: Any) -> M | None:
        """The object of a key, or None; fetched together with what other tasks ask for.

        Args:
            key: its primary key; a tuple where that has several columns.

        Raises:
            BadKey: it is none.
            SessionError, sqlalchemy.exc.DBAPIError: why its shard did not answer; other shards' keys are not affected.
        """
        (identity,) = identities_of(self._mapper, [key])
        # Whoever is cancelled takes nothing from the others that wait for the same object.
        return await asyncio.shield(self._ask(identity))

    async def get_many(self, keys: Iterable[Any]) -> list[M | None]:
        """The objects of many keys, in their order; None where there is no row.

        Args:
            keys: as for `get`.
        """
        asked = [self._ask(identity) for identity in identities_of(self._mapper, keys)]
        return await asyncio.gather(*(asyncio.shield(one) for one in asked))

    def _ask(self, identity: Identity) -> asyncio.Future[M | None]:
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_later(self._window, self._begin) if self._window else loop.call_soon(self._begin)
        return self._asked.setdefault(identity, loop.create_future())

    def _begin(self) -> None:
        asked, self._asked = self._asked, {}
        task = asyncio.get_running_loop().create_task(self._fetch(asked))
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)

    async def _fetch(self, asked: dict[Identity, asyncio.Future[M | None]]) -> None:
        try:
            parts = deal_out(self._cluster, self._mapper, list(asked))
            await asyncio.gather(*(self._fetch_part(part, asked) for part in parts))
        except BaseException as error:
            for future in asked.values():
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    async def _fetch_part(self, part: list[Identity], asked: dict[Identity, asyncio.Future[M | None]]) -> None:
        try:
            async with self._sessions() as session:
                found = await session.get_many(self._entity, part, options=self._options)
        except Exception as error:  # noqa: BLE001 - raised to each who asked for one of its keys
            for key in part:
                asked[key].set_exception(error)
            return
        for key, one in zip(part, found, strict=True):
            asked[key].set_result(one)
