"""Where a table's rows are: in the table itself, or in the leaves of a partitioned one.

Copying, comparing and deleting go part by part. A query on a partitioned table locks all its leaves and their indexes until
its transaction ends, and a server with default settings has locks for a few thousand; a part at a time needs a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg

from shardwright import errors
from shardwright.routing.predicates import GuardedTable, quote_identifier

#: Parts that one transaction touches at most.
PARTS_AT_ONCE = 100


@dataclass(frozen=True)
class Part:
    """A table that holds rows: a leaf partition, or an ordinary table."""

    schema: str
    name: str
    relid: int
    #: Changes when the table is rewritten or truncated.
    filenode: int
    #: Bounds as PostgreSQL prints them in UTC, one level after the other; None for an ordinary table.
    bounds: str | None
    #: ``r`` for a table; anything else cannot move.
    relkind: str = "r"
    #: Replica identity, as in pg_class.
    identity: str = "d"
    #: A DETACH CONCURRENTLY of it broke off: its rows are not seen through the partitioned table any more.
    pending: bool = False

    @property
    def qualified(self) -> str:
        """Its quoted, schema-qualified name."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"


_PARTS = """
WITH RECURSIVE below(oid, relkind, bounds, pending) AS (
    SELECT c.oid, c.relkind, NULL::text COLLATE "C", false FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s
     UNION ALL
    SELECT c.oid, c.relkind, concat_ws(' / ', b.bounds, pg_get_expr(c.relpartbound, 0)), b.pending OR i.inhdetachpending
      FROM below b JOIN pg_inherits i ON i.inhparent = b.oid AND b.relkind = 'p' JOIN pg_class c ON c.oid = i.inhrelid)
SELECT n.nspname, c.relname, c.oid::int8, c.relfilenode::int8, b.bounds, b.relkind::text, c.relreplident::text, b.pending
  FROM below b JOIN pg_class c ON c.oid = b.oid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE b.relkind <> 'p' ORDER BY b.bounds NULLS FIRST, c.relname
"""


def of(connection: psycopg.Connection, schema: str, table: str) -> list[Part]:
    """The parts of a table, as the transaction's snapshot has them; nothing is locked.

    Args:
        connection: to the shard, with TimeZone and DateStyle pinned as `engines` does.
        schema: the table's schema.
        table: its name.
    """
    return [Part(*row) for row in connection.execute(_PARTS, (schema, table)).fetchall()]


def of_table(connection: psycopg.Connection, table: GuardedTable) -> list[Part]:
    """The parts of a table that hold rows of it: those of which a detach broke off are left out.

    Args:
        connection: to the shard.
        table: whose.
    """
    return [part for part in of(connection, table.schema_name, table.table_name) if not part.pending]


def pages_of(connection: psycopg.Connection, some: Sequence[Part]) -> list[int]:
    """Size of each part in pages now, 0 for one that is gone.

    Args:
        connection: to the shard.
        some: the parts.
    """
    rows = connection.execute(
        "SELECT coalesce(pg_relation_size(t.relid::oid) / current_setting('block_size')::int8, 0)::int8 "
        "FROM unnest(%s::int8[]) WITH ORDINALITY AS t(relid, at) ORDER BY t.at",
        ([part.relid for part in some],),
    ).fetchall()
    return [int(row[0]) for row in rows]


def check_same(connection: psycopg.Connection, some: Sequence[Part], shard: str) -> None:
    """Check that parts were not rewritten since they were listed. Call it in the transaction that has read them.

    An exported snapshot reads nothing, and says nothing, where a table was truncated or rewritten after it.

    Args:
        connection: to the shard, in a transaction that holds the locks of its reading.
        some: as listed under the same snapshot.
        shard: the shard's name, for the message.

    Raises:
        StreamStalled: one was.
    """
    rows = connection.execute(
        "SELECT t.at FROM unnest(%s::int8[], %s::int8[]) WITH ORDINALITY AS t(relid, filenode, at) "
        "WHERE pg_relation_filenode(t.relid::oid)::int8 IS DISTINCT FROM t.filenode ORDER BY t.at LIMIT 5",
        ([part.relid for part in some], [part.filenode for part in some]),
    ).fetchall()
    if rows:
        names = ", ".join(f"{some[row[0] - 1].schema}.{some[row[0] - 1].name}" for row in rows)
        raise errors.StreamStalled(
            f"{names} on {shard} was truncated or rewritten while it was read",
            fix="let whoever did it end, then resume: it is read again",
        )


def groups(some: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """Parts in runs that one transaction can touch."""
    for first in range(0, len(some), PARTS_AT_ONCE):
        yield some[first : first + PARTS_AT_ONCE]
