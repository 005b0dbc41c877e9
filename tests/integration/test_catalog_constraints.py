"""What must not be is refused by the catalog's database itself: each constraint is violated once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import psycopg
import pytest

from fix_catalog import Found
from shardwright.catalog import maps, migrations
from shardwright.servers import Endpoint

SHARD = "INSERT INTO shardwright.shards (name, conninfo, system_identifier, database_oid, server_version) VALUES "
KEYSPACE = "INSERT INTO shardwright.keyspaces (name, strategy, key_type, buckets) VALUES "
RANGE = "INSERT INTO shardwright.ranges (keyspace, points, shard) VALUES (1, {}, 's1')"
TABLE = (
    "INSERT INTO shardwright.tables (schema_name, table_name, kind, keyspace, key_column, home_shard, layout) VALUES "
    "('public', 'x', {}, '{{}}')"
)
OPERATION = "INSERT INTO shardwright.operations (request) VALUES ('{}')"
DECISION = "INSERT INTO shardwright.decisions (application, shards, outcome, decided_at, settled_at) VALUES ('x', {})"
ADVANCE = "SELECT shardwright.advance({}, {}, {}, {}, NULL)"


@pytest.fixture(scope="module")
def shared(server: Endpoint) -> Iterator[psycopg.Connection]:
    """Two shards, keyspace 1 (users, half and half), operations 1 and 2 (planned), one claim."""
    name = f"constraints_{os.getpid()}"
    with psycopg.connect(server.create_database(name), autocommit=True) as connection:
        migrations.apply(connection, "catalog")
        with connection.transaction():
            connection.execute((SHARD + "('s1', 'host=a', '1', 1, 1), ('s2', 'host=b', '2', 1, 1)").encode())
            connection.execute((KEYSPACE + "('users', 'hash', 'int8', 4096)").encode())
            for points, shard in (("[0,2048)", "s1"), ("[2048,4096)", "s2")):
                connection.execute(
                    "INSERT INTO shardwright.ranges (keyspace, points, shard) VALUES (1, %s, %s)", (points, shard)
                )
            maps.write_version(connection, "test")
            for _ in range(2):
                connection.execute(OPERATION)
            connection.execute("INSERT INTO shardwright.claims VALUES (1, 1, int8range(0, 100))")
        yield connection
    server.drop_database(name)


@pytest.fixture
def catalog(shared: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The same, and what a test does to it is rolled back."""
    with shared.transaction(force_rollback=True):
        yield shared


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        # shards
        (SHARD + "('S9', 'host=x', '1', 1, 1)", "shards_name_check"),
        (SHARD + "('s9', 'host=x password=geheim', '1', 1, 1)", "shards_conninfo_check"),
        (SHARD + "('s9', 'host=x passWord = geheim', '1', 1, 1)", "shards_conninfo_check"),
        (
            SHARD.replace("conninfo", "replication_conninfo, conninfo") + "('s9', 'password=x', 'host=x', '1', 1, 1)",
            "shards_replication_conninfo_check",
        ),
        ("UPDATE shardwright.shards SET weight = -1 WHERE name = 's1'", "shards_weight_check"),
        (
            "INSERT INTO shardwright.shards SELECT 's9', 'host=alias', replication_conninfo, region, weight, "
            "system_identifier, database_oid, server_version FROM shardwright.shards WHERE name = 's1'",
            "shards_system_identifier_database_oid_key",
        ),
        ("DELETE FROM shardwright.shards WHERE name = 's1'", "ranges_shard_fkey"),
        # the cluster is one
        ("INSERT INTO shardwright.cluster DEFAULT VALUES", "cluster_pkey"),
        ("INSERT INTO shardwright.cluster (singleton) VALUES (false)", "cluster_singleton_check"),
        # keyspaces
        (KEYSPACE + "('a', 'hash', 'int8', 100)", "keyspaces_buckets_check"),
        (KEYSPACE + "('a', 'hash', 'int8', 1)", "keyspaces_buckets_check"),
        (KEYSPACE + "('a', 'hash', 'int8', 131072)", "keyspaces_buckets_check"),
        (KEYSPACE + "('a', 'hash', 'int8', NULL)", "keyspaces_check"),
        (KEYSPACE + "('a', 'range', 'int8', 16)", "keyspaces_check"),
        (KEYSPACE + "('a', 'range', 'text', NULL)", "keyspaces_check1"),
        (KEYSPACE + "('a', 'list', 'int8', NULL)", "keyspaces_strategy_check"),
        (KEYSPACE + "('a', 'hash', 'numeric', 16)", "keyspaces_key_type_check"),
        (KEYSPACE + "('A', 'hash', 'int8', 16)", "keyspaces_name_check"),
        (KEYSPACE + "('users', 'hash', 'int8', 16)", "keyspaces_name_key"),
        # the shard map
        (RANGE.format("int8range(0, 1)"), "ranges_do_not_overlap"),
        (RANGE.format("int8range(2000, 3000)"), "ranges_do_not_overlap"),
        (RANGE.format("'empty'"), "ranges_points_check"),
        (RANGE.format("int8range(4096, 5000)"), "ranges_leave_no_gap"),
        ("DELETE FROM shardwright.ranges WHERE id = 1", "ranges_leave_no_gap"),
        ("UPDATE shardwright.ranges SET points = int8range(0, 2047) WHERE id = 1", "ranges_leave_no_gap"),
        ("UPDATE shardwright.ranges SET shard = 'nobody' WHERE id = 1", "ranges_shard_fkey"),
        (
            "INSERT INTO shardwright.map_versions (version, fingerprint, map, reason) VALUES (1, '', '{}', '')",
            "map_versions_pkey",
        ),
        # tables
        (TABLE.format("'sharded', NULL, NULL, NULL"), "tables_check"),
        (TABLE.format("'sharded', 1, NULL, NULL"), "tables_check"),
        (TABLE.format("'sharded', 1, 'id', 's1'"), "tables_check1"),
        (TABLE.format("'reference', 1, 'id', 's1'"), "tables_check"),
        (TABLE.format("'reference', NULL, NULL, NULL"), "tables_check1"),
        (TABLE.format("'global', NULL, NULL, 'nobody'"), "tables_home_shard_fkey"),
        (TABLE.format("'partial', NULL, NULL, 's1'"), "tables_kind_check"),
        # operations
        ("INSERT INTO shardwright.claims VALUES (2, 1, int8range(99, 200))", "one_live_operation_a_range"),
        ("INSERT INTO shardwright.claims VALUES (2, 1, 'empty')", "claims_points_check"),
        ("UPDATE shardwright.operations SET phase = 'switched' WHERE id = 1", "phase_step_is_legal"),
        ("UPDATE shardwright.operations SET phase = 'nonsense' WHERE id = 1", "phase_step_is_legal"),
        ("UPDATE shardwright.operations SET op_epoch = -1 WHERE id = 1", "op_epoch_grows"),
        ("UPDATE shardwright.operations SET goal = 'fame' WHERE id = 1", "operations_goal_check"),
        (ADVANCE.format(1, "'planned'", "'switch'", 0), "phase_event_is_legal"),
        (
            "INSERT INTO shardwright.phase_events (operation, from_phase, event, to_phase, op_epoch) "
            "VALUES (1, 'planned', 'switch', 'switched', 0)",
            "phase_event_is_legal",
        ),
        (
            "INSERT INTO shardwright.moves (operation, keyspace, source, target, points) VALUES (1, 1, 's1', 's1', '{[0,1)}')",
            "moves_check",
        ),
        (
            "INSERT INTO shardwright.moves (operation, keyspace, source, target, points) VALUES (1, 1, 's1', 's2', '{}')",
            "moves_points_check",
        ),
        # transactions on several shards, and ids
        (DECISION.format("'{s1}', 'open', NULL, NULL"), "decisions_shards_check"),
        (DECISION.format("'{s1,s2}', 'perhaps', now(), NULL"), "decisions_outcome_check"),
        (DECISION.format("'{s1,s2}', 'committed', NULL, NULL"), "decisions_check"),
        (DECISION.format("'{s1,s2}', 'open', NULL, now()"), "decisions_check1"),
        (
            DECISION.format("'{s1,s2}', 'aborted', now(), NULL")
            + "; UPDATE shardwright.decisions SET outcome = 'committed'",
            "decided_once",
        ),
        (
            DECISION.format("'{s1,s2}', 'committed', now(), NULL") + "; DELETE FROM shardwright.decisions",
            "settled_before_forgotten",
        ),
        ("INSERT INTO shardwright.generators (number) VALUES (1024)", "generators_number_check"),
        ("UPDATE shardwright.generators SET shard = 's1' WHERE number < 2", "generators_shard_key"),
        ("UPDATE shardwright.generators SET granted = -1 WHERE number = 7", "ids_granted_once"),
    ],
)
def test_the_database_refuses(catalog: psycopg.Connection, statement: str, constraint: str) -> None:
    with pytest.raises(psycopg.errors.IntegrityError) as refused, catalog.transaction():
        catalog.execute(statement.encode())
        catalog.execute("SET CONSTRAINTS ALL IMMEDIATE")
    assert refused.value.diag.constraint_name == constraint


def test_a_gap_is_allowed_inside_a_transaction_and_not_at_its_end(catalog: psycopg.Connection) -> None:
    with catalog.transaction():
        catalog.execute("SET CONSTRAINTS ALL DEFERRED")
        catalog.execute("DELETE FROM shardwright.ranges WHERE id = 1")
        for lo, hi in ((0, 1000), (1000, 2048)):
            catalog.execute(
                "INSERT INTO shardwright.ranges (keyspace, points, shard) VALUES (1, int8range(%s, %s), 's2')", (lo, hi)
            )
        catalog.execute("SET CONSTRAINTS ALL IMMEDIATE")
    with pytest.raises(psycopg.errors.CheckViolation, match=r"\{\[0,1000\),\[2048,4096\)\}"):  # noqa: SIM117
        with catalog.transaction():
            catalog.execute("DELETE FROM shardwright.ranges WHERE lower(points) = 1000")


def test_op_epoch_cannot_go_down(catalog: psycopg.Connection) -> None:
    catalog.execute("UPDATE shardwright.operations SET op_epoch = 5 WHERE id = 1")
    with pytest.raises(psycopg.errors.CheckViolation, match="cannot go down"):
        catalog.execute("UPDATE shardwright.operations SET op_epoch = 4 WHERE id = 1")


def test_a_lost_compare_and_set_changes_nothing(catalog: psycopg.Connection) -> None:
    catalog.execute("UPDATE shardwright.operations SET op_epoch = 5 WHERE id = 1")
    for phase, event, token in (("planned", "prepare", 4), ("prepared", "copy", 5)):
        row = catalog.execute("SELECT shardwright.advance(1, %s, %s, %s, NULL)", (phase, event, token)).fetchone()
        assert row == (None,)
    assert catalog.execute("SELECT phase FROM shardwright.operations WHERE id = 1").fetchone() == ("planned",)
    assert catalog.execute("SELECT count(*) FROM shardwright.phase_events").fetchone() == (0,)
    row = catalog.execute("SELECT shardwright.advance(1, 'planned', 'prepare', 5, NULL)").fetchone()
    assert row == ("prepared",)


def test_a_claim_goes_with_the_end_of_its_operation(catalog: psycopg.Connection) -> None:
    for phase in ("planned", "aborting"):
        catalog.execute("SELECT shardwright.advance(1, %s, 'abort', 0, NULL)", (phase,))
    catalog.execute("INSERT INTO shardwright.claims VALUES (2, 1, int8range(0, 4096))")


def test_a_shard_refuses_what_it_must_not_hold(found: Callable[..., Found]) -> None:
    shard = found(1).shard("s1")
    for statement in (
        "INSERT INTO shardwright.ranges VALUES (99, 'users', 'empty', 'open', 1)",
        "INSERT INTO shardwright.ranges VALUES (99, 'users', '[0,1)', 'half-open', 1)",
        "INSERT INTO shardwright.identity (singleton, cluster, shard) VALUES (false, gen_random_uuid(), 's1')",
        "INSERT INTO shardwright.identity (cluster, shard) VALUES (gen_random_uuid(), 's1')",
        "INSERT INTO shardwright.created (kind, schema_name, name) VALUES ('server', 'a', 'b')",
    ):
        with pytest.raises(psycopg.errors.IntegrityError):
            shard.execute(statement.encode())
    shard.execute("SELECT shardwright.claim(7, 3)")
    with pytest.raises(psycopg.DatabaseError) as superseded:
        shard.execute("SELECT shardwright.hold(7, 2)")
    assert superseded.value.sqlstate == "SH009"
