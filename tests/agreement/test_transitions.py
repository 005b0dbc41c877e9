"""The legal steps stand in phases.py and in the catalog's table: the two must be the same."""

from __future__ import annotations

import psycopg

from shardwright.catalog import migrations
from shardwright.reshard.phases import TRANSITIONS, Goal, Phase


def test_phases_and_catalog_agree(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        migrations.apply(connection, "catalog")
        stored = connection.execute("SELECT from_phase, event, to_phase FROM shardwright.transitions").fetchall()
        goals = connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'operations_goal_check'"
        ).fetchone()
    assert {(a, b, c) for a, b, c in stored} == {(p.value, e.value, q.value) for (p, e), q in TRANSITIONS.items()}
    assert goals is not None
    assert all(f"'{goal.value}'" in goals[0] for goal in Goal)
    assert goals[0].count("::text") == len(Goal)
    assert Phase.PLANNED.value == "planned"
