"""Transactions that are prepared and not ended hold what a fence needs: it waits, gives up, and says who is in the way."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from fix_resharding import ROWS, Small
from shardwright import errors
from shardwright.catalog import decisions, maps, operations, prepared, recovery, roster
from shardwright.reshard import operate

pytestmark = pytest.mark.newest_postgres


@pytest.fixture
def gone(small: Small) -> Iterator[None]:
    """A prepared transaction outlives the test's databases, and keeps them from being dropped."""
    yield
    with small.catalog() as catalog:
        recovery.recover(catalog, older_than=0)


def prepare(small: Small, key: int, *, enters: bool) -> str:
    """What a session leaves on the key's shard that died before it decided; returns the name of it."""
    with small.catalog() as catalog:
        route = maps.load_map(catalog).route("users", key)
        name = decisions.gid(roster.cluster_id(catalog), str(uuid.uuid4()), route.shard)
    with psycopg.connect(small.dsns[route.shard], autocommit=True) as connection:
        connection.execute("BEGIN")
        if enters:
            connection.execute("SELECT shardwright.enter(%s)", (route.range_id,))
        else:
            connection.execute("UPDATE orders SET note = 'prepared' WHERE user_id = %s", (key,))
        connection.execute(f"PREPARE TRANSACTION '{name}'".encode())
    return name


@pytest.mark.parametrize("enters", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["entered", "wrote"])
@pytest.mark.usefixtures("gone")
def test_a_switch_names_what_is_prepared_and_goes_on_without_it(small: Small, enters: bool) -> None:
    with small.catalog() as catalog:
        settings = {"fence_attempts": 2, "fence_lock_timeout_ms": 30}
        operation = operate.start(catalog, operate.plan(catalog, add="s3", batch_shares=(1.0,)), settings)
    # Once there and back: a slot that is made would wait for it before any fence did.
    for goal in ("switched", "reverted", "verified"):
        operate.drive(small.catalog_dsn, operation, goal)
    with small.catalog() as catalog:
        shard_map = maps.load_map(catalog)
        moving = [move.points for move in operations.get(catalog, operation).moves]
    key = next(k for k in range(ROWS) if any(shard_map.route("users", k).point in points for points in moving))
    name = prepare(small, key, enters=enters)
    with pytest.raises(errors.NotDrained, match=f"prepared transaction {name}") as caught:
        operate.drive(small.catalog_dsn, operation, "switched")
    assert "shardwright tx recover" in caught.value.fix
    with small.catalog() as catalog:
        (ended,), _ = recovery.recover(catalog, older_than=0)
        assert (ended.outcome, len(ended.ended_on)) == ("aborted", 1)
    assert operate.drive(small.catalog_dsn, operation, "switched").phase == "switched"


@pytest.mark.usefixtures("gone")
def test_preflight_names_what_is_in_doubt_and_not_what_is_being_committed(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = prepare(small, 1, enters=True)
    with small.catalog() as catalog:
        made = operate.plan(catalog, add="s3")
        monkeypatch.setattr(prepared, "IN_DOUBT", 3600.0)
        operation = operate.start(catalog, made)
        operate.drive(small.catalog_dsn, operation, "aborted")
        monkeypatch.setattr(prepared, "IN_DOUBT", 0.0)
        with pytest.raises(errors.PreflightFailed, match=name) as caught:
            operate.start(catalog, made)
        assert {problem["fix"] for problem in caught.value.facts["problems"]} == {"shardwright tx recover"}
