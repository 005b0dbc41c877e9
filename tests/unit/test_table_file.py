"""Tables declared in a TOML file: what is read, and what is refused with the table's name."""

from __future__ import annotations

import pytest

from shardwright.catalog import table_file
from shardwright.catalog.adoption import Wanted
from shardwright.errors import BadDeclaration
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration


def test_every_kind_is_read() -> None:
    text = """
    [tables.user_activity]
    sharded_by = "user_id"
    keyspace = "people"
    time_partitioned = { column = "at", every = "1 week", keep = "3 months", ahead = 5 }
    [tables.orders]
    sharded_by = "user_id"
    [tables.rates]
    reference = true
    home = "s1"
    [tables.jobs]
    global_on = "s2"
    [tables.sizes]
    local = true
    [tables."audit.system_logs"]
    time_partitioned = { column = "log_date", every = "1 day" }
    [tables.visits]
    time_partitioned = { column = "at", every = "1 day", keep = false, grace = false, archive = false }
    """
    weekly = Policy("at", "1 week", "3 months", 5)
    assert table_file.read(text, "t.toml") == [
        Wanted("public", "user_activity", Declaration("sharded", "user_id", "people", policy=weekly)),
        Wanted("public", "orders", Declaration("sharded", "user_id", "users")),
        Wanted("public", "rates", Declaration("reference", home="s1")),
        Wanted("public", "jobs", Declaration("global", home="s2")),
        Wanted("public", "sizes", Declaration("local")),
        Wanted("audit", "system_logs", Declaration("local", policy=Policy("log_date", "1 day"))),
        Wanted("public", "visits", Declaration("local", policy=Policy("at", "1 day", grace=None))),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tables", "is no TOML"),
        ("", "declares no table"),
        ("[tables.t]\nlocal = true\n[more]", "declares no table, or something else"),
        ("tables.t = 1", "table t is no section"),
        ("[tables.t]", "table t declares nothing"),
        ('[tables.t]\nsharded_by = "a"\nlocal = true', "sharded_by and local"),
        ('[tables.t]\nlocal = true\nkeyspace = "a"', "has the field keyspace"),
        ("[tables.t]\nlocal = false", "local = False"),
        ("[tables.t]\nsharded_by = 1", "sharded_by = 1"),
        ('[tables.t]\ntime_partitioned = "1 day"', "no table"),
        ('[tables.t]\ntime_partitioned = { column = "a" }', "lacks every"),
        ('[tables.t]\ntime_partitioned = { column = "a", every = "1 day", keeps = 1 }', "no keeps"),
        ('[tables.t]\ntime_partitioned = { column = "a", every = "1 day", zone = "Mars/Base" }', "zone='Mars/Base'"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(BadDeclaration, match=said):
        table_file.read(text, "t.toml")
