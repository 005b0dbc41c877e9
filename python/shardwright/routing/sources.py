"""Where an execution of a statement finds a shard key: in a parameter, in a list of them, in the values of an INSERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.sql import elements


@dataclass(frozen=True)
class Bound:
    """A key that a bind parameter carries."""

    bind: elements.BindParameter[Any]
    #: it carries a list of keys
    many: bool = False
    #: the list's items are tuples, and the key is at this position
    part: int | None = None
    #: the position among the statement's bind parameters, where the plan is kept for statements of the same shape
    position: int | None = None


@dataclass(frozen=True)
class Either:
    """One of several sources holds (OR)."""

    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Given:
    """A key that comes with the values of an INSERT, under one of these names."""

    names: tuple[str, ...]
    #: what the statement itself gives, where the values do not
    otherwise: Source | None = None


@dataclass(frozen=True)
class Fixed:
    """Keys that stand in a statement which is not kept."""

    values: tuple[Any, ...]


Source = Bound | Either | Given | Fixed


def breadth(source: Source) -> int:
    """How many keys a source names, roughly: what names one comes first.

    Args:
        source: where a key comes from.
    """
    if isinstance(source, Bound):
        return 1 if source.many else 0
    return 2
