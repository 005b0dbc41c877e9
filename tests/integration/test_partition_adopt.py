"""Partitions made by hand come under our care by their bounds: no row, name or oid changes; or every reason is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from fix_catalog import Found
from fix_handmade import HISTORY, MONTHLY, NOW, PARENT, adopted, attached, listed, run
from shardwright import errors
from shardwright.catalog import forgetting, maps, tables
from shardwright.partition import adopt, adopting
from shardwright.partition.status import status
from shardwright.partition.tick import tick
from shardwright.partition.wishes import Wish
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

pytestmark = pytest.mark.newest_postgres


def test_an_irregular_history_on_two_shards(found: Callable[..., Found]) -> None:
    cluster = found(2)
    for name in ("s1", "s2"):
        run(cluster, name, PARENT, "CREATE INDEX by_time ON events (at)", *(HISTORY if name == "s1" else HISTORY[:-2]))
        run(
            cluster, name,
            "INSERT INTO events (user_id, at) SELECT g, timestamptz '2026-01-01 00:00+00' + g * interval '1 day' "
            "FROM generate_series(0, 200) g",
        )  # fmt: skip
    before = {name: attached(cluster, name) for name in ("s1", "s2")}
    planned = adopt.plan(cluster.dsns.catalog, "public", "events", MONTHLY, now=NOW)
    assert planned.fingerprint == adopt.plan(cluster.dsns.catalog, "public", "events", MONTHLY, now=NOW).fingerprint
    assert tables.list_tables(cluster.catalog) == []
    assert planned.shards["s2"].lacks == ("october", "november")
    with pytest.raises(errors.PlanStale):
        adopted(cluster, fingerprint="0" * 16)
    done = adopted(cluster, fingerprint=planned.fingerprint)
    assert [one.taken for one in done.shards] == [8, 6]
    for name in ("s1", "s2"):
        after = attached(cluster, name)
        for leaf_name, seen in before[name].items():
            assert after[leaf_name][:3] == seen[:3]
        assert all(one[4:6] == ("attached", True) for one in after.values())
        assert set(after) == set(listed(cluster))
        assert cluster.ask(name, "SELECT count(*) FROM events") == 201
        # the hole of August and what is ahead were made, and guards
        assert {"events_p2026_08", "events_p2026_12", "events_p2027_01", "events_p_before", "events_p_after"} <= set(
            after
        )
    assert listed(cluster)["fat"][2] == "whole"
    assert listed(cluster)["week 1"][2] == "window"
    found_status = status(cluster.dsns.catalog, now=NOW)
    assert found_status.exit_code == 0, found_status.to_json()
    assert {cell for one in found_status.tables[0].windows for cell in one.shards.values()} == {"present"}
    with pytest.raises(errors.BadOption, match="ours already"):
        adopted(cluster)


def test_retention_goes_by_the_upper_bound(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(cluster, "s1", PARENT, *HISTORY)
    wish = Wish(declared=Declaration("local", policy=Policy("at", "1 month", keep="5 months", ahead=1, grace=None)))
    planned = adopt.plan(cluster.dsns.catalog, "public", "events", wish, now=NOW)
    assert planned.over == ("fat", "week 1", "week_2")
    adopted(cluster, wish)
    assert {name for name, one in listed(cluster).items() if one[3] == "retired"} == {"fat", "week 1", "week_2"}
    assert "rest_of_june" in attached(cluster, "s1")
    assert tick(cluster.dsns.catalog, now=NOW).exit_code == 0
    gone = cluster.ask("s1", "SELECT count(*) FROM pg_class WHERE relname IN ('fat', 'week 1', 'week_2')")
    assert gone == 0
    december = datetime(2026, 12, 1, tzinfo=UTC)
    assert tick(cluster.dsns.catalog, now=december).exit_code == 0
    assert "rest_of_june" not in attached(cluster, "s1")
    assert "july" in attached(cluster, "s1")


def test_forgetting_leaves_plain_partitions(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(cluster, "s1", PARENT, *HISTORY, "INSERT INTO events (user_id, at) VALUES (1, '2026-06-03')")
    adopted(cluster)
    names = set(attached(cluster, "s1"))
    forgetting.forget(cluster.catalog, [("public", "events")])
    after = attached(cluster, "s1")
    assert set(after) == names
    assert all(one[3] is None for one in after.values())
    assert cluster.ask("s1", "SELECT count(*) FROM events") == 1
    adopted(cluster)
    assert set(attached(cluster, "s1")) == names


def test_sharded_tables_are_guarded_in_every_partition(found: Callable[..., Found]) -> None:
    cluster = found(2)
    shard_map = maps.load_map(cluster.catalog)
    mine = {
        name: next(user for user in range(99) if shard_map.route("users", user).shard == name) for name in ("s1", "s2")
    }
    for name, user in mine.items():
        run(cluster, name, PARENT, *HISTORY, "CREATE TABLE rest PARTITION OF events DEFAULT")
        run(cluster, name, f"INSERT INTO events (user_id, at) VALUES ({user}, '2026-01-02'), ({user}, '2026-12-02')")
    run(cluster, "s1", f"INSERT INTO events (user_id, at) VALUES ({mine['s2']}, '2026-02-02')")
    wish = Wish(Declaration("sharded", "user_id", "users", policy=Policy("at", "1 month", ahead=2)))
    with pytest.raises(errors.MisplacedRows, match="s1"):
        adopted(cluster, wish)
    assert tables.list_tables(cluster.catalog) == []
    assert cluster.ask("s1", "SELECT count(*) FROM pg_trigger WHERE tgname LIKE '~shardwright%'") == 0
    run(cluster, "s1", f"DELETE FROM events WHERE user_id = {mine['s2']}")
    adopted(cluster, wish)
    for leaf_name in attached(cluster, "s1"):
        triggers = f"SELECT count(*) FROM pg_trigger WHERE tgrelid = '\"{leaf_name}\"'::regclass AND tgname LIKE '~shardwright%'"
        assert cluster.ask("s1", triggers) >= 3, leaf_name
    for table in ("events", "fat"):
        with pytest.raises(psycopg.Error) as refusal:
            run(cluster, "s1", f"INSERT INTO {table} (user_id, at) VALUES ({mine['s2']}, '2026-02-02')")
        assert refusal.value.sqlstate == "SH001"
    assert [cluster.ask(name, "SELECT count(*) FROM events") for name in ("s1", "s2")] == [2, 2]


@pytest.mark.slow
def test_reference_tables_are_copied_into_the_same_windows(found: Callable[..., Found]) -> None:
    cluster = found(2)
    run(cluster, "s1", PARENT, *HISTORY, "INSERT INTO events (user_id, at) VALUES (1, '2026-01-02'), (2, '2026-11-02')")
    adopted(cluster, Wish(Declaration("reference", policy=Policy("at", "1 month", ahead=1))))
    deadline = time.monotonic() + 60
    while cluster.ask("s2", "SELECT count(*) FROM events") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert set(attached(cluster, "s1")) == set(attached(cluster, "s2"))
    forgetting.forget(cluster.catalog, [("public", "events")])


@pytest.mark.slow
def test_a_thousand_partitions(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(cluster, "s1", PARENT)
    run(
        cluster, "s1",
        "DO $$ BEGIN FOR n IN 0..999 LOOP EXECUTE format('CREATE TABLE day_%s PARTITION OF events FOR VALUES FROM (%L) TO (%L)', "
        "n, timestamptz '2024-03-01 00:00+00' + n * interval '24 h', timestamptz '2024-03-01 00:00+00' + (n + 1) * interval "
        "'24 h'); IF n % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$",
    )  # fmt: skip
    done = adopted(cluster, Wish(every="1 day", ahead=2))
    assert done.shards[0].taken == 1000
    assert len(attached(cluster, "s1")) == 1000 + 2 + 2
    assert all(one[4:6] == ("attached", True) for one in attached(cluster, "s1").values())


@pytest.mark.slow
def test_rows_that_came_since(found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    """A DEFAULT partition that grew too large meanwhile is left as it is; adopted anew, it stays with its rows."""
    cluster = found(1)
    run(cluster, "s1", PARENT, "CREATE TABLE rest PARTITION OF events DEFAULT")
    replace_default: Any = adopting.replace_default

    def meanwhile(*given: Any) -> None:
        run(cluster, "s1", "INSERT INTO events (user_id, at) SELECT g, '2026-11-20' FROM generate_series(1, 10001) g")
        replace_default(*given)

    monkeypatch.setattr(adopting, "replace_default", meanwhile)
    with pytest.raises(errors.UnfitTable, match="more than 10000 rows by now") as grown:
        adopted(cluster)
    monkeypatch.undo()
    assert "table forget public.events" in grown.value.fix
    assert (
        cluster.ask("s1", "SELECT count(*) FROM pg_class WHERE relname LIKE 'events_p2%' OR relname LIKE 'events_p_%r'")
        == 0
    )
    assert cluster.ask("s1", "SELECT count(*) FROM ONLY rest") == 10001
    forgetting.forget(cluster.catalog, [("public", "events")])
    adopted(cluster)
    assert attached(cluster, "s1")["rest"][3] == "whole"
    assert cluster.ask("s1", "SELECT count(*) FROM ONLY rest") == 10001
