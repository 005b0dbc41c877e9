"""Making a table from its layout, in stages, so that a bulk copy can build keys and indexes after the data.

Stages: the table with its sequences and checks; indexes, primary key and unique constraints; foreign keys. Each makes
only what is missing, so that a stage which was interrupted is simply run again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import psycopg
from psycopg import sql

from shardwright import errors
from shardwright.catalog import created, probe
from shardwright.catalog.layout import Column, Key, Layout, Sequence

_log = logging.getLogger(__name__)

#: One SQL statement.
Statement: TypeAlias = sql.SQL | sql.Composed


def printed(text: str) -> sql.SQL:
    """SQL that PostgreSQL itself printed (pg_get_indexdef, format_type ...): it goes back unchanged."""
    return sql.SQL(text)


def qualified(layout: Layout) -> sql.Identifier:
    """The table's name, quoted."""
    return sql.Identifier(layout.schema, layout.table)


def create(connection: psycopg.Connection, layout: Layout, *, with_indexes: bool = True) -> None:
    """Make a table, with or without its keys and indexes; foreign keys are left to `build_foreign_keys`.

    Args:
        connection: to the shard.
        layout: what to make.
        with_indexes: False for a table that a bulk copy fills first.

    Raises:
        UnfitTable: it needs a type, function or role that the shard does not have.
    """
    create_table(connection, layout)
    if with_indexes:
        build_keys(connection, layout)


def create_table(connection: psycopg.Connection, layout: Layout) -> bool:
    """Make the table with columns, sequences, checks, triggers, owner and grants: everything that data does not slow down.

    Args:
        connection: to the shard.
        layout: what to make.

    Returns:
        True when it was made, False when a table of that name is there already.

    Raises:
        UnfitTable: it needs a type, a function or a collation that the shard does not have.
    """
    with connection.transaction(), _explained(connection, layout):
        if probe.has_table(connection, layout.schema, layout.table):
            return False
        _make_types(connection, layout)
        for statement in _table_statements(layout):
            connection.execute(statement)
        _own(connection, layout)
    return True


def missing_keys(connection: psycopg.Connection, layout: Layout) -> list[Statement]:
    """The statements that `build_keys` would run, in order; those that make indexes may run side by side.

    Args:
        connection: to the shard.
        layout: what should be there.
    """
    indexes, constraints = _present(connection, layout)
    statements: list[Statement] = []
    for key in layout.keys:
        if key.kind in ("primary", "unique", "index") and _is_index(key) and key.name not in indexes:
            statements.append(printed(key.definition))
    for key in layout.keys:
        if key.kind in ("primary", "unique", "exclude") and key.name not in constraints:
            statements.append(_add_constraint(layout, key))
    if layout.replica_identity == "i" and layout.replica_index is not None:
        statements.append(
            sql.SQL("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}").format(
                qualified(layout), sql.Identifier(layout.replica_index)
            )
        )
    return statements


def build_keys(connection: psycopg.Connection, layout: Layout) -> None:
    """Build what is missing of the primary key, unique and exclusion constraints and indexes.

    Args:
        connection: to the shard.
        layout: what should be there.

    Raises:
        UnfitTable: an index needs something that the shard does not have.
    """
    with _explained(connection, layout):
        for statement in missing_keys(connection, layout):
            connection.execute(statement)


def build_foreign_keys(connection: psycopg.Connection, layout: Layout) -> None:
    """Add the foreign keys that are missing; the tables that they point to must have their keys by then.

    Args:
        connection: to the shard.
        layout: what should be there.

    Raises:
        UnfitTable: a foreign key points to a table that is not there.
    """
    _, constraints = _present(connection, layout)
    with _explained(connection, layout):
        for key in layout.keys:
            if key.kind == "foreign" and key.name not in constraints:
                connection.execute(_add_constraint(layout, key))


def drop_keys(connection: psycopg.Connection, layout: Layout) -> list[str]:
    """Take primary key, constraints and indexes off an EMPTY table, so that a bulk copy into it is fast.

    Foreign keys that point here from other empty tables go too; `build_foreign_keys` of those tables brings them back.
    What cannot go (a table with rows points here, a view needs the key) stays.

    Args:
        connection: to the shard.
        layout: whose keys; only those that it names are dropped.

    Returns:
        The names that were dropped; none when the table has rows.
    """
    dropped: list[str] = []
    with connection.transaction():
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(qualified(layout)))
        if probe.has_rows(connection, layout.schema, layout.table):
            return []
        for schema, table, name in pointing_here(connection, layout):
            if not probe.has_rows(connection, schema, table):
                connection.execute(
                    sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                        sql.Identifier(schema, table), sql.Identifier(name)
                    )
                )
                dropped.append(name)
        indexes, constraints = _present(connection, layout)
        for key in reversed(layout.keys):
            if key.kind == "check":
                continue
            if key.name in constraints:
                statement = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                    qualified(layout), sql.Identifier(key.name)
                )
            elif key.name in indexes:
                statement = sql.SQL("DROP INDEX {}").format(sql.Identifier(layout.schema, key.name))
            else:
                continue
            try:
                with connection.transaction():
                    connection.execute(statement)
            except psycopg.errors.DependentObjectsStillExist:
                continue
            dropped.append(key.name)
    return dropped


def pointing_here(connection: psycopg.Connection, layout: Layout) -> list[tuple[str, str, str]]:
    """Schema, table and name of each foreign key of another table that points to this one.

    Args:
        connection: to the shard.
        layout: the table that is pointed to.
    """
    return connection.execute(
        "SELECT n.nspname, c.relname, o.conname FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_class t ON t.oid = o.confrelid "
        "JOIN pg_namespace tn ON tn.oid = t.relnamespace "
        "WHERE o.contype = 'f' AND tn.nspname = %s AND t.relname = %s AND c.oid <> t.oid ORDER BY 1, 2, 3",
        (layout.schema, layout.table),
    ).fetchall()


@contextmanager
def _explained(connection: psycopg.Connection, layout: Layout) -> Iterator[None]:
    """Something that a definition needs is missing: say so in our words."""
    try:
        yield
    except (
        psycopg.errors.UndefinedObject,
        psycopg.errors.UndefinedFunction,
        psycopg.errors.UndefinedTable,
        psycopg.errors.UndefinedFile,
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.FeatureNotSupported,
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.DuplicateTable,
    ) as error:
        raise errors.UnfitTable(
            f"table {layout.name} cannot be made in database {connection.info.dbname}: {error.diag.message_primary}",
            fix="make there first what it needs (types, functions, extensions), then run the command again",
            table=layout.name,
        ) from error


def _make_types(connection: psycopg.Connection, layout: Layout) -> None:
    """Extensions and enums that columns need, where they are missing."""
    for needed in layout.types:
        if needed.kind == "extension":
            if not probe.has_extension(connection, needed.name):
                connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(needed.name)))
                created.note(connection, "extension", "", needed.name)
        elif not probe.has_type(connection, needed.schema, needed.name):
            created.make_schema(connection, needed.schema)
            labels = sql.SQL(", ").join(map(sql.Literal, needed.labels))
            name = sql.Identifier(needed.schema, needed.name)
            connection.execute(sql.SQL("CREATE TYPE {} AS ENUM ({})").format(name, labels))
            created.note(connection, "type", needed.schema, needed.name)


def _present(connection: psycopg.Connection, layout: Layout) -> tuple[set[str], set[str]]:
    """Names of the indexes and of the constraints that the table has now."""
    rows = connection.execute(
        "SELECT 'i', i.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid "
        "WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND x.indisvalid "
        "UNION ALL SELECT 'c', o.conname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_constraint o ON o.conrelid = c.oid "
        "WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND o.contype IN ('p', 'u', 'x', 'c', 'f')",
        {"schema": layout.schema, "table": layout.table},
    ).fetchall()
    return {name for kind, name in rows if kind == "i"}, {name for kind, name in rows if kind == "c"}


def _is_index(key: Key) -> bool:
    # A temporal key (PRIMARY KEY .. WITHOUT OVERLAPS, 18) is no plain unique index that a constraint could adopt, and a
    # partitioned table's constraint adopts none.
    return key.definition.startswith("CREATE ")


def _add_constraint(layout: Layout, key: Key) -> sql.Composed:
    if key.kind in ("primary", "unique") and _is_index(key):
        what = sql.SQL("{} USING INDEX {} {}").format(
            sql.SQL("PRIMARY KEY" if key.kind == "primary" else "UNIQUE"),
            sql.Identifier(key.name),
            printed(key.deferrable),
        )
    else:
        what = sql.Composed([printed(key.definition)])
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(qualified(layout), sql.Identifier(key.name), what)


def _sequence_options(sequence: Sequence) -> sql.Composed:
    return sql.SQL("INCREMENT BY {} MINVALUE {} MAXVALUE {} START WITH {} CACHE {} {}").format(
        *(
            sql.Literal(value)
            for value in (sequence.increment, sequence.minimum, sequence.maximum, sequence.start, sequence.cache)
        ),
        sql.SQL("CYCLE" if sequence.cycle else "NO CYCLE"),
    )


def _column(layout: Layout, column: Column) -> sql.Composed:
    parts: list[sql.Composable] = [sql.Identifier(column.name), printed(column.type)]
    if column.collation:
        parts.append(printed("COLLATE " + column.collation))
    if column.not_null:
        parts.append(sql.SQL("NOT NULL"))
    if column.generated:
        stored = "STORED" if column.generated == "s" else "VIRTUAL"
        parts.append(printed(f"GENERATED ALWAYS AS ({column.default}) {stored}"))
    elif column.identity:
        own = next(s for s in layout.sequences if s.column == column.name and s.bond == "identity")
        parts.append(
            sql.SQL("GENERATED {} AS IDENTITY (SEQUENCE NAME {} {})").format(
                sql.SQL("ALWAYS" if column.identity == "a" else "BY DEFAULT"),
                sql.Identifier(own.schema, own.name),
                _sequence_options(own),
            )
        )
    elif column.default is not None:
        parts.append(printed("DEFAULT " + column.default))
    return sql.SQL(" ").join(parts)


def _table_statements(layout: Layout) -> Iterable[Statement]:
    table = qualified(layout)
    for sequence in layout.sequences:
        if sequence.bond != "identity":
            yield sql.SQL("CREATE SEQUENCE IF NOT EXISTS {} AS {} {}").format(
                sql.Identifier(sequence.schema, sequence.name), printed(sequence.type), _sequence_options(sequence)
            )
    columns = sql.SQL(", ").join(_column(layout, column) for column in layout.columns)
    options = printed(f" WITH ({', '.join(layout.options)})" if layout.options else "")
    partitions = printed(f" PARTITION BY {layout.partition_by}" if layout.partition_by else "")
    yield sql.SQL("CREATE TABLE {} ({}){}{}").format(table, columns, partitions, options)
    for sequence in layout.sequences:
        if sequence.bond == "owned":
            yield sql.SQL("ALTER SEQUENCE {} OWNED BY {}").format(
                sql.Identifier(sequence.schema, sequence.name),
                sql.Identifier(layout.schema, layout.table, sequence.column),
            )
    for key in layout.keys:
        if key.kind == "check":
            yield _add_constraint(layout, key)
    for column in layout.columns:
        yield from _column_settings(table, layout, column)
    if layout.comment is not None:
        yield sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(layout.comment))
    if layout.replica_identity in ("f", "n"):
        what = sql.SQL("FULL" if layout.replica_identity == "f" else "NOTHING")
        yield sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(table, what)
    for _, text in (*layout.statistics, *layout.triggers):
        yield printed(text)


def _column_settings(table: sql.Identifier, layout: Layout, column: Column) -> Iterable[Statement]:
    alter = sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET ").format(table, sql.Identifier(column.name))
    if column.storage:
        names = {"p": "PLAIN", "e": "EXTERNAL", "m": "MAIN", "x": "EXTENDED"}
        yield alter + printed("STORAGE " + names[column.storage])
    if column.compression:
        yield alter + printed("COMPRESSION " + {"p": "pglz", "l": "lz4"}[column.compression])
    if column.statistics is not None:
        yield alter + printed(f"STATISTICS {column.statistics:d}")
    if column.comment is not None:
        yield sql.SQL("COMMENT ON COLUMN {} IS {}").format(
            sql.Identifier(layout.schema, layout.table, column.name), sql.Literal(column.comment)
        )


def _own(connection: psycopg.Connection, layout: Layout) -> None:
    """Owner and grants, for the roles that exist here: they are the server's affair, and another server may differ."""
    roles = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles").fetchall()} | {"public"}
    table = qualified(layout)
    statements: list[Statement] = []
    for grant in layout.grants:
        if grant.role not in roles:
            _log.warning("table %s is granted to %s, a role that this server does not have", layout.name, grant.role)
            continue
        columns = sql.SQL("({})").format(sql.Identifier(grant.column)) if grant.column else sql.SQL("")
        what = sql.SQL("SEQUENCE {}").format(sql.Identifier(*grant.sequence)) if grant.sequence else table
        statements.append(
            sql.SQL("GRANT {} {} ON {} TO {} {}").format(
                printed(grant.privilege),
                columns,
                what,
                sql.SQL("PUBLIC") if grant.role == "public" else sql.Identifier(grant.role),
                sql.SQL("WITH GRANT OPTION" if grant.grantable else ""),
            )
        )
    if layout.owner in roles:
        # The grants first: the owner's role may be one that we are not.
        statements.append(sql.SQL("ALTER TABLE {} OWNER TO {}").format(table, sql.Identifier(layout.owner)))
    for statement in statements:
        try:
            with connection.transaction():
                connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege as error:
            _log.warning("table %s: %s", layout.name, error.diag.message_primary)
