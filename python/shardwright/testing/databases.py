"""The databases of a cluster for an application's tests: made once, emptied before each test."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from shardwright import engines, errors
from shardwright.catalog import keyspaces, maps, migrations, models, shards, tables
from shardwright.catalog.tables import RegisteredTable
from shardwright.routing.tables import declaration_of
from shardwright.servers import Endpoint

#: Up to so many rows are quicker deleted than truncated.
_FEW = 1000


@dataclass
class Databases:
    """A catalog and N shards with an application's tables, all on one server."""

    #: DSN of the catalog, for `Cluster.connect`
    catalog: str
    #: DSNs of the shards by name: s1, s2, ...
    shards: Mapping[str, str]
    _server: Endpoint
    _names: Sequence[str]
    _stack: ExitStack = field(default_factory=ExitStack)
    _open: dict[str, psycopg.Connection[Any]] = field(default_factory=dict)
    _tables: Sequence[RegisteredTable] = ()
    _version: int = 0
    _is_fresh: bool = True

    def key_on(self, shard: str, nth: int = 0, *, keyspace: str | None = None) -> int:
        """An integer key that lives on a shard: tests that are about two shards need one for each.

        Args:
            shard: the shard's name.
            nth: 0 gives the first such key from 1 on, 1 the one behind it.
            keyspace: the keyspace; needed where there are several.

        Raises:
            UnknownShard: it owns no key.
        """
        shard_map = maps.load_map(self._connection(""))
        name = keyspace or shard_map.keyspaces[0].name
        if shard not in {one.shard for one in shard_map.ranges_of(name)}:
            raise errors.UnknownShard(
                f"shard {shard} owns nothing of {name}", fix=f"shards are: {', '.join(self.shards)}"
            )
        key = 0
        for _ in range(nth + 1):
            key += 1
            while shard_map.route(name, key).shard != shard:
                key += 1
        return key

    def wait_for_references(self, patience: float = 10.0) -> None:
        """Wait until each shard's copies of the reference tables have what is committed on their home.

        Args:
            patience: seconds.

        Raises:
            StreamStalled: it takes longer.
        """
        reference = [table for table in self._tables if table.kind == "reference"]
        for home in {str(table.home_shard) for table in reference}:
            # Its commit flushes what was committed before it, and gives an idle stream something to confirm.
            self._connection(home).execute("SELECT pg_logical_emit_message(true, 'shardwright', 'wait')")
            row = self._connection(home).execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
            behind = (
                "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() "
                "AND confirmed_flush_lsn < %s::pg_lsn"
            )
            deadline = time.monotonic() + patience
            while late := self._connection(home).execute(behind, row).fetchall():
                if time.monotonic() > deadline:
                    raise errors.StreamStalled(
                        f"reference tables are not copied within {patience:g} s: slot {late[0][0]} is behind",
                        fix="look at the server's log",
                    )
                time.sleep(0.005)

    def clean(self) -> bool:
        """Empty every table. What a test did otherwise to the databases (DDL, other tables) stays.

        Returns:
            False where ranges were moved: these databases are not to be used again.

        Raises:
            LockTimeout: a session of a test is still open, and holds a table.
        """
        if self._is_fresh:
            self._is_fresh = False
            return True
        if maps.map_version(self._connection("")) != self._version:
            return False
        emptied = [shard for shard in self.shards if self._empty(shard)]
        if any(table.kind == "reference" and table.home_shard in emptied for table in self._tables):
            self.wait_for_references()
        return True

    def close(self) -> None:
        """Drop the databases."""
        self._stack.close()
        # Shards before the catalog, and those that subscribe before those that publish.
        for name in reversed(self._names):
            self._server.drop_database(name)

    def _connection(self, shard: str) -> psycopg.Connection[Any]:
        """A superuser's connection to a shard, or to the catalog (""), kept open."""
        if shard not in self._open:
            dsn = self.shards[shard] if shard else self.catalog
            made = psycopg.connect(dsn, password=self._server.password, autocommit=True, prepare_threshold=None)
            self._open[shard] = self._stack.enter_context(made)
            # Rows go without guards and foreign keys being asked, as they do in replication.
            made.execute("SET session_replication_role = replica")
            made.execute("SET lock_timeout = '2s'")
            made.execute("SET synchronous_commit = on")
        return self._open[shard]

    def _empty(self, shard: str) -> bool:
        """Empty the tables of one shard; whether one had rows."""
        mine = [
            sql.Identifier(table.schema_name, table.table_name)
            for table in self._tables
            if table.home_shard in (None, shard) or table.kind in ("sharded", "local")
        ]
        if not mine:
            return False
        asked = sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT {}, count(*) FROM (SELECT FROM {} LIMIT {}) AS x").format(
                sql.Literal(at), table, sql.Literal(_FEW + 1)
            )
            for at, table in enumerate(mine)
        )
        connection = self._connection(shard)
        try:
            found = [(mine[at], count) for at, count in connection.execute(asked).fetchall() if count]
            many = [table for table, count in found if count > _FEW]
            with connection.transaction():
                for table, count in found:
                    if count <= _FEW:
                        connection.execute(sql.SQL("DELETE FROM {}").format(table))
                if many:
                    connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(sql.SQL(", ").join(many)))
        except psycopg.errors.LockNotAvailable:
            raise errors.LockTimeout(
                f"the tables of shard {shard} cannot be emptied: {self._holders(shard)}",
                fix="close the sessions of each test at its end",
            ) from None
        return bool(found)

    def _holders(self, shard: str) -> str:
        rows = self._connection(shard).execute(
            "SELECT pid, application_name, state, left(query, 80) FROM pg_stat_activity "
            "WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        )
        held = [f"pid {pid} ({application}, {state}): {query}" for pid, application, state, query in rows.fetchall()]
        return f"open transactions: {'; '.join(held) or 'none any more'}"


def prepare(server: Endpoint, prefix: str, count: int, metadata: Sequence[sa.MetaData]) -> Databases:
    """Make a cluster with an application's tables.

    Args:
        server: where the databases are made.
        prefix: of their names.
        count: how many shards.
        metadata: the tables, with their declarations.

    Raises:
        BadDeclaration, UnfitTable: as `shardwright table register`.
    """
    names = [f"{prefix}_catalog", *(f"{prefix}_s{number}" for number in range(1, count + 1))]
    dsns = [server.create_database(name) for name in names]
    made = Databases(dsns[0], {f"s{at}": dsn for at, dsn in enumerate(dsns) if at}, server, names)
    try:
        with engines.connect_catalog(made.catalog) as catalog:
            migrations.apply(catalog, "catalog")
            for name, dsn in made.shards.items():
                shards.add_shard(catalog, name, dsn)
            for keyspace, key_type in keyspaces_of(metadata).items():
                keyspaces.create_keyspace(catalog, keyspace, key_type=key_type)
            for one in metadata:
                if any(declaration_of(table) is not None for table in one.tables.values()):
                    models.register(catalog, one)
            made._tables = tables.list_tables(catalog)
            made._version = maps.map_version(catalog)
    except BaseException:
        made.close()
        raise
    return made


def endpoint_of(dsn: str) -> Endpoint:
    """The server that a superuser's DSN leads to. Its password comes from where libpq looks for one.

    Args:
        dsn: libpq's URI or key=value form.

    Raises:
        BadOption: it is neither, or names no host.
    """
    try:
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise errors.BadOption(f"not a DSN: {error}", fix="give postgresql://user@host:port/postgres") from None
    if not parts.get("host"):
        raise errors.BadOption("the DSN names no host", fix="give postgresql://user@host:port/postgres")
    return Endpoint(str(parts["host"]), int(str(parts.get("port") or 5432)), str(parts.get("user") or "postgres"))


def keyspaces_of(metadata: Iterable[sa.MetaData]) -> dict[str, str]:
    """The keyspaces that tables declare, each with the type that its widest key column asks for.

    Args:
        metadata: the tables.

    Raises:
        BadDeclaration: the key columns of one keyspace have types that do not go together.
    """
    found: dict[str, str] = {}
    for one in metadata:
        for table in one.tables.values():
            declared = declaration_of(table)
            if declared is None or declared.keyspace is None:
                continue
            column = next(column for column in table.columns if column.name == declared.key_column)
            wanted = key_type_of(column.type)
            if found.setdefault(declared.keyspace, wanted) != wanted:
                raise errors.BadDeclaration(
                    f"keyspace {declared.keyspace} has key columns of type {found[declared.keyspace]} and {wanted}",
                    fix="declare tables whose keys are of different types in different keyspaces",
                    table=table.fullname,
                )
    return found


def key_type_of(type_: sa.types.TypeEngine[Any]) -> str:
    """The type that a keyspace needs for the keys of a column.

    Args:
        type_: the column's type.
    """
    plain = type_.impl_instance if isinstance(type_, sa.types.TypeDecorator) else type_
    if isinstance(plain, sa.Uuid):
        return "uuid"
    if isinstance(plain, sa.LargeBinary):
        return "bytea"
    return "text" if isinstance(plain, sa.String) else "int8"
