"""SQL texts of a key's point and of "is this row owned?", made in one place for guards, row filters, copies and reads.

The point of a key in a hash keyspace is the remainder that PostgreSQL's hash partitioning gives the key
(``compute_partition_hash_value`` in src/backend/partitioning/partbounds.c: seed 0x7A5B22367996DCFD, then
``hash_combine64(0, hash)`` adds 0x49A0F4DD15E5A8E3). Only its low bits are kept, so the addition is done on them.
Everything is schema-qualified: guards run under the search_path of whoever writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardwright import errors
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import Keyspace

#: HASH_PARTITION_SEED, and the constant that hash_combine64 adds to the first column's hash.
SEED = 8816678312871386365
COMBINE = 5305509591434766563

_HASH_CALL = {
    "int2": "pg_catalog.hashint2extended({column}, {seed})",
    "int4": "pg_catalog.hashint4extended({column}, {seed})",
    "int8": "pg_catalog.hashint8extended({column}, {seed})",
    "text": "pg_catalog.hashtextextended({column}, {seed})",
    "varchar": "pg_catalog.hashtextextended(({column})::pg_catalog.text, {seed})",
    "uuid": "pg_catalog.uuid_hash_extended({column}, {seed})",
    # hashvarlenaextended cannot be called from SQL before 18; the hash of an array of one is 31 + the element's.
    "bytea": "pg_catalog.hash_array_extended(ARRAY[{column}], {seed})",
}
_ADDED = {"bytea": COMBINE - 31}


def quote_identifier(name: str) -> str:
    """`name` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """`text` as an SQL string literal that reads the same whatever standard_conforming_strings is."""
    quoted = "'" + text.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def point_sql(keyspace: Keyspace, column: str) -> str:
    """SQL of the int8 point of a key.

    Args:
        keyspace: gives strategy, key type and buckets.
        column: SQL of the key, already quoted.
    """
    if keyspace.strategy == "range":
        return f"(({column})::pg_catalog.int8)"
    if keyspace.buckets is None:
        raise errors.BadOption(f"hash keyspace {keyspace.name} has no number of buckets")
    mask = keyspace.buckets - 1
    hashed = _HASH_CALL[keyspace.key_type].format(column=column, seed=SEED)
    added = _ADDED.get(keyspace.key_type, COMBINE) & mask
    land, plus = "OPERATOR(pg_catalog.&)", "OPERATOR(pg_catalog.+)"
    return (
        f"((({hashed} {land} {mask}::pg_catalog.int8) {plus} {added}::pg_catalog.int8) {land} {mask}::pg_catalog.int8)"
    )


def points_sql(points: Multirange) -> str:
    """SQL literal of a set of points."""
    return f"'{points.literal()}'::pg_catalog.int8multirange"


def owned_sql(keyspace: Keyspace, points: Multirange, column: str) -> str:
    """SQL that is true for rows whose key's point is in `points`, NULL for a NULL key.

    Good as a WHERE, as a publication's row filter, and inside a guard.
    """
    return f"({points_sql(points)} OPERATOR(pg_catalog.@>) {point_sql(keyspace, column)})"


@dataclass(frozen=True)
class GuardedTable:
    """What the guards of one table on one shard must know."""

    #: Number of the table in the catalog; part of its guard functions' names.
    table_id: int
    schema_name: str
    table_name: str
    #: The keyspace and key column of a sharded table; None for a reference table.
    keyspace: Keyspace | None
    key_column: str | None
    #: Where a reference table is written; None for a sharded one.
    home_shard: str | None = None

    @property
    def qualified(self) -> str:
        """The table's quoted, schema-qualified name."""
        return f"{quote_identifier(self.schema_name)}.{quote_identifier(self.table_name)}"


def guard_functions_sql(
    table: GuardedTable, owned: Multirange, *, refuse_truncate: bool, truncate: bool = True
) -> list[str]:
    """CREATE OR REPLACE of a table's three guard functions.

    One function for INSERT, one for UPDATE and DELETE, one for TRUNCATE and for statements that name a partition. The
    owned points stand in the body as a literal: replacing the function under the table's SHARE ROW EXCLUSIVE lock is how a
    range is fenced.

    Args:
        table: whose guards.
        owned: the points that may be written here.
        refuse_truncate: True while the table's rows move; TRUNCATE would pass row filters.
        truncate: False leaves the function for TRUNCATE out.
    """
    prefix = "CREATE OR REPLACE FUNCTION shardwright."
    suffix = "() RETURNS pg_catalog.trigger LANGUAGE plpgsql "
    # who may write to a partition need not have any right on the partitioned table, and is to lock it all the same
    options = {"truncate": "SECURITY DEFINER SET search_path = pg_catalog, pg_temp "}
    bodies = {"insert": "", "write": "", "truncate": _truncate_body(table, refuse_truncate)}
    if table.keyspace is not None and table.key_column is not None:
        column = quote_identifier(table.key_column)
        named = f"{table.keyspace.name} of {table.schema_name}.{table.table_name}"
        new_owned = owned_sql(table.keyspace, owned, f"NEW.{column}")
        old_owned = owned_sql(table.keyspace, owned, f"OLD.{column}")
        new_moved = _moved(named, point_sql(table.keyspace, f"NEW.{column}"))
        old_moved = _moved(named, point_sql(table.keyspace, f"OLD.{column}"))
        null_key = _refuse("the shard key is NULL in " + named, "give every row a shard key")
        changed_key = _refuse("the shard key cannot be changed: " + named, "delete the row and insert it anew")
        bodies["insert"] = (
            f"BEGIN IF {new_owned} THEN RETURN NEW; END IF; IF NEW.{column} IS NULL THEN {null_key} END IF; {new_moved} END"
        )
        bodies["write"] = (
            f"BEGIN IF NOT {old_owned} THEN {old_moved} END IF; IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; "
            f"IF NEW.{column} IS DISTINCT FROM OLD.{column} THEN {changed_key} END IF; RETURN NEW; END"
        )
    else:
        away = _refuse(
            f"reference table {table.schema_name}.{table.table_name} is not written on this shard",
            f"write on its home shard {table.home_shard}",
        )
        bodies["insert"] = bodies["write"] = f"BEGIN {away} END"
    return [
        f"{prefix}guard_{what}_{table.table_id}{suffix}{options.get(what, '')}AS {_dollar_quote(body)}"
        for what, body in bodies.items()
        if truncate or what != "truncate"
    ]


def _truncate_body(table: GuardedTable, refuse: bool) -> str:
    """For the table's TRUNCATE, and for every statement that names a partition instead of its table.

    The latter takes the lock on the table that writing through it takes: what waits for writers locks the table alone.
    """
    said = f"TRUNCATE of {table.schema_name}.{table.table_name} is refused while its rows move"
    refused = f" {_refuse(said, 'use DELETE, or wait for the operation to end')}" if refuse else ""
    return (
        f"BEGIN IF TG_OP <> 'TRUNCATE' THEN LOCK TABLE ONLY {table.qualified} IN ROW EXCLUSIVE MODE; RETURN NULL; END IF;"
        f"{refused} RETURN NULL; END"
    )


def _moved(named: str, point: str) -> str:
    message = quote_literal(f"not served by this shard: keyspace {named}, point ")
    return (
        f"RAISE EXCEPTION USING ERRCODE = 'SH001', MESSAGE = {message} || {point}, "
        "HINT = 'ask the shard map where this key lives';"
    )


def _refuse(message: str, hint: str) -> str:
    return f"RAISE EXCEPTION USING ERRCODE = 'SH004', MESSAGE = {quote_literal(message)}, HINT = {quote_literal(hint)};"


def _dollar_quote(body: str) -> str:
    tag = "$guard$"
    while tag in body:
        tag = tag[:-1] + "_$"
    return f"{tag}{body}{tag}"
