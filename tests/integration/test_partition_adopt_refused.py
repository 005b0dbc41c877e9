"""What cannot be taken over is refused before anything changes, with every reason on every shard, and each reason has its fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fix_catalog import Found
from fix_handmade import HISTORY, MONTHLY, NOW, PARENT, adopted, attached, leaf, refused, run
from fix_partitions import pending_detach
from shardwright import errors
from shardwright.catalog import adoption, tables
from shardwright.partition import adopt, jobs
from shardwright.partition.jobs import Job
from shardwright.partition.tick import tick
from shardwright.partition.wishes import Wish
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

pytestmark = pytest.mark.newest_postgres

YEAR = "FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2027-01-01 00:00:00+00')"

#: By name: statements that make table t, and words that must be told. {t} is the table.
SHAPES = {
    "listed": (["CREATE TABLE {t} (at timestamptz NOT NULL) PARTITION BY LIST (at)"], ["by LIST"]),
    "hashed": (["CREATE TABLE {t} (at timestamptz NOT NULL) PARTITION BY HASH (at)"], ["by HASH"]),
    "columns": (["CREATE TABLE {t} (id int, at timestamptz) PARTITION BY RANGE (at, id)"], ["by 2 columns"]),
    "expression": (
        ["CREATE TABLE {t} (at timestamptz) PARTITION BY RANGE ((at AT TIME ZONE 'UTC'))"],
        ["by an expression"],
    ),
    "ordinary": (["CREATE TABLE {t} (at timestamptz)"], ["is not partitioned", "partition convert public.ordinary"]),
    "leaf": (
        ["CREATE TABLE up (at timestamptz) PARTITION BY RANGE (at)", "CREATE TABLE {t} PARTITION OF up " + YEAR],
        ["is a partition"],
    ),
    "whole": (
        [
            "CREATE TABLE {t} (at timestamptz NOT NULL) PARTITION BY RANGE (at)",
            leaf("all", "MINVALUE", "MAXVALUE", "{t}"),
        ],
        ["all, which takes all time", "VALIDATE"],
    ),
    "endless": (
        [
            "CREATE TABLE {t} (at timestamptz NOT NULL) PARTITION BY RANGE (at)",
            leaf("from 2026", "2026-01-01", "MAXVALUE", "{t}"),
            "INSERT INTO {t} VALUES ('2026-02-02')",
        ],
        ["without an end and with rows"],
    ),
    "numbers": (["CREATE TABLE {t} (at int8 NOT NULL) PARTITION BY RANGE (at)"], ["must say what its numbers count"]),
    "texts": (["CREATE TABLE {t} (at text NOT NULL) PARTITION BY RANGE (at)"], ["is of type text"]),
    "uuids": (
        [
            "CREATE TABLE {t} (at uuid NOT NULL) PARTITION BY RANGE (at)",
            "CREATE TABLE u PARTITION OF {t} FOR VALUES FROM (MINVALUE) TO ('0199a000-0000-7000-8000-00000000beef')",
        ],
        ["lies within a millisecond"],
    ),
    "fours": (
        [
            "CREATE TABLE {t} (at uuid NOT NULL) PARTITION BY RANGE (at)",
            "CREATE TABLE u4 PARTITION OF {t} FOR VALUES FROM (MINVALUE) TO ('0199a000-0000-7000-8000-000000000000')",
            "INSERT INTO {t} VALUES ('01890000-0000-4000-8000-000000000002')",
        ],
        ["no UUID of version 7, such as 01890000-0000-4000-8000-000000000002"],
    ),
    "forever": (
        [
            "CREATE TABLE {t} (at timestamptz NOT NULL) PARTITION BY RANGE (at)",
            "CREATE TABLE inf PARTITION OF {t} FOR VALUES FROM ('2026-01-01+00') TO ('infinity')",
        ],
        ["inf FOR VALUES FROM", "outside of the calendar"],
    ),
}


def test_shapes(found: Callable[..., Found]) -> None:
    cluster = found(1)
    for name, (statements, words) in SHAPES.items():
        run(cluster, "s1", *(text.replace("{t}", name) for text in statements))
        said = refused(cluster, MONTHLY, name)
        assert [word for word in words if word not in said] == [], said


#: Everything that can be wrong with the partitions of one table.
BROKEN = (
    "CREATE TABLE events (id bigint, at timestamptz, note text, room int) PARTITION BY RANGE (at)",
    "CREATE SCHEMA aside",
    "CREATE TABLE aside.january PARTITION OF events FOR VALUES FROM ('2026-01-01+00') TO ('2026-02-01+00')",
    leaf("february", "2026-02-01", "2026-03-01") + " PARTITION BY LIST (room)",
    leaf("march", "2026-03-01", "2026-04-01"),
    "ALTER TABLE march ADD PRIMARY KEY (id)",
    leaf("april", "2026-04-01", "2026-05-01"),
    "CREATE UNIQUE INDEX lower_once ON april (lower(note))",
    leaf("may", "2026-05-01", "2026-06-01"),
    leaf("july", "2026-07-01", "2026-08-01"),
)
FOREIGN = (
    "CREATE EXTENSION postgres_fdw",
    "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw",
    "CREATE FOREIGN TABLE june PARTITION OF events FOR VALUES FROM ('2026-06-01+00') TO ('2026-07-01+00') SERVER far",
)


def test_every_reason_is_told_at_once_and_nothing_is_changed(found: Callable[..., Found]) -> None:
    cluster = found(2)
    for name in ("s1", "s2"):
        run(cluster, name, *BROKEN)
    pending_detach(cluster.dsns.shards["s1"], "july")
    for name in ("s1", "s2"):
        run(cluster, name, *FOREIGN)
    said = refused(cluster)
    for word in (
        "allows NULL in at", "january in schema aside", "february, which is partitioned itself", "june, which is a foreign table",
        "a unique key (id) without at", "DROP CONSTRAINT \"march_pkey\"", "a unique key (an expression) without at",
    ):  # fmt: skip
        assert said.count(word) == 2, (word, said)
    assert said.count("whose DETACH CONCURRENTLY broke off") == 1
    assert "FINALIZE" in said
    assert cluster.ask("s1", "SELECT count(*) FROM shardwright.partitions") == 0


def test_shards_that_contradict_each_other(found: Callable[..., Found]) -> None:
    cluster = found(2)
    run(cluster, "s1", PARENT, *HISTORY)
    run(
        cluster, "s2", PARENT.replace("note text", "note varchar"), leaf("other", "2026-01-01", "2026-06-01"),
        leaf("week_2", "2026-06-01", "2026-06-08"), leaf("summer", "2026-06-20", "2026-08-01"),
    )  # fmt: skip
    assert "differs from shard s1" in refused(cluster)
    run(cluster, "s2", "ALTER TABLE events ALTER COLUMN note TYPE text")
    said = refused(cluster)
    assert 'ALTER TABLE "public"."other" RENAME TO "fat"' in said
    assert "calls 2026-06-01 00:00:00+00 to 2026-06-08 00:00:00+00 week_2, and shard s1 calls it week 1" in said
    assert "summer" in said
    assert "overlaps" in said
    run(
        cluster, "s2", 'ALTER TABLE week_2 RENAME TO "week 1"', "ALTER TABLE other RENAME TO fat", "DROP TABLE summer",
        leaf("week_2", "2025-01-01", "2025-02-01"),
    )  # fmt: skip
    assert "has week_2 for 2025-01-01" in refused(cluster)
    run(cluster, "s2", "ALTER TABLE week_2 RENAME TO old")
    adopted(cluster)
    assert attached(cluster, "s1").keys() == attached(cluster, "s2").keys()


def test_a_shard_that_is_down(found: Callable[..., Found]) -> None:
    cluster = found(2)
    for name in ("s1", "s2"):
        run(cluster, name, PARENT, *HISTORY)
    cluster.catalog.execute("UPDATE shardwright.shards SET conninfo = 'host=127.0.0.1 port=1' WHERE name = 's2'")
    with pytest.raises(errors.CannotConnect, match="s2"):
        adopt.adopt(cluster.dsns.catalog, "public", "events", MONTHLY, now=NOW)
    run(cluster, "s1", "ALTER TABLE fat ADD UNIQUE (note)")
    said = refused(cluster)
    assert "shard s2: it cannot be looked at" in said
    assert "a unique key (note) without at" in said


def test_who_is_first(found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is ours, that is worked on, that is locked, that changed since it was looked at, that does not exist."""
    cluster = found(1)
    catalog = cluster.dsns.catalog
    with pytest.raises(errors.UnknownTable):
        adopt.plan(catalog, "public", "events", MONTHLY)
    run(cluster, "s1", PARENT, *HISTORY)
    with pytest.raises(errors.BadDeclaration, match="how long a window") as lacking:
        adopt.plan(catalog, "public", "events", Wish())
    assert lacking.value.fix == '--every "1 month", as the newest partition has it'
    look_again: Any = adopt.adopting.mark

    def meanwhile(*given: Any) -> int:
        run(cluster, "s1", leaf("december", "2026-12-01", "2027-01-01"))
        return int(look_again(*given))

    monkeypatch.setattr(adopt.adopting, "mark", meanwhile)
    with pytest.raises(errors.PlanStale, match="december"):
        adopted(cluster)
    monkeypatch.undo()
    assert all(one[3] is None for one in attached(cluster, "s1").values())
    with pytest.raises(errors.BadOption, match="has a policy already"):
        adopt.plan(catalog, "public", "events", Wish(every="1 week"))
    number = tables.get_table(cluster.catalog, "public", "events").id
    jobs.begin(cluster.catalog, [Job(number, "s1", "split", "planned", {})])
    with pytest.raises(errors.OperationConflict, match=r"a split of public\.events"):
        adopt.plan(catalog, "public", "events", MONTHLY)
    jobs.end(cluster.catalog, number)
    adopted(cluster)
    assert attached(cluster, "s1")["december"][3:6] == ("window", "attached", True)


def test_what_others_attach_later(found: Callable[..., Found]) -> None:
    """`table register` leaves partitions of others alone; adopt takes them, and what is attached beside ours too."""
    cluster = found(1)
    run(cluster, "s1", PARENT, *HISTORY[-1:])
    policy = Policy("at", "1 month", ahead=1)
    adoption.adopt(cluster.catalog, [adoption.Wanted("public", "events", Declaration("local", policy=policy))])
    told = tick(cluster.dsns.catalog, now=NOW).plan.findings
    assert [(one.kind, one.fix) for one in told] == [("unmarked-leaf", "shardwright partition adopt public.events")]
    adopted(cluster, Wish())
    assert tick(cluster.dsns.catalog, now=NOW).exit_code == 0
    assert attached(cluster, "s1")["november"][3:6] == ("window", "attached", True)
