"""Mutants of partitions in windows of time."""

from __future__ import annotations

from .mutant import Mutant

PARTITIONS = (
    Mutant(
        "windows are over by their lower bound",
        "rows that the policy keeps are taken away",
        "partition/declare.py",
        (
            (
                "        and calendar.expired(table.policy, table.key, one.upper, now)\n",
                "        and calendar.expired(table.policy, table.key, one.lower or one.upper, now)\n",
            ),
        ),
        ("tests/unit/test_partition_plan.py",),
    ),
    Mutant(
        "partitions without our mark are taken away",
        "a table that somebody else made is detached and dropped",
        "partition/differ.py",
        (
            (
                "        elif not leaf.marked:\n            _say_unmarked(work, leaf)\n        elif work.frozen:\n",
                "        elif work.frozen:\n",
            ),
        ),
        ("tests/unit/test_partition_plan.py",),
    ),
    Mutant(
        "a source gets its windows before its target",
        "rows are written that the target of a move has no partition for",
        "partition/apply.py",
        (("    waiting = leading if table.leaders else following\n", "    waiting = list(table.order)\n"),),
        ("tests/integration/test_partition_moving.py", "-k", "pg18 and live_reshard"),
    ),
    Mutant(
        "rows stay in the guard that is narrowed",
        "a guard with rows of a new window cannot come back, and no window is made any more",
        "partition/steps/guard.py",
        (("        move_rows(site, step.name, windows)\n", ""),),
        ("tests/integration/test_partition_apply.py", "-k", "pg18 and rows_in_the_guard"),
    ),
    Mutant(
        "a saved plan is not compared",
        "something else is done than what was approved",
        "partition/apply.py",
        (("        if old.fingerprint != new.fingerprint:\n", "        if False:\n"),),
        ("tests/integration/test_partition_apply.py", "-k", "pg18 and stale"),
    ),
    Mutant(
        "windows are attached without a CHECK of their bounds",
        "each ATTACH reads the whole partition under its lock",
        "partition/leaves.py",
        (
            (
                "    for name, text in texts.items():\n",
                "    texts.pop(BOUNDS_CHECK)\n    for name, text in texts.items():\n",
            ),
        ),
        ("tests/integration/test_partition_bystanders.py", "-k", "pg18 and reads_no_row"),
    ),
    Mutant(
        "windows are attached under the lock of PARTITION OF",
        "a window waits for every reader, and whoever comes then waits behind it",
        "partition/steps/attach.py",
        (
            (
                "        leaves.attach(site, step.partition)\n",
                "        site.connection.execute(b'LOCK TABLE ONLY ' + site.parent.as_bytes(site.connection))\n"
                "        leaves.attach(site, step.partition)\n",
            ),
        ),
        ("tests/integration/test_partition_locks.py", "-k", "pg18 and test_windows"),
    ),
    Mutant(
        "a guard waits for its locks from the first try on",
        "readers queue behind it while an idle transaction has the table open",
        "partition/steps/guard.py",
        (("nowait=time.monotonic() < considerate_until", "nowait=False"),),
        ("tests/integration/test_partition_bystanders.py", "-k", "pg18 and does_not_queue"),
    ),
    Mutant(
        "a mark counts by its name alone",
        "another table under an old name is dropped",
        "partition/leaves.py",
        ((" AND p.name = c.relname AND p.relid = c.oid ", " AND p.name = c.relname "),),
        ("tests/integration/test_partition_retention.py", "-k", "pg18 and looks_at_the_mark"),
    ),
    Mutant(
        "archives are not compared before the drop",
        "rows that were written after their window was archived are lost",
        "partition/steps/drop.py",
        (("    if site.policy.archive is None:\n        return []\n", "    if True:\n        return []\n"),),
        ("tests/integration/test_partition_retention.py", "-k", "pg18 and after_the_archive"),
    ),
    Mutant(
        "an archive is not read back",
        "a window is dropped whose file does not hold its rows",
        "partition/archive.py",
        (("        verify(connection, made, store, on_progress)\n    except", "        pass\n    except"),),
        ("tests/integration/test_partition_archive.py", "-k", "pg18 and read_back"),
    ),
    Mutant(
        "a detach that broke off is not finalized",
        "its rows stay out of sight, and nothing of its table can be detached any more",
        "partition/differ.py",
        (('                work.step("finalize", leaf)\n', "                pass\n"),),
        ("tests/integration/test_partition_apply.py", "-k", "pg18 and interrupted_detach"),
    ),
    Mutant(
        "an adopted DEFAULT partition is dropped with its rows",
        "rows that no window took are lost when their table comes under our care",
        "partition/adopting.py",
        (("            _move_out(site, default, int(seen[1]))\n", ""),),
        ("tests/integration/test_partition_adopt_default.py", "-k", "pg18 and few_rows"),
    ),
    Mutant(
        "adoption does not look again under the lock",
        "a partition that changed since it was looked at gets our mark",
        "partition/adopting.py",
        (("        _look_again(site, planned)\n", ""),),
        ("tests/integration/test_partition_adopt_refused.py", "-k", "pg18 and who_is_first"),
    ),
    Mutant(
        "adoption takes what shards contradict each other in",
        "one list of windows says what is not so on some shard",
        "partition/agreeing.py",
        (
            (
                "        if furthest is not None and overlap(furthest, span):",
                "        if furthest is not None and not span:",
            ),
        ),
        ("tests/unit/test_partition_adopt_pure.py",),
    ),
    Mutant(
        "a split's exchange replays nothing",
        "what was written between the last replay and the exchange is lost",
        "partition/exchange.py",
        (("        keys = touched.replay(connection, work)\n", "        keys = 0\n"),),
        ("tests/integration/test_partition_split.py", "-k", "pg18"),
    ),
    Mutant(
        "a split's exchange lets old snapshots write",
        "a row that such a transaction deletes lives on, and nobody is told",
        "partition/exchange.py",
        (("    snapshots.raise_barrier(connection, work.schema, work.parent)\n", ""),),
        ("tests/integration/test_partition_snapshots.py", "-k", "pg18 and after_a_split"),
    ),
    Mutant(
        "rows leave a guard and old snapshots may write",
        "a row that such a transaction deletes lives on, and nobody is told",
        "partition/steps/guard.py",
        (("    if moved:\n", "    if moved < 0:\n"),),
        ("tests/integration/test_partition_snapshots.py", "-k", "pg18 and rows_of_a"),
    ),
    Mutant(
        "a barrier is lifted under an old snapshot",
        "what that transaction deletes later lives on",
        "partition/barrier.py",
        (("        return False\n    considerate_until", "    considerate_until"),),
        ("tests/integration/test_partition_snapshots.py", "-k", "pg18 and last_old_snapshot"),
    ),
    Mutant(
        "a split logs no deletes",
        "deleted rows come back with the exchange",
        "partition/touched.py",
        (("AFTER INSERT OR UPDATE OR DELETE ON", "AFTER INSERT OR UPDATE ON"),),
        ("tests/integration/test_partition_split.py", "-k", "pg18"),
    ),
    Mutant(
        "a split logs no old keys of updates",
        "a row that moves to another window meanwhile is there twice",
        "partition/touched.py",
        (("IF TG_OP <> 'INSERT' THEN", "IF TG_OP = 'DELETE' THEN"),),
        ("tests/integration/test_partition_split.py", "-k", "pg18"),
    ),
    Mutant(
        "a split does not log what replication writes",
        "rows that a subscription's worker writes meanwhile are lost",
        "partition/touched.py",
        ((" ENABLE ALWAYS TRIGGER ", " ENABLE TRIGGER "), (" AND tgenabled = 'A'", "")),
        ("tests/integration/test_partition_split.py", "-k", "pg18"),
    ),
    Mutant(
        "a split's trigger mirrors changes instead of logging keys",
        "a row that is deleted beside the copy comes back",
        "partition/touched.py",
        (
            (
                "THEN INSERT INTO {work.log} VALUES ({work.list_sql(work.keys, 'OLD.')}); END IF; \"",
                "THEN DELETE FROM {work.staging} AS s WHERE ({work.list_sql(work.keys, 's.')}) = "
                "({work.list_sql(work.keys, 'OLD.')}); END IF; \"",
            ),
        ),
        ("tests/integration/test_partition_cutting.py", "-k", "pg18 and mirror"),
    ),
    Mutant(
        "windows are made by PARTITION OF",
        "making a window waits for every reader, and whoever comes then waits behind it",
        "partition/leaves.py",
        (
            (
                '"CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY){}{}").format(\n            leaf,\n'
                "            site.parent,\n",
                '"CREATE TABLE {} PARTITION OF {} {}{}{}").format(\n            leaf,\n'
                "            site.parent,\n            site.bounds(one.lower, one.upper),\n",
            ),
        ),
        ("tests/integration/test_partition_bystanders.py", "-k", "pg18 and does_not_queue"),
    ),
    Mutant(
        "a conversion is noted beside a move that starts",
        "both go on, and exchange partitions under each other's hands",
        "partition/convert.py",
        (
            (
                "        refuse_moves(catalog, registered.keyspace, registered.name)\n        jobs.begin(catalog, new)\n",
                "        jobs.begin(catalog, new)\n",
            ),
        ),
        ("tests/integration/test_partition_meanwhile.py", "-k", "pg18 and begins_waits"),
    ),
    Mutant(
        "keys below a foreign key are carried over by themselves",
        "a table that refers to a partitioned one cannot be converted, or refers to each of its partitions",
        "partition/ordinary.py",
        (("up.conrelid = co.conrelid)),", "up.conrelid = 0)),"),),
        ("tests/integration/test_partition_cutting.py", "-k", "one_key"),
    ),
)
