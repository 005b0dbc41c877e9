"""Whether a partitioned table that others made can be taken over as it is: every reason why not, with its fix. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shardwright import errors
from shardwright.partition import codecs
from shardwright.partition.carried import qualified
from shardwright.partition.clocks import FIRST, LAST
from shardwright.partition.convertible import Reason
from shardwright.partition.handmade import FoundLeaf, FoundTable, OwnIndex
from shardwright.partition.partman import PartmanSet
from shardwright.routing.policy import Policy
from shardwright.routing.predicates import quote_identifier as ident

#: Where the fix would be a statement for each of many partitions, so many are named.
_NAMED = 3


def shape_reasons(schema: str, name: str, table: FoundTable) -> list[Reason]:
    """Why a table cannot be taken over whatever its policy is: it is not partitioned by one column's ranges.

    Args:
        schema: its schema.
        name: its name.
        table: as it is on one shard.
    """
    if table.leaf:
        return [Reason("is a partition", "name the table that it is a partition of")]
    if table.relkind == "r":
        return [Reason("is not partitioned", f"shardwright partition convert {schema}.{name}")]
    if table.relkind != "p":
        return [Reason("is no table", "name a partitioned table")]
    if table.strategy != "r":
        kind = {"l": "LIST", "h": "HASH"}[table.strategy]
        return [
            Reason(
                f"is partitioned by {kind}, as {table.partition_by}: windows of time are ranges",
                "leave it as it is; only tables partitioned BY RANGE of one column of time can be taken over",
            )
        ]
    if len(table.columns) > 1:
        return [
            Reason(
                f"is partitioned by {len(table.columns)} columns, as {table.partition_by}",
                "leave it as it is, or make a table that is partitioned by the column of time alone and insert its rows",
            )
        ]
    if table.columns == ("",):
        return [
            Reason(
                f"is partitioned by an expression, as {table.partition_by}",
                "leave it as it is, or make a table that is partitioned by a column and insert its rows",
            )
        ]
    return []


def reasons(
    schema: str, name: str, kind: str, table: FoundTable, policy: Policy, key: str, partman: PartmanSet | None
) -> list[Reason]:
    """Every reason why a table cannot be taken over.

    Args:
        schema: its schema.
        name: its name.
        kind: ``sharded``, ``reference``, ``global`` or ``local``.
        table: as it is on one shard, partitioned by ranges of one column.
        policy: by which it is to be kept.
        key: one of `policy.KEYS`, as the column's type resolves it.
        partman: what pg_partman was told of it there.
    """
    own = qualified(schema, name)
    found: list[Reason] = []
    if table.columns != (policy.column,):
        found.append(
            Reason(
                f"is partitioned by {table.columns[0]}, and the policy is for {policy.column}",
                f"a policy for {table.columns[0]}",
            )
        )
    if table.nullable:
        column = ident(table.columns[0])
        found.append(
            Reason(
                f"allows NULL in {table.columns[0]}, which no window can take",
                f"give such rows a value, then: ALTER TABLE {own} ALTER COLUMN {column} SET NOT NULL",
            )
        )
    found += _partman(partman)
    for leaf in table.leaves:
        found += _leaf(schema, own, kind, leaf, policy, key)
    found += _keys(schema, table, policy)
    found += _default(schema, table)
    return found


def _partman(partman: PartmanSet | None) -> Iterator[Reason]:
    if partman is None:
        return
    if not partman.readable:
        config = f"{ident(partman.schema)}.part_config"
        yield Reason(
            f"may be in the care of pg_partman: our role cannot read {config}",
            f"GRANT USAGE ON SCHEMA {ident(partman.schema)} TO our role; GRANT SELECT ON {config} TO our role",
        )
    elif partman.undoing:
        yield Reason("is being undone by pg_partman", f"let that end, then: {partman.forget}")
    elif partman.automatic:
        yield Reason(
            "is in the care of pg_partman, whose maintenance would go on creating and dropping partitions", partman.off
        )


def _leaf(schema: str, own: str, kind: str, leaf: FoundLeaf, policy: Policy, key: str) -> Iterator[Reason]:
    full = qualified(leaf.schema, leaf.name)
    if leaf.pending:
        yield Reason(
            f"has {leaf.name}, whose DETACH CONCURRENTLY broke off",
            f"ALTER TABLE {own} DETACH PARTITION {full} FINALIZE",
        )
        return
    if leaf.relkind == "p":
        yield Reason(
            f"has {leaf.name}, which is partitioned itself",
            f"make it one table: CREATE TABLE .. (LIKE {full} INCLUDING ALL), insert its rows, and attach that in its place",
        )
    elif leaf.relkind != "r":
        yield Reason(f"has {leaf.name}, which is a foreign table", f"ALTER TABLE {own} DETACH PARTITION {full}")
    if leaf.schema != schema:
        yield Reason(
            f"has {leaf.name} in schema {leaf.schema}: partitions are looked after in their table's schema",
            f"ALTER TABLE {full} SET SCHEMA {ident(schema)}",
        )
    if not leaf.ours_to_change:
        yield Reason(
            f"has {leaf.name}, which belongs to {leaf.owner}: our role could not detach or drop it",
            f"ALTER TABLE {full} OWNER TO the owner of {own}, or GRANT {ident(leaf.owner)} TO our role",
        )
    if leaf.persistence == "u" and kind in ("sharded", "reference"):
        yield Reason(
            f"has {leaf.name}, which is unlogged: it is in no replication stream", f"ALTER TABLE {full} SET LOGGED"
        )
    if not leaf.is_default:
        yield from _bounds(own, full, leaf, policy, key)


def _bounds(own: str, full: str, leaf: FoundLeaf, policy: Policy, key: str) -> Iterator[Reason]:
    try:
        lower, upper = codecs.parse_bounds(policy, key, leaf.bounds)
    except errors.UnfitTable as error:
        yield Reason(
            f"has {leaf.name} {leaf.bounds}, which a key of {key} cannot express: {error.message}",
            f"detach it and attach it with other bounds: ALTER TABLE {own} DETACH PARTITION {full}",
        )
        return
    if any(at is not None and not FIRST <= at <= LAST for at in (lower, upper)):
        yield Reason(
            f"has {leaf.name} {leaf.bounds}, which is outside of the calendar (years 1 to 9999)",
            f"MINVALUE or MAXVALUE says the same: ALTER TABLE {own} DETACH PARTITION {full}, and attach it so",
        )
    elif leaf.role in ("before", "after"):
        return
    elif lower is None and upper is None:
        yield Reason(
            f"has {leaf.name}, which takes all time there is: no window can be made beside it",
            f"end it where windows are to begin. ALTER TABLE {full} ADD CHECK ({ident(policy.column)} < 'MOMENT') NOT VALID, "
            f"VALIDATE it, then in one transaction ALTER TABLE {own} DETACH PARTITION {full} and ATTACH it FROM (MINVALUE) "
            "TO ('MOMENT')",
        )
    elif upper is None and leaf.rows:
        yield Reason(
            f"has {leaf.name} without an end and with rows: no window can be made behind its beginning",
            f"end it where windows are to begin. ALTER TABLE {full} ADD CHECK ({ident(policy.column)} < 'MOMENT') NOT VALID, "
            f"VALIDATE it, then in one transaction ALTER TABLE {own} DETACH PARTITION {full} and ATTACH it TO ('MOMENT')",
        )
    elif upper is None and not policy.guards:
        yield Reason(
            f"has {leaf.name} without an end, and the policy wants no guards",
            f"guards = true in the policy, or ALTER TABLE {own} DETACH PARTITION {full}",
        )


def _keys(schema: str, table: FoundTable, policy: Policy) -> Iterator[Reason]:
    """Unique keys that partitions have by themselves: pg_partman's template table gives them such."""
    lacking: dict[tuple[str, ...], list[tuple[FoundLeaf, OwnIndex]]] = {}
    for leaf in table.leaves:
        for index in leaf.indexes:
            if index.exclusion or (index.unique and policy.column not in index.columns):
                lacking.setdefault(index.columns, []).append((leaf, index))
    for columns, having in lacking.items():
        leaf, index = having[0]
        what = "an exclusion constraint" if index.exclusion else "a unique key"
        statement = (
            f"ALTER TABLE {qualified(leaf.schema, leaf.name)} DROP CONSTRAINT {ident(index.constraint)}"
            if index.constraint is not None
            else f"DROP INDEX {qualified(leaf.schema, index.name)}"
        )
        some = ", ".join(one.name for one, _ in having[:_NAMED]) + (" and others" if len(having) > _NAMED else "")
        yield Reason(
            f"has {what} ({', '.join(column or 'an expression' for column in columns)}) without {policy.column} on "
            f"{len(having)} partitions by themselves ({some}): windows made from now on could not have it",
            f"a key of the table with {policy.column} in it instead, and on each of them such as: {statement}",
        )


def _default(schema: str, table: FoundTable) -> Iterator[Reason]:
    default = table.default
    if default is None or default.relkind != "r":
        return
    full = qualified(default.schema, default.name)
    if default.views:
        yield Reason(
            f"has the DEFAULT partition {default.name}, which guards are to replace, and {', '.join(default.views)} reads it",
            f"DROP VIEW {default.views[0]}, or let it read the table",
        )
    if default.rows and table.inbound:
        yield Reason(
            f"has rows in its DEFAULT partition {default.name}, and foreign keys point to the table "
            f"({', '.join(table.inbound)}): rows that are referred to cannot leave it",
            f"DELETE FROM {full} what is a mistake; else drop those foreign keys, and add them again afterwards",
        )
