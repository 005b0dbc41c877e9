"""What must be known of a statement before it is sent, from its text."""

from __future__ import annotations

import pytest

from shardwright.session.wire import Kind, kind_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("SELECT 1", Kind.READS),
        (b"  select * from t", Kind.READS),
        ("VALUES (1)", Kind.READS),
        ("SELECT * FROM t FOR KEY SHARE", Kind.LOCKS),
        ("SELECT * FROM t FOR SHARE SKIP LOCKED", Kind.LOCKS),
        ("SELECT pg_try_advisory_xact_lock(1)", Kind.LOCKS),
        ("SELECT * FROM t FOR UPDATE", Kind.WRITES),
        ("WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d", Kind.WRITES),
        ("LOCK TABLE t", Kind.WRITES),
        ("CALL p()", Kind.WRITES),
        ("SAVEPOINT lock1", Kind.SAVEPOINT),
        ("ROLLBACK TO SAVEPOINT lock1", Kind.UNDOES),
        (object(), Kind.WRITES),
    ],
)
def test_kinds(text: object, kind: Kind) -> None:
    assert kind_of(text) is kind
