"""kill -9 of the source and of the target server while rows are copied, caught up and switched."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fix_chaos import Workers
from fix_resharding import Small, load_small
from shardwright.catalog import maps
from shardwright.reshard import operate
from shardwright.servers import Server, start_all


@pytest.fixture
def apart(server_factory: Callable[..., Server]) -> tuple[Small, dict[str, Server]]:
    """The small cluster with each shard on a server of its own; fsync is on where servers are killed."""
    servers = {name: server_factory(fsync=True, start=False) for name in ("s1", "s2", "s3")}
    catalog = server_factory(start=False)
    start_all([catalog, *servers.values()])
    dsns = {name: server.dsn("postgres") for name, server in servers.items()}
    return load_small(catalog.create_database("catalog"), dsns), servers


@pytest.mark.parametrize("outcome", ["done", pytest.param("aborted", marks=pytest.mark.slow)])
@pytest.mark.parametrize("victim", ["s1", "s3"])
@pytest.mark.parametrize(
    "failpoint",
    [
        "copy.half_copied",
        pytest.param("catch_up.subscribed", marks=pytest.mark.slow),
        "hand_over.fenced",
        pytest.param("hand_over.drained", marks=pytest.mark.slow),
        pytest.param("hand_over.committed", marks=pytest.mark.slow),
    ],
)
def test_a_server_is_killed(
    apart: tuple[Small, dict[str, Server]], workers: Workers, failpoint: str, victim: str, outcome: str
) -> None:
    small, servers = apart
    before = small.rows()
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3", batch_shares=(0.5, 1.0)))
    paused = workers.pause_at(small.catalog_dsn, operation, "switched", failpoint)
    servers[victim].kill()
    servers[victim].restart()
    exit_code, said = workers.wake(paused)
    assert "Traceback" not in said, said
    if outcome == "aborted":
        if exit_code == 0:  # it noticed nothing and went through
            operate.drive(small.catalog_dsn, operation, "reverted")
        assert operate.drive(small.catalog_dsn, operation, "aborted", take_over=True).phase == "aborted"
    else:
        operate.drive(small.catalog_dsn, operation, "switched", take_over=True)
        assert operate.drive(small.catalog_dsn, operation, "done").phase == "done"
    assert small.rows() == before
    assert small.leftovers() == {}
    with small.catalog() as catalog:
        moved = maps.load_map(catalog).owned("users", "s3").count()
    assert moved == (0 if outcome == "aborted" else 1365)
