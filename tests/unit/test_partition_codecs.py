"""Bounds as literals and back, key by key, and what a column cannot hold."""

from __future__ import annotations

import uuid
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwright.errors import BadDeclaration, BadOption, UnfitTable
from shardwright.partition import clocks, moments
from shardwright.partition.codecs import (
    bound,
    check_sql,
    lasting_check_sql,
    parse_bounds,
    parse_value,
    resolve_key,
    value_at,
)
from shardwright.routing.policy import KEYS, Policy

SECOND, MINUTE = 10**6, 60 * 10**6
TWITTER = 1_288_834_974_657


def at(*fields: int) -> int:
    return clocks.wall_of(datetime(*fields))  # type: ignore[arg-type]


def policy(every: str = "1 month", **options: Any) -> Policy:
    return Policy("at", every, **options)


NOVEMBER, DECEMBER = at(2026, 11, 1), at(2026, 12, 1)


# ------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    ("type", "key", "expected"),
    [
        ("timestamp with time zone", None, "timestamptz"),
        ("timestamp(3) with time zone", None, "timestamptz"),
        ("timestamp with time zone", "timestamptz", "timestamptz"),
        ("timestamptz", None, "timestamptz"),
        ("timestamp without time zone", None, "timestamp"),
        ("timestamp(0) without time zone", "timestamp", "timestamp"),
        ("date", None, "date"),
        ("uuid", None, "uuid7"),
        ("uuid", "uuid7", "uuid7"),
        ("bigint", "epoch_s", "epoch_s"),
        ("bigint", "epoch_ms", "epoch_ms"),
        ("BIGINT", "epoch_us", "epoch_us"),
        ("int8", "snowflake", "snowflake"),
        ("integer", "epoch_s", "epoch_s"),
    ],
)
def test_keys_of_types(type: str, key: str | None, expected: str) -> None:
    assert resolve_key(policy(key=key), type) == expected


@pytest.mark.parametrize(
    ("type", "options", "message"),
    [
        ("text", {}, "cannot be a partition key"),
        ("numeric(20,0)", {}, "cannot be a partition key"),
        ("smallint", {"key": "epoch_s"}, "cannot be a partition key"),
        ("timestamp with time zone[]", {}, "cannot be a partition key"),
        ("my_domain", {}, "cannot be a partition key"),
        ("bigint", {}, "must say what its numbers count"),
        ("integer", {}, "must say what its numbers count"),
        ("integer", {"key": "epoch_ms"}, "goes with epoch_s, not epoch_ms"),
        ("integer", {"key": "snowflake"}, "goes with epoch_s"),
        ("bigint", {"key": "uuid7"}, "goes with epoch_s or epoch_ms or epoch_us or snowflake, not uuid7"),
        ("date", {"key": "timestamptz"}, "goes with date"),
        ("timestamp with time zone", {"key": "timestamp"}, "goes with timestamptz"),
        ("uuid", {"key": "timestamptz"}, "goes with uuid7"),
        ("date", {"every": "6 hours"}, "windows of hours"),
        ("date", {"every": "24 hours"}, "windows of hours"),
        ("date", {"every": "1 day", "anchor": "2026-01-01T06:00"}, "windows that begin at 06:00:00"),
    ],
)
def test_keys_that_do_not_go_with_their_type(type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnfitTable, match=message) as caught:
        resolve_key(policy(**options), type)
    assert caught.value.fix


@pytest.mark.parametrize("anchor", ["2026-01-01T00:00:00.5", "0001-01-01", "9999-12-31"])
def test_anchors_that_no_column_can_hold(anchor: str) -> None:
    with pytest.raises(BadDeclaration, match="anchor"):
        resolve_key(policy(anchor=anchor), "timestamptz")


# ------------------------------------------------------------------ bounds


@pytest.mark.parametrize(
    ("key", "options", "lower", "upper"),
    [
        ("timestamptz", {}, "'2026-11-01 00:00:00+00'", "'2026-12-01 00:00:00+00'"),
        ("timestamp", {}, "'2026-11-01 00:00:00'", "'2026-12-01 00:00:00'"),
        ("date", {}, "'2026-11-01'", "'2026-12-01'"),
        ("epoch_s", {}, "1793491200", "1796083200"),
        ("epoch_ms", {}, "1793491200000", "1796083200000"),
        ("epoch_us", {}, "1793491200000000", "1796083200000000"),
        ("uuid7", {}, "'01a19467-e800-7000-8000-000000000000'", "'01a22ee6-b000-0000-0000-000000000000'"),
        ("snowflake", {}, str(1793491200000 << 22), str(1796083200000 << 22)),
        (
            "snowflake",
            {"snowflake_epoch": TWITTER, "snowflake_bits": 20},
            str((1793491200000 - TWITTER) << 20),
            str((1796083200000 - TWITTER) << 20),
        ),
    ],
)
def test_bounds_of_a_month(key: str, options: dict[str, Any], lower: str, upper: str) -> None:
    declared = policy(**options)
    assert bound(declared, key, NOVEMBER, "lower") == lower
    assert bound(declared, key, DECEMBER, "upper") == upper
    assert bound(declared, key, None, "lower") == "MINVALUE"
    assert bound(declared, key, None, "upper") == "MAXVALUE"
    assert parse_bounds(declared, key, f"FOR VALUES FROM ({lower}) TO ({upper})") == (NOVEMBER, DECEMBER)
    quoted = [text if text.startswith("'") else f"'{text}'" for text in (lower, upper)]  # as an int8 is printed
    assert parse_bounds(declared, key, f"FOR VALUES FROM ({quoted[0]}) TO ({quoted[1]})") == (NOVEMBER, DECEMBER)
    assert parse_bounds(declared, key, f"FOR VALUES FROM (MINVALUE) TO ({upper})") == (None, DECEMBER)
    assert parse_bounds(declared, key, f"FOR VALUES FROM ({lower}) TO (MAXVALUE)") == (NOVEMBER, None)
    assert value_at(declared, key, NOVEMBER).startswith(f"'{lower.strip(chr(39))}'::pg_catalog.")
    assert parse_value(declared, key, lower.strip("'")) == NOVEMBER


@given(key=st.sampled_from(KEYS), minutes=st.integers(1, at(2079, 1, 1) // MINUTE), length=st.integers(1, 10**6))
def test_what_is_written_is_read(key: str, minutes: int, length: int) -> None:
    step = clocks.DAY if key == "date" else MINUTE
    lower = minutes * MINUTE // step * step
    upper = min(lower + length * step, at(2080, 1, 1))
    declared = policy(snowflake_epoch=TWITTER)
    ends = f"FROM ({bound(declared, key, lower, 'lower')}) TO ({bound(declared, key, upper, 'upper')})"
    assert parse_bounds(declared, key, f"FOR VALUES {ends}") == (lower, upper)


@given(days=st.integers(-(10**9), 10**9))
def test_days_and_their_dates(days: int) -> None:
    year, month, day = moments.civil_of(days)
    assert moments.days_of(year, month, day) == days
    if 1 <= year <= 9999:
        assert date(year, month, day).toordinal() - date(1970, 1, 1).toordinal() == days


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("infinity", moments.INFINITY),
        ("-infinity", moments.MINUS_INFINITY),
        ("0001-01-01", at(1, 1, 1)),
        ("0001-12-31 BC", at(1, 1, 1) - clocks.DAY),
        ("0001-12-31 23:59:59+00 BC", at(1, 1, 1) - SECOND),
        ("10000-01-01 00:00:00+00", at(9999, 12, 31) + clocks.DAY),
        ("2026-11-01 05:30:00.25+05:30", NOVEMBER + 250_000),
        ("1850-01-01 00:00:00-00:44:30", at(1850, 1, 1, 0, 44, 30)),
        ("01.11.2026", None),
        ("2026-11-01T00:00:00", None),
        ("", None),
    ],
)
def test_moments_as_postgres_prints_them(text: str, expected: int | None) -> None:
    assert moments.parse(text) == expected


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("key", "options", "moment", "type", "message"),
    [
        ("epoch_s", {}, at(2038, 2, 1), "integer", "make the column bigint"),
        ("epoch_s", {}, at(1901, 12, 1), "integer", "make the column bigint"),
        ("epoch_s", {}, NOVEMBER + 1, "bigint", "between two of the column's values"),
        ("epoch_ms", {}, NOVEMBER + 1, "", "between two"),
        ("uuid7", {}, NOVEMBER + 1, "", "between two"),
        ("uuid7", {}, -MINUTE, "", "begins in 1970"),
        ("uuid7", {}, (1 << 48) * 1000, "", "ends in 10889"),
        ("snowflake", {"snowflake_bits": 41}, NOVEMBER, "", "41 bits"),
        ("snowflake", {}, at(2040, 1, 1), "", "22 bits"),
        ("date", {}, NOVEMBER + MINUTE, "", "beginning of a day"),
        ("timestamptz", {}, moments.EARLIEST - 1, "", "4714-11-24 BC"),
        ("timestamp", {}, 2**63, "", "calendar"),
    ],
)
def test_bounds_that_a_column_cannot_hold(
    key: str, options: dict[str, Any], moment: int, type: str, message: str
) -> None:
    with pytest.raises(BadOption, match=message) as caught:
        bound(policy(**options), key, moment, "upper", type)
    assert caught.value.fix
    with pytest.raises(BadOption, match=message):
        check_sql(policy(**options), key, "at", moment, None, type)


def test_an_integer_that_fits_is_taken() -> None:
    assert bound(policy(), "epoch_s", at(2038, 1, 1), "upper", "integer") == "2145916800"
    assert bound(policy(), "epoch_s", at(2038, 2, 1), "upper", "bigint") == "2148595200"


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("timestamptz", "DEFAULT", "not the bounds"),
        ("timestamptz", "FOR VALUES IN ('2026-01-01')", "not the bounds"),
        ("timestamptz", "FOR VALUES WITH (modulus 4, remainder 1)", "not the bounds"),
        ("date", "FOR VALUES FROM ('2020-01-01', MINVALUE) TO ('2020-01-02', 5)", "not the bounds"),
        ("date", "", "not the bounds"),
        ("date", "FOR VALUES FROM ('01.01.2020') TO ('02.01.2020')", "DateStyle ISO"),
        ("date", "FOR VALUES FROM ('2020-01-01') TO ('5874897-12-31')", "290,000 years"),
        ("epoch_s", "FOR VALUES FROM (0) TO ('9223372036854775807')", "290,000 years"),
        ("epoch_s", "FOR VALUES FROM ('x') TO (5)", "no number"),
        ("snowflake", "FOR VALUES FROM (1) TO (4194304)", "within a millisecond"),
        ("uuid7", "FOR VALUES FROM ('01a19467-e800-7000-8000-000000000001') TO (MAXVALUE)", "within a millisecond"),
        ("uuid7", "FOR VALUES FROM ('8') TO (MAXVALUE)", "no uuid"),
    ],
)
def test_bounds_that_are_no_moments(key: str, text: str, message: str) -> None:
    with pytest.raises(UnfitTable, match=message) as caught:
        parse_bounds(policy(), key, text)
    assert caught.value.fix


# ------------------------------------------------------------------ CHECKs


def test_checks() -> None:
    assert check_sql(policy(), "timestamptz", '"at"', NOVEMBER, DECEMBER) == (
        '("at" IS NOT NULL AND "at" OPERATOR(pg_catalog.>=) \'2026-11-01 00:00:00+00\'::pg_catalog.timestamptz'
        " AND \"at\" OPERATOR(pg_catalog.<) '2026-12-01 00:00:00+00'::pg_catalog.timestamptz)"
    )
    assert check_sql(policy(), "epoch_ms", "at", None, 0) == (
        "(at IS NOT NULL AND at OPERATOR(pg_catalog.<) '0'::pg_catalog.int8)"
    )
    assert check_sql(policy(), "date", "at", None, None) == "(at IS NOT NULL)"
    assert "get_byte" in check_sql(policy(), "uuid7", "at", NOVEMBER, DECEMBER)
    assert [key for key in KEYS if lasting_check_sql(key, "at") is not None] == ["uuid7"]


@given(ms=st.integers(0, 2**48 - 2), rest=st.integers(0, 2**74 - 1))
def test_every_uuid7_of_a_millisecond_lies_between_its_bounds(ms: int, rest: int) -> None:
    number = (ms << 80) | (7 << 76) | ((rest >> 62) << 64) | (2 << 62) | (rest & (2**62 - 1))
    lower, upper = (
        uuid.UUID(bound(policy(), "uuid7", moment, side)[1:-1])
        for moment, side in ((ms * 1000, "lower"), (ms * 1000 + 1000, "upper"))
    )  # type: ignore[arg-type]
    # PostgreSQL compares uuids byte by byte, as numbers are compared.
    assert lower.bytes <= uuid.UUID(int=number).bytes < upper.bytes


def test_values_are_cut_to_what_the_key_can_say() -> None:
    moment = NOVEMBER + clocks.HOUR + 1234
    assert value_at(policy(), "epoch_s", moment) == "'1793494800'::pg_catalog.int8"
    assert value_at(policy(), "date", moment) == "'2026-11-01'::pg_catalog.date"
    assert value_at(policy(), "timestamp", moment) == "'2026-11-01 01:00:00.001234'::pg_catalog.timestamp"
    assert value_at(policy(), "uuid7", moment).startswith("'01a1949e-d681-7000-8000-")
