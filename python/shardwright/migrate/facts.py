"""What autogenerate must know of a shard: which relations are partitions, which tables are partitioned and by what."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic.config import Config

from shardwright import engines
from shardwright.catalog import migrations, tables
from shardwright.migrate import declared
from shardwright.migrate.declared import Name
from shardwright.routing.policy import Policy

#: Where our runner leaves a `Running` in ``config.attributes``.
RUNNING = "shardwright"

# Leaves of every partitioned table, ours or not: none of them is in a model.
_LEAVES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relispartition
"""

# What carries our mark and is no leaf: not attached yet, or detached and not dropped yet.
_MARKED = """
SELECT p.schema_name, p.name, p.parent,
       EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.oid = p.relid AND c.relname = p.name AND n.nspname = p.schema_name)
  FROM shardwright.partitions p
"""

# A foreign key that points to a partitioned table has a copy for each partition, and a partition has its parent's.
_CLONES = """
SELECT n.nspname, c.relname, o.conname FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE o.contype = 'f' AND o.conparentid <> 0
"""

_PARENTS = """
SELECT n.nspname, c.relname, p.partstrat = 'r' AND p.partnatts = 1, a.attname
  FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
 WHERE NOT c.relispartition
"""


@dataclass(frozen=True)
class Running:
    """What a revision's operations may ask of the run that they are part of."""

    shard: str
    catalog_dsn: str
    patience: float = 60.0


@dataclass(frozen=True)
class Facts:
    """What was found on one shard, and what the catalog says of its tables."""

    default_schema: str
    #: Leaves, and tables with our mark: not in any model.
    hidden: frozenset[Name]
    #: Tables that have partitions with our mark.
    managed: frozenset[Name]
    #: Schema, table and name of foreign keys that PostgreSQL made for single partitions.
    clones: frozenset[tuple[str, str, str]]
    #: Partitioned tables with the column of their key; None where it is no single column, or not by range.
    parents: dict[Name, str | None]
    #: The policies in force; None for a registered table without one. None instead of a dict: the catalog was not asked.
    policies: dict[Name, Policy | None] | None = field(default=None)

    def name(self, schema: str | None, table: str) -> Name:
        """Schema and name, where Alembic leaves the default schema out.

        Args:
            schema: as Alembic gives it.
            table: the name.
        """
        return (schema or self.default_schema, table)


def read(connection: sa.Connection) -> Facts:
    """Read what a shard, or any other database, can tell by itself.

    Args:
        connection: to it.
    """

    def rows(statement: str) -> list[Any]:
        return list(connection.exec_driver_sql(statement).fetchall())

    marked = rows(_MARKED) if connection.exec_driver_sql(
        "SELECT to_regclass('shardwright.partitions') IS NOT NULL"
    ).scalar() else []  # fmt: skip
    return Facts(
        default_schema=str(connection.exec_driver_sql("SELECT current_schema()").scalar() or "public"),
        hidden=frozenset((row[0], row[1]) for row in rows(_LEAVES))
        | frozenset((row[0], row[1]) for row in marked if row[3]),
        managed=frozenset((row[0], row[2]) for row in marked),
        clones=frozenset(tuple(row) for row in rows(_CLONES)),
        parents={(schema, name): column if simple else None for schema, name, simple, column in rows(_PARENTS)},
    )


def catalog_dsn(config: Config | None) -> str | None:
    """Where the catalog is, as far as somebody said: the run, the environment, or ``shardwright_catalog`` in alembic.ini.

    Args:
        config: Alembic's.
    """
    if config is not None and isinstance(running := config.attributes.get(RUNNING), Running):
        return running.catalog_dsn
    said = os.environ.get("SHARDWRIGHT_CATALOG")
    return said or (config.get_main_option("shardwright_catalog") if config is not None else None)


def policies(connection: sa.Connection, dsn: str) -> dict[Name, Policy | None]:
    """The policies in force: the catalog's, and above them what revisions declared here that it does not know yet.

    Args:
        connection: to the shard.
        dsn: the catalog's.

    Raises:
        CannotConnect, PasswordMissing, CatalogNewer, CatalogOlder: the catalog cannot be used.
    """
    with engines.connect_catalog(dsn, "shardwright migrate") as catalog:
        migrations.check(catalog, "catalog")
        found = {(table.schema_name, table.table_name): table.policy for table in tables.list_tables(catalog)}
    if connection.exec_driver_sql("SELECT to_regclass('shardwright.declared') IS NOT NULL").scalar():
        for schema, table, info in connection.exec_driver_sql(
            "SELECT schema_name, table_name, info FROM shardwright.declared"
        ):
            fields = declared.entries(info).get("shardwright.partitioned")
            found[schema, table] = Policy.from_json(fields) if fields else found.get((schema, table))
    return found
