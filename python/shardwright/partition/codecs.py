"""What a moment of a policy's axis looks like in its column: partition bounds, CHECKs and values, and back. Pure.

Literals are made once, by the coordinator, and mean the same under every setting of a session: instants carry the offset
``+00``, dates are ISO.
"""

from __future__ import annotations

import re
import uuid
from functools import lru_cache
from typing import Final, Literal

from shardwright import errors
from shardwright.partition import moments
from shardwright.partition.calendar import grid_of
from shardwright.partition.clocks import DAY, SECOND
from shardwright.partition.moments import INFINITY, MINUS_INFINITY
from shardwright.routing.policy import Policy

Side = Literal["lower", "upper"]

_MILLISECOND: Final = 1_000
_INT4_MAX: Final = 2**31 - 1
_INT8_MAX: Final = 2**63 - 1

#: format_type's and other spellings of the types that a key may have.
_TYPES: Final = {
    "timestamp with time zone": "timestamptz",
    "timestamptz": "timestamptz",
    "timestamp without time zone": "timestamp",
    "timestamp": "timestamp",
    "date": "date",
    "bigint": "int8",
    "int8": "int8",
    "integer": "int4",
    "int4": "int4",
    "int": "int4",
    "uuid": "uuid",
}
#: Type by type the keys that go with it; the first is meant where the policy says none, but integers must say it.
_KEYS_OF: Final = {
    "timestamptz": ("timestamptz",),
    "timestamp": ("timestamp",),
    "date": ("date",),
    "int8": ("epoch_s", "epoch_ms", "epoch_us", "snowflake"),
    "int4": ("epoch_s",),
    "uuid": ("uuid7",),
}
#: Microseconds of an integer key's unit.
_UNIT: Final = {"epoch_s": SECOND, "epoch_ms": _MILLISECOND, "epoch_us": 1}
_SQL_TYPE: Final = {"uuid7": "uuid", "snowflake": "int8", "epoch_s": "int8", "epoch_ms": "int8", "epoch_us": "int8"}

_FIX: Final = "a smaller `ahead`, other windows, or a column of a wider type"

#: The bits of the smallest UUIDv7 of a millisecond: version 7, variant 10, all else zero.
_SMALLEST_V7: Final = (7 << 76) | (2 << 62)
_BOUNDS = re.compile(r"FOR VALUES FROM \((?P<lower>[^()]*)\) TO \((?P<upper>[^()]*)\)")


def resolve_key(policy: Policy, column_type: str) -> str:
    """What the values of a policy's column are.

    Args:
        policy: may name the key; must, where the column is an integer.
        column_type: as ``format_type`` prints it.

    Returns:
        One of `policy.KEYS`.

    Raises:
        UnfitTable: type and key do not go together, or the type has no windows of that length.
        BadDeclaration: the policy's anchor is finer than a second, or at an end of the calendar.
    """
    base = resolve_type(column_type)

    def refuse(what: str, fix: str) -> errors.UnfitTable:
        return errors.UnfitTable(f"column {policy.column} {what}", fix=fix)

    if base is None:
        raise refuse(
            f"is of type {column_type}, which cannot be a partition key",
            "timestamptz, timestamp, date, bigint, integer or uuid",
        )
    fitting = _KEYS_OF[base]
    if policy.key is None and base in ("int8", "int4"):
        raise refuse(
            f"is of type {column_type}: the policy must say what its numbers count", f"key= {_one_of(fitting)}"
        )
    key = policy.key or fitting[0]
    if key not in fitting:
        raise refuse(f"is of type {column_type}, which goes with {_one_of(fitting)}, not {key}", "change key or column")
    anchor = grid_of(policy, key).anchor
    if anchor.microsecond:
        raise errors.BadDeclaration(f"the anchor {policy.anchor} is finer than a second", fix="leave the fraction out")
    if not 2 <= anchor.year < 9999:
        raise errors.BadDeclaration(f"the anchor {policy.anchor} is at an end of the calendar", fix="years 2 to 9998")
    if key == "date" and (policy.window.unit == "hour" or anchor.time() != anchor.min.time()):
        what = "windows of hours" if policy.window.unit == "hour" else f"windows that begin at {anchor.time()}"
        raise refuse(f"is of type date, which cannot have {what}", "whole days, or a column of type timestamptz")
    return key


def _one_of(keys: tuple[str, ...]) -> str:
    return " or ".join(keys)


def bound(policy: Policy, key: str, at: int | None, side: Side, column_type: str = "") -> str:
    """A bound as it stands between the brackets of ``FROM (..)`` or ``TO (..)``.

    Args:
        policy: whose bound; describes a snowflake's numbers.
        key: one of `policy.KEYS`, as resolved from the column's type.
        at: the moment on the axis; None: no end on this side.
        side: which end of its partition it is.
        column_type: as ``format_type`` prints it; given, a bound that an integer column cannot hold is refused here and
            not by the server.

    Returns:
        ``MINVALUE``, ``MAXVALUE``, a quoted literal or a number.

    Raises:
        BadOption: the type cannot express the moment; the message says why.
    """
    if at is None:
        return "MINVALUE" if side == "lower" else "MAXVALUE"
    text = _text(policy, key, at, side, column_type)
    return text if key in _UNIT or key == "snowflake" else f"'{text}'"


def check_sql(
    policy: Policy, key: str, column: str, lower: int | None, upper: int | None, column_type: str = ""
) -> str:
    """SQL of the CHECK from which PostgreSQL sees that a table may be attached without looking at its rows.

    Args:
        policy: whose window.
        key: one of `policy.KEYS`, as resolved from the column's type.
        column: SQL of the column, already quoted.
        lower: from here on; None: no end.
        upper: before here; None: no end.
        column_type: as in `bound`.

    Returns:
        A boolean expression, never NULL, in brackets. Of a UUIDv7 it tests the version as well (`lasting_check_sql`).

    Raises:
        BadOption: as in `bound`.
    """
    tests = [f"{column} IS NOT NULL"]
    if lower is not None:
        tests.append(f"{column} OPERATOR(pg_catalog.>=) {_typed(key, _text(policy, key, lower, 'lower', column_type))}")
    if upper is not None:
        tests.append(f"{column} OPERATOR(pg_catalog.<) {_typed(key, _text(policy, key, upper, 'upper', column_type))}")
    lasting = lasting_check_sql(key, column)
    if lasting is not None:
        tests.append(lasting)
    return f"({' AND '.join(tests)})"


def lasting_check_sql(key: str, column: str) -> str | None:
    """SQL of the CHECK that a leaf keeps after it was attached, beyond its bounds; None: none is needed.

    A UUID of another version lies in some window by accident; the leaf must refuse it.

    Args:
        key: one of `policy.KEYS`.
        column: SQL of the column, already quoted.
    """
    if key != "uuid7":
        return None
    version = f"pg_catalog.get_byte(pg_catalog.uuid_send({column}), 6) OPERATOR(pg_catalog.>>) 4"
    return f"(({version}) OPERATOR(pg_catalog.=) 7)"


def value_at(policy: Policy, key: str, at: int) -> str:
    """SQL of the smallest value that a column has at a moment, with its type.

    Args:
        policy: describes a snowflake's numbers.
        key: one of `policy.KEYS`.
        at: the moment on the axis; what is finer than the key is cut off.

    Raises:
        BadOption: the type cannot express the moment.
    """
    step = {"date": DAY, "uuid7": _MILLISECOND, "snowflake": _MILLISECOND, **_UNIT}.get(key, 1)
    if at not in (INFINITY, MINUS_INFINITY):
        at -= at % step
    return _typed(key, _text(policy, key, at, "lower"))


def _typed(key: str, text: str) -> str:
    return f"'{text}'::pg_catalog.{_SQL_TYPE.get(key, key)}"


def _text(policy: Policy, key: str, at: int, side: Side, column_type: str = "") -> str:
    def refuse(why: str) -> errors.BadOption:
        shown = moments.text_of(at, "timestamp")
        return errors.BadOption(f"column {policy.column} ({key}) cannot hold the bound {shown}: {why}", fix=_FIX)

    if key in ("timestamptz", "timestamp", "date"):
        if at in (INFINITY, MINUS_INFINITY):
            return moments.text_of(at, key)
        if not moments.EARLIEST <= at < INFINITY:
            raise refuse("PostgreSQL's calendar begins on 4714-11-24 BC")
        if key == "date" and at % DAY:
            raise refuse("it is not the beginning of a day")
        return moments.text_of(at, key)
    unit = _UNIT.get(key, _MILLISECOND)
    if at % unit:
        raise refuse("it lies between two of the column's values")
    number = at // unit
    if key == "uuid7":
        if not 0 <= number < 1 << 48:
            raise refuse("the time of a UUIDv7 begins in 1970 and ends in 10889")
        # Partitions made by others begin a millisecond at either of these two; between them is no UUIDv7. Beginning at the
        # higher and ending at the lower one, ours meet theirs without an overlap.
        return str(uuid.UUID(int=(number << 80) | (_SMALLEST_V7 if side == "lower" else 0)))
    if key == "snowflake":
        number = (number - policy.snowflake_epoch) << policy.snowflake_bits
        if not -_INT8_MAX <= number <= _INT8_MAX:
            raise refuse(f"with {policy.snowflake_bits} bits below the milliseconds its numbers end before that")
    if column_type and resolve_type(column_type) == "int4" and not -_INT4_MAX <= number <= _INT4_MAX:
        raise refuse("an integer counts seconds from 1901-12-13 to 2038-01-19 only; make the column bigint")
    return str(number)


def resolve_type(column_type: str) -> str | None:
    """The name of a type without its modifier, such as ``int8``; None where it can be no key."""
    return _TYPES.get(re.sub(r"\s*\(\d+\)", "", column_type.strip().lower().removeprefix("pg_catalog.")))


def parse_bounds(policy: Policy, key: str, text: str) -> tuple[int | None, int | None]:
    """The bounds of a partition on the policy's axis.

    Args:
        policy: whose table it is; describes a snowflake's numbers.
        key: one of `policy.KEYS`, as resolved from the column's type.
        text: ``pg_get_expr(relpartbound, oid)``, printed under TimeZone UTC and DateStyle ISO.

    Returns:
        Lower and upper bound; None for MINVALUE and MAXVALUE. ``infinity`` and ``-infinity`` are `moments.INFINITY` and
        `moments.MINUS_INFINITY`; years before 1 and after 9999 are exact.

    Raises:
        UnfitTable: it is a DEFAULT, list or hash partition, one of several columns, or a bound lies where the axis has no
            point: within a millisecond of a uuid7 or snowflake, or beyond 290,000 years.
    """
    return _parse_bounds(key, policy.column, policy.snowflake_epoch, policy.snowflake_bits, text)


# The same on every shard and in every run.
@lru_cache(maxsize=16_384)
def _parse_bounds(key: str, column: str, epoch: int, bits: int, text: str) -> tuple[int | None, int | None]:
    found = _BOUNDS.fullmatch(text.strip())
    parts = [found["lower"].strip(), found["upper"].strip()] if found is not None else []
    plain = [part[1:-1] if re.fullmatch("'[^',]+'", part) else part for part in parts]
    if not plain or any("'" in part or "," in part for part in plain):
        raise errors.UnfitTable(
            f"not the bounds of a range partition by one column: {text}", fix="only such partitions are managed"
        )
    lower, upper = (
        None if part in ("MINVALUE", "MAXVALUE") else _parse_value(key, column, epoch, bits, part) for part in plain
    )
    return lower, upper


def parse_value(policy: Policy, key: str, text: str) -> int:
    """The moment of a value, or of a bound, on the policy's axis.

    Args:
        policy: describes a snowflake's numbers.
        key: one of `policy.KEYS`.
        text: as PostgreSQL prints it under TimeZone UTC and DateStyle ISO, without quotes.

    Raises:
        UnfitTable: the axis has no such point.
    """
    return _parse_value(key, policy.column, policy.snowflake_epoch, policy.snowflake_bits, text)


def _parse_value(key: str, column: str, epoch: int, bits: int, text: str) -> int:
    def refuse(why: str) -> errors.UnfitTable:
        return errors.UnfitTable(
            f"{text}, a value or bound of column {column} ({key}), {why}", fix="bounds that the key can express"
        )

    at: int | None
    if key in ("timestamptz", "timestamp", "date"):
        at = moments.parse(text)
        if at is None:
            raise refuse("is not what PostgreSQL prints under DateStyle ISO")
    elif key == "uuid7":
        try:
            number, rest = divmod(uuid.UUID(text).int, 1 << 80)
        except ValueError:
            raise refuse("is no uuid") from None
        if rest > _SMALLEST_V7:
            raise refuse("lies within a millisecond, among its UUIDs")
        at = number * _MILLISECOND
    else:
        if re.fullmatch(r"-?\d+", text) is None:
            raise refuse("is no number")
        number = int(text)
        if key == "snowflake":
            number, rest = divmod(number, 1 << bits)
            if rest:
                raise refuse("lies within a millisecond, among its numbers")
            number += epoch
        at = number * _UNIT.get(key, _MILLISECOND)
    if not MINUS_INFINITY <= at <= INFINITY:
        raise refuse("is further from 1970 than 290,000 years")
    return at
