"""From a statement of SQLAlchemy to the shard keys that it needs: pure, and remembered by the statement's shape.

`Planner.plan` says once for each shape of statement (SQLAlchemy's own cache key) what it reads and writes and where its
keys come from; `Plan.keys` then only picks the values out. Values are never guessed: a statement whose keys cannot be
seen has a `Plan.unbound` that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.sql import elements, selectable
from sqlalchemy.sql.dml import Insert, Update, UpdateBase
from sqlalchemy.types import TypeDecorator

from shardwright import errors
from shardwright.routing.clauses import core_of, is_clause, is_portable, plain
from shardwright.routing.sources import Bound, Either, Fixed, Given, Source
from shardwright.routing.stored import as_stored
from shardwright.routing.tables import Declaration
from shardwright.routing.ties import Lookup, Ties

Params = Sequence[Mapping[str, Any]]

_MISSING = object()
_ONCE: Params = ({},)


@dataclass(frozen=True)
class Plan:
    """What one shape of statement asks of the shards."""

    #: it changes rows or locks them
    writes: bool
    #: where keys come from, one source for each independent group of sharded tables, with its keyspace, and its key
    #: column where that has a type of the application's own
    sources: tuple[tuple[str, Source, Column[Any] | None], ...] = ()
    #: some sharded table's rows are not tied to a key: why there is none, for people
    unbound: str | None = None
    #: keyspaces of its sharded tables
    keyspaces: tuple[str, ...] = ()
    #: reference and global tables in it
    others: tuple[tuple[str | None, str, Declaration], ...] = ()
    #: the table that it changes, where that is no sharded one
    target: tuple[str | None, str, Declaration] | None = None
    #: the key column to narrow it by when it is asked of several shards; None where it may not be
    root: elements.ColumnElement[Any] | None = None
    #: key columns that hold in each row of the result what `root` holds, itself among them
    row_keys: tuple[elements.ColumnElement[Any], ...] = ()
    root_keyspace: str = ""
    #: why it cannot be asked of several shards
    local: str | None = None
    #: why it cannot be looked through at all
    opaque: str | None = None
    #: tables that are neither declared nor registered
    unknown: tuple[str, ...] = ()

    def keys(self, binds: Sequence[elements.BindParameter[Any]], params: Params) -> Iterator[tuple[str, Any]]:
        """The keys that one execution names, each with its keyspace.

        Args:
            binds: the statement's bind parameters in the order of its cache key.
            params: one mapping of values for each execution; none for a statement without values of its own.

        Raises:
            NoShardKey: a value of an INSERT has no key.
        """
        for keyspace, source, column in self.sources:
            for values in params or _ONCE:
                if type(source) is Bound and not source.many and source.position is not None:
                    # By far the most frequent: spared the way through the generators.
                    bind = binds[source.position]
                    found: Iterable[Any] = (values.get(bind.key, bind.effective_value),)
                else:
                    found = _values(source, binds, values)
                for value in found:
                    yield keyspace, value if column is None else as_stored(value, column)


def _values(source: Source, binds: Sequence[elements.BindParameter[Any]], params: Mapping[str, Any]) -> Iterator[Any]:
    if isinstance(source, Bound):
        bind = binds[source.position] if source.position is not None else source.bind
        value: Any = params.get(bind.key, bind.effective_value)
        if not source.many:
            yield value
        elif source.part is None:
            yield from value
        else:
            for item in value:
                yield item[source.part]
    elif isinstance(source, Either):
        for one in source.sources:
            yield from _values(one, binds, params)
    elif isinstance(source, Fixed):
        yield from source.values
    else:
        for name in source.names:
            if (found := params.get(name, _MISSING)) is not _MISSING:
                yield _value_of(found)
                return
        if source.otherwise is None:
            raise errors.NoShardKey(
                f"the values give no {source.names[0]}, so no shard can be chosen",
                fix=f"set {source.names[0]} before the row is written; the shard key cannot come from the database",
            )
        yield from _values(source.otherwise, binds, params)


def _value_of(value: Any) -> Any:
    return value.effective_value if isinstance(value, elements.BindParameter) else value


class Planner:
    """Plans statements, and remembers the plan of each shape.

    Args:
        lookup: what is declared of a table.
        size: how many shapes to remember.
    """

    def __init__(self, lookup: Lookup, size: int = 2000) -> None:
        self._lookup = lookup
        self._size = size
        self._plans: dict[Any, Plan] = {}

    def plan(self, statement: Any, params: Params) -> tuple[Plan, Sequence[elements.BindParameter[Any]]]:
        """The plan of a statement.

        Args:
            statement: a statement of SQLAlchemy Core or ORM.
            params: what it is executed with.

        Returns:
            The plan, and the statement's bind parameters for `Plan.keys`.
        """
        cache_key = statement._generate_cache_key()
        if cache_key is None:
            return self._make(statement, params, None), ()
        # An INSERT's keys come from the names of its values.
        shape = (cache_key.key, tuple(params[0]) if params and isinstance(statement, (Insert, Update)) else None)
        plan = self._plans.get(shape)
        if plan is None:
            plan = self._make(statement, params, cache_key.bindparams)
            if len(self._plans) >= self._size:
                self._plans.clear()
            self._plans[shape] = plan
        return plan, cache_key.bindparams

    def exact(self, statement: Any, params: Params, plan: Plan) -> Plan:
        """The plan of this very statement, where that of its shape names an alias that another statement made.

        Args:
            statement: the statement.
            params: what it is executed with.
            plan: what `plan` gave for it.
        """
        if all(is_portable(key) for key in plan.row_keys):
            return plan
        cache_key = statement._generate_cache_key()
        return self._make(statement, params, cache_key.bindparams if cache_key is not None else None)

    # ------------------------------------------------------------------ once for each shape

    def _make(self, statement: Any, params: Params, binds: Sequence[elements.BindParameter[Any]] | None) -> Plan:
        ties = Ties(self._lookup)
        statement = getattr(statement, "_resolved", statement)  # a lambda statement
        target: Any = None
        if isinstance(statement, UpdateBase):
            plan = self._change(ties, statement, params)
            target = statement.table
        else:
            core = core_of(statement)
            if isinstance(core, UpdateBase):
                return self._make(core, params, binds)
            if isinstance(core, selectable.CompoundSelect):
                return self._compound(core, params, binds)
            ties.select(core, top=True)
            plan = Plan(writes=ties.writes)
        plan = self._conclude(plan, ties, target)
        return replace(plan, sources=tuple(_positioned(plan.sources, binds)))

    def _compound(
        self,
        statement: selectable.CompoundSelect[Any],
        params: Params,
        binds: Sequence[elements.BindParameter[Any]] | None,
    ) -> Plan:
        """UNION and its like: each part is a statement of its own, and together they need what all of them need."""
        parts = [getattr(part, "element", part) for part in statement.selects]
        plans = [self._make(part, params, binds) for part in parts]
        beside = "a CTE beside a UNION" if statement._independent_ctes else None
        return Plan(
            writes=any(plan.writes for plan in plans) or statement._for_update_arg is not None,
            sources=tuple(source for plan in plans for source in plan.sources),
            unbound=next((plan.unbound for plan in plans if plan.unbound is not None), None),
            keyspaces=tuple(sorted({name for plan in plans for name in plan.keyspaces})),
            others=tuple(dict.fromkeys(other for plan in plans for other in plan.others)),
            local="UNION and its like",
            opaque=next((plan.opaque for plan in plans if plan.opaque is not None), beside),
            unknown=tuple(name for plan in plans for name in plan.unknown),
        )

    def _conclude(self, plan: Plan, ties: Ties, target: Any) -> Plan:
        sources, unbound = list(plan.sources), plan.unbound
        taken = {id(source) for _, source, _ in sources}
        for table, declared in ties.sharded.items():
            source = ties.source_of(table)
            assert declared.keyspace is not None
            if source is None:
                unbound = unbound or f"nothing ties {table.description}.{declared.key_column} to a value"
            elif id(source) not in taken:
                taken.add(id(source))
                sources.append((declared.keyspace, source, _key_column(table, declared)))
        root = next((table for table in ties.roots if ties.hangs_on(table)), None)
        local = ties.local
        if root is None and ties.sharded:
            local = local or "its sharded tables are not joined by their shard keys"
        elif plan.writes or ties.writes:
            local = local or "it changes or locks rows"
        declared_root = ties.sharded[root] if root is not None else None
        changed = plain(target)
        others = tuple((*_name(item), declared) for item, declared in ties.others.items())
        return replace(
            plan,
            writes=plan.writes or ties.writes,
            sources=tuple(sources),
            unbound=unbound,
            keyspaces=tuple(
                sorted({name for name, _, _ in sources} | {d.keyspace or "" for d in ties.sharded.values()})
            ),
            others=others,
            target=next((one for one in others if changed is not None and one[:2] == _name(changed)), None),
            root=_root_column(ties, root, declared_root) if root is not None and declared_root is not None else None,
            row_keys=tuple(_root_column(ties, one, ties.sharded[one]) for one in ties.equal_to(root)),
            root_keyspace=(declared_root.keyspace or "") if declared_root is not None else "",
            local=local,
            opaque=plan.opaque or ties.opaque,
            unknown=tuple(ties.unknown),
        )

    def _change(self, ties: Ties, statement: Any, params: Params) -> Plan:
        for independent in statement._independent_ctes:
            ties.nested(independent.element, (), "a CTE")
        if isinstance(statement, Insert):
            return self._insert(ties, statement)
        values: Mapping[Any, Any] = (statement._values or {}) if isinstance(statement, Update) else {}
        ordered = getattr(statement, "_ordered_values", None) or ()
        settings = [*values.items(), *ordered]
        table = plain(statement.table)
        declared = self._lookup(table)
        if declared is not None and declared.kind == "sharded":
            names = _names(statement, table, declared.key_column)
            for column, _ in settings:
                if getattr(column, "key", column) in names:
                    raise errors.WriteRefused(
                        f"{table.description}.{declared.key_column} is the shard key and cannot be changed",
                        fix="delete the row and insert it anew",
                    )
            if not statement._where_criteria and params and any(name in params[0] for name in names):
                # The ORM's bulk UPDATE by primary key: each set of values names its row.
                column = _key_column(table, declared)
                return Plan(True, sources=((declared.keyspace or "", Given(names), column),))
        ties.change(statement, statement._where_criteria, [value for _, value in settings if is_clause(value)])
        return Plan(writes=True)

    def _insert(self, ties: Ties, statement: Insert) -> Plan:
        table = plain(statement.table)
        declared = self._lookup(table)
        if declared is None or declared.kind != "sharded":
            ties.from_clause(table, (), nullable=False, top=True)
            if statement.select is not None:
                ties.select(statement.select)
            return Plan(writes=True)
        column = _key_column(table, declared)
        names = _names(statement, table, declared.key_column)
        source: Source | None = None
        unbound: str | None = None
        if statement.select is not None:
            source = self._selected(ties, statement, names)
            if source is None:
                unbound = f"the query does not give {declared.key_column} a value that can be seen"
        elif statement._multi_values:
            found = []
            for values in (row for rows in statement._multi_values for row in rows):
                given = _given(values, names) if isinstance(values, Mapping) else _MISSING
                if isinstance(values, (tuple, list)):
                    position = list(table.c).index(column) if column is not None else len(values)
                    given = values[position] if position < len(values) else _MISSING
                found.append(_value_of(given))
            if any(value is _MISSING or is_clause(value) for value in found):
                unbound = f"not every row gives {declared.key_column} a value"
            else:
                source = Fixed(tuple(found))
        else:
            given = _given(statement._values or {}, names)
            inner = Bound(given) if isinstance(given, elements.BindParameter) else None
            if given is not _MISSING and inner is None:
                unbound = f"{declared.key_column} is an expression, not a value"
            source = Given(names, inner)
        keyspace = declared.keyspace or ""
        return Plan(
            writes=True, sources=((keyspace, source, column),) if source is not None else (), unbound=unbound,
            keyspaces=(keyspace,),
        )  # fmt: skip

    def _selected(self, ties: Ties, statement: Insert, names: tuple[str, ...]) -> Source | None:
        """INSERT .. SELECT: the key must be a value, or the key of a table that the query reads."""
        query = statement.select
        ties.select(query)
        if not isinstance(query, selectable.Select):
            return None
        for name, value in zip(statement._select_names or (), query.selected_columns, strict=False):
            if name in names:
                inner = value.element if isinstance(value, elements.Label) else value
                if isinstance(inner, elements.BindParameter):
                    return Bound(inner)
                table = ties.key_of(value)
                return ties.source_of(table) if table is not None else None
        return None


def _positioned(
    sources: Iterable[tuple[str, Source, Column[Any] | None]], binds: Sequence[elements.BindParameter[Any]] | None
) -> Iterator[tuple[str, Source, Column[Any] | None]]:
    """The sources with positions instead of bind parameters of one statement, where plans are kept."""
    positions = {id(clone): at for at, bind in enumerate(binds or ()) for clone in bind._cloned_set}
    named = {bind.key: at for at, bind in enumerate(binds or ()) if not bind.unique}

    def place(source: Source) -> Source:
        if isinstance(source, Either):
            return Either(tuple(place(one) for one in source.sources))
        if isinstance(source, Given):
            return Given(source.names, place(source.otherwise) if source.otherwise is not None else None)
        if isinstance(source, Fixed):
            return source
        # What is no parameter of the shape (a constant inside a lambda) is the same for all statements of the shape:
        # SQLAlchemy's own cache of compiled statements rests on that too.
        clones = (positions[id(clone)] for clone in source.bind._cloned_set if id(clone) in positions)
        return replace(source, position=next(clones, named.get(source.bind.key)))

    for keyspace, source, column in sources:
        yield keyspace, place(source), column if column is not None and isinstance(column.type, TypeDecorator) else None


def _name(table: Any) -> tuple[str | None, str]:
    while not isinstance(table, selectable.TableClause):
        table = table.element
    return getattr(table, "schema", None), table.name


def _names(statement: Any, table: Any, column_name: str | None) -> tuple[str, ...]:
    """The names under which values may carry a column: its key, its name, and the model's attribute."""
    found = [column.key for column in table.c if column.name == column_name]
    mapper = statement._propagate_attrs.get("plugin_subject")
    for prop in getattr(mapper, "column_attrs", ()):
        if any(getattr(column, "name", None) == column_name for column in prop.columns):
            found.append(prop.key)
    return tuple(dict.fromkeys([*found, str(column_name)]))


def _key_column(table: Any, declared: Declaration) -> Column[Any] | None:
    while not isinstance(table, selectable.TableClause):
        table = table.element
    if not isinstance(table, Table):
        return None
    return next((column for column in table.c if column.name == declared.key_column), None)


def _root_column(ties: Ties, root: Any, declared: Declaration) -> Any:
    if (exposed := ties.exposed.get(root)) is not None:
        return exposed
    return next(column for column in root.c if column.name == declared.key_column)


def _given(values: Mapping[Any, Any], names: Sequence[str]) -> Any:
    for column, value in values.items():
        if column in names if isinstance(column, str) else getattr(column, "key", None) in names:
            return value
    return _MISSING
