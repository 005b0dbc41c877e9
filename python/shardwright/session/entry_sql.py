"""The SQL with which a transaction enters ranges, bounds its waits for locks, and asks for its number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

#: Gives the transaction's number, assigning one; alone, and as the last column of another answer.
NUMBER = b"pg_catalog.pg_current_xact_id()::pg_catalog.text"
TAKE_XID = b"SELECT " + NUMBER
#: Asks for the transaction's number; NULL while it has written nothing.
ASK_XID = b"SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text"
#: Enters the whole shard; `Guarded.note_served` takes its rows.
ENTER_ALL = b"SELECT keyspace, owned::pg_catalog.text, strangers FROM shardwright.enter_all()"

_ENTERS_ONE = re.compile(rb"SELECT shardwright\.enter\(\d+\)(?:, " + re.escape(NUMBER) + rb")?")


def enter_sql(ranges: Iterable[int]) -> bytes:
    """SQL that enters ranges, in the order of their ids.

    Args:
        ranges: ids of ranges.
    """
    ordered = sorted(ranges)
    if len(ordered) == 1:
        return _enter_one(ordered[0])
    if len(ordered) <= 8:
        return ("SELECT " + ", ".join(f"shardwright.enter({number})" for number in ordered)).encode()
    listed = ",".join(map(str, ordered))
    return f"SELECT count(shardwright.enter(r)) FROM pg_catalog.unnest('{{{listed}}}'::int[]) AS r".encode()


@lru_cache(8192)
def _enter_one(number: int) -> bytes:
    return f"SELECT shardwright.enter({number})".encode()


def lock_timeout_sql(seconds: float) -> bytes:
    """SQL that bounds the transaction's waits for locks, where nothing else does.

    Args:
        seconds: how long each may be.
    """
    return (
        f"SELECT pg_catalog.set_config('lock_timeout', '{round(seconds * 1000)}', true) "
        "WHERE pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.=) '0'"
    ).encode()


def is_repeated(command: bytes) -> bool:
    """Whether a command of ours comes again and again, so that it is worth being prepared.

    Args:
        command: what is sent to a shard.
    """
    return command in (TAKE_XID, ASK_XID) or _ENTERS_ONE.fullmatch(command) is not None
