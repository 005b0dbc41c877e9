"""Whether an ordinary table can become partitioned as it is: every reason why not, each with its fix. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardwright import errors
from shardwright.partition import codecs
from shardwright.partition.carried import CHECK_NAME, qualified
from shardwright.partition.ordinary import OrdinaryTable
from shardwright.routing.policy import Policy
from shardwright.routing.predicates import quote_identifier as ident


@dataclass(frozen=True)
class Reason:
    """Why a table cannot be converted."""

    what: str
    fix: str


def reasons(table: OrdinaryTable, policy: Policy, server_version: int, *, extend_key: bool = False) -> list[Reason]:
    """Every reason why a table cannot be converted.

    Args:
        table: as it is on one shard.
        policy: what it is to be partitioned by.
        server_version: of the shard, as ``server_version_num``.
        extend_key: the partition column is going to be added to its primary key.
    """
    body = list(_body(table))
    if body:
        return body
    return [
        *_column(table, policy),
        *_constraints(table, policy, extend_key),
        *_foreign_keys(table, policy, server_version, extend_key),
        *_behaviour(table),
        *_dependents(table),
        *_streams(table),
    ]


def notes(table: OrdinaryTable, policy: Policy) -> list[str]:
    """What works differently afterwards, or stays behind; nothing that keeps a table from being converted.

    Args:
        table: as it is.
        policy: what it is to be partitioned by.
    """
    found = [
        f"trigger {one['name']} runs before each row: it may not change {policy.column} so that the row goes to another "
        "partition"
        for one in table.triggers
        if one["row"] and one["before"] and not one["ours"]
    ]
    found += [f"index {one['name']} is invalid and stays on the old table" for one in table.indexes if not one["valid"]]
    found += [f"function {one['name']} names the table and is made anew" for one in table.functions]
    found += [f"view {one['schema']}.{one['name']} names the table and is replaced in place" for one in table.views]
    return found


def explain(name: str, shard: str, found: list[Reason]) -> errors.UnfitTable:
    """All reasons as one error.

    Args:
        name: the table.
        shard: the shard.
        found: the reasons.
    """
    said = "".join(f"\n{reason.what}\n  fix: {reason.fix}" for reason in found)
    return errors.UnfitTable(
        f"table {name} on shard {shard} cannot be converted: {len(found)} reason{'s' if len(found) > 1 else ''}{said}",
        fix=found[0].fix if len(found) == 1 else "see each line; nothing was changed",
        table=name,
        shard=shard,
        reasons=[{"what": reason.what, "fix": reason.fix} for reason in found],
    )


def _body(table: OrdinaryTable) -> Iterator[Reason]:
    kinds = {"p": "is partitioned already", "f": "is a foreign table", "v": "is a view", "m": "is a materialized view"}
    if table.relkind == "p":
        yield Reason(kinds["p"], "declare its policy as it is: shardwright table register")
    elif table.relkind != "r":
        yield Reason(kinds.get(table.relkind, "is no table"), "name an ordinary table")
    if table.leaf:
        yield Reason("is a partition", "name the table that it is a partition of")
    elif (table.child or table.parent) and table.relkind == "r":
        yield Reason("takes part in inheritance", "ALTER TABLE .. NO INHERIT")
    if table.typed:
        yield Reason("is a typed table", f"ALTER TABLE {qualified(table.schema, table.table)} NOT OF")
    if table.persistence == "u":
        yield Reason(
            "is unlogged, and a partitioned table cannot be",
            f"ALTER TABLE {qualified(table.schema, table.table)} SET LOGGED",
        )
    elif table.persistence == "t":
        yield Reason("is temporary", "name a permanent table")


def _column(table: OrdinaryTable, policy: Policy) -> Iterator[Reason]:
    name, own = policy.column, qualified(table.schema, table.table)
    column = table.column(name)
    if column is None:
        yield Reason(f"has no column {name}", f"its columns are {', '.join(one['name'] for one in table.columns)}")
        return
    try:
        codecs.resolve_key(policy, column["type"])
    except (errors.UnfitTable, errors.BadDeclaration) as error:
        yield Reason(error.message, error.fix)
    if not column["not_null"]:
        yield Reason(
            f"allows NULL in {name}, which no partition takes",
            f"give such rows a value, then: ALTER TABLE {own} ALTER COLUMN {ident(name)} SET NOT NULL",
        )
    if column["generated"]:
        yield Reason(
            f"computes {name}, and a partition key may not be generated", "partition by a column that is written"
        )
    if column["identity"]:
        yield Reason(f"has {name} as its identity column", "partition by another column")


def _constraints(table: OrdinaryTable, policy: Policy, extend_key: bool) -> Iterator[Reason]:
    own = qualified(table.schema, table.table)
    for index in table.indexes:
        if not index["valid"] or not (index["unique"] or index["exclusion"]):
            continue
        if index["exclusion"]:
            yield Reason(
                f"has the exclusion constraint {index['constraint']}: no partition can see another's rows",
                f"ALTER TABLE {own} DROP CONSTRAINT {ident(index['constraint'])}",
            )
        elif policy.column in index["columns"] and not index["expressions"]:
            continue
        elif index["primary"]:
            if not extend_key:
                columns = ", ".join((*index["columns"], policy.column))
                yield Reason(
                    f"has the primary key ({', '.join(index['columns'])}) without {policy.column}",
                    f"add --extend-key: it becomes ({columns})",
                )
        elif index["constraint"] is not None:
            yield Reason(
                f"has the unique constraint {index['constraint']} ({', '.join(index['columns'])}) without {policy.column}",
                f"ALTER TABLE {own} DROP CONSTRAINT {ident(index['constraint'])}, or make one with {policy.column}",
            )
        else:
            yield Reason(
                f"has the unique index {index['name']} without {policy.column}"
                + (", or over expressions" if index["expressions"] else ""),
                f"DROP INDEX {qualified(table.schema, index['name'])}, or make one with {policy.column}",
            )
    for one in table.constraints:
        name = ident(one["name"])
        if one["type"] in ("c", "n") and one["no_inherit"]:
            yield Reason(
                f"has the constraint {one['name']} NO INHERIT, which a partitioned table cannot have",
                f"ALTER TABLE {own} DROP CONSTRAINT {name}, and add it without NO INHERIT",
            )
        elif not one["validated"] and one["name"] != CHECK_NAME:
            yield Reason(
                f"has the constraint {one['name']} NOT VALID, which a partition may not have",
                f"ALTER TABLE {own} VALIDATE CONSTRAINT {name}",
            )


def _foreign_keys(table: OrdinaryTable, policy: Policy, server_version: int, extend_key: bool) -> Iterator[Reason]:
    own = qualified(table.schema, table.table)
    for one in table.constraints:
        if one["type"] == "f" and one["to_self"]:
            yield Reason(
                f"points to itself by the foreign key {one['name']}",
                f"ALTER TABLE {own} DROP CONSTRAINT {ident(one['name'])}: it would have to be checked row by row under lock",
            )
    primary = next((set(one["columns"]) for one in table.indexes if one["primary"]), set())
    for one in table.inbound:
        there = f"{one['schema']}.{one['table']}"
        drop = f"ALTER TABLE {qualified(one['schema'], one['table'])} DROP CONSTRAINT {ident(one['name'])}"
        # Without --extend-key the reason is the key itself, told above.
        if extend_key and policy.column not in one["to_columns"] and set(one["to_columns"]) == primary:
            yield Reason(
                f"is pointed to by {one['name']} of {there}, by ({', '.join(one['to_columns'])}), which would not be unique "
                "any more",
                drop,
            )
        elif one["partitioned"] and server_version < 180000:
            yield Reason(
                f"is pointed to by {one['name']} of the partitioned table {there}, which before PostgreSQL 18 would have to "
                "be checked under lock",
                f"{drop}, and add it again afterwards",
            )


def _behaviour(table: OrdinaryTable) -> Iterator[Reason]:
    own = qualified(table.schema, table.table)
    for one in table.triggers:
        if one["row"] and one["transition"]:
            yield Reason(
                f"has the trigger {one['name']}, FOR EACH ROW with transition tables, which a partitioned table cannot have",
                f"DROP TRIGGER {ident(one['name'])} ON {own}, or make it FOR EACH STATEMENT",
            )
    if table.rules:
        yield Reason(
            f"has rules ({', '.join(table.rules)}), which would not see what partitions get", "use triggers instead"
        )


def _dependents(table: OrdinaryTable) -> Iterator[Reason]:
    own = qualified(table.schema, table.table)
    for one in table.views:
        if one["kind"] == "m":
            view = qualified(one["schema"], one["name"])
            yield Reason(
                f"is read by the materialized view {one['schema']}.{one['name']}, which would go on reading the old table",
                f"DROP MATERIALIZED VIEW {view}, and make it again afterwards",
            )
    for what in table.others:
        yield Reason(
            f"has a dependent that cannot follow it: {what}", f"drop it, and make it again afterwards (table {own})"
        )


def _streams(table: OrdinaryTable) -> Iterator[Reason]:
    for one in table.publications:
        if not one["via_root"]:
            yield Reason(
                f"is published by {one['name']} under the names of its partitions, which subscribers do not have",
                f"ALTER PUBLICATION {ident(one['name'])} SET (publish_via_partition_root = true)",
            )
    for name in table.subscriptions:
        yield Reason(
            f"is fed by the subscription {name}",
            f"take it out of the publication, then: ALTER SUBSCRIPTION {ident(name)} REFRESH PUBLICATION",
        )


def finite_check(key: str, column: str) -> str | None:
    """SQL that refuses infinite times; None where the key has none.

    Args:
        key: one of `policy.KEYS`.
        column: SQL of the column, already quoted.
    """
    return f"pg_catalog.isfinite({column})" if key in ("timestamptz", "timestamp", "date") else None
