"""The mutants, each with the promise that it breaks and a test that must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change of the package's source that makes it wrong."""

    name: str
    #: What goes wrong with it, for people.
    breaks: str
    #: File below python/shardwright.
    file: str
    #: (what stands there, what is put instead), each found exactly once.
    edits: tuple[tuple[str, str], ...]
    #: Arguments of pytest: tests of which one at least must fail.
    tests: tuple[str, ...]


MUTANTS = (
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
        "writers of a leaf do not lock its table",
        "writes to a partition that are in flight at the fence are lost",
        "routing/predicates.py",
        (
            (
                "THEN LOCK TABLE ONLY {table.qualified} IN ROW EXCLUSIVE MODE; RETURN NULL; END IF;",
                "THEN RETURN NULL; END IF;",
            ),
        ),
        ("tests/integration/test_reshard_partitioned.py", "-k", "pg18 and waited_for"),
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
        "no check on BEGIN",
        "a router with an old map reads rows where they no longer live",
        "session/entry_sql.py",
        (('return f"SELECT shardwright.enter({number})".encode()', 'return b"SELECT 1"'),),
        ("tests/integration/test_session_pinned.py", "-k", "pg18 and (stale_router or isolation_level)"),
    ),
    Mutant(
        "scatter not narrowed to what a shard owns",
        "rows that are being copied are counted twice",
        "session/scatter.py",
        (("if shard in self._narrow else shared", "if False else shared"),),
        ("tests/integration/test_session_scatter.py", "-k", "pg18 and one_answer"),
    ),
    Mutant(
        "a pooler taken for a server",
        "statements are prepared in one process and executed in another",
        "session/pools.py",
        (("        if int(process) != connection.process:", "        if False:"),),
        ("tests/integration/test_session_pgbouncer.py", "-k", "pg18 and sync and sessions_work"),
    ),
    Mutant(
        "prepared statements that have gone are still named",
        "each failure costs a connection",
        "session/unanswered.py",
        (("            self._named.clear()", "            pass"),),
        ("tests/integration/test_session_prepared.py", "-k", "pg18 and costs_no_connection"),
    ),
    Mutant(
        "asyncpg's kept statements are not looked at",
        "a range is read without its check, and a write is taken for a read",
        "session/asyncpg_statements.py",
        (
            (
                "        kind = await connection.make_way(self._text)\n",
                '        kind = connection.note_statement("SELECT")\n',
            ),
        ),
        ("tests/integration/test_session_prepared.py", "-k", "pg18 and asyncpg and long_ago"),
    ),
    Mutant(
        "a changed table is the reader's problem",
        "a migration breaks the reads of every pool for a while",
        "session/faults.py",
        (("        state == _NOT_SUPPORTED\n", "        False\n"),),
        ("tests/integration/test_session_prepared.py", "-k", "pg18 and another_type"),
    ),
    Mutant(
        "every missing statement taken for ours",
        "an application's mistake costs a connection, and is told as a shard that is away",
        "session/faults.py",
        (("        return _PREPARED_BY_US.search(said_by(error)) is not None\n", "        return True\n"),),
        ("tests/integration/test_session_prepared.py", "-k", "pg18 and has_not_prepared"),
    ),
    Mutant(
        "keys believed before their range is held",
        "a row is written by a map that the refusal has just made old",
        "session/pinned.py",
        (("                    self._unsure.hold()", "                    pass"),),
        ("tests/integration/test_session_flush.py", "-k", "pg18 and other_keys"),
    ),
    Mutant(
        "a flush that begins anew after it has written",
        "its first rows are lost, and it is reported as done",
        "session/opening.py",
        (
            (
                "                if self.restart is None or refused.had_run:\n",
                "                if self.restart is None:\n",
            ),
            ("                self.restart = None\n", "                pass\n"),
        ),
        ("tests/integration/test_session_flush.py", "-k", "pg18 and after_the_first_write"),
    ),
    Mutant(
        "a connection that was refused is kept",
        "each moved range costs a place in the pool",
        "session/opening.py",
        (("            old.close()\n        self._dbapi", "            pass\n        self._dbapi"),),
        ("tests/integration/test_session_flush.py", "-k", "pg18 and has_moved"),
    ),
    Mutant(
        "threads compile one statement together",
        "CPython 3.11 frees memory that is in use",
        "session/compiling.py",
        (("    with _compiling:\n", "    if _compiling:\n"),),
        ("tests/integration/test_session_scatter.py", "-k", "pg18 and sync and one_thread_at_a_time"),
    ),
    Mutant(
        "lost commits taken for failures",
        "a transaction that was committed is reported as not done",
        "session/wire.py",
        (("    error.shardwright_commit_lost = True  # type: ignore[attr-defined]\n", "    return\n"),),
        ("tests/integration", "-k", "pg18 and test_session and commit"),
    ),
    Mutant(
        "no check on asyncpg's BEGIN",
        "a task with an old map reads rows where they no longer live",
        "session/wire_asyncpg.py",
        (
            (
                "        commands = self.take_ahead(whole=whole)\n",
                "        self._wanted = set()\n        commands = self.take_ahead(whole=whole)\n",
            ),
        ),
        ("tests/integration/test_session_pinned.py", "-k", "pg18 and asyncpg and isolation_level"),
    ),
    Mutant(
        "a COMMIT is cancelled with its task",
        "what waits for a standby is stored without it, and reported as cancelled",
        "session/wire_asyncpg.py",
        (
            (
                'said = await to_its_end(self.execute("COMMIT"), COMMIT_GRACE, self.terminate)',
                'said = await self.execute("COMMIT")',
            ),
        ),
        ("tests/integration/test_async_session.py", "-k", "pg18 and asyncpg and was_sent"),
    ),
    Mutant(
        "free connections go past those who wait",
        "under load a task waits for a connection for ever",
        "session/shard_pool.py",
        (("asyncio.Semaphore(", "asyncio.Semaphore(1000 + "),),
        ("tests/integration/test_async_session.py", "-k", "pg18 and async and in_turn"),
    ),
    Mutant(
        "shard key may change",
        "a row ends up where its key does not live",
        "routing/predicates.py",
        (
            (
                'f"IF NEW.{column} IS DISTINCT FROM OLD.{column} THEN {changed_key} END IF; RETURN NEW; END"',
                '"RETURN NEW; END"',
            ),
        ),
        ("tests/integration/test_adoption.py", "-k", "pg18 and guards_refuse"),
    ),
    Mutant(
        "no look at what is left before a migration's commit",
        "a schema migration drops a partition that shardwright manages",
        "migrate/guarding.py",
        (('        event.listen(connection.engine, "commit", self._commit)\n', ""),),
        ("tests/integration/test_migrate.py", "-k", "pg18 and what_is_managed"),
    ),
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
        "a move starts beside a split",
        "the partitions that are about to be exchanged are copied, and differ in the end",
        "reshard/preflight.py",
        (("        problems.extend(_job_problems(catalog, plan))\n", ""),),
        ("tests/integration/test_partition_meanwhile.py", "-k", "pg18 and wait_for_each_other"),
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
    Mutant(
        "committed on shards without a decision",
        "a session that dies between two shards leaves half a transaction",
        "session/two_phase.py",
        (("        if not self._decide():\n", "        if False:\n"),),
        ("tests/chaos/test_two_phase_crashes.py", "-k", "pg18 and all_or_nothing"),
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
        "old value by what the object remembers",
        "a value that nobody has stays taken for ever",
        "session/unique.py",
        (
            (
                "        before = _stored(mapper, connection, target, unique)\n        value",
                "        before = (sa.inspect(target).attrs[attribute].history.deleted or [None])[0]\n        value",
            ),
        ),
        ("tests/integration/test_unique_values.py", "-k", "pg18 and remembers"),
    ),
    Mutant(
        "a grant that is used beyond its end",
        "two processes make the same id",
        "session/generating.py",
        (("            if stamp >= grant.end:\n                return None, False\n", ""),),
        ("tests/unit/test_ids.py", "-k", "twice or away"),
    ),
    Mutant(
        "explaining begins a transaction",
        "asking where a statement would go sends something",
        "session/pinned.py",
        (("            if self._strict and not self._explaining:", "            if self._strict:"),),
        ("tests/integration/test_explain_route.py", "-k", "pg18 and pinned"),
    ),
    Mutant(
        "a comment with a word that writes",
        "an application called update-service has its reads taken for writes",
        "session/commenting.py",
        (('    if may_write(f"SELECT {encoded}"):', "    if False:"),),
        ("tests/integration/test_comments.py", "-k", "ends_its_comment"),
    ),
    Mutant(
        "a lost COMMIT counted as rolled back",
        "metrics and spans call a transaction undone that may be stored",
        "session/telling.py",
        (("        events.undecided.add(context.connection)\n", "        pass\n"),),
        ("tests/integration/test_session_events.py", "-k", "pg18 and lost"),
    ),
    Mutant(
        "a primary of old let in",
        "a failed primary that comes back is written to",
        "session/pools.py",
        (("        if 0 < timeline < highest:", "        if False:"),),
        ("tests/integration/test_promoted_standby.py", "-k", "pg18 and for_good"),
    ),
    Mutant(
        "connections to a primary of old kept",
        "a process goes on writing to the old primary after the new one was seen",
        "session/pools.py",
        (("                raise sa.exc.InvalidatePoolError()", "                return"),),
        ("tests/integration/test_promoted_standby.py", "-k", "pg18 and given_up"),
    ),
    Mutant(
        "operators on a primary of old",
        "a reshard works on a failed primary that has come back",
        "engines.py",
        (("        _refuse_old_primary(connection, what, highest)", "        pass"),),
        ("tests/integration/test_promoted_standby.py", "-k", "pg18 and for_good"),
    ),
    Mutant(
        "a breaker that nobody asks",
        "every request for a shard that hangs waits for its time-out",
        "session/shard_pool.py",
        (("        trial = self.health.enter()", "        trial = None"),),
        ("tests/unit/test_shard_pool.py",),
    ),
    Mutant(
        "silence taken for death",
        "a slow statement is cut off",
        "session/health.py",
        (
            (
                "            else:\n                self.heard()",
                "            else:\n                self._silent_at = began + 9",
            ),
        ),
        ("tests/unit/test_health.py",),
    ),
    Mutant(
        "silence that is never a verdict",
        "who waits for a shard that hangs waits for ever",
        "session/health.py",
        (("        if since <= self._silent_at and self._heard_at < self._silent_at:", "        if False:"),),
        ("tests/unit/test_health.py",),
    ),
    Mutant(
        "deadlocks over shards are final",
        "one of two transactions that wait for each other fails",
        "session/retries.py",
        (("(across and state == LOCK_TIMEOUT)", "False"),),
        ("tests/integration/test_deadlocks_over_shards.py", "-k", "both_get_through"),
    ),
    Mutant(
        "a circle of pools unseen",
        "transactions on several shards wait for each other for ever",
        "session/crossings.py",
        (("            if are_stuck(self._waits, self._capacity):", "            if False:"),),
        ("tests/unit/test_crossings.py",),
    ),
    Mutant(
        "a line that can be passed by",
        "some threads wait for a connection for ever",
        "session/lines.py",
        (("                self._waiting.popleft().set()", "                self._waiting.pop().set()"),),
        ("tests/unit/test_lines.py",),
    ),
    Mutant(
        "a fork that shares connections",
        "a child's farewell ends its parent's transactions",
        "engines.py",
        (("            os.dup2(ours.fileno(), connection.fileno(), inheritable=False)", "            pass"),),
        ("tests/integration/test_session_fork.py", "-k", "pg18"),
    ),
    Mutant(
        "budgets that shards of one server do not share",
        "connections that cannot fit are said to fit",
        "catalog/budget.py",
        (("        left = max(0, left // sharing)", "        left = max(0, left)"),),
        ("tests/unit/test_budget.py",),
    ),
)
