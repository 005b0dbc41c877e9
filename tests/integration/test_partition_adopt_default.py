"""A DEFAULT partition gives way to windows and guards: empty, with few rows, with many, and while clients write into it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from fix_catalog import Found
from fix_handmade import MONTHLY, NOW, PARENT, adopted, attached, leaf, listed, refused, run
from shardwright import errors
from shardwright.catalog import forgetting, tables
from shardwright.partition import adopt, handmade, split
from shardwright.partition.tick import tick
from shardwright.partition.wishes import Wish
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

pytestmark = pytest.mark.newest_postgres

DEFAULT = "CREATE TABLE events_default PARTITION OF events DEFAULT"
OCTOBER = leaf("october", "2026-10-01", "2026-11-01")


def insert(cluster: Found, shard: str, *moments: str) -> None:
    for at in moments:
        cluster.shard(shard).execute("INSERT INTO events (user_id, at) VALUES (1, %s)", (at,))


def where(cluster: Found, shard: str) -> dict[str, int]:
    rows = cluster.shard(shard).execute("SELECT tableoid::regclass::text, count(*) FROM events GROUP BY 1").fetchall()
    return dict(rows)


def test_an_empty_one_is_replaced_by_guards(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(cluster, "s1", PARENT, OCTOBER, DEFAULT)
    planned = adopt.plan(cluster.dsns.catalog, "public", "events", MONTHLY, now=NOW)
    default = planned.shards["s1"].default
    assert default is not None
    assert [one.name for one in default.instead] == ["events_p_before", "events_p_after"]
    done = adopted(cluster)
    assert (done.shards[0].default, done.shards[0].moved_rows) == ("events_default", 0)
    assert done.shards[0].lock_ms is not None
    assert cluster.ask("s1", "SELECT to_regclass('events_default')") is None
    assert list(attached(cluster, "s1")) == [
        "events_p2026_11", "events_p2026_12", "events_p2027_01", "events_p_after", "events_p_before", "october",
    ]  # fmt: skip


def test_few_rows_go_to_windows_of_their_own(found: Callable[..., Found]) -> None:
    """Some in a gap, some behind the last partition, some so far away that only a guard takes them."""
    cluster = found(2)
    for name in ("s1", "s2"):
        run(cluster, name, PARENT, leaf("july", "2026-07-01", "2026-08-01"), OCTOBER, DEFAULT)
    insert(
        cluster, "s1", "2026-09-03", "2026-11-03", "2026-11-04", "2999-01-01", "infinity", "1970-01-01", "2026-06-30"
    )
    insert(cluster, "s2", "2026-11-05")
    done = adopt.adopt(cluster.dsns.catalog, "public", "events", MONTHLY, now=NOW)
    assert [one.moved_rows for one in done.shards] == [7, 1]
    assert done.windows is not None
    assert {one.kind for one in done.windows.plan.findings} == {"rows-in-guard"}
    assert where(cluster, "s1") == {
        "events_p2026_09": 1, "events_p2026_11": 2, "events_p_after": 2, "events_p_before": 1, "events_p2026_06": 1,
    }  # fmt: skip
    assert where(cluster, "s2") == {"events_p2026_11": 1}
    assert set(attached(cluster, "s1")) == set(attached(cluster, "s2")) == set(listed(cluster))


@pytest.mark.slow
def test_without_guards_rows_that_are_far_away_are_refused(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(cluster, "s1", PARENT, OCTOBER, DEFAULT)
    insert(cluster, "s1", "2026-11-03", "2999-01-01")
    wish = Wish(declared=Declaration("local", policy=Policy("at", "1 month", ahead=1, guards=False)))
    assert "1 rows in its DEFAULT partition events_default, from 2999-01-01" in refused(cluster, wish)
    run(cluster, "s1", "DELETE FROM events WHERE at > '2998-01-01'")
    adopted(cluster, wish)
    assert where(cluster, "s1") == {"events_p2026_11": 1}
    assert list(attached(cluster, "s1")) == ["events_p2026_11", "events_p2026_12", "october"]


@pytest.mark.slow
def test_only_a_default_partition(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(cluster, "s1", PARENT, DEFAULT)
    adopted(cluster)
    assert list(attached(cluster, "s1")) == [
        "events_p2026_11", "events_p2026_12", "events_p2027_01", "events_p_after", "events_p_before",
    ]  # fmt: skip


def test_many_rows_become_one_window_that_is_split(
    found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardwright.partition.handmade.COUNTED", 10)
    cluster = found(2)
    for name in ("s1", "s2"):
        run(cluster, name, PARENT, leaf("july", "2026-07-01", "2026-08-01"), DEFAULT)
    run(
        cluster, "s1",
        "INSERT INTO events (user_id, at) SELECT 1, timestamptz '2026-08-03 00:00+00' + g * interval '1 day' "
        "FROM generate_series(1, 100) g",
    )  # fmt: skip
    insert(cluster, "s2", "2026-11-05")
    relids = {name: cluster.ask(name, "SELECT 'events_default'::regclass::oid::int8") for name in ("s1", "s2")}
    adopted(cluster)
    assert listed(cluster)["events_default"][2] == "whole"
    for name, rows in (("s1", 100), ("s2", 1)):
        assert where(cluster, name) == {"events_default": rows}
        seen = attached(cluster, name)["events_default"]
        assert (seen[0], seen[3:6]) == (relids[name], ("whole", "attached", True))
        assert seen[2].endswith("FROM ('2026-08-01 00:00:00+00') TO ('2026-12-01 00:00:00+00')")
        assert cluster.ask(name, "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'shardwright%'") == 0
    split.split(cluster.dsns.catalog, "public", "events", "events_default")
    assert set(where(cluster, "s1")) == {f"events_p2026_{month:02}" for month in (8, 9, 10, 11)}
    assert sum(where(cluster, "s1").values()) == 100


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("2026-06-01", "before and behind other partitions"),
        pytest.param("2999-01-01", "rows from 2026-12-01", marks=pytest.mark.slow),
    ],
)
def test_many_rows_that_do_not_lie_together(
    found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch, more: str, said: str
) -> None:
    monkeypatch.setattr("shardwright.partition.handmade.COUNTED", 3)
    cluster = found(1)
    run(cluster, "s1", PARENT, leaf("july", "2026-07-01", "2026-08-01"), DEFAULT)
    insert(cluster, "s1", "2026-08-03", "2026-08-04", "2026-08-05", more)
    assert said in refused(cluster)


class Writer(threading.Thread):
    """Writes rows that only the DEFAULT partition takes, and counts all of them each time."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.stop, self.written, self.problems = dsn, threading.Event(), 0, list[str]()

    def run(self) -> None:
        try:
            with psycopg.connect(self.dsn, autocommit=True, prepare_threshold=0) as connection:
                while not self.stop.is_set():
                    connection.execute("INSERT INTO events (user_id, at) VALUES (2, '2026-11-20')")
                    self.written += 1
                    row: Any = connection.execute("SELECT count(*) FROM events WHERE user_id = 2").fetchone()
                    if row[0] != self.written:
                        self.problems.append(f"{row[0]} of {self.written} rows were seen")
                        return
        except psycopg.Error as error:
            self.problems.append(str(error))


def test_clients_go_on_meanwhile(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(cluster, "s1", PARENT, OCTOBER, DEFAULT)
    insert(cluster, "s1", "2026-11-20")
    writer = Writer(cluster.dsns.shards["s1"])
    writer.start()
    done = adopt.adopt(cluster.dsns.catalog, "public", "events", MONTHLY, now=NOW)
    writer.stop.set()
    writer.join(30)
    assert writer.problems == []
    assert writer.written > 0
    assert done.shards[0].moved_rows >= 1
    assert where(cluster, "s1") == {"events_p2026_11": writer.written + 1}


@pytest.mark.slow
def test_rows_that_are_referred_to_and_views_of_it(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(
        cluster, "s1", PARENT, OCTOBER, DEFAULT, "CREATE VIEW strays AS SELECT * FROM events_default",
        "CREATE TABLE notes (u bigint, n bigint, at timestamptz, FOREIGN KEY (u, n, at) REFERENCES events)",
    )  # fmt: skip
    insert(cluster, "s1", "2026-11-03")
    said = refused(cluster)
    assert "public.notes (notes_u_n_at_fkey)" in said
    assert "public.strays reads it" in said
    run(cluster, "s1", "DROP VIEW strays", "DELETE FROM events")
    adopted(cluster)
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        run(cluster, "s1", "INSERT INTO notes VALUES (1, 1, '2026-11-03')")


@pytest.mark.slow
def test_an_interrupted_one_goes_on(found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = found(2)
    for name in ("s1", "s2"):
        run(cluster, name, PARENT, OCTOBER, DEFAULT)
        insert(cluster, name, "2026-11-03")
    for point in ("recorded", "marking", "marked", "made", "exchanging", "exchanged"):
        monkeypatch.setenv("SHARDWRIGHT_FAILPOINT", f"partition.adopt_{point}:error")
        with pytest.raises(errors.FailpointReached):
            adopt.adopt(cluster.dsns.catalog, "public", "events", Wish(every="1 month", ahead=2), now=NOW)
        # whatever was reached, a tick takes nothing away
        monkeypatch.delenv("SHARDWRIGHT_FAILPOINT")
        tick(cluster.dsns.catalog, now=NOW)
        assert [cluster.ask(name, "SELECT count(*) FROM events") for name in ("s1", "s2")] == [1, 1]
    adopted(cluster)
    assert tables.get_table(cluster.catalog, "public", "events").policy == Policy("at", "1 month", ahead=2)
    assert handmade.find(cluster.shard("s2"), "public", "events").default is None  # type: ignore[union-attr]
    assert set(attached(cluster, "s1")) == set(attached(cluster, "s2")) == set(listed(cluster))


@pytest.mark.slow
def test_a_clock_that_passed_the_cut(found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decided and cannot be any more is told, and there is a way out."""
    monkeypatch.setattr("shardwright.partition.handmade.COUNTED", 3)
    cluster = found(1)
    run(cluster, "s1", PARENT, leaf("july", "2026-07-01", "2026-08-01"), DEFAULT)
    insert(cluster, "s1", "2026-08-03", "2026-08-04", "2026-08-05", "2026-08-06")
    monkeypatch.setenv("SHARDWRIGHT_FAILPOINT", "partition.adopt_recorded:error")
    with pytest.raises(errors.FailpointReached):
        adopt.adopt(cluster.dsns.catalog, "public", "events", MONTHLY, now=NOW)
    monkeypatch.delenv("SHARDWRIGHT_FAILPOINT")
    insert(cluster, "s1", "2026-12-24")
    december = datetime(2026, 12, 25, tzinfo=UTC)
    with pytest.raises(errors.UnfitTable, match="rows outside of the window") as found_error:
        adopt.adopt(cluster.dsns.catalog, "public", "events", MONTHLY, now=december)
    assert "table forget public.events" in found_error.value.fix
    forgetting.forget(cluster.catalog, [("public", "events")])
    adopted(cluster, now=december)
    assert sum(where(cluster, "s1").values()) == 5
