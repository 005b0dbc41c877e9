"""An ordinary table on which everything hangs becomes a partition, and nothing is lost: on one database, without a catalog."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import psycopg
import pytest

from fix_conversion import Full
from shardwright import errors
from shardwright.partition import carried, convertible, ordinary, swap
from shardwright.routing.policy import Policy

pytestmark = pytest.mark.newest_postgres

POLICY = Policy("created_at", "1 month")
CUT = "'2026-12-01 00:00:00+00'"
TO = carried.Conversion(
    column="created_at",
    leaf="Events_p_whole",
    cut=CUT,
    check=f"created_at IS NOT NULL AND created_at < {CUT}::timestamptz",
    after=(("Events_p_after", CUT, "MAXVALUE"),),
)


def _convert(connection: psycopg.Connection, to: carried.Conversion = TO) -> swap.Held:
    swap.add_check(connection, "app", "Events", to.check, 5)
    swap.validate(connection, "app", "Events", carried.CHECK_NAME, 5)
    held, before = swap.swap(connection, "app", "Events", to, POLICY, done=lambda _: None, patience=5)
    for key in carried.validations(before):
        swap.validate(connection, *key, 5)
    return held


def test_everything_is_carried_over(full: Full) -> None:
    with full.ours() as connection:
        before, dumped = ordinary.read(connection, "app", "Events"), full.dump()
        assert convertible.reasons(before, POLICY, connection.info.server_version) == []
        filenode = before.filenode
        _convert(connection)
        after, dumped_after = ordinary.read(connection, "app", "Events"), full.dump()
        assert after.relkind == "p"
        leaf = ordinary.read(connection, "app", "Events_p_whole")
        assert (leaf.oid, leaf.filenode) == (before.oid, filenode), "rows were copied"
    differing = {"oid", "relkind", "parent", "filenode", "bytes", "others"}
    for field in fields(before):
        if field.name not in differing:
            assert getattr(after, field.name) == getattr(before, field.name), field.name
    kept = {one for text in dumped_after for one in _parts(text)}
    lost = [one for text in dumped for one in _parts(text) if one not in kept]
    assert [text for text in lost if not text.startswith('CREATE TABLE app."Events"')] == []
    (body,) = (text for text in lost if text.startswith('CREATE TABLE app."Events"'))
    assert body.replace(") WITH (fillfactor='80')", ") PARTITION BY RANGE (created_at)") in kept


def _parts(text: str) -> list[str]:
    """Single statements, without the words that differ for a partitioned table."""
    return [part.replace("ONLY ", "") for part in text.split("; ")]


def test_it_works_as_before(full: Full) -> None:
    with full.ours() as connection, full.connect() as application:
        _convert(connection)
        ask = lambda text: application.execute(text).fetchone()[0]  # type: ignore[index]  # noqa: E731
        assert ask('SELECT count(*) FROM app."Events"') == 2000
        assert ask("SELECT count(*) FROM app.big") == ask('SELECT count(*) FROM app."Events" WHERE size > 100')
        assert ask("SELECT app.total()") == 2000
        last = ask('SELECT max(id) FROM app."Events"')
        fresh = ask('INSERT INTO app."Events" (user_id, size) VALUES (1, 7) RETURNING id')
        assert fresh > last
        assert ask("SELECT count(*) FROM app.log WHERE what = 'row_after INSERT'") == 2001
        assert ask("SELECT count(*) FROM app.log WHERE what = 'off_now INSERT'") == 0
        assert ask("SELECT count(*) FROM app.bigger") > 0
        application.execute('DELETE FROM app."Events" WHERE id = 100')
        assert ask("SELECT count(*) FROM app.attachments WHERE event = 100") == 0
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            application.execute("INSERT INTO app.attachments VALUES (1, now(), 'x')")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            application.execute('INSERT INTO app."Events" (user_id, size) VALUES (999, 7)')
        application.execute("INSERT INTO app.\"Events\" (user_id, size, created_at) VALUES (1, 7, '2027-03-01')")
        assert ask('SELECT count(*) FROM app."Events_p_after"') == 1
        unvalidated = ask("SELECT count(*) FROM pg_constraint WHERE NOT convalidated AND conparentid = 0")
        assert unvalidated == 0
        invalid = ask("SELECT count(*) FROM pg_index WHERE NOT indisvalid")
        assert invalid == 0


def test_a_refused_swap_changes_nothing(full: Full) -> None:
    with full.ours() as connection:
        dumped = full.dump()
        swap.add_check(connection, "app", "Events", TO.check, 5)
        wrong = carried.Conversion(**{**_fields(TO), "after": (("Events_p_after", "'2026-01-01'", "MAXVALUE"),)})
        with pytest.raises((errors.UnfitTable, psycopg.Error)):
            swap.swap(connection, "app", "Events", wrong, POLICY, done=lambda _: None, patience=5)
        swap.drop_check(connection, "app", "Events", 5)
        assert full.dump() == dumped


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}
