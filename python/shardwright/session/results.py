"""A merged result is the caller's: the columns that were added for the merge are taken off again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def with_hidden(statement: Any, hidden: Sequence[Any]) -> Any:
    """A statement that also asks for the columns by which answers are merged.

    Args:
        statement: the caller's.
        hidden: the columns.
    """
    return getattr(statement, "_resolved", statement).add_columns(*hidden) if hidden else statement


def without_hidden(result: Any, statement: Any, hidden: Sequence[Any]) -> Any:
    """A result as the caller's own statement would give it.

    Args:
        result: of `with_hidden`.
        statement: the caller's.
        hidden: the columns.
    """
    if not hidden or not hasattr(result, "keys"):
        return result
    names = list(result.keys())[: -len(hidden)]
    _separate(result._metadata)
    result = _named(result.columns(*range(len(names))), names)
    if len(names) == 1 and _is_entity(statement):
        # What `Query` looks at to give objects instead of rows.
        result._attributes = result._attributes.union({"is_single_entity": True})
    return result


def _separate(metadata: Any) -> None:
    """Let each key stand for its own column: of two sums, SQLAlchemy's name for the first may stand for the second too."""
    own: dict[int, Any] = {}
    for found in metadata._keymap.values():
        own.setdefault(found[0], found)
    for at, key in enumerate(metadata._keys):
        if metadata._keymap[key][0] != at and at in own:
            metadata._keymap[key] = own[at]


def _named(result: Any, names: Sequence[str]) -> Any:
    """Leaving columns out turns the names that SQLAlchemy made up into placeholders; give them back."""
    metadata = result._metadata
    if list(metadata._keys) != list(names):
        for at, (old, new) in enumerate(zip(list(metadata._keys), names, strict=True)):
            found = metadata._keymap[old]
            metadata._keymap[new] = (found[0], new, *found[2:])
            metadata._keys[at] = new
        metadata._key_to_index = metadata._make_key_to_index(metadata._keymap, 0)
    return result


def _is_entity(statement: Any) -> bool:
    described: Any = getattr(statement, "column_descriptions", ())
    return len(described) == 1 and described[0].get("entity") is described[0].get("expr") is not None


def as_tuples(rows: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Rows of a driver's cursor as tuples, which asyncpg's are not.

    Args:
        rows: what the cursor gave.
    """
    return [tuple(row) for row in rows]
