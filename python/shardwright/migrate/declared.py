"""What a revision says of a table's policy, kept on the shard until the catalog is told.

A revision runs on each shard in a transaction of its own, and the catalog is another database. So the revision writes
what it declares beside its DDL (``shardwright.declared``), in the same transaction; once every shard has the revision,
`settle` tells the catalog once and deletes the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert

from shardwright import errors
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration, declaration_of

#: (schema, table)
Name = tuple[str, str]

_TABLE = sa.table(
    "declared",
    sa.column("schema_name", sa.Text),
    sa.column("table_name", sa.Text),
    sa.column("info", JSONB),
    schema="shardwright",
)
_OURS = "shardwright."

#: The entry that carries a policy.
PARTITIONED = "shardwright.partitioned"


def entries(info: Mapping[Any, Any]) -> dict[str, Any]:
    """Those entries of a ``Table.info`` that functions of shardwright made.

    Args:
        info: of a table.
    """
    return {key: value for key, value in info.items() if isinstance(key, str) and key.startswith(_OURS)}


def policy_of(info: Mapping[str, Any]) -> Policy:
    """The policy that entries of ``Table.info`` carry.

    Args:
        info: the entries.

    Raises:
        BadDeclaration: they carry none, or a wrong one.
    """
    fields = info.get(PARTITIONED)
    if not isinstance(fields, Mapping):
        raise errors.BadDeclaration(
            "no policy was given", fix='shardwright.time_partitioned("created_at", every="1 month")'
        )
    return Policy.from_json(fields)


def writing(schema: str, table: str, info: Mapping[str, Any]) -> sa.Insert:
    """The statement that writes what a revision declares; entries that were there and are not given stay.

    Args:
        schema: the table's schema.
        table: its name.
        info: entries of ``Table.info``.
    """
    # As text, so that it prints as a literal where a script is asked for instead of an execution.
    given = sa.cast(sa.literal(json.dumps(dict(info), sort_keys=True), sa.Text), JSONB)
    made = insert(_TABLE).values(schema_name=schema, table_name=table, info=given)
    return made.on_conflict_do_update(
        index_elements=["schema_name", "table_name"],
        set_={"info": _TABLE.c.info.op("||", return_type=JSONB)(made.excluded.info)},
    )


def read(connection: psycopg.Connection) -> dict[Name, dict[str, Any]]:
    """What revisions declared on a shard and the catalog does not know yet.

    Args:
        connection: to the shard.
    """
    rows = connection.execute("SELECT schema_name, table_name, info FROM shardwright.declared ORDER BY 1, 2").fetchall()
    return {(schema, table): info for schema, table, info in rows}


def forget(connection: psycopg.Connection, names: Iterable[Name]) -> None:
    """Delete what the catalog has been told.

    Args:
        connection: to the shard, in autocommit mode.
        names: the tables.
    """
    for schema, table in names:
        connection.execute(
            "DELETE FROM shardwright.declared WHERE schema_name = %s AND table_name = %s", (schema, table)
        )


def declaration(schema: str, table: str, info: Mapping[str, Any], columns: Iterable[str]) -> Declaration:
    """What entries of ``Table.info`` declare.

    Args:
        schema: the table's schema.
        table: its name.
        info: the entries.
        columns: names of the table's columns.

    Raises:
        BadDeclaration: they contradict themselves or the table.
    """
    model = sa.Table(table, sa.MetaData(), *(sa.Column(name) for name in columns), schema=schema, info=dict(info))
    found = declaration_of(model)
    if found is None:
        raise errors.BadDeclaration(
            f"table {schema}.{table} declares nothing",
            fix='sharded_by("user_id") | time_partitioned("created_at", every="1 month")',
            table=f"{schema}.{table}",
        )
    return found
