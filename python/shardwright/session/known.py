"""What a process has found out about models, statements and databases, and need not find out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import selectable

from shardwright.routing.merging import Merging, merging
from shardwright.routing.statement import Planner
from shardwright.routing.tables import Declaration, declaration_of
from shardwright.session.instances import MappedKey, mapped_key
from shardwright.session.refresh import Router

#: How many shapes of statements that are merged are remembered.
_REMEMBERED = 1000


class Known:
    """A cluster's memory.

    Args:
        router: knows which tables the catalog declares.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._mapped: WeakKeyDictionary[Mapper[Any], MappedKey] = WeakKeyDictionary()
        self._mergings: dict[Any, Merging] = {}
        #: whether a function of the databases is an aggregate, for each name that was asked
        self.functions: dict[str, bool] = {}
        #: whether the databases' default collation orders texts by code point; None until it was asked
        self.collation: bool | None = None
        self.planner = Planner(self.declaration)

    def declaration(self, table: selectable.TableClause) -> Declaration | None:
        """What a table is declared to be, by itself or by the catalog."""
        declared = declaration_of(table) if isinstance(table, sa.Table) else None
        registered = self._router.now.tables.get((getattr(table, "schema", None) or "public", table.name))
        if declared is None or (declared.kind == "reference" and declared.home is None):
            return registered or declared
        return declared

    def merging(self, statement: Any, keys: Sequence[Any]) -> Merging:
        """How several shards' answers to a statement are merged; remembered where it holds for all of its shape.

        Args:
            statement: the statement.
            keys: columns that hold the shard key of each of its rows.
        """
        statement = getattr(statement, "_resolved", statement)
        cache_key = statement._generate_cache_key()
        found = self._mergings.get(cache_key.key) if cache_key is not None else None
        if found is None:
            found = merging(statement, keys)
            if cache_key is not None and found.is_portable:
                if len(self._mergings) >= _REMEMBERED:
                    self._mergings.clear()
                self._mergings[cache_key.key] = found
        return found

    def mapped_key(self, mapper: Mapper[Any]) -> MappedKey:
        """Where a mapper's objects carry their shard key; see `instances.mapped_key`."""
        found = self._mapped.get(mapper)
        if found is None:
            found = self._mapped[mapper] = mapped_key(mapper, self.declaration)
        return found
