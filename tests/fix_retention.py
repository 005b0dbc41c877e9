"""Windows whose time is over, and tables with columns of every type.

Fixtures:
    place     Path, an empty directory for archives
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fix_partitions import Timed, by_month
from shardwright.partition.outcomes import Report


@pytest.fixture
def place(workdir: Path) -> Path:
    (workdir / "archives").mkdir()
    return workdir / "archives"


# Column definitions, and values as SQL; the rows take one of each in turn, and NULL.
TYPES: dict[str, tuple[str, list[str]]] = {
    "c_bool": ("bool", ["true", "false"]),
    "c_int2": ("int2", ["-32768", "32767"]),
    "c_int4": ("int4", ["-2147483648", "2147483647"]),
    "c_int8": ("int8", ["-9223372036854775808", "9223372036854775807"]),
    "c_oid": ("oid", ["0", "4294967295"]),
    "c_float4": ("float4", ["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "1e-45", "3.4028235e38", "0.1"]),
    "c_float8": ("float8", ["'NaN'", "'-Infinity'", "'-0'", "5e-324", "1.7976931348623157e308", "0.1", "1e22"]),
    "c_money": ("money", ["12.34", "-0.01"]),
    "c_decimal": ("numeric(20,4)", ["1.5", "-9999999999999999.9999", "0.0001"]),
    "c_decimal_nan": ("numeric(20,4)", ["'NaN'", "1.5000"]),
    "c_wide": ("numeric(100,50)", ["1.5", "0.00000000000000000000000000000000000000000000000001"]),
    "c_numeric": ("numeric", ["'NaN'", "'Infinity'", "'-Infinity'", "1.00", "1.0", "1e-1000", "123456789e1000", "-0.10"]),
    "c_text": ("text", [
        "''", "'NULL'", "' '", "'\\N'", "E'a\\nb'", "E'\\r\\n'", "E'\\\\.'", "E'x\\n\\\\.\\ny'", "'\"'", "'\"\"'", "','",
        "E'\\uFEFFbom'", "'ünïcödé 日本 🐘'", "E'\\u0001\\t'", "repeat('long ', 20000)", "'a\"b,c'",
    ]),
    "c_varchar": ("varchar(10)", ["'abc  '", "''"]),
    "c_char": ("char(5)", ["'ab'", "''"]),
    "c_bpchar": ("bpchar", ["'ab   '", "'ab'"]),
    "c_one": ('"char"', ["'x'", "''"]),
    "c_name": ("name", ["'some name'"]),
    "c_bytea": ("bytea", ["''", "'\\x00'", "'\\xdeadbeef'", "decode(repeat('00ff', 50000), 'hex')", "'\\\\x'"]),
    "c_uuid": ("uuid", ["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-4fff-bfff-ffffffffffff'"]),
    "c_date": ("date", ["'0001-01-01'", "'9999-12-31'", "'2024-02-29'"]),
    "c_date_far": ("date", ["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'2024-02-29'"]),
    "c_timestamp": ("timestamp", ["'0001-01-01'", "'9999-12-31 23:59:59.999999'", "'2024-02-29 12:00:00.1'"]),
    "c_timestamp_far": ("timestamp(3)", ["'infinity'", "'4713-01-01 BC'", "'294276-12-31 23:59:59.999'"]),
    "c_timestamptz": ("timestamptz", ["'0001-01-01+00'", "'9999-12-31 23:59:59.999999Z'", "'2024-02-29 12:00:00.000001+05:30'"]),
    "c_timestamptz_far": ("timestamptz", ["'infinity'", "'-infinity'", "'0044-03-15 12:00+00 BC'", "'294276-12-31+00'"]),
    "c_time": ("time", ["'00:00'", "'24:00'", "'12:34:56.789'"]),
    "c_timetz": ("timetz", ["'12:34:56.789+05:30'", "'24:00-15:59'"]),
    "c_interval": ("interval", ["'1 year -2 days 03:04:05.678901'", "'-1 mon'", "'178000000 years'", "'0'"]),
    "c_json": ("json", ["'{\"a\":  1, \"a\": 2}'", "'null'"]),
    "c_jsonb": ("jsonb", ["'{\"a\": [1.0, 1.00, null, \"\\u00fc\"]}'", "'null'", "'\"\"'"]),
    "c_ints": ("int[]", ["'{}'", "'{1,NULL,3}'", "'[0:1]={1,2}'", "'{{1,2},{3,4}}'"]),
    "c_texts": ("text[]", ["'{\"\",NULL,\"NULL\",\"a,b\",\"q\\\"q\",\"b\\\\\\\\s\"}'", "ARRAY[E'a\\nb']"]),
    "c_mood": ("public.mood", ["'so \"so\", ok'", "''"]),
    "c_moods": ("public.mood[]", ["'{\"so \\\"so\\\", ok\",NULL}'"]),
    "c_dom": ("public.positive", ["1", "2"]),
    "c_pair": ("public.pair", ["ROW(1, 'a,\"b')", "ROW(NULL, NULL)"]),
    "c_int4range": ("int4range", ["'empty'", "'[1,5)'", "'(,5)'", "'(,)'"]),
    "c_tstzrange": ("tstzrange", ["'[2024-01-01,infinity]'", "'(,)'"]),
    "c_multi": ("int8multirange", ["'{}'", "'{[1,3),[5,9)}'"]),
    "c_inet": ("inet", ["'192.168.0.1/24'", "'::1'"]),
    "c_cidr": ("cidr", ["'10.0.0.0/8'"]),
    "c_macaddr": ("macaddr", ["'08:00:2b:01:02:03'"]),
    "c_bit": ("bit(3)", ["B'101'"]),
    "c_varbit": ("varbit", ["B''", "B'10101'"]),
    "c_tsvector": ("tsvector", ["'a:1A b:2'"]),
    "c_tsquery": ("tsquery", ["'a & !b'"]),
    "c_point": ("point", ["'(0.1,-0)'", "'(NaN,Infinity)'"]),
    "c_box": ("box", ["'(1,1),(0,0)'"]),
    "c_lsn": ("pg_lsn", ["'16/B374D848'"]),
    "c_regclass": ("regclass", ["'pg_catalog.pg_class'"]),
    'c "odd" näme, %s': ("text", ["'x'"]),
}  # fmt: skip


def make_every_type(connection: psycopg.Connection, name: str = "every", extra: str = "") -> None:
    """A table with a column of each type, and rows in which each value, and NULL, appears."""
    connection.execute(
        "CREATE TYPE public.mood AS ENUM ('so \"so\", ok', ''); CREATE DOMAIN public.positive AS int CHECK (VALUE > 0); "
        "CREATE TYPE public.pair AS (a int, b text)"
    )
    quoted = {column: '"' + column.replace('"', '""') + '"' for column in TYPES}
    columns = ", ".join(f"{quoted[column]} {kind}" for column, (kind, _) in TYPES.items())
    connection.execute(
        f"CREATE TABLE public.{name} (id int NOT NULL, at timestamptz NOT NULL DEFAULT now(), {columns}, "
        f"made int GENERATED ALWAYS AS (id * 2) STORED){extra}".encode()
    )
    many = max(len(values) for _, values in TYPES.values()) + 1
    for number in range(many):
        given = {
            quoted[column]: values[number % (len(values) + 1)] if number % (len(values) + 1) < len(values) else "NULL"
            for column, (_, values) in TYPES.items()
        }
        connection.execute(
            f"INSERT INTO public.{name} (id, at, {', '.join(given)}) VALUES ({number}, '2013-01-15 12:00+00', "
            f"{', '.join(given.values())})".encode()
        )


def rows_of(connection: psycopg.Connection, table: str, columns: str = "t.*") -> list[str]:
    return [row[0] for row in connection.execute(f"SELECT ROW({columns})::text FROM {table} t ORDER BY 1".encode())]


TICK = timedelta(microseconds=1)
#: What `old` begins with: September to November, and two months ahead.
BEGIN = datetime(2026, 9, 10, tzinfo=UTC)
#: September is over since the 1st of October, and kept for a month.
EDGE = datetime(2026, 11, 1, tzinfo=UTC)
SEPTEMBER = "events_p2026_09"


def old(timed: Callable[..., Timed], shards: int = 1, **policy: Any) -> Timed:
    """A cluster whose windows begin in September, with rows in each."""
    cluster = timed(shards, by_month(**{"keep": "1 month", "grace": None, **policy}))
    fine(cluster.tick(BEGIN))
    for shard in cluster.dsns.shards:
        fill(cluster, shard)
    return cluster


def fill(cluster: Timed, shard: str) -> None:
    cluster.shard(shard).execute(
        "INSERT INTO events (at, note) SELECT timestamptz '2026-09-01+00' + n * interval '3 hours', n::text "
        "FROM generate_series(0, 400) n"
    )


def fine(report: Report) -> Report:
    assert report.exit_code == 0, json.dumps(report.to_json(), indent=1)
    return report


def has_table(cluster: Timed, name: str = SEPTEMBER, shard: str = "s1") -> bool:
    return bool(cluster.ask(shard, f"SELECT to_regclass('public.{name}') IS NOT NULL"))


def state(cluster: Timed, name: str = SEPTEMBER, shard: str = "s1") -> str | None:
    found = cluster.ask(shard, "SELECT state FROM shardwright.partitions WHERE name = %s", name)
    return str(found) if found else None
