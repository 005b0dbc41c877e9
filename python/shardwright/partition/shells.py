"""The tables of the pieces of a partition that is being cut: made beside the parent, filled, and only then indexed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import psycopg

from shardwright import errors
from shardwright.catalog import guards
from shardwright.failpoints import reach
from shardwright.partition import leaves
from shardwright.partition.carried import identity_like, owner_only, qualified
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite
from shardwright.partition.touched import Cutting
from shardwright.routing.predicates import quote_identifier as ident

# What LIKE gives a table that is to be filled before it has indexes. Identity stays with the parent.
_LIKE = (
    "INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION "
    "INCLUDING STATISTICS INCLUDING COMMENTS"
)


def make(site: PartitionSite, work: Cutting) -> None:
    """Make what is missing of the pieces' tables, the table that gives rows to them, and the lists of the work.

    Takes ACCESS SHARE on the parent.

    Args:
        site: the table and shard.
        work: the names.

    Raises:
        UnfitTable: a name is taken.
    """
    connection, parent = site.connection, site.parent.as_string(site.connection)
    with connection.transaction():
        for text in (
            f"CREATE TABLE IF NOT EXISTS {work.copied} (first_page int8 PRIMARY KEY, rows int8 NOT NULL)",
            f"CREATE TABLE IF NOT EXISTS {work.made} (name text PRIMARY KEY, relid oid NOT NULL)",
        ):
            connection.execute(text.encode())
        there = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (work.staging,)).fetchone()
        if there is not None and not there[0]:
            text = f"CREATE TABLE {work.staging} (LIKE {parent} INCLUDING GENERATED) PARTITION BY RANGE ({ident(work.column)})"
            connection.execute(text.encode())
    done = ours(connection, work)
    for number, piece in enumerate(work.pieces):
        if piece.name not in done:
            _make_one(site, work, number)
            reach("partition.split_piece_made")
            site.on_progress()


def ours(connection: psycopg.Connection, work: Cutting) -> set[str]:
    """Names of the pieces that were made for this work and are there: by name and relid.

    Args:
        connection: to the shard.
        work: the names.
    """
    there = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (work.made,)).fetchone()
    if there is None or not there[0]:
        return set()
    rows = connection.execute(
        f"SELECT m.name FROM {work.made} m JOIN pg_class c ON c.oid = m.relid AND c.relname = m.name "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s".encode(),
        (work.schema,),
    ).fetchall()
    return {row[0] for row in rows}


def _make_one(site: PartitionSite, work: Cutting, number: int) -> None:
    connection, piece = site.connection, work.pieces[number]
    name, parent = work.piece(number), site.parent.as_string(site.connection)
    facts = connection.execute(
        "SELECT pg_get_userbyid(c.relowner), s.spcname, f.reloptions, m.amname "
        "FROM pg_class c JOIN pg_class f ON f.oid = %s JOIN pg_database d ON d.datname = current_database() "
        "JOIN pg_tablespace s ON s.oid = coalesce(nullif(f.reltablespace, 0), d.dattablespace) "
        "LEFT JOIN pg_am m ON m.oid = f.relam WHERE c.oid = %s::regclass",
        (work.relid, parent),
    ).fetchone()
    assert facts is not None
    owner, tablespace, options, method = facts
    extra = f" USING {ident(method)}" if method else ""
    extra += f" WITH ({', '.join(options)})" if options else ""
    extra += f" TABLESPACE {ident(tablespace)}"
    try:
        with connection.transaction():
            connection.execute(f"CREATE TABLE {name} (LIKE {parent} {_LIKE}){extra}".encode())
            leaves.add_checks(site, piece)
            connection.execute(f"ALTER TABLE {name} OWNER TO {ident(owner)}".encode())
            connection.execute(owner_only(name).encode())
            bounds = site.bounds(piece.lower, piece.upper).as_string(connection)
            connection.execute(f"ALTER TABLE {work.staging} ATTACH PARTITION {name} {bounds}".encode())
            connection.execute(
                f"INSERT INTO {work.made} VALUES (%s, %s::regclass) ON CONFLICT (name) DO UPDATE "
                "SET relid = excluded.relid".encode(),
                (piece.name, name),
            )
    except psycopg.errors.DuplicateTable as error:
        raise errors.UnfitTable(
            f"{work.schema}.{piece.name} on shard {site.shard.name} is there already, and not ours",
            fix="rename it, then run this again",
            table=site.table.name,
        ) from error


def empty(connection: psycopg.Connection, work: Cutting) -> None:
    """Empty the pieces and the list of what was copied: the copy begins anew.

    Args:
        connection: to the shard.
        work: the names.
    """
    names = ", ".join(work.piece(number) for number in range(len(work.pieces)))
    with connection.transaction():
        connection.execute(f"TRUNCATE {names}, {work.copied}".encode())


def loosen(connection: psycopg.Connection, work: Cutting) -> None:
    """Take the pieces out of the table that gave rows to them, and drop it. Nobody else knows them.

    Args:
        connection: to the shard.
        work: the names.
    """
    with connection.transaction():
        attached = connection.execute(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(%s)",
            (work.staging,),
        ).fetchall()
        for (name,) in attached:
            piece = qualified(work.schema, name)
            connection.execute(f"ALTER TABLE {work.staging} DETACH PARTITION {piece}".encode())
        connection.execute(f"DROP TABLE IF EXISTS {work.staging}".encode())


def drop(connection: psycopg.Connection, work: Cutting) -> None:
    """Drop the pieces: the work is given up. Only those that were made for it.

    Args:
        connection: to the shard.
        work: the names.
    """
    for name in sorted(ours(connection, work)):
        connection.execute(f"DROP TABLE {qualified(work.schema, name)}".encode())


# ------------------------------------------------------------------ indexes and foreign keys

# Of the parent: what ALTER TABLE ADD or CREATE INDEX .. ON needs; primary keys first. What is there of a piece is found
# by its text.
_INDEXES = """
SELECT co.contype, pg_get_constraintdef(co.oid), i.indisunique,
       substr(pg_get_indexdef(ic.oid), length(format('CREATE %%sINDEX %%I ON %%s%%I.%%I ',
              CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, ic.relname,
              CASE WHEN c.relkind = 'p' THEN 'ONLY ' ELSE '' END, n.nspname, c.relname)) + 1)
  FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_constraint co ON co.conindid = i.indexrelid AND co.contype IN ('p', 'u', 'x')
 WHERE i.indrelid = %s::regclass AND i.indisvalid
 ORDER BY i.indisprimary DESC, i.indisunique DESC, ic.relname
"""


def build_indexes(
    connect: Callable[[], psycopg.Connection], work: Cutting, workers: int, on_progress: Callable[[], None]
) -> None:
    """Build the parent's keys and indexes on every piece, some pieces at a time, and analyze them.

    Args:
        connect: opens one more connection to the shard.
        work: the names.
        workers: how many pieces at a time.
        on_progress: told between pieces, in this thread; it may raise.
    """
    left = list(reversed(range(len(work.pieces))))
    failures: list[BaseException] = []

    def serve(of_caller: bool) -> None:
        try:
            with connect() as connection:
                while left and not failures:
                    try:
                        number = left.pop()
                    except IndexError:
                        return
                    build_one(connection, qualified(work.schema, work.parent), work.piece(number))
                    connection.execute(f"VACUUM (ANALYZE) {work.piece(number)}".encode())
                    if of_caller:
                        reach("partition.split_half_indexed")
                        on_progress()
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            failures.append(error)

    others = [threading.Thread(target=serve, args=(False,), daemon=True) for _ in range(workers - 1)]
    for thread in others:
        thread.start()
    serve(True)
    for thread in others:
        thread.join()
    if failures:
        raise failures[0]


def build_one(connection: psycopg.Connection, parent: str, piece: str) -> None:
    """Build what is missing of the parent's keys and indexes on one piece, and give it its replica identity.

    Args:
        connection: to the shard.
        parent: the parent, qualified.
        piece: the piece, qualified.
    """
    wanted = connection.execute(_INDEXES.encode(), (parent,)).fetchall()
    have = [tuple(row) for row in connection.execute(_INDEXES.encode(), (piece,)).fetchall()]
    with connection.transaction():
        for row in wanted:
            kind, definition, unique, method = row
            if tuple(row) in have:
                have.remove(tuple(row))
            elif kind is not None:
                connection.execute(f"ALTER TABLE {piece} ADD {definition}".encode())
            else:
                connection.execute(f"CREATE {'UNIQUE ' if unique else ''}INDEX ON {piece} {method}".encode())


def build_foreign_keys(site: PartitionSite, work: Cutting) -> None:
    """Give each piece the parent's foreign keys: first NOT VALID, then validated while everybody reads and writes.

    A row that was deleted from the fat partition stays in its piece until the next replay, and must not keep the row that it
    refers to from being deleted. So the triggers on the referenced table do not fire for the pieces until they are
    attached, when the parent's take their place. That is a superuser's right; without it such a delete may be refused
    for the moments between two replays.

    Args:
        site: the table and shard.
        work: the names.
    """
    connection = site.connection
    for number in range(len(work.pieces)):
        piece = work.piece(number)
        missing = connection.execute(
            "SELECT co.conname, regexp_replace(pg_get_constraintdef(co.oid), ' NOT VALID$', ''), n.nspname, f.relname "
            "FROM pg_constraint co JOIN pg_class f ON f.oid = co.confrelid JOIN pg_namespace n ON n.oid = f.relnamespace "
            "WHERE co.conrelid = %s::regclass AND co.contype = 'f' AND co.conparentid = 0 AND NOT EXISTS "
            "(SELECT FROM pg_constraint p WHERE p.conrelid = %s::regclass AND p.contype = 'f' AND p.conname = co.conname)",
            (site.parent.as_string(connection), piece),
        ).fetchall()
        for name, definition, schema, table in missing:

            def add(name: str = name, definition: str = definition, piece: str = piece) -> None:
                connection.execute(f"ALTER TABLE {piece} ADD CONSTRAINT {ident(name)} {definition} NOT VALID".encode())
                _silence(connection, piece, name)

            site.patiently(add, also=[table] if schema == site.schema else [])
        site.on_progress()


def unvalidated(connection: psycopg.Connection, work: Cutting) -> list[tuple[str, str]]:
    """Pieces, qualified, and their foreign keys that are to be validated.

    Args:
        connection: to the shard.
        work: the names.
    """
    names = [work.piece(number) for number in range(len(work.pieces))]
    return connection.execute(
        "SELECT w.piece, co.conname FROM unnest(%s::text[]) AS w(piece) JOIN pg_constraint co "
        "ON co.conrelid = w.piece::regclass AND co.contype = 'f' AND NOT co.convalidated AND co.conparentid = 0",
        (names,),
    ).fetchall()


def _silence(connection: psycopg.Connection, piece: str, constraint: str) -> None:
    row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    if row is None or not row[0]:
        return
    triggers = connection.execute(
        "SELECT t.tgrelid::regclass::text, t.tgname FROM pg_constraint co JOIN pg_trigger t ON t.tgconstraint = co.oid "
        "WHERE co.conrelid = %s::regclass AND co.conname = %s AND t.tgrelid = co.confrelid",
        (piece, constraint),
    ).fetchall()
    for table, name in triggers:
        connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {ident(name)}".encode())


def cover(site: PartitionSite, pieces: Sequence[Partition]) -> None:
    """Give pieces what only attached leaves need, in the caller's transaction: guards' statement triggers, replica identity.

    Args:
        site: the table and shard.
        pieces: which.
    """
    for piece in pieces:
        guards.cover_one(site.connection, site.schema, site.table.table_name, piece.name)


def set_identities(site: PartitionSite, work: Cutting) -> None:
    """Give the attached pieces their parent's replica identity, in the caller's transaction.

    Args:
        site: the table and shard.
        work: the names.
    """
    parent = site.parent.as_string(site.connection)
    row = site.connection.execute("SELECT relreplident FROM pg_class WHERE oid = %s::regclass", (parent,)).fetchone()
    if row is not None and row[0] != "d":
        for number in range(len(work.pieces)):
            site.connection.execute(identity_like(parent, work.piece(number)).encode())
