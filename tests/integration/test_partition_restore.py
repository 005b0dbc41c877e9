"""Archived windows come back as they were: every type, every owner, attached, and left alone by retention for a while."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from fix_partitions import Timed, by_month
from fix_resharding import Small
from fix_retention import BEGIN, EDGE, SEPTEMBER, TICK, TYPES, fine, has_table, make_every_type, old, rows_of
from shardwright import errors
from shardwright.catalog import adoption, archives, windows
from shardwright.partition.restore import Restored, restore
from shardwright.partition.tick import tick
from shardwright.reshard import operate
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration, time_partitioned

pytestmark = pytest.mark.newest_postgres


def gone(timed: Callable[..., Timed], place: Path | None, shards: int = 1, **policy: Any) -> Timed:
    """A cluster whose September was archived and dropped."""
    cluster = old(timed, shards, archive=str(place) if place else None, **policy)
    for _ in range(3):
        fine(cluster.tick(EDGE))
    assert not has_table(cluster)
    assert cluster.plan(EDGE).is_empty
    return cluster


def bring(cluster: Timed, *names: str, **options: Any) -> list[Restored]:
    return restore(cluster.dsns.catalog, "public", "events", names, **{"now": EDGE, "patience": 1.0, **options})


def of_september(cluster: Timed, shard: str = "s1") -> list[str]:
    return rows_of(cluster.shard(shard), "(SELECT * FROM events WHERE at < '2026-10-01+00')")


def test_every_type_comes_back_attached(timed: Callable[..., Timed], place: Path) -> None:
    cluster = timed(1)
    shard = cluster.shard("s1")
    make_every_type(shard, "template")
    shard.execute("CREATE TABLE every (LIKE template INCLUDING ALL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)")
    policy = Policy("at", "1 month", keep="1 month", ahead=2, grace=None, archive=str(place))
    adoption.adopt(cluster.catalog, [adoption.Wanted("public", "every", Declaration("local", policy=policy))])
    fine(cluster.tick(datetime(2013, 1, 10, tzinfo=UTC)))
    columns = ", ".join('"' + name.replace('"', '""') + '"' for name in ("id", "at", *TYPES))
    shard.execute(f"INSERT INTO every ({columns}) SELECT {columns} FROM template".encode())
    before = rows_of(shard, "every")
    later = datetime(2013, 3, 1, tzinfo=UTC)
    for _ in range(3):
        fine(cluster.tick(later))
    assert rows_of(shard, "every") == []
    assert cluster.ask("s1", "SELECT to_regclass('every_p2013_01')") is None
    (done,) = restore(cluster.dsns.catalog, "public", "every", ["every_p2013_01"], now=later)
    assert (done.rows, done.how) == (len(before), "load")
    assert rows_of(shard, "every") == before
    assert cluster.windows("s1", "every")["every_p2013_01"].startswith("('2013-01-01 00:00:00+00')")
    # attached like any other window: the keys of its parent, and no CHECK of its bounds left
    keys = "SELECT count(*) FROM pg_index WHERE indrelid = 'every_p2013_01'::regclass AND indisprimary"
    assert cluster.ask("s1", keys) == 1
    assert not cluster.ask("s1", "SELECT count(*) FROM pg_constraint WHERE conname = 'shardwright_bounds'")


def test_kept_for_a_while_and_then_gone_again(timed: Callable[..., Timed], place: Path) -> None:
    cluster = old(timed, 2, archive=str(place))
    before = {shard: of_september(cluster, shard) for shard in ("s1", "s2")}
    for _ in range(3):
        fine(cluster.tick(EDGE))
    done = bring(cluster, SEPTEMBER, keep="10 days")
    assert [(one.shard, one.rows, one.how) for one in done] == [("s1", 240, "load"), ("s2", 240, "load")]
    assert {shard: of_september(cluster, shard) for shard in ("s1", "s2")} == before
    assert cluster.windows("s1")["events_p_before"] == "(MINVALUE) TO ('2026-09-01 00:00:00+00')"
    table_id = windows.list_windows(cluster.catalog)[0].table_id
    assert all(one.restored_at for one in archives.list_archives(cluster.catalog, table_id))
    written = {path: path.stat().st_mtime_ns for path in place.rglob("*.parquet")}
    until = EDGE + timedelta(days=10)
    fine(cluster.tick(until - TICK))
    assert of_september(cluster) == before["s1"]
    # brought back once more while it is there: nothing to do, and kept for longer
    assert {one.how for one in bring(cluster, SEPTEMBER, keep="11 days")} == {"present"}
    fine(cluster.tick(until))
    assert of_september(cluster) == before["s1"]
    for _ in range(3):
        fine(cluster.tick(until + timedelta(days=1)))
    assert not has_table(cluster)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.parquet")} == written, "written anew for nothing"


def test_a_window_that_is_detached_still(timed: Callable[..., Timed]) -> None:
    """Without any archive: during the grace its table is there."""
    cluster = old(timed, 2, grace="7 days")
    before = of_september(cluster)
    fine(cluster.tick(EDGE))
    assert of_september(cluster) == []
    done = bring(cluster, SEPTEMBER)
    assert [(one.shard, one.how, one.rows) for one in done] == [("s1", "reattach", 240), ("s2", "reattach", 240)]
    assert of_september(cluster) == before
    fine(cluster.tick(EDGE + timedelta(days=6)))
    assert of_september(cluster) == before


def test_all_that_is_not_there(timed: Callable[..., Timed], place: Path) -> None:
    cluster = old(timed, archive=str(place))
    late = datetime(2026, 12, 1, tzinfo=UTC)
    before = rows_of(cluster.shard("s1"), "events")
    for _ in range(3):
        fine(cluster.tick(late))
    assert {one.window for one in bring(cluster)} == {SEPTEMBER, "events_p2026_10"}
    assert rows_of(cluster.shard("s1"), "events") == before
    assert bring(cluster) == []


def test_windows_that_leave_a_gap(timed: Callable[..., Timed], place: Path) -> None:
    """September comes back and October does not: the guard covers what is older, and the plan is content."""
    cluster = old(timed, archive=str(place))
    late = datetime(2026, 12, 1, tzinfo=UTC)
    for _ in range(3):
        fine(cluster.tick(late))
    cluster.shard("s1").execute("INSERT INTO events (id, at) VALUES (77777, '2026-09-05+00'), (88888, '2020-01-01+00')")
    bring(cluster, SEPTEMBER, now=late)
    report = cluster.tick(late)
    assert [one.kind for one in report.plan.findings] == ["rows-in-guard"]
    assert not report.failed
    # a row that had landed in the guard is in its window now
    assert cluster.ask("s1", f"SELECT count(*) FROM {SEPTEMBER}") == 241
    bring(cluster, "events_p2026_10", now=late)
    assert "events_p2026_10" in cluster.windows("s1")


def test_one_shard_at_a_time(timed: Callable[..., Timed], place: Path) -> None:
    cluster = gone(timed, place, 2)
    assert [one.shard for one in bring(cluster, SEPTEMBER, shards=["s2"])] == ["s2"]
    assert len(of_september(cluster, "s2")) == 240
    fine(cluster.tick(EDGE))  # the other shard gets the window, empty
    assert cluster.windows("s1").keys() == cluster.windows("s2").keys()
    assert of_september(cluster) == []
    assert [one.how for one in bring(cluster, SEPTEMBER)] == ["load", "present"]
    assert len(of_september(cluster)) == 240


def test_from_another_place(timed: Callable[..., Timed], place: Path) -> None:
    cluster = gone(timed, place)
    elsewhere = place.with_name("moved")
    place.rename(elsewhere)
    with pytest.raises(errors.ArchiveUnusable):
        bring(cluster, SEPTEMBER)
    cluster.catalog.execute("DELETE FROM shardwright.archives")
    with pytest.raises(errors.BadOption, match="no archive") as refused:
        bring(cluster, SEPTEMBER)
    assert refused.value.fix
    bring(cluster, SEPTEMBER, place=elsewhere.as_uri())
    assert len(of_september(cluster)) == 240


@pytest.mark.parametrize("damage", ["file gone", "file changed", "manifest lies"])
def test_a_damaged_archive_changes_nothing(timed: Callable[..., Timed], place: Path, damage: str) -> None:
    cluster = gone(timed, place, 2)
    (file,) = (place / "s2").rglob("*.parquet")
    if damage == "file gone":
        file.unlink()
    elif damage == "file changed":
        file.write_bytes(file.read_bytes() + b"x")
    else:
        cluster.catalog.execute(
            "UPDATE shardwright.archives SET manifest = jsonb_set(manifest, '{checksum}', '\"42\"') WHERE shard = 's2'"
        )
    before = cluster.windows("s1")
    with pytest.raises((errors.ArchiveUnusable, errors.ArchiveDiffers)) as refused:
        bring(cluster, SEPTEMBER)
    assert refused.value.fix
    for shard in ("s1", "s2"):
        assert cluster.windows(shard) == before
        assert not has_table(cluster, shard=shard)
        assert not cluster.ask(shard, "SELECT count(*) FROM shardwright.partitions WHERE name = %s", SEPTEMBER)
    assert cluster.plan(EDGE).is_empty


def test_a_table_that_changed_since(timed: Callable[..., Timed], place: Path) -> None:
    cluster = gone(timed, place)
    shard = cluster.shard("s1")
    shard.execute("ALTER TABLE events ADD COLUMN more int DEFAULT 7")
    shard.execute("ALTER TABLE events ALTER COLUMN note TYPE varchar(20)")
    with pytest.raises(errors.UnfitTable, match=r"note was text and is character varying\(20\)"):
        bring(cluster, SEPTEMBER)
    shard.execute("ALTER TABLE events ALTER COLUMN note TYPE text")
    bring(cluster, SEPTEMBER)
    assert cluster.ask("s1", f"SELECT count(*) FROM {SEPTEMBER} WHERE more = 7") == 240


def test_what_has_its_name_or_its_time(timed: Callable[..., Timed], place: Path) -> None:
    cluster = gone(timed, place)
    shard = cluster.shard("s1")
    shard.execute(f"CREATE TABLE {SEPTEMBER} AS SELECT 42 AS answer".encode())
    with pytest.raises(errors.UnfitTable, match="not ours"):
        bring(cluster, SEPTEMBER)
    assert cluster.ask("s1", f"SELECT answer FROM {SEPTEMBER}") == 42
    shard.execute(f"DROP TABLE {SEPTEMBER}".encode())
    bring(cluster, SEPTEMBER)
    shard.execute(f"DELETE FROM {SEPTEMBER} WHERE note = '0'".encode())
    with pytest.raises(errors.UnfitTable, match="239 rows that are not those of the archive"):
        bring(cluster, SEPTEMBER)
    assert len(of_september(cluster)) == 239


def test_rows_that_refer_to_rows_which_are_gone(timed: Callable[..., Timed], place: Path) -> None:
    def clicks(metadata: sa.MetaData) -> sa.Table:
        return sa.Table(
            "clicks",
            metadata,
            sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
            sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
            sa.Column("event", sa.BigInteger),
            sa.ForeignKeyConstraint(["event", "at"], ["events.id", "events.at"], name="clicks_event"),
            info=time_partitioned("at", "1 month", keep="1 month", ahead=2, grace=None, archive=str(place)),
        )

    cluster = timed(1, by_month(keep="1 month", grace=None, archive=str(place)), clicks)
    fine(cluster.tick(BEGIN))
    shard = cluster.shard("s1")
    shard.execute("INSERT INTO events (id, at) SELECT n, '2026-09-05+00' FROM generate_series(1, 50) n")
    shard.execute("INSERT INTO clicks (at, event) SELECT at, id FROM events")
    for _ in range(3):
        fine(cluster.tick(EDGE))
    with pytest.raises(errors.UnfitTable, match="clicks_event") as refused:
        restore(cluster.dsns.catalog, "public", "clicks", ["clicks_p2026_09"], now=EDGE)
    assert "events" in refused.value.fix
    assert not has_table(cluster, "clicks_p2026_09")
    bring(cluster, SEPTEMBER)
    restore(cluster.dsns.catalog, "public", "clicks", ["clicks_p2026_09"], now=EDGE)
    assert (
        cluster.ask("s1", "SELECT count(*) FROM clicks JOIN events ON events.id = event AND events.at = clicks.at")
        == 50
    )
    # adopted from the table's own key, and not a second one beside it
    own = "SELECT bool_and(conparentid <> 0) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'clicks_p2026_09'::regclass"
    assert cluster.ask("s1", own) is True


def test_rows_whose_owners_changed(small: Small, place: Path) -> None:
    """Archived on two shards, restored on three: each takes its own rows from every archive."""
    with small.catalog() as catalog:
        for name in ("s1", "s2"):
            with small.shard(name) as connection:
                connection.execute(
                    "CREATE TABLE visits (user_id bigint, at timestamptz, note text, PRIMARY KEY (user_id, at)) "
                    "PARTITION BY RANGE (at)"
                )
        policy = Policy("at", "1 month", keep="1 month", ahead=1, grace=None, archive=str(place))
        declared = Declaration("sharded", "user_id", "users", policy=policy)
        adoption.adopt(catalog, [adoption.Wanted("public", "visits", declared)])
    fine(tick(small.catalog_dsn, now=BEGIN))
    rows = small.rows("orders")
    for name in ("s1", "s2"):
        with small.shard(name) as connection:
            connection.execute(
                "INSERT INTO visits SELECT DISTINCT user_id, timestamptz '2026-09-05+00', 'n' || user_id FROM orders"
            )
    before = small.rows("visits")
    assert len(before) == len({row[0] for row in rows})
    for _ in range(3):
        fine(tick(small.catalog_dsn, now=EDGE))
    assert small.rows("visits") == []
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3"))
    with pytest.raises(errors.OperationConflict, match="a restore has to wait"):
        restore(small.catalog_dsn, "public", "visits", ["visits_p2026_09"], now=EDGE)
    assert operate.drive(small.catalog_dsn, operation, "done").phase == "done"
    with pytest.raises(errors.MisplacedRows, match="belong to other shards by now") as refused:
        restore(small.catalog_dsn, "public", "visits", ["visits_p2026_09"], shards=["s1"], now=EDGE)
    assert "without --shard" in refused.value.fix
    done = restore(small.catalog_dsn, "public", "visits", ["visits_p2026_09"], now=EDGE)
    assert all(one.rows for one in done)
    assert small.rows("visits") == before
