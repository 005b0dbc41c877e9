"""Windows go when their time is over: not a microsecond early, never one that is not ours, and not without their archive."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from fix_partitions import NOW, Timed, by_month
from fix_retention import BEGIN, EDGE, SEPTEMBER, TICK, fill, fine, has_table, old, state
from shardwright import errors
from shardwright.catalog import archives, models, windows
from shardwright.partition.fleet import Fleet
from shardwright.partition.manifest import Manifest
from shardwright.partition.steps import drop
from shardwright.routing.tables import time_partitioned

pytestmark = pytest.mark.newest_postgres


def test_the_edge_to_the_microsecond(timed: Callable[..., Timed]) -> None:
    cluster = old(timed)
    fine(cluster.tick(EDGE - TICK))
    assert SEPTEMBER in cluster.windows("s1")
    rows = cluster.ask("s1", "SELECT count(*) FROM events")
    fine(cluster.tick(EDGE))
    assert SEPTEMBER not in cluster.windows("s1")
    assert cluster.ask("s1", "SELECT count(*) FROM events") == rows - 240
    assert cluster.windows("s1")["events_p_before"] == "(MINVALUE) TO ('2026-10-01 00:00:00+00')"
    assert state(cluster) == "detached"
    assert cluster.ask("s1", f"SELECT count(*) FROM {SEPTEMBER}") == 240
    fine(cluster.tick(EDGE))
    assert not has_table(cluster)
    fine(cluster.tick(EDGE))
    assert [one.name for one in windows.list_windows(cluster.catalog) if one.state == "retired"] == []
    assert cluster.plan(EDGE).is_empty


def test_a_leap_day_is_a_day(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month(every="1 day", keep="1 day", ahead=2, grace=None))
    fine(cluster.tick(datetime(2028, 2, 28, 12, tzinfo=UTC)))
    edge = datetime(2028, 3, 1, tzinfo=UTC)  # of the 28th, for which the 29th counts
    fine(cluster.tick(edge - TICK))
    assert "events_p20280228" in cluster.windows("s1")
    fine(cluster.tick(edge))
    assert "events_p20280228" not in cluster.windows("s1")
    assert "events_p20280229" in cluster.windows("s1")


def test_grace_is_counted_from_the_detaching(timed: Callable[..., Timed]) -> None:
    cluster = old(timed, grace="7 days")
    late = EDGE + timedelta(days=3)
    fine(cluster.tick(late))
    fine(cluster.tick(late + timedelta(days=7) - TICK))
    assert has_table(cluster)
    fine(cluster.tick(late + timedelta(days=7)))
    assert not has_table(cluster)


def test_a_table_without_our_mark_is_never_touched(timed: Callable[..., Timed]) -> None:
    cluster = old(timed)
    shard = cluster.shard("s1")
    shard.execute("DELETE FROM shardwright.partitions WHERE name = %s", (SEPTEMBER,))
    report = cluster.tick(EDGE)
    assert report.exit_code == 3
    assert "unmarked-leaf" in {finding.kind for finding in report.plan.findings}
    cluster.tick(EDGE)
    assert SEPTEMBER in cluster.windows("s1")


def test_another_table_under_an_old_name_is_never_touched(timed: Callable[..., Timed]) -> None:
    cluster = old(timed)
    fine(cluster.tick(EDGE))
    shard = cluster.shard("s1")
    shard.execute(f"ALTER TABLE {SEPTEMBER} RENAME TO mine; CREATE TABLE {SEPTEMBER} AS SELECT 42 AS answer".encode())
    for _ in range(2):
        report = cluster.tick(EDGE)
        assert report.exit_code == 3
        assert "name-taken" in {finding.kind for finding in report.plan.findings}
    assert cluster.ask("s1", f"SELECT answer FROM {SEPTEMBER}") == 42
    assert cluster.ask("s1", "SELECT count(*) FROM mine") == 240


def test_a_drop_looks_at_the_mark_itself(timed: Callable[..., Timed]) -> None:
    """Between planning and dropping somebody may put another table in the window's place."""
    cluster = old(timed)
    fine(cluster.tick(EDGE))
    shard = cluster.shard("s1")
    with Fleet(cluster.dsns.catalog, patience=1.0) as fleet:
        [table] = cluster.plan(EDGE).tables
        [step] = table.steps["s1"]
        assert (step.kind, step.name) == ("drop", SEPTEMBER)
        shard.execute(f"ALTER TABLE {SEPTEMBER} RENAME TO mine; CREATE TABLE {SEPTEMBER} (answer int)".encode())
        with pytest.raises(errors.UnfitTable, match="does not carry our mark"):
            drop.run(fleet.site(table.table_id, table.key, "s1"), step)
    assert has_table(cluster)


def test_archived_on_every_shard_then_dropped(timed: Callable[..., Timed], place: Path) -> None:
    cluster = old(timed, 2, archive=str(place))
    fine(cluster.tick(EDGE))
    assert not list(place.iterdir())
    fine(cluster.tick(EDGE))
    for shard in ("s1", "s2"):
        assert not has_table(cluster, shard=shard)
    found = archives.list_archives(cluster.catalog, windows.list_windows(cluster.catalog)[0].table_id)
    assert [(one.shard, one.name, one.rows, one.place) for one in found] == [
        (shard, SEPTEMBER, 240, str(place)) for shard in ("s1", "s2")
    ]
    made = Manifest.from_json(found[0].manifest)
    assert (place / made.file).is_file()
    assert made.file.startswith("s1/public.events/20260901T000000Z_20261001T000000Z_")


@pytest.mark.parametrize("why", ["gone", "not a directory", "no pyarrow"])
def test_a_failed_archive_blocks_the_drop(
    timed: Callable[..., Timed], place: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = old(timed, 2, archive=str(place))
    fine(cluster.tick(EDGE))
    if why == "gone":
        place.rmdir()
    elif why == "no pyarrow":
        from shardwright.partition import archive, stores

        def missing() -> Any:
            raise stores.missing_extra()

        monkeypatch.setattr(archive, "parquet_module", missing)
    else:
        (place / "s1").touch()
        (place / "s2").touch()
    later = datetime(2026, 11, 20, tzinfo=UTC)
    for _ in range(2):
        report = cluster.tick(later)
        assert report.exit_code == 3
        assert {one.outcome for one in report.outcomes} == {"failed"}
        reason = report.failed[0].reason
        assert reason["step"] == f"archive {SEPTEMBER}"
        assert reason["fix"]
        assert has_table(cluster)
        assert has_table(cluster, shard="s2")
    kept = cluster.catalog.execute(
        "SELECT DISTINCT shard, outcome, detail->>'code' FROM shardwright.partition_runs WHERE outcome = 'failed' ORDER BY 1"
    ).fetchall()
    code = "SW212" if why == "no pyarrow" else "SW215"
    assert kept == [("s1", "failed", code), ("s2", "failed", code)]
    # windows ahead are made on all shards all the same
    december = datetime(2026, 12, 1, tzinfo=UTC)
    cluster.tick(december - TICK)
    cluster.tick(december)
    assert "events_p2027_02" in cluster.windows("s2")
    monkeypatch.undo()
    place.mkdir(exist_ok=True)
    for child in place.iterdir():
        child.unlink()
    fine(cluster.tick(december))
    assert not has_table(cluster)
    assert not has_table(cluster, shard="s2")


def test_a_row_written_after_the_archive_keeps_the_table(
    timed: Callable[..., Timed], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardwright.partition.steps import archive

    cluster = old(timed, archive=str(place))
    fine(cluster.tick(EDGE))

    def write(name: str) -> None:
        if name == "partition.archive_recorded":
            cluster.shard("s1").execute(f"INSERT INTO {SEPTEMBER} (id, at) VALUES (9999, '2026-09-09+00')".encode())

    monkeypatch.setattr(archive.failpoints, "reach", write)
    report = cluster.tick(EDGE)
    assert report.exit_code == 3
    assert "was changed since it was archived" in report.failed[0].reason["message"]
    assert cluster.ask("s1", f"SELECT count(*) FROM {SEPTEMBER}") == 241
    monkeypatch.undo()
    fine(cluster.tick(EDGE))
    assert not has_table(cluster)
    (found,) = archives.list_archives(cluster.catalog, windows.list_windows(cluster.catalog)[0].table_id)
    assert found.rows == 241


def test_something_that_needs_the_table_keeps_it(timed: Callable[..., Timed]) -> None:
    cluster = old(timed)
    fine(cluster.tick(EDGE))
    cluster.shard("s1").execute(f"CREATE VIEW seen AS SELECT * FROM {SEPTEMBER}".encode())
    report = cluster.tick(EDGE)
    assert report.exit_code == 3
    assert "view public.seen depends on" in report.failed[0].reason["message"]
    assert has_table(cluster)
    cluster.shard("s1").execute("DROP VIEW seen")
    fine(cluster.tick(EDGE))
    assert not has_table(cluster)


def test_a_reader_that_does_not_end_defers_the_detach_and_the_next_run_goes_on(timed: Callable[..., Timed]) -> None:
    cluster = old(timed, keep="6 weeks")
    edge = datetime(2026, 11, 12, tzinfo=UTC)
    fine(cluster.tick(edge - TICK))
    with psycopg.connect(cluster.dsns.shards["s1"]) as reader:
        reader.execute("SELECT count(*) FROM events")
        report = cluster.tick(edge)
        assert report.exit_code == 4
        assert report.deferred[0].reason["blockers"]
        # whoever comes now is not held up, and writes
        cluster.shard("s1").execute("SET lock_timeout = '1s'; INSERT INTO events (at) VALUES ('2026-11-01+00')")
        assert cluster.ask("s1", "SELECT inhdetachpending FROM pg_inherits WHERE inhdetachpending")
        assert cluster.tick(edge).exit_code == 4
    fine(cluster.tick(edge))
    assert state(cluster) == "detached"
    fine(cluster.tick(edge))
    assert not has_table(cluster)


def paired(every: str = "1 month", keep: str = "1 month") -> Callable[[sa.MetaData], sa.Table]:
    """A table whose rows refer to rows of events."""

    def make(metadata: sa.MetaData) -> sa.Table:
        return sa.Table(
            "clicks",
            metadata,
            sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
            sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
            sa.Column("event", sa.BigInteger),
            sa.ForeignKeyConstraint(["event", "at"], ["events.id", "events.at"], name="clicks_event"),
            info=time_partitioned("at", every=every, keep=keep, ahead=2, grace=None),
        )

    return make


def test_children_go_before_their_parents(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month(keep="1 month", grace=None), paired())
    fine(cluster.tick(BEGIN))
    fill(cluster, "s1")
    shard = cluster.shard("s1")
    shard.execute("INSERT INTO clicks (at, event) SELECT at, id FROM events WHERE at < '2026-11-01+00'")
    fine(cluster.tick(EDGE))
    assert SEPTEMBER not in cluster.windows("s1")
    assert "clicks_p2026_09" not in cluster.windows("s1", "clicks")
    fine(cluster.tick(EDGE))
    assert not has_table(cluster)
    assert not has_table(cluster, "clicks_p2026_09")
    assert (
        cluster.ask("s1", "SELECT count(*) FROM pg_constraint WHERE conname = 'clicks_event' AND conparentid = 0") == 1
    )


def test_rows_that_are_still_needed(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month(keep="6 weeks", grace=None), paired(keep="3 months"))
    fine(cluster.tick(BEGIN))
    fill(cluster, "s1")
    edge = datetime(2026, 11, 12, tzinfo=UTC)
    shard = cluster.shard("s1")
    shard.execute("INSERT INTO clicks (at, event) SELECT at, id FROM events WHERE at < '2026-09-02+00'")
    fine(cluster.tick(edge - TICK))
    before = cluster.windows("s1")
    report = cluster.tick(edge)
    assert report.exit_code == 3
    (finding,) = [one for one in report.plan.findings if one.kind == "needed-window"]
    assert "public.clicks" in finding.message
    assert "clicks_event" in finding.message
    assert finding.fix
    assert cluster.windows("s1") == before
    shard.execute("DELETE FROM clicks")
    fine(cluster.tick(edge))
    assert SEPTEMBER not in cluster.windows("s1")


def test_a_row_that_becomes_needed_at_the_last_moment(
    timed: Callable[..., Timed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and detaching: PostgreSQL itself refuses, and it is said in our words."""
    from shardwright.partition import fleet

    cluster = timed(1, by_month(keep="1 month", grace=None), paired(keep="3 months"))
    fine(cluster.tick(BEGIN))
    fill(cluster, "s1")
    cluster.shard("s1").execute("INSERT INTO clicks (at, event) SELECT at, id FROM events WHERE at < '2026-09-02+00'")
    monkeypatch.setattr(fleet.Fleet, "_needed", lambda self, facts: [])
    (failed,) = cluster.tick(EDGE).failed
    assert failed.reason["code"] == "SW216"
    assert "clicks" in failed.reason["message"]
    assert "clicks_event" in failed.reason["message"]
    assert SEPTEMBER in cluster.windows("s1")
    assert cluster.ask("s1", "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 0


def test_keys_of_the_window_itself_are_dropped_first(timed: Callable[..., Timed]) -> None:
    """A window that refers to an ordinary table: dropping it needs that table's lock only for a moment a key."""

    cluster = timed(1, by_month(keep="1 month", grace=None))
    fine(cluster.tick(BEGIN))
    shard = cluster.shard("s1")
    shard.execute("CREATE TABLE kinds (id bigint PRIMARY KEY); INSERT INTO kinds SELECT generate_series(0, 10000)")
    shard.execute("ALTER TABLE events ADD CONSTRAINT kind FOREIGN KEY (id) REFERENCES kinds")
    fill(cluster, "s1")
    fine(cluster.tick(EDGE))
    fine(cluster.tick(EDGE))
    assert not has_table(cluster)
    assert cluster.ask("s1", "SELECT count(*) FROM pg_constraint WHERE conname = 'kind' AND conparentid = 0") == 1


def test_a_down_shard_lets_go_later(timed: Callable[..., Timed], place: Path) -> None:
    cluster = old(timed, 2, archive=str(place))
    name = cluster.ask("s2", "SELECT current_database()")
    cluster.shard("s2").close()
    cluster._open.pop("s2")
    with psycopg.connect(cluster.dsns.catalog, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        for _ in range(2):
            assert cluster.tick(EDGE).exit_code == 4
        assert not has_table(cluster)
        assert any(one.state == "retired" for one in windows.list_windows(cluster.catalog))
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
    for _ in range(3):
        fine(cluster.tick(EDGE))
    assert not has_table(cluster, shard="s2")
    assert all(one.state == "wanted" for one in windows.list_windows(cluster.catalog))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_windows_come_and_go_at_default_settings(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month(every="1 day", ahead=1000, keep="1 day", grace=None))
    assert cluster.ask("s1", "SHOW max_locks_per_transaction") == "64"
    assert cluster.tick().exit_code == 0
    assert len(cluster.windows("s1")) >= 1002
    cluster.shard("s1").execute(
        "INSERT INTO events (at) SELECT %s::timestamptz + n * interval '1 day' FROM generate_series(0, 999) n", (NOW,)
    )
    assert cluster.ask("s1", "SELECT count(DISTINCT tableoid) FROM events") == 1000
    # The whole set at once has its locks too.
    with cluster.shard("s1").transaction(force_rollback=True):
        cluster.shard("s1").execute("DROP TABLE events")
    metadata = sa.MetaData()
    by_month(every="1 day", ahead=1, keep="1 day", grace=None)(metadata)
    models.register(cluster.catalog, metadata)
    later = NOW + timedelta(days=1010)
    for _ in range(4):
        report = cluster.tick(later)
        assert report.exit_code == 0, report.to_json()
    assert cluster.plan(later).is_empty
    assert len(cluster.windows("s1")) <= 12
    assert cluster.ask("s1", "SELECT count(*) FROM pg_class WHERE relname LIKE 'events_p2%%' AND relkind = 'r'") <= 10
    assert cluster.ask("s1", "SELECT count(*) FROM events") == 0
