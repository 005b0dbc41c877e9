"""The log of touched keys of a partition that is being cut, and its replay into the pieces.

While the pieces are filled, an AFTER ROW trigger on the fat partition writes the key of every row that is inserted,
updated or deleted into an insert-only table. A replay takes the logged keys, deletes them from the pieces, and inserts
what the fat partition has of them now. A trigger that changed the pieces itself would not do: the DELETE of a
REPEATABLE READ transaction does not see a row that was copied after its snapshot, and that row would rise again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from shardwright.partition.carried import qualified
from shardwright.partition.shapes import Partition
from shardwright.routing.predicates import quote_identifier as ident
from shardwright.routing.predicates import quote_literal as literal

#: Name of the trigger on the fat partition.
TRIGGER = "~shardwright_touch"

#: From how many keys on the planner is told how many they are.
_MANY = 500


@dataclass(frozen=True)
class Cutting:
    """Names and columns of one fat partition that is being cut, on one shard."""

    schema: str
    parent: str
    fat: str
    #: Oid of the fat partition; part of the names of what is made for the work.
    relid: int
    #: The partition column.
    column: str
    #: Its type, as format_type prints it.
    column_type: str
    #: Columns that are copied (all but generated ones), and those of the key.
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    pieces: tuple[Partition, ...]
    #: SQL of the lower bounds of all pieces but the first.
    fences: tuple[str, ...]

    @property
    def source(self) -> str:
        """The fat partition, qualified."""
        return qualified(self.schema, self.fat)

    @property
    def log(self) -> str:
        """The log, qualified."""
        return f"shardwright.touched_{self.relid}"

    @property
    def function(self) -> str:
        """The trigger's function, qualified."""
        return f"shardwright.touch_{self.relid}"

    @property
    def staging(self) -> str:
        """The partitioned table that gives rows to the pieces while they are filled, qualified."""
        return f"shardwright.split_{self.relid}"

    @property
    def made(self) -> str:
        """The list of the pieces' tables, qualified."""
        return f"shardwright.pieces_{self.relid}"

    @property
    def copied(self) -> str:
        """The list of the page runs that were copied, qualified."""
        return f"shardwright.copied_{self.relid}"

    @property
    def taken(self) -> str:
        """The temporary table of the keys that a replay takes."""
        return f"pg_temp.taken_{self.relid}"

    def piece(self, number: int) -> str:
        """One piece, qualified.

        Args:
            number: from 0.
        """
        return qualified(self.schema, self.pieces[number].name)

    def number_sql(self, column: str) -> str:
        """SQL of the number of the piece that a row lies in.

        Args:
            column: SQL of the partition column.
        """
        if not self.fences:
            return "0"
        return f"width_bucket({column}, ARRAY[{', '.join(self.fences)}]::{self.column_type}[])"

    def list_sql(self, columns: Sequence[str], prefix: str = "") -> str:
        """SQL of a list of columns.

        Args:
            columns: their names.
            prefix: an alias with its dot.
        """
        return ", ".join(prefix + ident(name) for name in columns)

    def same_key_sql(self, left: str, right: str) -> str:
        """SQL that is true where two rows have the same key.

        Args:
            left: an alias.
            right: an alias.
        """
        return " AND ".join(f"{left}.{ident(name)} = {right}.{ident(name)}" for name in self.keys)


def open_log(connection: psycopg.Connection, work: Cutting) -> None:
    """Make the log and its trigger, in the caller's transaction under a lock_timeout.

    CREATE TRIGGER (SHARE ROW EXCLUSIVE) waits for every writer that would not log: whoever writes after the commit does.

    Args:
        connection: to the shard.
        work: the names.
    """
    keys = work.list_sql(work.keys)
    body = (
        f"BEGIN IF TG_OP <> 'INSERT' THEN INSERT INTO {work.log} VALUES ({work.list_sql(work.keys, 'OLD.')}); END IF; "
        f"IF TG_OP <> 'DELETE' THEN INSERT INTO {work.log} VALUES ({work.list_sql(work.keys, 'NEW.')}); END IF; "
        "RETURN NULL; END"
    )
    for text in (
        f"CREATE TABLE {work.log} AS SELECT {keys} FROM {work.source} WITH NO DATA",
        f"ALTER TABLE {work.log} SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000)",
        f"CREATE FUNCTION {work.function}() RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER "
        f"SET search_path = pg_catalog, pg_temp AS {literal(body)}",
        f"REVOKE ALL ON FUNCTION {work.function}() FROM PUBLIC",
        f"CREATE TRIGGER {ident(TRIGGER)} AFTER INSERT OR UPDATE OR DELETE ON {work.source} "
        f"FOR EACH ROW EXECUTE FUNCTION {work.function}()",
        # What a subscription's apply worker writes is logged too.
        f"ALTER TABLE {work.source} ENABLE ALWAYS TRIGGER {ident(TRIGGER)}",
    ):
        connection.execute(text.encode())


def is_open(connection: psycopg.Connection, work: Cutting) -> bool:
    """Whether the log and its trigger are there.

    Args:
        connection: to the shard.
        work: the names.
    """
    row = connection.execute(
        "SELECT FROM pg_trigger WHERE tgrelid = %s AND tgname = %s AND tgenabled = 'A'", (work.relid, TRIGGER)
    ).fetchone()
    return row is not None


def close_log(connection: psycopg.Connection, work: Cutting, *, attached: bool) -> None:
    """Drop the log, the trigger and what else was made for the work beside the pieces.

    Args:
        connection: to the shard, in a transaction under a lock_timeout where the trigger is still there.
        work: the names.
        attached: whether the trigger may still be there.
    """
    if attached:
        connection.execute(f"DROP TRIGGER IF EXISTS {ident(TRIGGER)} ON {work.source}".encode())
    connection.execute(f"DROP FUNCTION IF EXISTS {work.function}()".encode())
    connection.execute(f"DROP TABLE IF EXISTS {work.log}, {work.copied}, {work.made}, {work.staging}".encode())


def ready(connection: psycopg.Connection, work: Cutting) -> None:
    """Make the temporary table that replays on this connection need.

    Args:
        connection: to the shard, in autocommit mode.
        work: the names.
    """
    text = f"CREATE TEMP TABLE IF NOT EXISTS taken_{work.relid} (LIKE {work.log}) ON COMMIT DELETE ROWS"
    connection.execute(text.encode())


def replay(connection: psycopg.Connection, work: Cutting) -> int:
    """Bring the pieces up to what was logged and committed so far, in the caller's transaction at READ COMMITTED.

    Each statement sees what was committed before it: a row that changes between two of them is logged anew, and replayed
    again by the next call.

    Args:
        connection: to the shard; `ready` was called on it.
        work: the names.

    Returns:
        How many keys were taken.
    """
    taken = connection.execute(
        f"WITH gone AS (DELETE FROM {work.log} RETURNING *) INSERT INTO {work.taken} SELECT DISTINCT * FROM gone".encode()
    ).rowcount
    if not taken:
        return 0
    if taken >= _MANY:
        connection.execute(f"ANALYZE {work.taken}".encode())
    number = work.number_sql(f"t.{ident(work.column)}")
    columns = work.list_sql(work.columns)
    touched = connection.execute(f"SELECT DISTINCT {number} FROM {work.taken} t ORDER BY 1".encode()).fetchall()
    for (one,) in touched:
        piece, here = work.piece(one), f"{number} = {one}"
        connection.execute(
            f"DELETE FROM {piece} p USING {work.taken} t WHERE {here} AND {work.same_key_sql('p', 't')}".encode()
        )
        connection.execute(
            f"INSERT INTO {piece} ({columns}) OVERRIDING SYSTEM VALUE SELECT {work.list_sql(work.columns, 's.')} "
            f"FROM {work.taken} t JOIN ONLY {work.source} s ON {work.same_key_sql('s', 't')} WHERE {here}".encode()
        )
    return taken


def waiting(connection: psycopg.Connection, work: Cutting, up_to: int) -> int:
    """How many logged keys wait for their replay; counted up to a bound.

    Args:
        connection: to the shard.
        work: the names.
        up_to: the bound.
    """
    row = connection.execute(f"SELECT count(*) FROM (SELECT FROM {work.log} LIMIT {up_to:d}) l".encode()).fetchone()
    return int(row[0]) if row is not None else 0
