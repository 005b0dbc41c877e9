"""What of an application's models and statements would be refused, or ask every shard: `shardwright lint`. Pure.

Models need not have heard of shardwright: what they do not declare is proposed. A table with the key column, or that such
a column points to, is taken as sharded; one that none of these depend on by a foreign key of their own and that has no key
itself is taken as a reference table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, RelationshipProperty

from shardwright import errors
from shardwright.routing.judging import (
    KeyColumn,
    Neighbour,
    Shape,
    crossing,
    sharding_reasons,
)
from shardwright.routing.proposing import above, column_of, is_sharded, key_type_of, keyspace_types, propose
from shardwright.routing.tables import Declaration, declaration_of, uniques_of

#: refused: registration or a session would refuse it; scatters: it would ask several shards; look: think about it.
Weight = Literal["refused", "scatters", "look"]
_ORDER: tuple[Weight, ...] = ("refused", "scatters", "look")


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    weight: Weight
    #: in kebab-case
    rule: str
    #: the table, the relationship or the statement
    subject: str
    what: str
    fix: str
    #: the table that it is about; empty for statements
    table: str = ""
    #: how often, of a recorded statement
    count: int = 1
    #: where statements were made: file:line and function
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Readiness:
    """What was looked at, and what was found."""

    #: the kind of each table, by name; of sharded ones with the key: "sharded by user_id"
    tables: Mapping[str, str]
    #: the tables whose kind was not declared but proposed
    proposed: tuple[str, ...]
    findings: tuple[Finding, ...]
    #: recorded statements by what became of them, and how many executions that were
    statements: Mapping[str, int] = field(default_factory=dict)
    executions: Mapping[str, int] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """How many findings would be refused."""
        return sum(one.weight == "refused" for one in self.findings)

    @property
    def percent(self) -> int:
        """Tables and different statements that nothing refuses, of all of them; 100 only when nothing is refused."""
        bad = {one.table for one in self.findings if one.weight == "refused"}
        total = len(self.tables) + sum(self.statements.values())
        fit = len(self.tables.keys() - bad) + sum(self.statements.values()) - self.statements.get("refused", 0)
        if self.refused and fit == total:
            fit -= 1
        return 100 * fit // total if total else 100


def judge(
    metadata: sa.MetaData, mappers: Iterable[Mapper[Any]] = (), *, key: str | None = None, keyspace: str = "users"
) -> Readiness:
    """Judge an application's models.

    Args:
        metadata: its tables.
        mappers: its classes, for what their relationships do.
        key: the column to propose for tables that declare nothing; None proposes nothing.
        keyspace: the name of that column's keyspace.
    """
    findings: list[Finding] = []
    try:
        kinds = propose(metadata, key, keyspace)
    except errors.BadDeclaration as error:
        name = str(error.facts.get("table", "models"))
        found = Finding("refused", "bad-declaration", name, error.message, error.fix, name)
        return Readiness(dict.fromkeys(metadata.tables, "unknown"), (), (found,))
    types = keyspace_types(kinds)
    for table in sorted(metadata.tables.values(), key=lambda table: table.fullname):
        declared = kinds.get(table)
        if declared is None:
            findings.append(_undeclared(table, key, kinds))
            continue
        if declared.kind == "sharded":
            findings += _sharded(table, declared, types)
        findings += _foreign_keys(table, kinds)
    for mapper in mappers:
        findings += _relationships(mapper, kinds)
    shown = {
        table.fullname: _shown(kinds.get(table)) for table in sorted(metadata.tables.values(), key=lambda t: t.fullname)
    }
    proposed = tuple(table.fullname for table in kinds if declaration_of(table) is None)
    return Readiness(shown, tuple(sorted(proposed)), tuple(_sorted(findings)))


def with_statements(readiness: Readiness, lines: Iterable[Mapping[str, Any]]) -> Readiness:
    """Add what became of recorded statements.

    Args:
        readiness: of the models.
        lines: what the pytest plugin recorded, a mapping each.
    """
    counts: Counter[tuple[str, str, str, str, str]] = Counter()
    places: dict[tuple[str, str, str, str, str], dict[str, None]] = {}
    for line in lines:
        refusal = line.get("refusal") or {}
        why = refusal.get("reason") or line.get("without_key") or ""
        one = (line["statement"], line["where"], refusal.get("kind", ""), why, refusal.get("way_out", ""))
        counts[one] += int(line["count"])
        places.setdefault(one, {})[line["at"]] = None
    findings = list(readiness.findings)
    fates: dict[str, set[str]] = {}
    executions: Counter[str] = Counter()
    for one, count in counts.items():
        statement, where, kind, why, way_out = one
        fate = {"one": "one shard", "any": "one shard", "refused": "refused"}.get(where, "several shards")
        fates.setdefault(fate, set()).add(statement)
        executions[fate] += count
        if fate == "one shard":
            continue
        refused = fate == "refused"
        findings.append(
            Finding(
                "refused" if refused else "scatters",
                kind if refused else "asks-every-shard" if where == "everywhere" else "asks-some-shards",
                statement,
                why or "its keys are on several shards",
                way_out or "name the shard key in it where it is asked often",
                count=count,
                places=tuple(places[one]),
            )
        )
    statements = {fate: len(texts) for fate, texts in sorted(fates.items())}
    return Readiness(
        readiness.tables,
        readiness.proposed,
        tuple(_sorted(findings)),
        statements,
        dict(sorted(executions.items())),
    )


# ---------------------------------------------------------------- tables


def _sharded(table: sa.Table, declared: Declaration, types: Mapping[str, str]) -> Iterator[Finding]:
    key, keyspace = declared.key_column or "", declared.keyspace or ""
    column = column_of(table, key)
    shape = Shape(
        columns=[one.name for one in table.columns],
        key=_key_column(column) if column is not None else None,
        primary=tuple(one.name for one in table.primary_key.columns) or None,
        uniques=uniques_of(table),
    )
    key_type = types.get(keyspace, "int8")
    for reason in sharding_reasons(shape, key, keyspace, key_type):
        yield _about(table, "refused", reason.rule, f"it {reason.what}", reason.fix)
    if column is not None and column is table.autoincrement_column and not column.foreign_keys:
        yield _about(
            table,
            "refused",
            "key-from-database",
            f"its key column {key} gets its value from a sequence: the shard cannot be chosen by a key that is not known yet",
            "give the key when the row is made, such as from a sequence of the application's or a UUID",
        )
    for one in table.columns:
        if one is not column and _is_numbered(table, one):
            yield _about(
                table,
                "look",
                "numbered-by-each-shard",
                f"column {one.name} gets its value from a sequence, and each shard has its own: values repeat over shards",
                f"it is unique together with {key}; where it must be by itself, use a UUID",
            )


def _key_column(column: sa.Column[Any]) -> KeyColumn:
    shown = str(column.type)
    return KeyColumn(
        column.name,
        key_type_of(column.type) or shown,
        shown,
        not_null=not column.nullable,
        computed=column.computed is not None,
        always_identity=bool(column.identity is not None and column.identity.always),
    )


def _is_numbered(table: sa.Table, column: sa.Column[Any]) -> bool:
    if column is table.autoincrement_column:
        return column.server_default is None or column.identity is not None
    default = column.server_default
    text = str(default.arg) if isinstance(default, sa.DefaultClause) else ""
    return column.identity is not None or isinstance(column.default, sa.Sequence) or "nextval" in text.lower()


def _undeclared(table: sa.Table, key: str | None, kinds: Mapping[sa.Table, Declaration]) -> Finding:
    parents = [one for one in above(table) if is_sharded(kinds, one)]
    if key is None or not parents:
        return _about(
            table,
            "refused",
            "undeclared",
            "it declares nothing, so nobody knows where its rows live",
            "declare it in its info: sharded_by(..), reference(), global_on(..) or local()",
        )
    names = ", ".join(sorted(one.fullname for one in parents))
    return _about(
        table,
        "refused",
        "no-shard-key",
        f"it points to {names} and has no column {key}: its rows could not be put beside those",
        f"add the column {key}, fill it from {names}, and make it a part of the primary key",
    )


def _foreign_keys(table: sa.Table, kinds: Mapping[sa.Table, Declaration]) -> Iterator[Finding]:
    for constraint in table.foreign_key_constraints:
        there = constraint.referred_table
        if there not in kinds:
            continue  # said of that table
        pairs = [(element.parent.name, element.column.name) for element in constraint.elements]
        reason = crossing(pairs, _neighbour(kinds[table]), _neighbour(kinds[there]))
        if reason:
            named = f"foreign key ({', '.join(pair[0] for pair in pairs)})"
            yield _about(
                table,
                "refused",
                "foreign-key-crosses",
                f"its {named} to {there.fullname} could not be kept by one shard: {reason}",
                "let it go by the shard key too, drop it, or make the table that it points to a reference table",
            )


# ---------------------------------------------------------------- relationships


def _relationships(mapper: Mapper[Any], kinds: Mapping[sa.Table, Declaration]) -> Iterator[Finding]:
    mine = _table_of(mapper, kinds)
    if mine is None:
        return
    for relationship in mapper.relationships:
        there = _table_of(relationship.mapper, kinds)
        if there is None or relationship.parent is not mapper:
            continue
        reason = _asks(relationship, mine, kinds[mine], there, kinds[there])
        if reason is not None:
            weight, what, fix = reason
            name = f"{mapper.class_.__name__}.{relationship.key}"
            yield Finding(weight, "relationship-crosses", name, what, fix, mine.fullname)


def _asks(
    relationship: RelationshipProperty[Any], mine: sa.Table, me: Declaration, theirs: sa.Table, there: Declaration
) -> tuple[Weight, str, str] | None:
    """What loading a relationship would do beyond asking the object's own shard."""
    if there.kind in ("reference", "local"):
        return None
    if there.kind == "global":
        if me.kind == "global" and me.home == there.home:
            return None
        return (
            "refused",
            f"it goes to {theirs.fullname}, which is on one shard only",
            "load it with a statement of its own",
        )
    if me.kind != "sharded":
        return "scatters", f"it loads rows of {theirs.fullname} from every shard", "ask for them by the shard key"
    if me.keyspace != there.keyspace:
        return "scatters", f"{theirs.fullname} is of another keyspace", "load it with a statement that names its key"
    ours, others = column_of(mine, me.key_column), column_of(theirs, there.key_column)
    pairs = [*relationship.local_remote_pairs]
    tied = any({left, right} == {ours, others} for left, right in pairs)
    if relationship.secondary is not None:
        # Through a table between them: both of its sides must go by the key.
        between = [*(relationship.synchronize_pairs or ()), *(relationship.secondary_synchronize_pairs or ())]
        tied = {ours, others} <= {one for pair in between for one in pair}
    if tied:
        return None
    return (
        "scatters",
        f"its join leaves out the shard key ({me.key_column} = {there.key_column}): a routed session asks every shard for it, "
        "a pinned one refuses it",
        "join by the shard key as well",
    )


# ---------------------------------------------------------------- small things


def _table_of(mapper: Mapper[Any], kinds: Mapping[sa.Table, Declaration]) -> sa.Table | None:
    table = mapper.base_mapper.local_table
    return table if isinstance(table, sa.Table) and table in kinds else None


def _about(table: sa.Table, weight: Weight, rule: str, what: str, fix: str) -> Finding:
    return Finding(weight, rule, table.fullname, what, fix, table.fullname)


def _neighbour(declared: Declaration) -> Neighbour:
    return Neighbour(declared.kind, declared.keyspace, declared.key_column, declared.home)


def _shown(declared: Declaration | None) -> str:
    if declared is None:
        return "unknown"
    return f"sharded by {declared.key_column}" if declared.kind == "sharded" else declared.kind


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda one: (_ORDER.index(one.weight), -one.count, one.subject, one.rule))
