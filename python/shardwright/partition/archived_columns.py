"""The columns of a partition as an archive holds them: what form each value takes, and how rows are counted and hashed.

A form is chosen by type, and where a type has values that Arrow cannot hold (infinity, years before 1, NaN of a
numeric), by what is there: one such value and the whole column is kept as PostgreSQL's own text, which is exact.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psycopg

from shardwright import errors
from shardwright.routing.predicates import quote_identifier

#: Forms by the name of a built-in type; every other type is kept as text.
_FORMS = {
    "bool": "bool",
    "int2": "int16",
    "int4": "int32",
    "int8": "int64",
    "oid": "uint32",
    "float4": "float32",
    "float8": "float64",
    "text": "string",
    "varchar": "string",
    "bpchar": "string",
    "bytea": "binary",
    "uuid": "uuid",
    "date": "date",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
}

#: Types whose equality is that of their text, so that their own hash serves. A float's zero has a sign, a jsonb's
#: number has trailing zeros, an enum's hash is of its oid: those and all others are hashed by their text.
_HASHED_AS_THEY_ARE = {"bool", "int2", "int4", "int8", "oid", "bytea", "uuid", "date", "timestamp", "timestamptz"}

_DECIMAL = re.compile(r"numeric\((\d+),(\d+)\)")

#: Digits that a Parquet decimal of 128 bits holds.
_DECIMAL_DIGITS = 38


@dataclass(frozen=True)
class ArchivedColumn:
    """One column of a partition."""

    name: str
    #: As PostgreSQL prints it, with modifiers, qualified outside of pg_catalog.
    type: str
    #: Name of a built-in base type; empty for enums, domains, arrays and everything of an extension.
    base: str
    #: What its values are in the file; ``text`` is PostgreSQL's text form. Empty for a column that is not stored in it.
    form: str
    #: Whether PostgreSQL computes it; then it is not in the file.
    generated: bool = False

    @property
    def quoted(self) -> str:
        """Its name as SQL."""
        return quote_identifier(self.name)

    @property
    def hashed(self) -> str:
        """SQL of what its values are hashed by."""
        if self.base in ("text", "varchar"):
            return f'{self.quoted} COLLATE "C"'
        if self.base == "bpchar":
            # Its cast to text loses blanks at the end.
            return f'(CASE WHEN {self.quoted} IS NOT NULL THEN concat({self.quoted}) END) COLLATE "C"'
        return self.quoted if self.base in _HASHED_AS_THEY_ARE else f'{self.quoted}::text COLLATE "C"'

    @property
    def sent(self) -> str:
        """SQL of what COPY sends of it."""
        if self.form == "binary":
            return f"encode({self.quoted}, 'hex')"
        if self.form == "uuid":
            return f"encode(uuid_send({self.quoted}), 'hex')"
        return self.quoted

    @property
    def doubt(self) -> str | None:
        """SQL that is true where a value does not fit into the form; None where all do."""
        if self.form in ("date", "timestamp", "timestamptz"):
            return f"NOT ({self.quoted} >= '0001-01-01' AND {self.quoted} < '10000-01-01')"
        return f"{self.quoted} = 'NaN'" if self.form == "decimal" else None

    @property
    def digits(self) -> tuple[int, int]:
        """Precision and scale of a decimal."""
        found = _DECIMAL.fullmatch(self.type)
        assert found is not None
        return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Survey:
    """What a table holds: how many rows, their checksum whatever their order, and its columns with forms that fit."""

    rows: int
    checksum: int
    columns: tuple[ArchivedColumn, ...]


def columns_of(connection: psycopg.Connection, qualified: str) -> tuple[ArchivedColumn, ...]:
    """The columns of a table with the forms that their types suggest.

    Args:
        connection: to the shard.
        qualified: the table's name as SQL.
    """
    rows = connection.execute(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '', "
        "CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype = 'b' THEN t.typname ELSE '' END "
        "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        (qualified,),
    ).fetchall()
    return tuple(
        ArchivedColumn(name, type_, base, "" if generated else _form(type_, base), generated)
        for name, type_, generated, base in rows
    )


def _form(type_: str, base: str) -> str:
    found = _DECIMAL.fullmatch(type_) if base == "numeric" else None
    if found is not None and int(found[2]) <= int(found[1]) <= _DECIMAL_DIGITS:
        return "decimal"
    return _FORMS.get(base, "text")


def stored(columns: Sequence[ArchivedColumn]) -> tuple[ArchivedColumn, ...]:
    """Those that are in the file: all but generated ones.

    Args:
        columns: a table's columns.
    """
    return tuple(column for column in columns if not column.generated)


def schema_hash(columns: Sequence[ArchivedColumn]) -> str:
    """8 hex digits that two tables share whose columns have the same names and types.

    Args:
        columns: a table's columns.
    """
    text = json.dumps([[column.name, column.type, column.generated] for column in columns])
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def sums_sql(columns: Sequence[ArchivedColumn]) -> str:
    """SQL of a row count and of a checksum that does not depend on the rows' order; two expressions of an aggregate.

    Args:
        columns: a table's columns; generated ones are left out.
    """
    whole = ", ".join(column.hashed for column in stored(columns))
    return f"count(*), coalesce(sum(hash_record_extended(ROW({whole}), 0)), 0)"


def survey(connection: psycopg.Connection, qualified: str, columns: Sequence[ArchivedColumn]) -> Survey:
    """Count and hash a table's rows in one scan, and choose the columns' forms by what is there.

    Args:
        connection: to the shard.
        qualified: the table's name as SQL.
        columns: its columns.
    """
    doubts = {column.name: doubt for column in stored(columns) if (doubt := column.doubt) is not None}
    asked = ", ".join([sums_sql(columns), *(f"coalesce(bool_or({doubt}), false)" for doubt in doubts.values())])
    row = connection.execute(f"SELECT {asked} FROM ONLY {qualified}".encode()).fetchone()
    if row is None:
        raise errors.InvariantFailed(f"{qualified} was not counted")
    as_text = {name for name, found in zip(doubts, row[2:], strict=True) if found}
    settled = tuple(replace(column, form="text") if column.name in as_text else column for column in columns)
    return Survey(int(row[0]), int(row[1]), settled)
