"""Whether connections fit: pure arithmetic, for servers as they are and as they may be."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shardwright import errors
from shardwright.catalog.budget import WORKER_CONNECTIONS, Processes, Room, Verdict, judge
from shardwright.catalog.roster import Shard


def room(shard: str, server: str = "", **facts: Any) -> Room:
    return Room(**{
        "shard": shard, "system_identifier": server or shard, "max_connections": 100, "reserved": 3, "database_limit": None,
        "others": 0, "in_use": 0,
    } | facts)  # fmt: skip


def judged(rooms: list[Any], processes: list[Processes], budgets: dict[str, int] | None = None, **more: int) -> Any:
    shards = [Shard(one.shard, "", connections=(budgets or {}).get(one.shard)) for one in rooms]
    options = {"workers": 1, "more": 0} | more
    found = judge(shards, {one.shard: one for one in rooms}, processes, **options)
    return found[0] if len(found) == 1 else found


def web(count: int, **connections: int | None) -> Processes:
    return Processes("web", "h", count, connections or {"psycopg": 15})


def test_what_is_left_of_max_connections_is_allowed() -> None:
    found = judged([room("s1", others=4)], [web(2)])
    assert found.allowed == 100 - 3 - 4 - WORKER_CONNECTIONS == 85
    assert found.may_open == 30
    assert found.fits
    assert judged([room("s1")], [web(2), web(1, psycopg=5, asyncpg=7)], workers=0).may_open == 42


def test_more_than_that_does_not_fit_and_the_fix_says_what_would() -> None:
    found = judged([room("s1")], [web(6)])
    assert (found.may_open, found.allowed, found.fits) == (90, 89, False)
    assert "each of 6 processes be 14 at most" in found.fix
    assert "max_connections = 101" in found.fix
    assert judged([room("s1", max_connections=101)], [web(6)]).fits
    assert not judged([room("s1")], [web(5)], more=15).fits
    assert not judged([room("s1")], [web(5)], workers=3).fits


def test_a_budget_bounds_and_is_bounded() -> None:
    assert judged([room("s1")], [web(2)], {"s1": 30}).fits
    found = judged([room("s1")], [web(2)], {"s1": 29})
    assert (found.allowed, found.fits) == (29, False)
    assert "shardwright shard budget s1 --connections 30" in found.fix
    found = judged([room("s1")], [], {"s1": 90})
    assert not found.fits
    assert found.fix == "shardwright shard budget s1 --connections 89"
    assert "max_connections = " in judged([room("s1", max_connections=10)], [], {"s1": 5}).fix


def test_shards_of_one_server_share_its_room() -> None:
    one, two = judged([room("s1", "a"), room("s2", "a")], [web(2)])
    assert one.allowed == two.allowed == (97 - 2 * WORKER_CONNECTIONS) // 2
    one, two = judged([room("s1", "a"), room("s2", "a")], [web(2)], {"s2": 50})
    assert (one.allowed, two.allowed) == (31, 50)
    one, two = judged([room("s1", "a"), room("s2", "b")], [web(2)])
    assert one.allowed == two.allowed == 89


def test_a_databases_own_limit_counts() -> None:
    found = judged([room("s1", database_limit=20)], [web(1)])
    assert (found.allowed, found.fits) == (12, False)
    assert "CONNECTION LIMIT 23" in found.fix


def test_no_limit_does_not_fit() -> None:
    found = judged([room("s1")], [web(1, psycopg=None)])
    assert found.may_open is None
    assert "without a limit" in found.problem


def test_a_shard_that_cannot_be_asked_does_not_fit() -> None:
    down = errors.CannotConnect("cannot connect to shard s1: refused", fix="start it")
    (found,) = judge([Shard("s1", "")], {"s1": down}, [], workers=1, more=0)
    assert not found.fits
    assert (found.room, found.fix) == (None, "start it")


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 50), st.sampled_from(["a", "b"]), st.none() | st.integers(1, 200)),
             min_size=1, max_size=5),
    st.lists(st.integers(1, 8), max_size=4),
    st.integers(0, 3),
)  # fmt: skip
def test_what_fits_never_exceeds_a_server(
    servers: list[tuple[int, int, str, int | None]], counts: list[int], workers: int
) -> None:
    """If every process opens all it may, and workers too, no server is asked for more than it has."""
    most = {name: most for most, _, name, _ in reversed(servers)}
    others = {name: other for _, other, name, _ in reversed(servers)}
    rooms = [
        room(f"s{at}", name, max_connections=most[name], others=others[name])
        for at, (_, _, name, _) in enumerate(servers)
    ]
    budgets = {f"s{at}": budget for at, (_, _, _, budget) in enumerate(servers) if budget is not None}
    shards = [Shard(one.shard, "", connections=budgets.get(one.shard)) for one in rooms]
    processes = [web(count) for count in counts]
    found: list[Verdict] = judge(shards, {one.shard: one for one in rooms}, processes, workers=workers, more=0)
    assert all(one.fits or one.fix for one in found)
    if not all(one.fits for one in found):
        return
    for name in most:
        here = [one for one in found if one.room is not None and one.room.system_identifier == name]
        opened = sum((one.may_open or 0) + one.workers for one in here)
        if here and any(one.may_open for one in here):
            assert opened + others[name] + 3 <= most[name]
