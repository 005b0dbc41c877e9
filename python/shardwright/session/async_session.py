"""`AsyncShardSession`: SQLAlchemy's AsyncSession on the shards of a cluster.

All that decides is `ShardSession`'s; it runs in SQLAlchemy's greenlets, and waits as tasks do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import greenlet_spawn

from shardwright import errors
from shardwright.session.session import ShardSession

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster
    from shardwright.session.explaining import Explanation
    from shardwright.session.pools import AsyncDriver

_O = TypeVar("_O")


class AsyncShardSession(AsyncSession):
    """A session on the shards of a cluster, for one task at a time; made by `Cluster.async_sessionmaker`'s factory.

    Args:
        bind: not used here; a session's shards are its cluster's.
        cluster: the cluster.
        driver: "psycopg" or "asyncpg".
        options: arguments of `ShardSession`: key, keyspace, model, reads, and so on.

    Raises:
        BadKey, BadOption, UnknownKeyspace: as for `ShardSession`.
    """

    sync_session_class: type[ShardSession] = ShardSession
    sync_session: ShardSession

    def __init__(self, bind: Any = None, *, cluster: Cluster, driver: AsyncDriver = "psycopg", **options: Any) -> None:
        if bind is not None or options.get("binds"):
            raise errors.BadOption(
                "a session of a cluster takes no bind", fix="leave it out: its shards are the cluster's"
            )
        super().__init__(None, cluster=cluster, **options, driver=cluster.async_driver(driver))

    def explain_route(self, statement: Any, params: Any = None, *, bind_arguments: Any = None) -> Explanation:
        """As `ShardSession.explain_route`; nothing is awaited."""
        return self.sync_session.explain_route(statement, params, bind_arguments=bind_arguments)

    async def get_many(self, entity: type[_O], keys: Iterable[Any], *, options: Sequence[Any] = ()) -> list[_O | None]:
        """As `ShardSession.get_many`."""
        return await greenlet_spawn(self.sync_session.get_many, entity, keys, options=options)
