"""From SQLAlchemy's MetaData to registered tables: what is declared there is made where it is missing, and adopted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from sqlalchemy import MetaData, NullPool, Table, create_engine
from sqlalchemy.exc import DBAPIError

from shardwright import engines, errors
from shardwright.catalog import adoption, created, layout, roster
from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.routing.predicates import quote_identifier
from shardwright.routing.tables import Declaration, check_declared, declaration_of


@dataclass(frozen=True)
class Registration:
    """What became of a MetaData."""

    tables: tuple[RegisteredTable, ...]
    #: Tables that were made on some shard, for the first time.
    created: tuple[str, ...]
    #: Tables that declare nothing: left alone.
    undeclared: tuple[str, ...]


def register(catalog: psycopg.Connection, metadata: MetaData, *, judge: adoption.Judge | None = None) -> Registration:
    """Register every declared table of a MetaData; those that no shard has yet are made from their models.

    Args:
        catalog: connection to the catalog.
        metadata: the tables, with declarations in their ``info``.
        judge: as for `adoption.adopt`.

    Returns:
        What was registered, and what was left alone.

    Raises:
        BadDeclaration: a declaration contradicts itself or its table, or nothing is declared at all.
        UnfitTable, MisplacedRows, UnknownKeyspace, UnknownShard, OperationConflict, LockTimeout: as `adoption.adopt`.
    """
    declared: list[tuple[Table, Declaration]] = []
    undeclared: list[str] = []
    for table in metadata.sorted_tables:
        declaration = declaration_of(table)
        if declaration is None:
            undeclared.append(table.fullname)
        else:
            check_declared(table, declaration)
            declared.append((table, declaration))
    if not declared:
        raise errors.BadDeclaration(
            f"none of the {len(undeclared)} tables declares where its rows live",
            fix='__table_args__ = {"info": sharded_by("user_id", keyspace="users")}, or reference(), or global_on("s1")',
        )
    _check_foreign_keys(declared)
    with roster.changing(catalog):
        return _register(catalog, metadata, declared, tuple(undeclared), judge)


def _register(
    catalog: psycopg.Connection,
    metadata: MetaData,
    declared: Sequence[tuple[Table, Declaration]],
    undeclared: tuple[str, ...],
    judge: adoption.Judge | None,
) -> Registration:
    shards = roster.list_shards(catalog)
    if not shards:
        raise errors.UnknownShard("the cluster has no shard yet", fix="shardwright shard add NAME DSN")
    schema = _default_schema(shards[0])
    wanted = [adoption.Wanted(table.schema or schema, table.name, declaration) for table, declaration in declared]
    # What adoption would refuse is refused before anything is made.
    roster.refuse_live_operations(catalog, "registering tables")
    adoption.plan(catalog, wanted)
    made: list[tuple[Shard, str, str]] = []
    try:
        for base, some in _by_base(declared, shards):
            made += _make(base, metadata, _missing(some, shards, schema), schema)
        adopted = adoption.adopt(catalog, wanted, judge=judge)
    except BaseException:
        for base, in_schema, name in reversed(made):
            with engines.connect_shard(base, "shardwright tables") as connection:
                created.drop_table(connection, in_schema, name)
        raise
    return Registration(tuple(adopted), tuple(f"{place}.{name}" for _, place, name in made), undeclared)


def _check_foreign_keys(declared: Sequence[tuple[Table, Declaration]]) -> None:
    """A model's foreign key to a table that will not be on the same shard could not even be created."""
    kinds = {table.key: declaration for table, declaration in declared}
    for table, declaration in declared:
        for constraint in table.foreign_key_constraints:
            there = kinds.get(constraint.referred_table.key)
            if there is None and declaration.kind != "global":
                what = "declares nothing and so is on no other shard"
            elif there is not None and there.kind == "global" and there.home != declaration.home:
                what = f"lives on shard {there.home} only"
            elif there is not None and there.kind == "local" and declaration.kind not in ("local", "global"):
                what = "has rows of its own on every shard"
            else:
                continue
            raise errors.BadDeclaration(
                f"table {table.fullname} has a foreign key to {constraint.referred_table.fullname}, which {what}",
                fix="declare that table too (reference() puts it on every shard), or drop the foreign key",
                table=table.fullname,
            )


@contextmanager
def _partitioned(some: Sequence[Table]) -> Iterator[None]:
    """Tables with a policy are created PARTITION BY, which a model need not repeat."""
    changed = []
    try:
        for table in some:
            declaration = declaration_of(table)
            options = table.dialect_options["postgresql"]
            if declaration is not None and declaration.policy is not None and options.get("partition_by") is None:
                changed.append(options)
                # the driver takes a single % for a placeholder
                column = quote_identifier(declaration.policy.column).replace("%", "%%")
                options["partition_by"] = f"RANGE ({column})"
        yield
    finally:
        for options in changed:
            options["partition_by"] = None


def _by_base(
    declared: Sequence[tuple[Table, Declaration]], shards: Sequence[Shard]
) -> Iterable[tuple[Shard, list[Table]]]:
    """The shard on which tables are made from their models; from there the others get theirs by layout."""
    common = [table for table, declaration in declared if declaration.kind != "global"]
    if common:
        yield shards[0], common
    for shard in shards:
        if some := [
            table for table, declaration in declared if declaration.kind == "global" and declaration.home == shard.name
        ]:
            yield shard, some


def _missing(some: Sequence[Table], shards: Sequence[Shard], schema: str) -> list[Table]:
    """Those that no shard has."""
    absent = {(table.schema or schema, table.name): table for table in some}
    for shard in shards:
        with engines.connect_shard(shard, "shardwright tables") as connection:
            for there in layout.existing(connection, absent):
                del absent[there]
    return list(absent.values())


def _default_schema(shard: Shard) -> str:
    """The schema that a name without one has for our role on a shard."""
    with engines.connect_shard(shard, "shardwright tables") as connection:
        connection.execute("RESET search_path")
        row = connection.execute("SELECT current_schema()").fetchone()
    return str(row[0]) if row and row[0] else "public"


def _make(base: Shard, metadata: MetaData, some: Sequence[Table], schema: str) -> list[tuple[Shard, str, str]]:
    """CREATE TABLE from models, with what they need (types, sequences), in one transaction."""
    if not some:
        return []

    def open_connection() -> psycopg.Connection:
        connection = engines.connect_shard(base, "shardwright tables")
        connection.execute("SELECT set_config('search_path', quote_ident(%s), false)", (schema,))
        connection.autocommit = False
        return connection

    engine = create_engine("postgresql+psycopg://", creator=open_connection, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            for place in sorted({table.schema or schema for table in some}):
                created.make_schema(driver, place)
            with _partitioned(some):
                metadata.create_all(connection, tables=list(some))
            for table in some:
                created.note(driver, "table", table.schema or schema, table.name)
    except DBAPIError as error:
        raise errors.UnfitTable(
            f"the models' tables cannot be made on shard {base.name}: {' '.join(str(error.orig).split())}",
            fix="mend the model, then run this again",
            shard=base.name,
        ) from error
    finally:
        engine.dispose()
    return [(base, table.schema or schema, table.name) for table in some]
