"""The numbered SQL of `migrations/`: applied once each, in order, and checked in both directions.

A database holds either a catalog or a shard; both keep their objects in the schema `shardwright`, whose comment says
which it is.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import psycopg

from shardwright import core
from shardwright.errors import CatalogNewer, CatalogOlder, UnfitServer

Kind = Literal["catalog", "shard"]

#: Class of all our advisory locks; no range and no shard has the key -1.
_LOCK: Final = "SELECT pg_advisory_xact_lock(1397249860, -1)"

_SCHEMA: Final = """
SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = 'shardwright'
"""


def apply(conn: psycopg.Connection[Any], kind: Kind) -> list[int]:
    """Bring a database's schema `shardwright` up to this program, in one transaction.

    Args:
        conn: a connection with the right to create a schema; in no transaction, or in one that is to contain the change.
        kind: what the database is to hold.

    Returns:
        The numbers that were applied; empty when all were there.

    Raises:
        CatalogNewer: the schema was made by a newer program.
        UnfitServer: the database holds the other kind, or a schema `shardwright` that is not ours.
    """
    with conn.transaction():
        conn.execute(_LOCK)
        conn.execute("SET LOCAL search_path = pg_catalog")
        present = _present(conn, kind)
        _refuse_newer(present, kind)
        missing = [step for step in core.migrations(kind) if step[0] not in present]
        for number, name, sql in missing:
            conn.execute(sql.encode())
            conn.execute("INSERT INTO shardwright.migrations (number, name) VALUES (%s, %s)", (number, name))
    return [number for number, _, _ in missing]


def check(conn: psycopg.Connection[Any], kind: Kind) -> None:
    """Refuse a database whose schema `shardwright` is not exactly that of this program.

    Args:
        conn: a connection to the database.
        kind: what it should hold.

    Raises:
        CatalogNewer: the schema was made by a newer program.
        CatalogOlder: it is older than this program, or absent.
        UnfitServer: the database holds the other kind, or a schema `shardwright` that is not ours.
    """
    present = _present(conn, kind)
    _refuse_newer(present, kind)
    missing = [number for number, _, _ in core.migrations(kind) if number not in present]
    if missing:
        state = "has no shardwright schema" if not present else f"lacks migration {missing[0]}"
        raise CatalogOlder(f"the {kind} database {state}", fix=_FIX[kind], migrations=missing)


_FIX: Final = {
    "catalog": "shardwright init",
    "shard": "shardwright shard add NAME DSN, or shardwright init for the shards that are known",
}


def _present(conn: psycopg.Connection[Any], kind: Kind) -> set[int]:
    """The numbers that the database has; empty when it has no schema `shardwright`."""
    row = conn.execute(_SCHEMA).fetchone()
    if row is None:
        return set()
    if row[0] != f"shardwright {kind}":
        other = "shard" if kind == "catalog" else "catalog"
        what = f"is a {other}" if row[0] == f"shardwright {other}" else "has a schema shardwright that is not ours"
        raise UnfitServer(f"the database {what}: it cannot be a {kind} too", fix="use another database")
    return {number for (number,) in conn.execute("SELECT number FROM shardwright.migrations").fetchall()}


def _refuse_newer(present: set[int], kind: Kind) -> None:
    known = {number for number, _, _ in core.migrations(kind)}
    unknown = sorted(present - known)
    if unknown:
        raise CatalogNewer(
            f"the {kind} database has migration {unknown[-1]}; this program knows {max(known)} of them",
            fix="upgrade shardwright",
            migrations=unknown,
        )
