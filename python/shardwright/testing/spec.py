"""What a workload works on: which tables, which keys, which servers. Handed to its processes as a JSON file."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Column, Table
from sqlalchemy.orm import DeclarativeBase


@dataclass(frozen=True)
class ListTable:
    """A table of append-only lists: primary key (shard key, page), and an int8[] column. Pages bound their length."""

    table: str
    key: str
    page: str
    elements: str


@dataclass(frozen=True)
class CounterTable:
    """A table whose rows exist already, each with an integer column that began at 0: primary key (shard key, id)."""

    table: str
    key: str
    id: str
    value: str


@dataclass(frozen=True)
class RowTable:
    """A table whose rows are inserted and deleted whole: primary key (shard key, id), no other required column."""

    table: str
    key: str
    id: str


@dataclass(frozen=True)
class Spec:
    """Everything that a process of the workload needs to know.

    Attributes:
        catalog: DSN of the catalog, without a password.
        base: ``module:name`` of the declarative base with the models of the tables.
        keyspace: the keyspace of the three tables.
        lists: where lists are appended to.
        rows: where rows are inserted and deleted.
        counters: where is counted; None leaves that out.
        keys: shard keys to work on; the first tenth gets half of the work.
        counted: (shard key, id) of the counters to work on.
        counts: tables whose rows are counted over all shards now and then.
        direct: shard -> DSN for the clients without the library.
        direct_shard: the shard that the client without the library writes to, whatever the map says.
        direct_keys: the keys that it mostly writes; those that lived there when the workload was made.
        directory: where the history files go.
        seed: of all random choices.
        rate: transactions a second that each process tries to reach.
        idle: seconds for which an idle transaction stays open and does nothing.
        page_size: elements after which a list's next page is begun.
        reads: of the reader: ``strict``, or ``relaxed`` to see that a stale reader is found out.
    """

    catalog: str
    base: str
    keyspace: str
    lists: ListTable
    rows: RowTable
    keys: list[Any]
    directory: str
    counters: CounterTable | None = None
    counted: list[tuple[Any, int]] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)
    direct: dict[str, str] = field(default_factory=dict)
    direct_shard: str = ""
    direct_keys: list[Any] = field(default_factory=list)
    seed: int = 0
    rate: float = 100.0
    idle: float = 1.5
    page_size: int = 256
    reads: Literal["strict", "relaxed"] = "strict"

    def save(self, path: Path) -> None:
        """Write it to a file that only its owner can read."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read what `save` wrote."""
        stored = json.loads(path.read_text())
        stored["lists"] = ListTable(**stored["lists"])
        stored["rows"] = RowTable(**stored["rows"])
        stored["counters"] = CounterTable(**stored["counters"]) if stored["counters"] else None
        stored["counted"] = [(key, number) for key, number in stored["counted"]]
        return cls(**stored)

    def models(self) -> dict[str, type[DeclarativeBase]]:
        """Table name -> mapped class, for every model of the base."""
        module, _, name = self.base.partition(":")
        base = getattr(importlib.import_module(module), name)
        return {mapper.local_table.name: mapper.class_ for mapper in base.registry.mappers}

    def table(self, name: str) -> Table:
        """A table of the base by its name."""
        table = self.models()[name].__table__
        assert isinstance(table, Table)
        return table

    def columns(self, name: str, *columns: str) -> list[Column[Any]]:
        """Columns of a table by their names."""
        return [self.table(name).c[column] for column in columns]


def list_key(spec: Spec, key: Any, page: int) -> str:
    """The key in a history of one page of a list."""
    return f"{spec.lists.table}/{key}/{page}"


def counter_key(spec: Spec, key: Any, number: int) -> str:
    """The key in a history of one counter."""
    assert spec.counters is not None
    return f"{spec.counters.table}/{key}/{number}"


def row_key(spec: Spec, key: Any) -> str:
    """The key in a history of the rows of one shard key."""
    return f"{spec.rows.table}/{key}"
