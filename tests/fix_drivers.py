"""Tests of sessions that run for every driver: in threads with psycopg, in tasks with psycopg and with asyncpg.

A test with the marker ``every_driver`` that uses `shop` or `blog` runs three times; with ``tasks="slow"`` those in tasks
belong to `make test-all`. Its body stays plain: for the drivers of event loops it runs in one of SQLAlchemy's greenlets, and
the fixture's clusters give the sessions inside of an `AsyncShardSession`. `in_thread` and `until` of fix_sessions do with
tasks then what they do with threads.

Fixtures:
    driver    str, how the sessions of this run speak to shards: psycopg, psycopg_async, asyncpg
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker
from sqlalchemy.util import greenlet_spawn

from fix_servers import POSTGRESES
from shardwright import AsyncShardSession, Cluster, ShardSession
from shardwright.session.pools import Driver

#: What a driver is called in a test's name.
DRIVERS: dict[Driver, str] = {"psycopg": "sync", "psycopg_async": "async", "asyncpg": "asyncpg"}


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = getattr(request, "param", "psycopg")
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("every_driver") and "driver" in metafunc.fixturenames:
        metafunc.parametrize("driver", list(DRIVERS), indirect=True, ids=DRIVERS.values())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The other drivers run on the newest PostgreSQL, and on all of them in `make test-all`; so does what is so marked."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        in_tasks = "spoken" in params or params.get("driver", "psycopg") != "psycopg"
        marked = item.get_closest_marker("every_driver")
        if in_tasks and marked is not None and marked.kwargs.get("tasks") == "slow":
            item.add_marker(pytest.mark.slow)
        if (in_tasks or item.get_closest_marker("newest_postgres")) and params.get("postgres") not in (
            None,
            POSTGRESES[0],
        ):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if getattr(getattr(pyfuncitem, "callspec", None), "params", {}).get("driver", "psycopg") == "psycopg":
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(_drive(partial(pyfuncitem.obj, **arguments), list(pyfuncitem.funcargs.values())))
    return True


async def _drive(test: Callable[[], None], fixtures: list[Any]) -> None:
    try:
        await greenlet_spawn(test)
    finally:
        for cluster in (one for fixture in fixtures for one in getattr(fixture, "clusters", ())):
            await cluster.aclose()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks go on: {left}"


class DrivenCluster(Cluster):
    """A cluster for a test's body that runs in a greenlet: its plain methods are the awaitable ones inside."""

    driver: Driver = "psycopg_async"

    def sessionmaker(self, **session_options: Any) -> sessionmaker[ShardSession]:
        made = self.async_sessionmaker(driver="asyncpg" if self.driver == "asyncpg" else "psycopg", **session_options)
        return _Inside(made)

    def engine(self, shard: str, driver: Driver | None = None) -> Any:
        return super().engine(shard, driver or self.driver)


class OnAsyncpg(DrivenCluster):
    driver = "asyncpg"


class _Inside(sessionmaker[ShardSession]):
    """Gives the plain sessions inside of asynchronous ones."""

    def __init__(self, made: async_sessionmaker[AsyncShardSession]) -> None:
        super().__init__(class_=ShardSession)
        self._made = made

    def __call__(self, **options: Any) -> ShardSession:
        return self._made(**options).sync_session


def connect(driver: Driver, catalog: str, **options: Any) -> Cluster:
    """A cluster whose sessions are the driver's."""
    if driver == "psycopg":
        return Cluster.connect(catalog, **options)
    made = (OnAsyncpg if driver == "asyncpg" else DrivenCluster).connect(catalog, **options)
    made.waiting = made.waiting_in_loop
    return made
