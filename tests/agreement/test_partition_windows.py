"""Windows, bounds and CHECKs against what PostgreSQL itself makes of them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from shardwright.partition import clocks, moments
from shardwright.partition.calendar import label, window_at, windows
from shardwright.partition.codecs import bound, check_sql, parse_bounds, resolve_key, value_at
from shardwright.partition.names import leaf_name
from shardwright.routing.policy import Policy
from shardwright.servers import Endpoint

#: Changes at midnight, half hours, no changes, far from UTC; without those whose rules changed lately, as the servers'
#: time zone data may be older than ours.
ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "America/Sao_Paulo", "Australia/Lord_Howe"),
    *("Asia/Kathmandu", "Asia/Beirut", "Pacific/Apia", "Pacific/Kiritimati", "Africa/Monrovia", "Asia/Tehran"),
    *("America/St_Johns", "Pacific/Chatham"),
)


@pytest.fixture(scope="module")
def conn(server: Endpoint) -> Iterator[psycopg.Connection[Any]]:
    with server.connect(autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; CREATE SCHEMA windows")
        connection.execute("SET search_path = windows")
        yield connection
        connection.execute("DROP SCHEMA windows CASCADE")


def at(*fields: int) -> int:
    return clocks.wall_of(datetime(*fields))  # type: ignore[arg-type]


# ------------------------------------------------------------------ where windows begin


@pytest.mark.parametrize("unit", ["day", "week", "month", "quarter", "year"])
def test_windows_begin_where_date_trunc_says(conn: psycopg.Connection[Any], rng: random.Random, unit: str) -> None:
    first, last = at(1975, 1, 1), at(2025, 1, 1)
    asked = [(zone, rng.randrange(first, last)) for zone in ZONES for _ in range(60)]
    # In the nights of changes too.
    asked += [("Pacific/Apia", at(2011, 12, 30, 9) + n * clocks.HOUR) for n in range(4)]
    asked += [("America/Santiago", at(2024, 9, 8, 3) + n * clocks.HOUR) for n in range(4)]
    asked += [("Australia/Lord_Howe", at(2024, 4, 6, 12) + n * clocks.HOUR) for n in range(6)]
    said = conn.execute(
        "SELECT (extract(epoch FROM date_trunc(%s, ts, zone)) * 1000000)::int8"
        "  FROM unnest(%s::text[], %s::timestamptz[]) WITH ORDINALITY AS a(zone, ts, n) ORDER BY n",
        (unit, [zone for zone, _ in asked], [moments.text_of(moment, "timestamptz") for _, moment in asked]),
    ).fetchall()
    for (zone, moment), (begins,) in zip(asked, said, strict=True):
        policy = Policy("ts", f"1 {unit}", zone=zone)
        found = window_at(policy, "timestamptz", moment).lower
        if zone == "America/St_Johns" and begins - found == clocks.HOUR:
            continue  # St John's put its clocks back at 00:01: PostgreSQL takes the second midnight, we the first
        assert found == begins, (zone, moments.text_of(moment, "timestamptz"))


def test_months_are_added_as_by_postgres(conn: psycopg.Connection[Any]) -> None:
    said = conn.execute(
        "SELECT ('2024-01-31'::timestamp + n * interval '1 month')::text FROM generate_series(-40, 40) AS n"
    ).fetchall()
    policy = Policy("ts", "1 month", anchor="2024-01-31")
    begin, end = moments.parse(said[0][0]), moments.parse(said[-1][0])
    assert begin is not None
    assert end is not None
    found = [moments.text_of(w.lower, "timestamp") for w in windows(policy, "timestamp", begin, end + 1)]
    assert found == [row[0] for row in said]


def test_moments_are_written_as_postgres_writes_them(conn: psycopg.Connection[Any], rng: random.Random) -> None:
    asked = [rng.randrange(moments.EARLIEST, moments.INFINITY) for _ in range(300)]
    asked += [rng.randrange(at(1, 1, 1) - 10**14, at(1, 1, 1) + 10**14) for _ in range(100)]
    asked += [moments.EARLIEST, moments.INFINITY, moments.MINUS_INFINITY, 0, -1, 1, at(2024, 2, 29), at(1900, 3, 1)]
    for form in ("timestamptz", "timestamp", "date"):
        if form == "date":
            ends = (moments.INFINITY, moments.MINUS_INFINITY)
            asked = [n if n in ends else n - n % clocks.DAY for n in asked]
        texts = [moments.text_of(moment, form) for moment in asked]
        conn.execute(f"DROP TABLE IF EXISTS m; CREATE TABLE m (t text, v {form})")
        conn.execute(f"INSERT INTO m SELECT t, t::{form} FROM unnest(%s::text[]) AS t", (texts,))
        same = conn.execute("SELECT count(*) FROM m WHERE t = v::text").fetchone()
        assert same == (len(texts),)
        assert [moments.parse(text) for text in texts] == asked
        for style in ("SQL, DMY", "German", "Postgres, MDY"):
            conn.execute(
                "SELECT set_config('datestyle', %s, false), set_config('timezone', 'Asia/Kathmandu', false)", (style,)
            )
            assert conn.execute(f"SELECT count(*) FROM m WHERE t::{form} = v").fetchone() == (len(texts),)
            conn.execute("SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'")


# ------------------------------------------------------------------ bounds in real tables


@dataclass(frozen=True)
class Case:
    """A column, its key, and SQL of the last value before a moment."""

    type: str
    key: str
    last: Callable[[int], str]
    options: dict[str, Any]


def _v7(ms: int, rest: int) -> str:
    return f"'{uuid.UUID(int=(ms << 80) | (7 << 76) | (2 << 62) | rest)}'"


TWITTER = 1_288_834_974_657
CASES = [
    Case(
        "timestamptz",
        "timestamptz",
        lambda u: f"'{moments.text_of(u - 1, 'timestamptz')}'",
        {"zone": "America/Santiago"},
    ),
    Case("timestamptz(3)", "timestamptz", lambda u: f"'{moments.text_of(u - 1000, 'timestamptz')}'", {}),
    Case("timestamp", "timestamp", lambda u: f"'{moments.text_of(u - 1, 'timestamp')}'", {"zone": "Europe/Berlin"}),
    Case("date", "date", lambda u: f"'{moments.text_of(u - clocks.DAY, 'date')}'", {"zone": "Asia/Tokyo"}),
    Case("int8", "epoch_s", lambda u: str(u // 10**6 - 1), {"key": "epoch_s"}),
    Case("int4", "epoch_s", lambda u: str(u // 10**6 - 1), {"key": "epoch_s"}),
    Case("int8", "epoch_ms", lambda u: str(u // 1000 - 1), {"key": "epoch_ms"}),
    Case("int8", "epoch_us", lambda u: str(u - 1), {"key": "epoch_us"}),
    Case("uuid", "uuid7", lambda u: _v7(u // 1000 - 1, (2**12 - 1 << 64) | (2**62 - 1)), {}),
    Case(
        "int8",
        "snowflake",
        lambda u: str(((u // 1000 - TWITTER) << 22) - 1),
        {"key": "snowflake", "snowflake_epoch": TWITTER},
    ),
    Case("int8", "snowflake", lambda u: str((u // 1000 << 20) - 1), {"key": "snowflake", "snowflake_bits": 20}),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.type}-{case.key}-{case.options.get('snowflake_bits', 22)}"
)
def test_rows_at_both_edges_come_to_their_leaf(conn: psycopg.Connection[Any], case: Case) -> None:
    """Under another time zone and date style than the bounds are read in; ATTACH scans nothing."""
    policy = Policy("at", "1 week", **case.options)
    conn.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t (at {case.type} NOT NULL) PARTITION BY RANGE (at)")
    printed = conn.execute(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'at'"
    ).fetchone()
    assert printed is not None
    key = resolve_key(policy, printed[0])
    assert key == case.key
    inside = list(windows(policy, key, at(2026, 8, 25), at(2026, 9, 14)))
    spans: list[tuple[int | None, int | None]] = [(w.lower, w.upper) for w in inside]
    spans = [(None, inside[0].lower), *spans, (inside[-1].upper, None)]
    names = ["before", *(leaf_name("t", label(policy, key, window)) for window in inside), "after"]
    notices: list[str] = []
    heard = lambda diagnostic: notices.append(diagnostic.message_primary)  # noqa: E731
    conn.add_notice_handler(heard)
    conn.execute("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'; SET client_min_messages = 'debug1'")
    try:
        for name, (lower, upper) in zip(names, spans, strict=True):
            conn.execute(f'CREATE TABLE "{name}" (LIKE t)')
            conn.execute(
                f'ALTER TABLE "{name}" ADD CHECK {check_sql(policy, key, chr(34) + "at" + chr(34), lower, upper)}'
            )
            conn.execute(
                f'ALTER TABLE t ATTACH PARTITION "{name}" FOR VALUES'
                f" FROM ({bound(policy, key, lower, 'lower', printed[0])}) TO ({bound(policy, key, upper, 'upper', printed[0])})"
            )
        implied = [f'partition constraint for table "{name}" is implied by existing constraints' for name in names]
        assert [notice for notice in notices if "partition constraint" in notice] == implied
    finally:
        conn.remove_notice_handler(heard)
        conn.execute("SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET client_min_messages = 'notice'")
    leaves = "relpartbound IS NOT NULL AND relnamespace = 'windows'::regnamespace"
    said = dict(conn.execute(f"SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class WHERE {leaves}").fetchall())
    assert {name: parse_bounds(policy, key, text) for name, text in said.items()} == dict(
        zip(names, spans, strict=True)
    )
    for name, window in zip(names[1:-1], inside, strict=True):
        for value in (value_at(policy, key, window.lower), case.last(window.upper)):
            row = conn.execute(f"INSERT INTO t VALUES ({value}) RETURNING tableoid::regclass::text").fetchone()
            assert row == (name,), value
    for side, value in (("before", case.last(inside[0].lower)), ("after", value_at(policy, key, inside[-1].upper))):
        assert conn.execute(f"INSERT INTO t VALUES ({value}) RETURNING tableoid::regclass::text").fetchone() == (side,)


def test_infinity_comes_to_the_guards(conn: psycopg.Connection[Any]) -> None:
    for form in ("timestamptz", "timestamp", "date"):
        policy = Policy("at", "1 year")
        conn.execute(f"DROP TABLE IF EXISTS i; CREATE TABLE i (at {form} NOT NULL) PARTITION BY RANGE (at)")
        cut = at(2026, 1, 1)
        for name, lower, upper in (("i_before", None, cut), ("i_after", cut, None)):
            ends = f"FROM ({bound(policy, form, lower, 'lower')}) TO ({bound(policy, form, upper, 'upper')})"
            conn.execute(f"CREATE TABLE {name} PARTITION OF i FOR VALUES {ends}")
        rows = conn.execute("INSERT INTO i VALUES ('-infinity'), ('infinity') RETURNING tableoid::regclass::text")
        assert rows.fetchall() == [("i_before",), ("i_after",)]
        conn.execute("DROP TABLE i")


def test_a_uuid_of_another_version_is_refused(conn: psycopg.Connection[Any]) -> None:
    """By the leaf's lasting CHECK, though it lies within the bounds."""
    policy = Policy("at", "1 month")
    window = window_at(policy, "uuid7", at(2026, 11, 25))
    conn.execute("DROP TABLE IF EXISTS u; CREATE TABLE u (at uuid NOT NULL) PARTITION BY RANGE (at)")
    conn.execute("CREATE TABLE u1 (LIKE u)")
    conn.execute(f"ALTER TABLE u1 ADD CHECK {check_sql(policy, 'uuid7', 'at', window.lower, window.upper)}")
    lower, upper = (bound(policy, "uuid7", *end) for end in ((window.lower, "lower"), (window.upper, "upper")))
    conn.execute(f"ALTER TABLE u ATTACH PARTITION u1 FOR VALUES FROM ({lower}) TO ({upper})")
    stamp = window.lower // 1000 + 5
    v4 = uuid.UUID(int=(stamp << 80) | (4 << 76) | (2 << 62) | 12345)
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("INSERT INTO u VALUES (%s)", (v4,))
    conn.execute("INSERT INTO u VALUES (%s)", (uuid.UUID(int=v4.int ^ (3 << 76)),))


def test_uuids_of_the_server_come_to_the_window_of_now(conn: psycopg.Connection[Any]) -> None:
    if conn.info.server_version < 180000:
        pytest.skip("uuidv7() came with PostgreSQL 18")
    row = conn.execute("SELECT uuidv7(), clock_timestamp()").fetchone()
    assert row is not None
    window = window_at(Policy("at", "1 hour"), "uuid7", clocks.wall_of(row[1].astimezone(UTC)))
    lower, upper = (
        bound(Policy("at", "1 hour"), "uuid7", *end)
        for end in ((window.lower - 3600 * 10**6, "lower"), (window.upper, "upper"))
    )
    assert uuid.UUID(lower[1:-1]) <= row[0] < uuid.UUID(upper[1:-1])


@pytest.mark.parametrize("theirs", ["0000-0000", "7000-8000"])
def test_bounds_of_other_tools_meet_ours(conn: psycopg.Connection[Any], theirs: str) -> None:
    """A millisecond of UUIDv7 begins at either; partitions between ours do not overlap in the server."""
    policy = Policy("at", "1 month")
    found = list(windows(policy, "uuid7", at(2026, 10, 1), at(2027, 1, 1)))
    conn.execute("DROP TABLE IF EXISTS o; CREATE TABLE o (at uuid NOT NULL) PARTITION BY RANGE (at)")

    def edge(moment: int) -> str:
        digits = f"{moment // 1000:012x}"
        return f"'{digits[:8]}-{digits[8:]}-{theirs}-000000000000'"

    conn.execute(f"CREATE TABLE o2 PARTITION OF o FOR VALUES FROM ({edge(found[1].lower)}) TO ({edge(found[1].upper)})")
    for name, window in (("o1", found[0]), ("o3", found[2])):
        ends = f"FROM ({bound(policy, 'uuid7', window.lower, 'lower')}) TO ({bound(policy, 'uuid7', window.upper, 'upper')})"
        conn.execute(f"CREATE TABLE {name} PARTITION OF o FOR VALUES {ends}")
    said = conn.execute("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = 'o2'::regclass").fetchone()
    assert said is not None
    assert parse_bounds(policy, "uuid7", said[0]) == (found[1].lower, found[1].upper)


@pytest.mark.parametrize(
    ("type", "key", "bounds", "expected"),
    [
        (
            "timestamptz",
            "timestamptz",
            ("'-infinity'", "'0044-03-15 BC'"),
            (moments.MINUS_INFINITY, moments.parse("0044-03-15 BC")),
        ),
        (
            "timestamptz",
            "timestamptz",
            ("'2026-01-01 00:00:00.5-03:30'", "'infinity'"),
            (at(2026, 1, 1, 3, 30) + 500_000, moments.INFINITY),
        ),
        (
            "timestamp",
            "timestamp",
            ("'9999-12-31'", "'10000-01-01'"),
            (at(9999, 12, 31), at(9999, 12, 31) + clocks.DAY),
        ),
        ("date", "date", ("'4714-11-24 BC'", "'12026-01-01'"), (moments.EARLIEST, moments.parse("12026-01-01"))),
        ("int8", "epoch_ms", ("-5", "7"), (-5000, 7000)),
        ("int4", "epoch_s", ("-5", "2147483647"), (-5_000_000, 2147483647 * 10**6)),
        ("int8", "epoch_us", ("MINVALUE", "9223372036854775807"), (None, 2**63 - 1)),
    ],
)
def test_bounds_made_by_people_are_read(
    conn: psycopg.Connection[Any], type: str, key: str, bounds: tuple[str, str], expected: tuple[int | None, int | None]
) -> None:
    policy = Policy("at", "1 day", key=key)
    conn.execute(f"DROP TABLE IF EXISTS b; CREATE TABLE b (at {type} NOT NULL) PARTITION BY RANGE (at)")
    conn.execute(f"CREATE TABLE b1 PARTITION OF b FOR VALUES FROM ({bounds[0]}) TO ({bounds[1]})")
    said = conn.execute("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = 'b1'::regclass").fetchone()
    assert said is not None
    found = parse_bounds(policy, key, said[0])
    assert found == expected
    # And written back they are the same.
    conn.execute("DROP TABLE b1")
    ends = f"FROM ({bound(policy, key, found[0], 'lower')}) TO ({bound(policy, key, found[1], 'upper')})"
    conn.execute(f"CREATE TABLE b1 PARTITION OF b FOR VALUES {ends}")
    assert (
        said
        == conn.execute("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = 'b1'::regclass").fetchone()
    )
