"""Time partitions: ours beside pg_partman and pg-partsmith on the same tables, and ours with many leaves.

Run: python -m tests.bench.bench_partitions [PART ...] [--json]; the parts are peers, bystander, leaves, drop,
archive and split. The managers take turns on one PostgreSQL 15 (Debian's, which has pg_partman as a package); figures are
medians of the rounds. Where a peer cannot run here its column says why.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from tests.bench import partition_bystander
from tests.bench.partition_ours import Fleet, Ours, checked, fleet
from tests.bench.partition_peers import INDEX, PARENT, Manager, Partman, Partsmith, Unavailable, debian_15

from shardwright.partition import apply, restore, split
from shardwright.partition.tick import tick
from shardwright.routing.policy import Policy
from shardwright.servers import Server

ROUNDS = 3
NOOPS = 7
LEAVES = 1_000


@contextmanager
def directory() -> Iterator[Path]:
    """A directory with a short name that any user can enter."""
    made = Path(tempfile.mkdtemp(prefix="bp", dir="/tmp"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that an action takes."""
    begin = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - begin)


# ---------------------------------------------------------------- beside others


@contextmanager
def managers(where: Path) -> Iterator[tuple[list[tuple[Manager, str]], dict[str, str]]]:
    """Every manager that can run here with the DSN of a database of its own, on one server; and why others cannot."""
    missing: dict[str, str] = {}
    try:
        bin_dir: Path | None = debian_15()
    except Unavailable as error:
        bin_dir, missing["pg_partman"] = None, str(error)
    server = Server(where / "peers", bin_dir=bin_dir)  # durable: a commit costs what it costs
    server.start()
    try:
        made: list[tuple[Manager, str]] = []
        for name, guards in (("shardwright", True), ("shardwright, no guards", False)):
            number = len(made)
            dsn = server.create_database(f"ours{number}")
            made.append((Ours(server.create_database(f"catalog{number}"), dsn, guards=guards, name=name), dsn))
        for kind in (Partman, Partsmith):
            if kind is Partman and bin_dir is None:
                continue
            dsn = server.create_database(kind.__name__.lower())
            try:
                made.append((kind(dsn), dsn))
            except Unavailable as error:
                missing[kind.__name__] = str(error)
        yield made, missing
    finally:
        server.stop("immediate")


def parent(dsn: str, name: str, *, rows_from: int | None = None) -> None:
    """A partitioned table without partitions."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(PARENT.format(name=name).encode())
        connection.execute(INDEX.format(name=name).encode())


def leaves_of(dsn: str, name: str) -> int:
    """How many partitions with two finite bounds a table has: neither guards nor a DEFAULT partition."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = %s::regclass "
            "AND pg_get_expr(relpartbound, oid) !~ 'MINVALUE|MAXVALUE|DEFAULT'",
            (name,),
        ).fetchone()
        assert row is not None
        return int(row[0])


def until_dropped(manager: Manager, dsn: str, name: str) -> None:
    """Run a manager until no table is left that is not attached any more; ours needs two runs for that."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(3):
            manager.run(name)
            row = connection.execute(
                "SELECT count(*) FROM pg_class WHERE relname ~ %s AND relkind = 'r' AND NOT relispartition",
                (f"^{name}_",),
            ).fetchone()
            if row is not None and row[0] == 0:
                return
    raise AssertionError((manager.name, row))


def beside(where: Path) -> dict[str, Any]:
    """Creating 36 months, a run that finds nothing to do, and the retention of 12 windows."""
    times: dict[str, dict[str, list[float]]] = {}
    with managers(where) as (there, missing):
        for n in range(ROUNDS):
            for manager, dsn in there:
                mine = times.setdefault(manager.name, {"create 36": [], "no-op": [], "retain 12": []})
                table, old = f"ahead{n}", f"behind{n}"
                parent(dsn, table)
                mine["create 36"].append(timed(lambda m=manager, t=table: m.create(t, ahead=35, behind=0)))
                manager.run(table)
                made = leaves_of(dsn, table)
                # In the last days of a month pg_partman's first run makes one more.
                assert made == 36 or (made == 37 and isinstance(manager, Partman)), (manager.name, made)
                mine["no-op"] += [timed(lambda m=manager, t=table: m.run(t)) for _ in range(NOOPS)]
                parent(dsn, old)
                manager.create(old, ahead=12, behind=23)
                manager.run(old)
                before = leaves_of(dsn, old)
                manager.wish(old, keep=11)
                mine["retain 12"].append(timed(lambda m=manager, d=dsn, t=old: until_dropped(m, d, t)))
                assert leaves_of(dsn, old) == before - 12, (manager.name, before, leaves_of(dsn, old))
    medians = {name: {what: statistics.median(found) for what, found in mine.items()} for name, mine in times.items()}
    ours = medians["shardwright"]
    found: dict[str, Any] = {}
    for name, mine in medians.items():
        found[name] = {
            what: {"ms": round(value, 1), "to_ours": round(value / ours[what], 2)} for what, value in mine.items()
        }
    return found | {f"{name} (skipped)": why for name, why in missing.items()}


def bystander(where: Path) -> dict[str, Any]:
    """The longest that a new reader waited while each manager changed a table that an idle transaction had read."""
    found: dict[str, Any] = {}
    with managers(where) as (there, missing):
        for manager, dsn in there:
            parent(dsn, "busy")
            manager.create("busy", ahead=12, behind=23)
            manager.wish("busy", ahead=13)
            manager.run("busy")
            for what in ("one window ahead", "one window dropped"):
                delays = []
                for n in range(ROUNDS):
                    if what == "one window ahead":
                        manager.wish("busy", ahead=14 + n)
                    else:
                        manager.wish("busy", keep=22 - n)
                    before = leaves_of(dsn, "busy")
                    delay = partition_bystander.measure(dsn, "busy", lambda m=manager: m.run("busy"))
                    if not delay.failed:
                        assert abs(leaves_of(dsn, "busy") - before) == 1, (manager.name, what)
                    delays.append(delay)
                found.setdefault(manager.name, {})[what] = {
                    "waited_ms": round(statistics.median(one.longest_ms for one in delays), 1),
                    "waited_max_ms": round(max(one.longest_ms for one in delays), 1),
                    "run_ms": round(statistics.median(one.run_ms for one in delays)),
                    "failed": next((one.failed for one in delays if one.failed), None),
                }
    held = round(1000 * partition_bystander.HELD_S)
    return {"idle_transaction_ms": held} | found | {f"{name} (skipped)": why for name, why in missing.items()}


# ---------------------------------------------------------------- many leaves


def _filled(cluster: Fleet, policy: Policy, now: datetime) -> float:
    for dsn in cluster.dsns.values():
        parent(dsn, "events")
    cluster.register("events", policy)
    return timed(lambda: checked(tick(cluster.catalog_dsn, now=now)))


def many_leaves(where: Path) -> dict[str, Any]:
    """A tick that finds nothing to do on three shards with 1,000 leaves each."""
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with fleet(where, 3) as cluster:
        made = _filled(cluster, Policy("created_at", "1 day", ahead=LEAVES - 1), now)
        counts = [leaves_of(dsn, "events") for dsn in cluster.dsns.values()]
        assert counts == [LEAVES] * 3, counts
        noop = sorted(timed(lambda: checked(tick(cluster.catalog_dsn, now=now))) for _ in range(NOOPS))
        return {
            "made_s": round(made / 1000, 1),
            "noop_ms": round(statistics.median(noop), 1),
            "noop_ms_a_shard": round(statistics.median(noop) / 3, 1),
            "promised_ms_a_shard": 100,
        }


def dropping(where: Path) -> dict[str, Any]:
    """Plan, apply and retention of a set of 1,000 leaves, down to the last one, at PostgreSQL's default settings."""
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with fleet(where, 1) as cluster:
        made = _filled(cluster, Policy("created_at", "1 day", ahead=LEAVES - 1, grace=None), now)
        [dsn] = cluster.dsns.values()
        assert leaves_of(dsn, "events") == LEAVES
        cluster.register("events", Policy("created_at", "1 day", "1 day", ahead=1, grace=None))
        then = now + timedelta(days=LEAVES - 1)
        begin = time.perf_counter()
        planned = apply.plan(cluster.catalog_dsn, now=then)
        plan_ms = 1000 * (time.perf_counter() - begin)
        detached = timed(lambda: checked(apply.apply(cluster.catalog_dsn, planned)))
        dropped = timed(lambda: checked(tick(cluster.catalog_dsn, now=then)))
        with psycopg.connect(dsn) as connection:
            left = connection.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'events_p%' AND relkind = 'r'")
            tables = left.fetchone()
        return {
            "made_s": round(made / 1000, 1),
            "plan_ms": round(plan_ms, 1),
            "detached_s": round(detached / 1000, 1),
            "dropped_s": round(dropped / 1000, 1),
            "windows_left": leaves_of(dsn, "events"),
            "tables_left": tables[0] if tables else None,
        }


ROWS = 600_000


def _loaded(cluster: Fleet, policy: Policy, now: datetime, rows: int = ROWS) -> str:
    """One shard's table with rows over the year 2026."""
    _filled(cluster, policy, now)
    [dsn] = cluster.dsns.values()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO events SELECT n, '2026-01-01+00'::timestamptz + n * interval '364 days' / %s, n %% 1000, "
            "repeat(md5(n::text), 4) FROM generate_series(1, %s) n",
            (rows, rows),
        )
        connection.execute("VACUUM ANALYZE events")
    return dsn


def archiving(where: Path) -> dict[str, Any]:
    """Rows a second into Parquet, read back and compared, of one window of a year; and loaded again by a restore."""
    store = where / "archive"
    store.mkdir()
    begin = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with fleet(where, 1) as cluster:
        _loaded(cluster, Policy("created_at", "1 year", ahead=1, grace=None), begin)
        cluster.register("events", Policy("created_at", "1 year", "1 day", ahead=1, grace=None, archive=str(store)))
        then = datetime(2027, 2, 1, tzinfo=UTC)
        checked(tick(cluster.catalog_dsn, now=then))  # detached
        archived = timed(
            lambda: checked(tick(cluster.catalog_dsn, now=then))
        )  # archived, read back, hashed again, dropped
        restored = timed(lambda: restore.restore(cluster.catalog_dsn, "public", "events", now=then))
    return {
        "rows": ROWS,
        "archive_rows_per_s": round(1000 * ROWS / archived),
        "restore_rows_per_s": round(1000 * ROWS / restored),
        "bytes_a_row": round(sum(file.stat().st_size for file in store.rglob("*") if file.is_file()) / ROWS, 1),
    }


def splitting(where: Path) -> dict[str, Any]:
    """A year cut into months: rows a second from the first to the last step, and of a bare INSERT .. SELECT."""
    begin = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with fleet(where, 1) as cluster:
        dsn = _loaded(cluster, Policy("created_at", "1 year", ahead=1), begin)
        cluster.register("events", Policy("created_at", "1 month", ahead=1))
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE bare (LIKE events)")
            bare = timed(lambda: connection.execute("INSERT INTO bare SELECT * FROM events"))
            connection.execute("DROP TABLE bare")
        whole = time.perf_counter()
        report = split.split(cluster.catalog_dsn, "public", "events", "events_p2026")
        whole = time.perf_counter() - whole
        [shard] = report.shards
    return {
        "rows": ROWS,
        "pieces": report.pieces,
        "copy_rows_per_s": round(shard.rows_per_s or 0),
        "all_steps_rows_per_s": round(ROWS / whole),
        "copy_to_bare_insert": round((shard.rows_per_s or 0) / (1000 * ROWS / bare), 2),
        "lock_ms": round(shard.lock_ms or 0, 1),
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "peers": beside,
    "bystander": bystander,
    "leaves": many_leaves,
    "drop": dropping,
    "archive": archiving,
    "split": splitting,
}


def show(name: str, found: Any, depth: int = 0) -> None:
    """Print a part's figures as lines."""
    label = "  " * depth + name
    if isinstance(found, dict) and any(isinstance(value, dict) for value in found.values()):
        print(label)
        for key, value in found.items():
            show(key, value, depth + 1)
    elif isinstance(found, dict):
        print(f"{label:40} {'  '.join(f'{key} {value}' for key, value in found.items() if value is not None)}")
    else:
        print(f"{label:40} {found}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    for name in options.parts or PARTS:
        begin = time.perf_counter()
        with directory() as where:
            found[name] = PARTS[name](where)
        found[name]["seconds"] = round(time.perf_counter() - begin, 1)
        if not options.json:
            show(name, found[name])
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
