"""Alembic's revisions on every shard: what runs where, what is refused, and what a crash leaves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from fix_migrate import Project
from shardwright import errors
from shardwright.catalog import roster, tables
from shardwright.migrate import one_shard
from shardwright.migrate.one_shard import Order

pytestmark = pytest.mark.newest_postgres

EVENTS = """\
op.create_time_partitioned(
    'events',
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('id', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('user_id', 'id', 'created_at'),
    declared=shardwright.sharded_by('user_id')
    | shardwright.time_partitioned('created_at', every='1 month', keep='12 months', ahead=1, guards=False),
)
op.create_index('events_at', 'events', ['created_at'])"""
PLAIN = "op.create_table('notes', sa.Column('id', sa.BigInteger(), primary_key=True))"


def test_every_shard_is_brought_up_to_date(project: Callable[..., Project]) -> None:
    made = project(3)
    made.revision("r1", PLAIN)
    made.revision("r2", "op.add_column('notes', sa.Column('body', sa.Text()))", "op.drop_column('notes', 'body')")
    told: list[str] = []
    done = made.run(on_event=told.append)
    assert list(done.done) == ["s1", "s2", "s3"]
    assert made.heads() == {"s1": ["r2"], "s2": ["r2"], "s3": ["r2"]}
    assert told == ["s1: r2", "s2: r2", "s3: r2"]
    for name in ("s1", "s2", "s3"):
        assert made.found.ask(name, "SELECT count(body) FROM notes") == 0
    assert made.run().done == {}  # nobody is behind
    made.run("r1", verb="downgrade")
    assert made.heads() == {"s1": ["r1"], "s2": ["r1"], "s3": ["r1"]}
    assert (
        made.found.ask(
            "s3", "SELECT count(*) FROM pg_attribute WHERE attname = 'body' AND attrelid = 'notes'::regclass"
        )
        == 0
    )


def test_a_partitioned_table_is_created_registered_and_changed(project: Callable[..., Project]) -> None:
    made = project(2)
    made.revision("r1", EVENTS)
    done = made.run()
    assert done.settled is not None
    assert done.settled.registered == ("public.events",)
    table = made.table("events")
    assert (table.kind, table.key_column, table.policy and table.policy.keep) == ("sharded", "user_id", "12 months")
    assert table.layout.partition_by == "RANGE (created_at)"
    for name in ("s1", "s2"):
        assert made.found.ask(name, "SELECT count(*) FROM shardwright.declared") == 0
        assert made.found.ask(name, "SELECT count(*) FROM pg_indexes WHERE indexname = 'events_at'") == 1
        assert made.found.ask(name, "SELECT count(*) FROM shardwright.guards") == 1

    made.revision(
        "r2",
        "op.set_partition_policy('events', shardwright.time_partitioned('created_at', '1 month', keep='6 months'))",
    )
    done = made.run()
    assert done.settled is not None
    assert done.settled.policies == ("public.events",)
    table = made.table("events")
    assert table.policy is not None
    assert table.policy.keep == "6 months"

    made.revision("r3", "op.add_column('events', sa.Column('body', sa.Text()))")
    done = made.run()
    assert done.settled is not None
    assert done.settled.layouts == ("public.events",)
    assert "body" in made.table("events").layout.copied_columns


def test_a_failure_on_the_canary_keeps_the_others_as_they_are(project: Callable[..., Project]) -> None:
    made = project(3)
    made.revision("r1", PLAIN)
    made.revision("r2", "op.add_column('notes', sa.Column('body', sa.Text()))\nop.execute('SELECT 1/0')")
    with pytest.raises(errors.MigrationFailed, match=r"s2, after revision r1: .*division by zero") as caught:
        made.run(canary="s2")
    assert caught.value.durable_change
    assert made.heads() == {"s1": [], "s2": ["r1"], "s3": []}
    made.rewrite("r2", "op.add_column('notes', sa.Column('body', sa.Text()))")
    done = made.run()
    assert list(done.done) == ["s1", "s2", "s3"]
    assert made.heads() == {"s1": ["r2"], "s2": ["r2"], "s3": ["r2"]}


def test_a_failure_in_the_middle_is_gone_on_from(project: Callable[..., Project]) -> None:
    made = project(3)
    made.revision("r1", PLAIN)
    made.found.shard("s2").execute("CREATE TABLE notes (nothing int)")
    with pytest.raises(errors.MigrationFailed, match=r"s2, after revision base: .*already exists"):
        made.run()
    assert made.heads() == {"s1": ["r1"], "s2": [], "s3": []}
    made.found.shard("s2").execute("DROP TABLE notes")
    assert list(made.run().done) == ["s2", "s3"]


def test_a_lock_that_is_not_to_be_had_is_tried_again(project: Callable[..., Project]) -> None:
    made = project(2)
    made.revision("r1", PLAIN)
    made.run()
    made.revision("r2", "op.add_column('notes', sa.Column('a', sa.Text()))")
    told: list[str] = []
    released = threading.Event()
    with psycopg.connect(made.found.dsns.shards["s1"], application_name="in the way") as blocker:
        blocker.execute("SELECT * FROM notes")

        def hear(text: str) -> None:
            told.append(text)
            if not released.is_set():  # in the same thread, after the first try was rolled back
                released.set()
                blocker.rollback()

        made.run(on_event=hear)
    assert told[0].startswith("s1: a lock was not to be had after revision r1; rolled back")
    assert made.heads() == {"s1": ["r2"], "s2": ["r2"]}

    made.revision("r3", "op.add_column('notes', sa.Column('b', sa.Text()))")
    with psycopg.connect(made.found.dsns.shards["s1"], application_name="in the way") as blocker:
        blocker.execute("SELECT * FROM notes")
        with pytest.raises(errors.LockTimeout, match="in the way"):
            made.run(patience=0)
    assert made.heads() == {"s1": ["r2"], "s2": ["r2"]}


def test_what_committed_on_its_own_is_not_tried_again(project: Callable[..., Project]) -> None:
    made = project(1)
    made.revision("r1", PLAIN)
    made.run()
    made.revision(
        "r2",
        "with op.get_context().autocommit_block():\n    op.execute('CREATE TABLE outside (id int)')\n"
        "op.add_column('notes', sa.Column('a', sa.Text()))",
    )
    with psycopg.connect(made.found.dsns.shards["s1"]) as blocker:
        blocker.execute("SELECT * FROM notes")
        with pytest.raises(errors.MigrationFailed, match="autocommit_block") as caught:
            made.run()
    assert caught.value.durable_change


def test_what_is_managed_stays(project: Callable[..., Project]) -> None:
    made = project(1)
    made.revision("r1", EVENTS)
    made.run()
    leaf = made.leaves("s1", "events")["window"]
    made.detached("s1", "events", "events_old")
    made.found.shard("s1").execute(f"CREATE SCHEMA other; CREATE TABLE other.{leaf} (id int)".encode())
    refused = {
        f"op.drop_table('{leaf}')": f"drops public.{leaf}, a partition of events",
        "op.drop_table('events_old')": "drops public.events_old, a partition of events",
        "op.drop_table('events')": r"drops public.events, which is registered \(partitioned by time\)",
        f"op.execute('drop /* no */ table if exists other.{leaf}, public.\"{leaf}\" cascade')": f"drops public.{leaf}",
        f"op.execute('ALTER TABLE events DETACH PARTITION {leaf}')": f"detaches public.{leaf}",
        f"op.execute('DO $$ BEGIN EXECUTE concat(\\'DROP TAB\\', \\'LE {leaf}\\'); END $$')": f"or renames public.{leaf}",
        f"op.execute('DO $$ BEGIN EXECUTE \\'ALTER TABLE events DETACH PARTITION {leaf}\\'; END $$')": "or detaches",
        "op.execute('DO $$ BEGIN EXECUTE \\'DROP TABLE events CASCADE\\'; END $$')": "drops or renames",
        f"op.rename_table('{leaf}', 'mine')": f"drops or renames public.{leaf}",
        "op.rename_table('events', 'mine')": "drops or renames public.events, which is registered",
        "op.rename_table('events_old', 'x', schema='public')": "drops or renames public.events_old",
        "op.execute('ALTER TABLE events_old SET SCHEMA other')": "drops or renames public.events_old",
    }
    beside = (
        "op.create_table('beside', sa.Column('id', sa.Integer()))\n"
        "op.execute(\"INSERT INTO beside SELECT 1 WHERE 'DROP TABLE events' = ''\") # which only mentions it\n"
    )
    outside = "with op.get_context().autocommit_block():\n    op.drop_table('events_old')"
    for body, said in [
        *((beside + body, said) for body, said in refused.items()),
        (outside, "drops public.events_old"),
    ]:
        made.last = "r1"
        made.revision("bad", body)
        with pytest.raises(errors.MigrationRefused, match=said):
            made.run()
        assert made.heads() == {"s1": ["r1"]}
        assert made.found.ask("s1", "SELECT to_regclass('beside')") is None
    made.last = "r1"
    made.revision("bad", f"op.execute('DROP TABLE other.{leaf}')")
    made.run()
    assert made.found.ask("s1", f"SELECT to_regclass('{leaf}') IS NOT NULL AND to_regclass('events_old') IS NOT NULL")


def test_nothing_runs_while_an_operation_or_a_job_is_live(project: Callable[..., Project]) -> None:
    made = project(1)
    made.revision("r1", EVENTS)
    made.run()
    made.revision("r2", PLAIN)
    catalog = made.found.catalog
    catalog.execute("INSERT INTO shardwright.operations (request) VALUES ('{}')")
    with pytest.raises(errors.OperationConflict, match="operation 1 is live"):
        made.run()
    catalog.execute("DELETE FROM shardwright.operations")
    catalog.execute(
        "INSERT INTO shardwright.partition_jobs (table_id, shard, kind, step) VALUES (%s, 's1', 'split', 'copied')",
        (made.table("events").id,),
    )
    with pytest.raises(errors.OperationConflict, match=r"a split of public.events on shard s1 is under way"):
        made.run()
    catalog.execute("DELETE FROM shardwright.partition_jobs")
    with made.found.shard("s1").cursor() as other:
        other.execute("SELECT pg_advisory_lock(1397249861, %s)", (made.table("events").id,))
        with pytest.raises(errors.LockTimeout, match=r"works on the partitions of public.events"):
            made.run(patience=0)
        other.execute("SELECT pg_advisory_unlock_all()")
    made.run()


def test_several_shards_at_once_are_several_processes(project: Callable[..., Project]) -> None:
    made = project(3)
    made.revision("r1", "op.create_table('notes', sa.Column('id', sa.Integer()))\nprint('a script may print')")
    made.revision("r2", f"op.create_table('runs', sa.Column('id', sa.Integer()))\n{_NOTE_PROCESS}")
    made.found.shard("s3").execute("CREATE TABLE notes (nothing int)")
    with pytest.raises(errors.MigrationFailed, match=r"s3, after revision base: .*already exists"):
        made.run(parallel=2)
    assert made.heads() == {"s1": ["r2"], "s2": ["r2"], "s3": []}
    made.found.shard("s3").execute("DROP TABLE notes")
    made.run(parallel=2)
    assert all(heads == ["r2"] for heads in made.heads().values())
    pids = {name: made.found.ask(name, "SELECT id FROM runs") for name in ("s1", "s2", "s3")}
    assert pids["s1"] == os.getpid()  # the canary is alone
    assert pids["s2"] != os.getpid()


_NOTE_PROCESS = "import os\nop.execute(f'INSERT INTO runs VALUES ({os.getpid()})')"


def test_a_second_thread_is_refused(project: Callable[..., Project]) -> None:
    made = project(2)
    made.revision("r1", "op.execute('SELECT 1')")
    found: list[BaseException] = []

    def run_other(text: str = "") -> None:
        order = Order("upgrade", "head", made.config, made.found.dsns.catalog)
        try:
            one_shard.run(order, roster.get_shard(made.found.catalog, "s2"), [])
        except errors.ShardwrightError as error:
            found.append(error)

    order = Order("upgrade", "head", made.config, made.found.dsns.catalog)

    def meanwhile() -> None:
        thread = threading.Thread(target=run_other)
        thread.start()
        thread.join()

    one_shard.run(order, roster.get_shard(made.found.catalog, "s1"), [], still_ours=meanwhile)
    assert isinstance(found[0], errors.InvariantFailed)
    assert made.heads() == {"s1": ["r1"], "s2": []}


def test_a_shard_that_joins_later_takes_its_revision_from_the_others(project: Callable[..., Project]) -> None:
    made = project(3, joined=2)
    made.revision("r1", EVENTS)
    made.run()
    made.found.add("s3")
    made.revision("r2", "op.add_column('events', sa.Column('body', sa.Text()))")
    done = made.run()
    assert list(done.done) == ["s1", "s2", "s3"]
    assert done.before["s3"].heads == ("r1",)
    assert done.settled is not None
    assert not done.settled.drift


def test_a_shard_that_joined_without_some_tables_is_refused(project: Callable[..., Project]) -> None:
    made = project(2, joined=1)
    made.revision("r1", f"{EVENTS}\n{PLAIN}")
    made.run()
    made.found.add("s2")
    with pytest.raises(errors.MigrationRefused, match=r"public.notes is missing"):
        made.run()
    made.found.shard("s2").execute("CREATE TABLE notes (id bigserial PRIMARY KEY)")
    made.run()
    assert made.heads() == {"s1": ["r1"], "s2": ["r1"]}


def test_a_table_that_is_no_longer_fit_stops_at_the_canary(project: Callable[..., Project]) -> None:
    made = project(2)
    made.revision("r1", EVENTS)
    made.run()
    made.revision("r2", "op.drop_constraint('events_pkey', 'events')")
    with pytest.raises(errors.MigrationFailed, match=r"has no primary key; no other shard was touched"):
        made.run()
    assert made.heads() == {"s1": ["r2"], "s2": ["r1"]}


def test_drift_is_reported(project: Callable[..., Project]) -> None:
    made = project(2)
    made.revision("r1", EVENTS)
    made.run()
    made.found.shard("s2").execute("ALTER TABLE events ADD COLUMN extra int")
    done = made.run()
    assert done.settled is not None
    assert done.settled.drift == ("public.events: s1 and s2 differ in column extra: absent / integer",)


def test_targets_that_shards_could_take_differently_are_refused(project: Callable[..., Project]) -> None:
    made = project(1)
    made.revision("r1", PLAIN)
    for target in ("+1", "-1", "r1+1", "nowhere"):
        with pytest.raises(errors.BadOption):
            made.run(target)
    with pytest.raises(errors.UnknownShard):
        made.run(canary="s9")
    assert made.heads() == {"s1": []}


def test_a_policy_of_another_column_is_refused(project: Callable[..., Project]) -> None:
    made = project(1)
    made.revision("r1", EVENTS)
    made.revision("r2", PLAIN)
    made.run()
    for body, said in {
        "op.set_partition_policy('notes', shardwright.time_partitioned('at', '1 day'))": "not partitioned",
        "op.set_partition_policy('events', shardwright.time_partitioned('at', '1 day'))": "partitioned by created_at",
        "op.convert_to_partitioned('events', shardwright.time_partitioned('at', '1 day'))": "partitioned by created_at",
    }.items():
        last = made.last
        made.revision("bad", body)
        with pytest.raises(errors.MigrationRefused, match=said):
            made.run()
        made.last = last
    with pytest.raises(errors.BadDeclaration, match="its primary key lacks"):
        made.revision("bad", "op.create_time_partitioned('t', sa.Column('id', sa.BigInteger(), primary_key=True), "
            "sa.Column('at', sa.DateTime()), declared=shardwright.time_partitioned('at', '1 day'))")  # fmt: skip
        made.run()
    assert tables.list_tables(made.found.catalog)[0].name == "public.events"


def test_reference_tables_go_on_while_they_change(project: Callable[..., Project]) -> None:
    made = project(2)
    made.revision(
        "r1",
        "op.create_table('codes', sa.Column('code', sa.Text(), primary_key=True))\n"
        "op.register_table('codes', shardwright.reference())",
    )
    made.run()
    assert made.table("codes").home_shard == "s1"
    column = "op.add_column('codes', sa.Column('name', sa.Text()))", "op.drop_column('codes', 'name')"
    made.revision("r2", *column)
    assert list(made.run().done) == ["s2", "s1"]
    made.found.shard("s1").execute("INSERT INTO codes VALUES ('de', 'Germany')")
    _until(lambda: made.found.ask("s2", "SELECT name FROM codes") == "Germany")
    assert list(made.run("r1", verb="downgrade").done) == ["s1", "s2"]
    made.found.shard("s1").execute("INSERT INTO codes VALUES ('fr')")
    _until(lambda: made.found.ask("s2", "SELECT count(*) FROM codes") == 2)
    # The home first, against the rule: the stream stops, and goes on once the copies have the column.
    told: list[str] = []

    def write(text: str) -> None:
        if not told:
            made.found.shard("s1").execute("INSERT INTO codes VALUES ('it', 'Italy')")
            _until(lambda: made.found.ask("s2", "SELECT NOT bool_and(subenabled) FROM pg_subscription "
                "WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"))  # fmt: skip
        told.append(text)

    assert list(made.run(canary="s1", on_event=write).done) == ["s1", "s2"]
    _until(lambda: made.found.ask("s2", "SELECT name FROM codes WHERE code = 'it'") == "Italy")


def _until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
