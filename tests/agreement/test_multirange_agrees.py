"""Multirange against PostgreSQL's own int8multirange."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardwright.errors import BadRange
from shardwright.routing.multirange import INT8_MAX, INT8_MIN, Multirange
from shardwright.routing.shard_map import Keyspace, Range, ShardMap
from shardwright.servers import Endpoint

pytestmark = pytest.mark.newest_postgres

# Mostly small, so that pieces overlap and touch; the ends of int8 too.
bounds = st.one_of(st.integers(-9, 9), st.sampled_from([INT8_MIN, INT8_MIN + 1, INT8_MAX - 1, INT8_MAX]), st.none())
pieces = st.tuples(bounds, bounds).filter(lambda piece: None in piece or piece[0] < piece[1])
multiranges = st.lists(pieces, max_size=6).map(lambda found: Multirange(tuple(found)))
with_server = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def conn(server: Endpoint) -> Iterator[psycopg.Connection[Any]]:
    with server.connect() as connection:
        yield connection


@with_server
@given(one=multiranges, two=multiranges, point=st.one_of(st.integers(-12, 12), st.just(INT8_MIN), st.just(INT8_MAX)))
def test_operators(conn: psycopg.Connection[Any], one: Multirange, two: Multirange, point: int) -> None:
    row = conn.execute(
        """
        SELECT a::text, (a + b)::text, (a * b)::text, (a - b)::text, a @> p, NOT isempty(a), a = b
          FROM (SELECT %s::int8multirange AS a, %s::int8multirange AS b, %s::int8 AS p) AS x
        """,
        (one.literal(), two.literal(), point),
    ).fetchone()
    assert row == (
        one.literal(),
        (one | two).literal(),
        (one & two).literal(),
        (one - two).literal(),
        point in one,
        bool(one),
        one == two,
    )


@with_server
@given(found=st.lists(pieces, max_size=6))
def test_joining(conn: psycopg.Connection[Any], found: list[tuple[int | None, int | None]]) -> None:
    lows, highs = [lo for lo, _ in found], [hi for _, hi in found]
    row = conn.execute(
        """
        SELECT coalesce(range_agg(int8range(lo, hi)), '{}')::text,
               CASE WHEN bool_or(lo IS NULL OR hi IS NULL) THEN NULL
                    ELSE (SELECT coalesce(sum(upper(r)::numeric - lower(r)), 0)
                            FROM unnest(range_agg(int8range(lo, hi))) AS r) END
          FROM unnest(%s::int8[], %s::int8[]) AS x (lo, hi)
        """,
        (lows, highs),
    ).fetchone()
    ours = Multirange(tuple(found))
    assert row == (ours.literal(), ours.count())


RANGE_TEXTS = [
    "[1,5)",
    "[1,5]",
    "(1,5]",
    "(1,5)",
    "[,5)",
    "(,5]",
    "[1,)",
    "(1,]",
    "(,)",
    "[1,1]",
    " [ 1 , 5 ) ".strip(),
]


@pytest.mark.parametrize("text", RANGE_TEXTS)
def test_parse_reads_what_the_server_reads(conn: psycopg.Connection[Any], text: str) -> None:
    row = conn.execute("SELECT int8multirange(%s::int8range)::text", (text,)).fetchone()
    assert row == (Multirange.parse(text).literal(),)
    assert Multirange.parse("{" + text + "}") == Multirange.parse(text)


pieces_of_16 = st.lists(st.tuples(st.integers(-1, 17), st.integers(-1, 17)).filter(lambda p: p[0] < p[1]), max_size=4)
covers_of_16 = st.lists(st.integers(1, 15), max_size=4, unique=True).map(
    lambda cuts: list(zip([0, *sorted(cuts)], [*sorted(cuts), 16], strict=True))
)


@with_server
@given(found=st.one_of(pieces_of_16, covers_of_16))
def test_a_map_is_refused_when_the_server_finds_a_gap_or_an_overlap(
    conn: psycopg.Connection[Any], found: list[tuple[int, int]]
) -> None:
    row = conn.execute(
        """
        WITH r AS (SELECT n, int8range(lo, hi) AS p FROM unnest(%s::int8[], %s::int8[]) WITH ORDINALITY AS x (lo, hi, n))
        SELECT coalesce((SELECT range_agg(p) FROM r), '{}') = '{[0,16)}'
               AND NOT EXISTS (SELECT FROM r AS a JOIN r AS b ON a.n < b.n AND a.p && b.p)
        """,
        ([lo for lo, _ in found], [hi for _, hi in found]),
    ).fetchone()
    ranges = tuple(Range(number, "k", lo, hi, "s") for number, (lo, hi) in enumerate(found))
    try:
        ShardMap(1, (Keyspace(1, "k", "hash", "int8", 16),), ranges)
        accepted = True
    except BadRange:
        accepted = False
    assert row == (accepted,)
