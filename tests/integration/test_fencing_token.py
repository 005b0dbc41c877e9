"""A worker that was superseded can change nothing on a shard, with connections that it opens after the take-over too."""

from __future__ import annotations

import psycopg
import pytest

from fix_resharding import Small
from shardwright import errors
from shardwright.catalog import operations
from shardwright.reshard import cleaning, operate
from shardwright.reshard.world import World


def _worlds(small: Small) -> tuple[World, World]:
    """An earlier and a later worker's world of one operation; the later one has announced itself."""
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3"))
        earlier = World(small.catalog_dsn, operations.take_over(catalog, operation, "first", 60))
        earlier.claim_shards()
        later = World(small.catalog_dsn, operations.take_over(catalog, operation, "second", 60, force=True))
    return earlier, later


def _find_connection_ended(world: World) -> None:
    """The connection that the worker kept was ended by its successor; after this it opens another."""
    with pytest.raises(psycopg.errors.AdminShutdown), world.change("s1"):
        pass


def test_a_superseded_worker_is_refused(small: Small) -> None:
    earlier, later = _worlds(small)
    with earlier, later:
        with earlier.change("s1") as connection:
            connection.execute("SELECT 1")  # nobody else has announced a token yet
        later.claim_shards()
        _find_connection_ended(earlier)
        with pytest.raises(errors.Superseded), earlier.change("s1"):
            pass
        with pytest.raises(errors.Superseded):
            earlier.claim_shards()
        with later.change("s1") as connection:
            connection.execute("SELECT 1")


def test_connections_of_an_earlier_worker_are_ended(small: Small) -> None:
    earlier, later = _worlds(small)
    with earlier, later:
        with earlier.open("s1") as left_open:
            left_open.execute("BEGIN")
            left_open.execute("SELECT shardwright.hold(%s, %s)", (earlier.operation.id, earlier.operation.op_epoch))
            later.claim_shards()  # would wait for ever for the transaction above
            with pytest.raises(psycopg.errors.AdminShutdown):
                left_open.execute("SELECT 1")
        assert later.shard("s1").execute("SELECT op_epoch FROM shardwright.control").fetchone() == (2,)


def test_nobody_can_act_after_the_end(small: Small) -> None:
    earlier, later = _worlds(small)
    with earlier, later:
        later.claim_shards()
        cleaning.let_go(later)
        _find_connection_ended(earlier)
        for world in (earlier, later):
            with pytest.raises(errors.Superseded), world.change("s1"):
                pass
