"""Mutants of what applications use: routes, connections and sessions."""

from __future__ import annotations

from .mutant import Mutant

SESSIONS = (
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
        "committed on shards without a decision",
        "a session that dies between two shards leaves half a transaction",
        "session/two_phase.py",
        (("        if not self._decide():\n", "        if False:\n"),),
        ("tests/chaos/test_two_phase_crashes.py", "-k", "pg18 and all_or_nothing"),
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
        "what is prepared is not waited for",
        "a value is released that a transaction in doubt has given to a row",
        "session/unique_mending.py",
        (("        self._wait_for_prepared()\n", ""),),
        ("tests/integration/test_unique_mending.py", "-k", "pg18 and in_doubt"),
    ),
    Mutant(
        "what looks wrong is taken for wrong",
        "a value is released while its row is being written",
        "session/unique_mending.py",
        (("        stray = held - set(self._rows_of(held))\n", "        stray = held\n"),),
        ("tests/integration/test_unique_mending.py", "-k", "pg18 and looked_at"),
    ),
    Mutant(
        "rows are claimed for without being held",
        "a value is put in for a row that has another one by then",
        "session/unique_mending.py",
        (
            (
                "        still = {Held(value, self._owner(key)) for value, key in session.execute(statement)} & set(suspects)\n",
                "        still = set(suspects)\n",
            ),
        ),
        ("tests/integration/test_unique_mending.py", "-k", "pg18 and while_it_is_used"),
    ),
    Mutant(
        "a check that mends",
        "looking changes the directory",
        "session/unique_mending.py",
        (("            if not self._mend:\n                raise _Undone\n", ""),),
        ("tests/integration/test_unique_mending.py", "-k", "pg18 and there_before"),
    ),
    Mutant(
        "rows of one owner with one value",
        "a value that two rows have is not told",
        "session/unique_mending.py",
        (("            if count > 1 and one not in self._twins:", "            if False:"),),
        ("tests/integration/test_unique_mending.py", "-k", "pg18 and one_owner"),
    ),
)
