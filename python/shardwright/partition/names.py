"""Names of partitions: at most 63 bytes, made once by the coordinator, never read back. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final, Literal

from shardwright import errors

#: NAMEDATALEN - 1 of every PostgreSQL that was not built otherwise.
MAX_BYTES: Final = 63
#: Hexadecimal digits of the hash in a name that was cut or taken.
_HASH: Final = 8


def leaf_name(table: str, label: str, taken: Collection[str] = ()) -> str:
    """The name of a partition: ``<table>_p<label>``.

    Where that is longer than PostgreSQL allows, the table's part is cut and followed by a hash of the whole of it; where it
    is taken, by another hash. The label is kept whole.

    Args:
        table: the parent's name.
        label: what `calendar.label` calls the window.
        taken: names that are not free in the parent's schema.

    Raises:
        BadOption: the label alone is too long.
    """
    return _fit(table, f"_p{label}", taken)


def guard_name(table: str, side: Literal["before", "after"], taken: Collection[str] = ()) -> str:
    """The name of a guard partition: ``<table>_p_before`` or ``<table>_p_after``, cut as `leaf_name` does.

    Args:
        table: the parent's name.
        side: before the first window, or after the last.
        taken: names that are not free in the parent's schema.
    """
    return _fit(table, f"_p_{side}", taken)


def _fit(table: str, suffix: str, taken: Collection[str]) -> str:
    name = table + suffix
    if len(name.encode()) <= MAX_BYTES and name not in taken:
        return name
    room = MAX_BYTES - len(suffix.encode()) - _HASH - 1
    if room < 1:
        raise errors.BadOption(f"{suffix!r} leaves no room for a table's name", fix="a label of at most 50 bytes")
    attempt = 0
    while True:
        # Leaves of one table share its hash, and so their beginning; the label and a number come in when that is taken.
        hashed = table if attempt == 0 else f"{table}\0{suffix}\0{attempt}"
        digest = hashlib.sha256(hashed.encode()).hexdigest()[:_HASH]
        name = f"{_cut(table, room)}_{digest}{suffix}"
        if name not in taken:
            return name
        attempt += 1


def _cut(text: str, size: int) -> str:
    """The longest beginning of `text` that is at most `size` bytes of UTF-8 and ends with a whole character."""
    return text.encode()[:size].decode(errors="ignore")
