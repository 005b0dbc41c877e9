"""The lock matrix of docs/explanation/partitions.md is what the server says, on each PostgreSQL: no lock more, none less."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from fix_locks import MODES, LockLog, Transaction
from fix_partitions import Timed
from fix_resharding import Small, add_visits
from fix_servers import Postgres
from shardwright import failpoints, local, time_partitioned
from shardwright.catalog import forgetting, models
from shardwright.partition import adopt, carried, restore, split, swap
from shardwright.partition.wishes import Wish
from shardwright.reshard import operate
from shardwright.routing.policy import Policy

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "partitions.md"
SHORT = {"-": None, "AS": MODES[0], "RS": MODES[1], "SUE": MODES[3], "SRX": MODES[5], "AX": MODES[7]}
COLUMNS = ("events", "partition", "people", "notes")

NOVEMBER = datetime(2026, 11, 25, 12, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 25, 12, tzinfo=UTC)
JANUARY = datetime(2027, 1, 25, 12, tzinfo=UTC)


def matrix(version: int) -> dict[str, dict[str, str | None]]:
    """The page's rows for one PostgreSQL, by operation."""
    found: dict[str, dict[str, str | None]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not re.fullmatch(r"`[a-z, ]+`", cells[0]) or len(cells) != 7:
            continue
        if version in [int(number) for number in cells[1].split(",")]:
            found[cells[0].strip("`")] = {name: SHORT[cell] for name, cell in zip(COLUMNS, cells[2:6], strict=True)}
    return found


def strongest(transactions: Iterable[Transaction], partitions: Callable[[str], bool]) -> dict[str, str | None]:
    """The strongest lock on each of `COLUMNS`; a lock on another partition fails."""
    found: dict[str, str | None] = dict.fromkeys(COLUMNS)
    for transaction in transactions:
        for name, mode in transaction.locks.items():
            column = name if name in COLUMNS else "partition"
            assert column != "partition" or partitions(name), f"{name} is locked too: {mode}"
            had = found[column]
            if had is None or MODES.index(mode) > MODES.index(had):
                found[column] = mode
    return found


def _tables(**policy: Any) -> list[Callable[[sa.MetaData], sa.Table]]:
    """events by month, people that it refers to, notes that refer to it."""

    def people(metadata: sa.MetaData) -> sa.Table:
        return sa.Table("people", metadata, sa.Column("id", sa.BigInteger, primary_key=True), info=local())

    def events(metadata: sa.MetaData) -> sa.Table:
        return sa.Table(
            "events",
            metadata,
            sa.Column("id", sa.BigInteger, primary_key=True),
            sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
            sa.Column("person", sa.BigInteger, sa.ForeignKey("people.id")),
            info=time_partitioned("at", **{"every": "1 month", "ahead": 1, "grace": None, **policy}),
        )

    def notes(metadata: sa.MetaData) -> sa.Table:
        return sa.Table(
            "notes",
            metadata,
            sa.Column("n", sa.BigInteger, primary_key=True),
            sa.Column("event", sa.BigInteger),
            sa.Column("at", sa.DateTime(timezone=True)),
            sa.ForeignKeyConstraint(["event", "at"], ["events.id", "events.at"]),
            info=local(),
        )

    return [people, events, notes]


def _fill(cluster: Timed) -> None:
    cluster.shard("s1").execute(
        "INSERT INTO people VALUES (1); "
        "INSERT INTO events SELECT n, '2026-11-25 12:00+00', 1 FROM generate_series(1, 500) n"
    )


def _fine(report: Any) -> None:
    assert report.exit_code == 0, report.to_json()


def test_windows(
    timed: Callable[..., Timed], lock_log: Callable[[str], LockLog], postgres: Postgres, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    said = matrix(postgres.version)
    cluster = timed(1, *_tables(keep="1 month", archive=str(tmp_path)))
    log = lock_log(cluster.dsns.shards["s1"])
    _fine(cluster.tick(NOVEMBER))
    done = log.transactions()
    made = [one for one in done if "CREATE TABLE" in one.tags]
    attached = [one for one in done if "CREATE TABLE" not in one.tags]
    assert len(made) == len(attached) == 4
    for one in made:
        assert strongest([one], lambda _: True) == said["create"]
    for one in attached:
        assert len(one.locks) == 4
        assert strongest([one], lambda _: True) == said["attach"]
    _fill(cluster)

    log.clear()
    _fine(cluster.tick(DECEMBER))
    guard = [one for one in log.transactions() if "CREATE TABLE" not in one.tags]
    assert strongest(guard, lambda name: name in ("events_p_after", "events_p2027_01")) == said["guard"]

    log.clear()
    _fine(cluster.tick(JANUARY))
    november = [
        one for one in log.transactions() if "events_p2026_11" in one.locks and "events_p_before" not in one.locks
    ]
    assert strongest(november[:1], "events_p2026_11".__eq__) == said["detach, last part"]
    assert strongest(november[1:], "events_p2026_11".__eq__) == said["detach, foreign keys"]

    log.clear()
    _fine(cluster.tick(JANUARY))
    drop = [one for one in log.transactions() if "events_p2026_11" in one.locks]
    assert drop
    assert strongest(drop, "events_p2026_11".__eq__) == said["drop"]

    log.clear()
    restored = restore.restore(cluster.dsns.catalog, "public", "events", now=JANUARY)
    assert [(one.window, one.rows, one.how) for one in restored] == [("events_p2026_11", 500, "load")]
    done = log.transactions()
    assert strongest(done[:-1], "events_p2026_11".__eq__) == said["restore, load"]
    assert strongest(done[-1:], lambda name: name in ("events_p2026_11", "events_p_before")) == said["restore, attach"]


def test_a_detach_in_its_phases(
    timed: Callable[..., Timed], lock_log: Callable[[str], LockLog], postgres: Postgres
) -> None:
    """The event trigger sees the last part. The first one is stopped where it waits, and the wait between is looked at."""
    said = matrix(postgres.version)
    cluster = timed(1, *_tables())
    _fine(cluster.tick(NOVEMBER))
    dsn = cluster.dsns.shards["s1"]

    def held_while(blocker: str, pending: bool) -> dict[str, str | None]:
        with psycopg.connect(dsn) as other, psycopg.connect(dsn, autocommit=True) as ours:
            other.execute(blocker.encode())
            pid = ours.info.backend_pid
            run = threading.Thread(
                target=lambda: ours.execute("ALTER TABLE events DETACH PARTITION events_p2026_11 CONCURRENTLY")
            )
            run.start()
            deadline = time.monotonic() + 20
            waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
            while not cluster.ask("s1", waits, pid) or (
                cluster.ask("s1", "SELECT coalesce(bool_or(inhdetachpending), false) FROM pg_inherits") != pending
            ):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            rows = (
                cluster.shard("s1")
                .execute(
                    "SELECT c.relname, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
                    "WHERE l.pid = %s AND c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace",
                    (pid,),
                )
                .fetchall()
            )
            other.rollback()
            run.join()
        words = {mode.title().replace(" ", "") + "Lock": mode for mode in MODES}
        found = strongest([Transaction((), {name: words[mode]}) for name, mode in rows], "events_p2026_11".__eq__)
        cluster.shard("s1").execute(
            "ALTER TABLE events ATTACH PARTITION events_p2026_11 FOR VALUES FROM ('2026-11-01+00') TO ('2026-12-01+00')"
        )
        return found

    # stopped at the partition: the parent is locked already
    assert held_while("LOCK TABLE events_p2026_11 IN ACCESS EXCLUSIVE MODE", False) == said["detach, first part"]
    # a reader is waited for
    assert held_while("SELECT count(*) FROM events", True) == said["detach, between"]
    with (
        psycopg.connect(dsn) as reader,
        psycopg.connect(dsn, autocommit=True, options="-c statement_timeout=300") as ours,
    ):
        reader.execute("SELECT count(*) FROM events")
        with pytest.raises(psycopg.errors.QueryCanceled):
            ours.execute("ALTER TABLE events DETACH PARTITION events_p2026_11 CONCURRENTLY")
    log = lock_log(dsn)
    cluster.tick(NOVEMBER)
    [finalize, *_] = [one for one in log.transactions() if "events_p2026_11" in one.locks]
    assert strongest([finalize], "events_p2026_11".__eq__) == said["finalize"]


@pytest.mark.parametrize("referred", [False, True], ids=["alone", "referred to"])
def test_a_split(
    timed: Callable[..., Timed], lock_log: Callable[[str], LockLog], postgres: Postgres, referred: bool
) -> None:
    said = matrix(postgres.version)
    count = 3 if referred else 2  # with notes, or without
    cluster = timed(1, *_tables(every="1 year")[:count])
    _fine(cluster.tick(NOVEMBER))
    _fill(cluster)
    metadata = sa.MetaData()
    for table in _tables()[:count]:
        table(metadata)
    models.register(cluster.catalog, metadata)
    log = lock_log(cluster.dsns.shards["s1"])
    split.split(cluster.dsns.catalog, "public", "events", "events_p2026")
    done = log.transactions()
    at, lift = [n for n, one in enumerate(done) if one.locks.get("events") == "ACCESS EXCLUSIVE"]

    def is_piece(name: str) -> bool:
        return name.startswith("events_p2026_")

    # before the exchange its pieces are nobody's; where others refer to the table it takes in every partition
    before = [Transaction(one.tags, {k: v for k, v in one.locks.items() if not is_piece(k)}) for one in done[:at]]
    found = {
        "split, before": strongest(before, "events_p2026".__eq__),
        "split, exchange": strongest([done[at]], lambda name: referred or is_piece(name) or name == "events_p2026"),
        "split, after": strongest(done[at + 1 :], lambda name: referred or is_piece(name)),
        "lift": strongest([done[lift]], lambda _: False),
    }
    for operation, locks in found.items():
        wanted = said[operation]
        if not referred:
            wanted = {
                **wanted,
                "notes": None,
            }
        assert locks == wanted, operation


def test_an_adoption(
    timed: Callable[..., Timed], lock_log: Callable[[str], LockLog], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = matrix(postgres.version)
    monkeypatch.setattr("shardwright.partition.handmade.COUNTED", 3)
    cluster = timed(1, *_tables())
    # as if others had made the partitions, and nobody had been told
    forgetting.forget(cluster.catalog, [("public", "events")])
    october = "CREATE TABLE october PARTITION OF events FOR VALUES FROM ('2026-10-01+00') TO ('2026-11-01+00')"
    cluster.shard("s1").execute(f"{october}; CREATE TABLE strays PARTITION OF events DEFAULT".encode())
    log = lock_log(cluster.dsns.shards["s1"])

    def instead(name: str) -> bool:
        return name == "strays" or name.startswith("events_p")

    def adopted() -> list[Transaction]:
        log.clear()
        done = adopt.adopt(cluster.dsns.catalog, "public", "events", Wish(every="1 month", ahead=1), now=NOVEMBER)
        assert done.windows is not None
        _fine(done.windows)
        return log.transactions()

    done = adopted()
    [exchange] = [one for one in done if "DROP TABLE" in one.tags]
    assert strongest([exchange], instead) == said["adopt, default"]
    # it is the only one that takes more than what the tick takes afterwards
    before = done[: done.index(exchange)]
    assert {tag for one in before for tag in one.tags} <= {"CREATE TABLE", "ALTER TABLE"}
    assert strongest(before, instead) == said["create"]

    # one that stays
    forgetting.forget(cluster.catalog, [("public", "events")])
    cluster.shard("s1").execute("DROP TABLE notes")
    cluster.shard("s1").execute(
        "DROP TABLE events_p_after, events_p2026_12, events_p2026_11; CREATE TABLE strays PARTITION OF events DEFAULT; "
        "INSERT INTO people VALUES (1); INSERT INTO events SELECT n, '2026-11-25 12:00+00', 1 FROM generate_series(1, 9) n"
    )
    done = adopted()
    [exchange] = [one for one in done if one.locks.get("events") == "ACCESS EXCLUSIVE" and "strays" in one.locks]
    assert strongest([exchange], instead) == {**said["adopt, default"], "notes": None}
    checked = [one for one in done[: done.index(exchange)] if "strays" in one.locks]
    assert [strongest([one], "strays".__eq__)["partition"] for one in checked] == ["ACCESS EXCLUSIVE", MODES[3]]
    assert strongest(checked, "strays".__eq__) == said["adopt, bounds"]


def test_marking_and_versions(
    timed: Callable[..., Timed], lock_log: Callable[[str], LockLog], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marking is no DDL, so it is looked at where it stands."""
    said = matrix(postgres.version)
    cluster = timed(1, _tables()[0])
    cluster.shard("s1").execute(
        "CREATE TABLE events (id uuid PRIMARY KEY) PARTITION BY RANGE (id); "
        "CREATE TABLE old PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('0199a000-0000-7000-8000-000000000000')"
    )
    held: list[dict[str, str | None]] = []
    seen = failpoints.reach

    def look(name: str) -> None:
        if name == "partition.adopt_marking":
            rows = cluster.shard("s1").execute(
                "SELECT c.relname, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
                "JOIN pg_stat_activity a USING (pid) WHERE a.application_name = 'shardwright adopt' "
                "AND c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
            )
            words = {mode.title().replace(" ", "") + "Lock": mode for mode in MODES}
            held.append(strongest([Transaction((), {name: words[mode]}) for name, mode in rows], "".__eq__))
        seen(name)

    log = lock_log(cluster.dsns.shards["s1"])
    monkeypatch.setattr("shardwright.failpoints.reach", look)
    adopt.adopt(cluster.dsns.catalog, "public", "events", Wish(every="1 month"), now=NOVEMBER)
    assert held == [said["adopt, mark"]]
    # afterwards it is the guard before, and the tick moves that
    added, validated, _ = [one for one in log.transactions() if "old" in one.locks]
    assert strongest([added], "old".__eq__) == said["adopt, version"]
    assert validated.locks["old"] == MODES[3]


def test_a_conversion(database: str, lock_log: Callable[[str], LockLog], postgres: Postgres) -> None:
    said = matrix(postgres.version)
    cut = "'2026-12-01 00:00:00+00'"
    to = carried.Conversion(
        column="at",
        leaf="events_whole",
        cut=cut,
        check=f"at IS NOT NULL AND at < {cut}::timestamptz",
        after=(("events_p_after", cut, "MAXVALUE"),),
    )
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE people (id bigint PRIMARY KEY); "
            "CREATE TABLE events (id bigint, at timestamptz, person bigint REFERENCES people, PRIMARY KEY (id, at)); "
            "CREATE TABLE notes (n bigint PRIMARY KEY, event bigint, at timestamptz, "
            "FOREIGN KEY (event, at) REFERENCES events)"
        )
        log = lock_log(database)
        swap.add_check(connection, "public", "events", to.check, 5)
        assert strongest(log.transactions(), "".__eq__) == said["convert, check"]
        log.clear()
        swap.validate(connection, "public", "events", carried.CHECK_NAME, 5)
        assert strongest(log.transactions(), "".__eq__) == said["convert, validate"]
        log.clear()
        swap.swap(connection, "public", "events", to, Policy("at", "1 month"), done=lambda _: None, patience=5)
        # what is new is nobody's yet
        assert strongest(log.transactions(), lambda _: True) == said["convert, swap"]


def test_a_fence(small: Small, lock_log: Callable[[str], LockLog], postgres: Postgres) -> None:
    said = matrix(postgres.version)
    add_visits(small, weeks=3, ahead=1)
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3"))
    operate.drive(small.catalog_dsn, operation, "verified")
    log = lock_log(small.dsns["s1"])
    operate.drive(small.catalog_dsn, operation, "switched")
    fences = [one for one in log.transactions() if "CREATE FUNCTION" in one.tags]
    assert fences
    for fence in fences:
        assert set(fence.locks) == {"visits", "orders", "items"}, "a leaf is locked"
        assert {"events": fence.locks["visits"], "partition": None, "people": None, "notes": None} == said["fence"]
    operate.drive(small.catalog_dsn, operation, "done")
