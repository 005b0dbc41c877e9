"""Mutants of what moves rows between shards, and of what is stored about shards and tables."""

from __future__ import annotations

from .mutant import Mutant

MOVES = (
    Mutant(
        "fence without LOCK",
        "writes that are in flight at the fence are lost",
        "reshard/fence.py",
        (("                guards.lock(connection, tables)\n", ""),),
        ("tests/integration/test_open_transactions.py", "-k", "pg18 and rc-write"),
    ),
    Mutant(
        "guards not narrowed at the fence",
        "a client without the library goes on writing where the rows no longer live",
        "reshard/fence.py",
        (
            (
                "    guards.set_owned(connection, tables, owned)\n",
                "    if state == 'open':\n        guards.set_owned(connection, tables, owned)\n",
            ),
        ),
        ("tests/integration/test_reshard.py", "-k", "pg18 and under_load"),
    ),
    Mutant(
        "verification by counts only",
        "rows that differ are certified as equal",
        "reshard/compare.py",
        (("count(*), sum(hashed) FROM", "count(*), sum(0) FROM"),),
        ("tests/integration/test_reshard.py", "-k", "pg18 and a_difference"),
    ),
    Mutant(
        "target opened before the reverse slot exists",
        "rolling back loses what was written since the switch",
        "reshard/steps/switch.py",
        (
            (
                "        _make_way_back(world, move)\n    for number in",
                "        _publish_way_back(world, move)\n    for number in",
            ),
            (
                "                    world.on_progress()\n\n\ndef check",
                "                    world.on_progress()\n    for move in world.operation.moves:\n"
                "        _make_way_back(world, world.move(move.id))\n\n\ndef check",
            ),
            ("lost = bool(move.served_by_target())", "lost = False"),
        ),
        ("tests/integration/test_open_transactions.py", "-k", "pg18 and way_back"),
    ),
    Mutant(
        "fencing token not checked on shards",
        "a worker that was superseded goes on changing shards",
        "reshard/world.py",
        (
            (
                'connection.execute("SELECT shardwright.hold(%s, %s)", (self.operation.id, self.operation.op_epoch))',
                "pass",
            ),
        ),
        ("tests/integration/test_fencing_token.py", "-k", "pg18"),
    ),
    Mutant(
        "arrival not awaited",
        "the target is opened before the last changes have arrived",
        "reshard/fence.py",
        (("if not streams.wait_for_marker(target, out_stream, value, limit):", "if False:"),),
        ("tests/integration/test_reshard.py", "-k", "pg18 and last_changes"),
    ),
    Mutant(
        "publication not narrowed at the fence",
        "what the target sends back is sent forth again",
        "reshard/fence.py",
        (
            (
                "            streams.set_publication(connection, out_stream, tables, with_giver - batch.points, known=True)\n",
                "            pass\n",
            ),
        ),
        ("tests/integration", "-k", "pg18 and (rolling_back or under_load or way_back)"),
    ),
    Mutant(
        "no look at what is left before a migration's commit",
        "a schema migration drops a partition that shardwright manages",
        "migrate/guarding.py",
        (('        event.listen(connection.engine, "commit", self._commit)\n', ""),),
        ("tests/integration/test_migrate.py", "-k", "pg18 and what_is_managed"),
    ),
    Mutant(
        "a move starts beside a split",
        "the partitions that are about to be exchanged are copied, and differ in the end",
        "reshard/preflight.py",
        (("        problems.extend(_job_problems(catalog, plan))\n", ""),),
        ("tests/integration/test_partition_meanwhile.py", "-k", "pg18 and wait_for_each_other"),
    ),
    Mutant(
        "recovery that does not decide first",
        "a session that is only slow commits what was rolled back behind it",
        "catalog/recovery.py",
        (
            (
                '    outcome = decisions.abort(catalog, one.id) or "aborted"\n',
                '    outcome: Outcome = "aborted" if was_open else one.outcome\n',
            ),
        ),
        ("tests/integration/test_two_phase.py", "-k", "pg18 and abandoned"),
    ),
    Mutant(
        "decided with a row that is gone",
        "a session that wakes after its transaction was forgotten commits what was rolled back",
        "catalog/decisions.py",
        (
            (
                "        (transaction,),\n    ).fetchone()\n    return row is not None\n",
                "        (transaction,),\n    ).fetchone()\n    return True or row is not None\n",
            ),
        ),
        ("tests/integration/test_two_phase.py", "-k", "pg18 and row_that_is_gone"),
    ),
    Mutant(
        "budgets that shards of one server do not share",
        "connections that cannot fit are said to fit",
        "catalog/budget.py",
        (("        left = max(0, left // sharing)", "        left = max(0, left)"),),
        ("tests/unit/test_budget.py",),
    ),
)
