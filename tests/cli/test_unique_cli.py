"""`shardwright unique`: the directory of unique values is compared with the rows and mended, with words and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fix_cli import Ran
from fix_unique import People

pytestmark = pytest.mark.newest_postgres

HERE = Path(__file__).parents[1]
MODELS = "fix_unique:Base"


@pytest.fixture
def unique(people: People, cli: Callable[..., Ran]) -> Callable[..., Ran]:
    env = {"SHARDWRIGHT_CATALOG": people.dsns.catalog}
    return lambda *words, **options: cli("unique", *words, env=env, cwd=HERE, **options)


def test_check_and_mend(people: People, unique: Callable[..., Ran]) -> None:
    shards = people.connect().map
    keys = {
        shard: next(key for key in range(99) if shards.route("users", key).shard == shard) for shard in ("s1", "s2")
    }
    for shard, key in keys.items():
        people.ask(shard, f"INSERT INTO people (id, email) VALUES ({key}, 'ann@x') RETURNING id")
    people.ask(
        shards.route("values", "gone@x").shard,
        "INSERT INTO unique_values VALUES ('gone@x', 'people.email', '5') RETURNING 1",
    )

    ran = unique("check", MODELS, "--json")
    assert ran.code == 5
    found = ran.json
    assert (found["mended"], found["next_steps"]) == (False, [f"shardwright unique mend {MODELS}"])
    (column,) = found["columns"]
    assert (column["column"], column["rows"], column["missing"], column["stray"]) == ("people.email", 2, 2, 1)

    ran = unique("mend", MODELS)
    assert ran.code == 5, "nobody knows which of the two it is"
    assert ran.out.splitlines()[0].split() == [
        "column",
        "rows",
        "with",
        "a",
        "value",
        "put",
        "in",
        "taken",
        "out",
        "shared",
    ]
    assert ran.out.splitlines()[1].split() == ["people.email", "2", "1", "1", "1"]
    assert {word for line in ran.out.splitlines()[3:] for word in line.split()} == {
        "people.email",
        "ann@x",
        *map(str, keys.values()),
    }
    assert "people.email: rows" in ran.err

    people.ask("s2", "UPDATE people SET email = 'bob@x' RETURNING id")
    assert unique("check", MODELS).code == 5
    assert unique("mend", MODELS, "--column", "people.email", "--json").ok().json["columns"][0]["missing"] == 1
    assert unique("check", MODELS).ok().out.splitlines()[1].split() == ["people.email", "2", "0", "0", "0"]
    assert people.check() == {"ann@x": keys["s1"], "bob@x": keys["s2"]}


def test_bad_input(unique: Callable[..., Ran]) -> None:
    for words, said in {
        ("check", "fix_unique:Person", "--column", "people.name"): "people.name is not unique across shards",
        ("mend", "fix_sessions:Base"): "no column of these models is unique across shards",
        ("mend", "fix_unique"): "not MODULE:NAME",
        ("check", "nowhere:Base"): "module nowhere cannot be imported",
    }.items():
        ran = unique(*words)
        assert ran.code == 2, ran.err
        assert said in ran.err
        assert "Traceback" not in ran.err
