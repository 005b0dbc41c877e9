"""Every error that shardwright raises: one tree, one base, a stable number and kind each.

Errors are grouped by what the caller does about them, and a group fixes the exit code of the command line:

    ShardwrightError
    +-- UsageError            exit 2   the call is wrong: change it
    +-- PreconditionError     exit 3   the world is not ready: mend it, then call again
    +-- ConflictError         exit 4   somebody else holds it, or it did not drain in time: wait, then call again
    +-- VerificationError     exit 5   two copies that must agree differ
    +-- OwnershipUnknownError exit 6   nobody can tell who owns the rows: a human must look; never retried
    +-- SessionError          exit 1   what an application's session meets
    +-- InvariantError        exit 1   a promise of shardwright itself does not hold

Numbers are never reused. A class's docstring is the page that ``shardwright explain SW101`` prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class ShardwrightError(Exception):
    """The base of everything that shardwright raises on purpose."""

    #: Stable number, never reused; empty for the groups, which are not raised themselves.
    code: ClassVar[str] = ""
    #: Stable name in kebab-case, for programs.
    kind: ClassVar[str] = "error"
    #: What the command line exits with.
    exit_code: ClassVar[int] = 1
    #: True when the same call may succeed later without any change.
    retriable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        fix: str = "",
        durable_change: bool = False,
        ownership_known: bool = True,
        **facts: Any,
    ) -> None:
        """Say what was found and what was expected.

        Args:
            message: one sentence, without secrets.
            fix: one sentence or command line that helps.
            durable_change: True when something was changed that outlives the failure.
            ownership_known: False when it cannot be told which shard owns the rows.
            facts: values that programs may want (shard, keyspace, range, pid ...), JSON-ready.
        """
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.durable_change = durable_change
        self.ownership_known = ownership_known
        self.facts = facts

    def as_json(self) -> dict[str, Any]:
        """The error as the ``error`` object of every ``--json`` answer."""
        return {
            "code": self.code,
            "kind": self.kind,
            "message": self.message,
            "fix": self.fix,
            "retriable": self.retriable,
            "durable_change": self.durable_change,
            "ownership_known": self.ownership_known,
            **({"facts": self.facts} if self.facts else {}),
        }


# ---------------------------------------------------------------- exit 2: the call is wrong


class UsageError(ShardwrightError):
    """The call itself is wrong; nothing was changed."""

    kind = "usage"
    exit_code = 2


class UnknownShard(UsageError):
    """No shard of that name is in the catalog. `shardwright shard list` shows those that are."""

    code = "SW101"
    kind = "unknown-shard"


class UnknownKeyspace(UsageError):
    """No keyspace of that name is in the shard map. `shardwright keyspace list` shows those that are."""

    code = "SW102"
    kind = "unknown-keyspace"


class UnknownTable(UsageError):
    """The table is not registered. Declare it in `Table.info` and run `shardwright table register`."""

    code = "SW103"
    kind = "unknown-table"


class UnknownOperation(UsageError):
    """No operation of that number is in the catalog. `shardwright reshard status` lists the live ones."""

    code = "SW104"
    kind = "unknown-operation"


class BadRange(UsageError):
    """A range is empty, inverted, outside its keyspace, or overlaps another one. Ranges are half-open: [lo, hi)."""

    code = "SW105"
    kind = "bad-range"


class BadKey(UsageError):
    """A shard key is NULL, of the wrong type, or outside the range of its type.

    Keys are never converted silently: "1" is not 1, True is not 1, and 2**63 is no int8.
    """

    code = "SW106"
    kind = "bad-key"


class UnsupportedKeyType(UsageError):
    """The type cannot be a shard key.

    Proven types are int2, int4, int8, text, varchar, uuid and bytea. Others, date and numeric among them, are refused
    until their points are shown to equal PostgreSQL's own hash partition remainder.
    """

    code = "SW107"
    kind = "unsupported-key-type"


class BadDeclaration(UsageError):
    """A table's declaration in `Table.info` contradicts itself, its table, or what was registered before."""

    code = "SW108"
    kind = "bad-declaration"


class BadOption(UsageError):
    """A command's option or a call's argument has no meaning here."""

    code = "SW109"
    kind = "bad-option"


class SecretInConninfo(UsageError):
    """A connection string that would be stored carries a password.

    The catalog stores no secrets. Leave the password out and provide it where the program runs: in a password file
    (`PGPASSFILE`, `~/.pgpass`), in `PGPASSWORD`, or in `SHARDWRIGHT_PASSWORD_<SHARD>`.
    """

    code = "SW110"
    kind = "secret-in-conninfo"


# ---------------------------------------------------------------- exit 3: the world is not ready


class PreconditionError(ShardwrightError):
    """Something outside the call is not as it must be; nothing was changed."""

    kind = "precondition"
    exit_code = 3


class PreflightFailed(PreconditionError):
    """The checks before an operation found problems; each is listed with its fix. Nothing was made."""

    code = "SW201"
    kind = "preflight-failed"


class SameServer(PreconditionError):
    """Two shard names lead to one database (equal system_identifier and database oid), whatever the hosts are called."""

    code = "SW202"
    kind = "same-server"


class NotPrimary(PreconditionError):
    """The server is a standby (in recovery). Shards and catalogs are given by their primary."""

    code = "SW203"
    kind = "not-primary"


class CatalogNewer(PreconditionError):
    """The database's shardwright schema was made by a newer program. Upgrade this program; it will not touch the schema."""

    code = "SW204"
    kind = "schema-newer"


class CatalogOlder(PreconditionError):
    """The database's shardwright schema is older than this program, or absent. `shardwright init` brings it up to date."""

    code = "SW205"
    kind = "schema-older"


class CannotConnect(PreconditionError):
    """The server cannot be reached, or it refused the connection."""

    code = "SW206"
    kind = "cannot-connect"
    retriable = True


class PasswordMissing(PreconditionError):
    """The server asks for a password, and none was provided.

    Provide it in a password file (`PGPASSFILE`, `~/.pgpass`), in `PGPASSWORD`, or in `SHARDWRIGHT_PASSWORD_<SHARD>`.
    """

    code = "SW207"
    kind = "password-missing"


class UnfitTable(PreconditionError):
    """A table cannot be registered as declared: its primary key lacks the shard key, its key column is nullable or of
    another type, it is unlogged, foreign or a view, or a unique constraint lacks the shard key.
    """

    code = "SW208"
    kind = "unfit-table"


class NotVerified(PreconditionError):
    """There is no fresh certificate that both sides agree. `shardwright reshard verify` makes one."""

    code = "SW209"
    kind = "not-verified"


class WrongPhase(PreconditionError):
    """The operation is in a phase in which this verb has no meaning. `shardwright reshard status` says what may come next."""

    code = "SW210"
    kind = "wrong-phase"


class UnfitServer(PreconditionError):
    """The server is not usable as a shard: its version, wal_level or a limit is not enough."""

    code = "SW211"
    kind = "unfit-server"


class MissingExtra(PreconditionError):
    """An optional dependency is not installed. The message names the extra to install."""

    code = "SW212"
    kind = "missing-extra"


class ClusterInUse(PreconditionError):
    """The cluster cannot be left, or the shard not removed: ranges, tables, prepared transactions or an operation are there."""

    code = "SW213"
    kind = "cluster-in-use"


class MisplacedRows(PreconditionError):
    """A table that is to be adopted holds rows on a shard that does not own them."""

    code = "SW214"
    kind = "misplaced-rows"


class ArchiveUnusable(PreconditionError):
    """An archive of a partition cannot be written or read: the directory is not writable, the disk is full, the store
    does not answer, or the file is not what its manifest says. The partition is not dropped without it.

    Mend the place that the message names, then run `shardwright partition tick`, or the restore, again.
    """

    code = "SW215"
    kind = "archive-unusable"


class StillReferenced(PreconditionError):
    """Rows of another table point by a foreign key to the partition whose time is over. Nothing was changed.

    Delete those rows, or give their table a policy that ends them earlier.
    """

    code = "SW216"
    kind = "still-referenced"


class MigrationRefused(PreconditionError):
    """A schema migration would do what must not be done behind shardwright's back. The revision was rolled back.

    A partition that shardwright manages is not dropped, detached or renamed by a migration: its retention does that,
    after a grace and an archive. A registered table is not dropped or renamed, and one is not partitioned anew by DDL.
    """

    code = "SW217"
    kind = "migration-refused"


class MigrationFailed(PreconditionError):
    """A revision of a schema migration failed on a shard. It was rolled back there, and shards after it were not touched.

    Mend the revision, then run the same command again: it goes on where it stopped.
    """

    code = "SW218"
    kind = "migration-failed"


# ---------------------------------------------------------------- exit 4: somebody else, or not in time


class ConflictError(ShardwrightError):
    """Somebody else holds what is needed, or it did not drain in time."""

    kind = "conflict"
    exit_code = 4
    retriable = True


class OperationConflict(ConflictError):
    """A live operation already works on some of these points. Wait for it, or abort it."""

    code = "SW301"
    kind = "operation-conflict"


class Superseded(ConflictError):
    """Another worker took this operation over (its op_epoch is higher). This one must stop; it changed nothing since."""

    code = "SW302"
    kind = "superseded"
    retriable = False


class LeaseHeld(ConflictError):
    """Another live worker holds the operation's lease."""

    code = "SW303"
    kind = "lease-held"


class NotDrained(ConflictError):
    """Transactions that are open on the moving rows did not end in time. Nothing was switched; writes go on where they were.

    The blockers are named by pid, application name and age.
    """

    code = "SW304"
    kind = "not-drained"


class LockTimeout(ConflictError):
    """A table's lock could not be had within lock_timeout after several tries. Nothing was changed."""

    code = "SW305"
    kind = "lock-timeout"


class Interrupted(ConflictError):
    """The operator interrupted the command. The operation stands where its last phase event says; `resume` goes on."""

    code = "SW306"
    kind = "interrupted"


class StreamStalled(ConflictError):
    """A logical replication stream does not advance: its worker is not running, or it is disabled after an error."""

    code = "SW307"
    kind = "stream-stalled"


class LocalClusterBusy(ConflictError):
    """Another process is bringing up or taking down the local cluster in that directory. Wait for it."""

    code = "SW308"
    kind = "local-cluster-busy"


class PlanStale(ConflictError):
    """What a saved plan was made from has changed: policy, declared windows, or what a shard has. Nothing was done.

    The message says what a plan made now does differently. `shardwright partition plan` makes one.
    """

    code = "SW309"
    kind = "plan-stale"
    retriable = False


# ---------------------------------------------------------------- exit 5 and 6


class VerificationError(ShardwrightError):
    """Two copies that must agree differ."""

    kind = "verification"
    exit_code = 5


class VerificationDiffers(VerificationError):
    """Source and target differ in rows that were re-read after a marker. The keys are listed; nothing was switched."""

    code = "SW401"
    kind = "verification-differs"


class ArchiveDiffers(VerificationError):
    """What was read back from an archive is not what the partition holds, or held. The partition is not dropped.

    A new try writes the file anew; if that differs too, the disk or the store changes what it is given.
    """

    code = "SW402"
    kind = "archive-differs"


class LayoutsDiffer(VerificationError):
    """A registered table is not the same on all shards, or not what the catalog has, though their revisions are equal.

    Somebody changed it by hand on one of them. Make the definitions equal, then run `shardwright migrate upgrade` again.
    """

    code = "SW403"
    kind = "layouts-differ"


class OwnershipUnknownError(ShardwrightError):
    """It cannot be told which shard owns the rows. A human must look; nothing is retried."""

    kind = "ownership"
    exit_code = 6


class OwnershipUnknown(OwnershipUnknownError):
    """The answer to the map's commit was lost and the catalog cannot be asked.

    Bring the catalog back, then run `shardwright reshard resume`: it reads what was committed and rolls forward or back.
    """

    code = "SW501"
    kind = "ownership-unknown"


# ---------------------------------------------------------------- what an application's session meets


class SessionError(ShardwrightError):
    """What an application's session meets."""

    kind = "session"


class ShardMoved(SessionError):
    """The key's range moved to another shard after this transaction had an effect: roll back and run it again.

    `cluster.run(key, fn)` does that by itself.
    """

    code = "SW601"
    kind = "shard-moved"
    retriable = True


class MapTimeout(SessionError):
    """The range was fenced or not yet open for longer than the session waits (5 s unless set otherwise)."""

    code = "SW602"
    kind = "map-timeout"
    retriable = True


class KeyOutsideSession(SessionError):
    """A session that is pinned to one key's range met a statement or an object with a key of another range."""

    code = "SW603"
    kind = "key-outside-session"


class NoShardKey(SessionError):
    """The statement names no shard key, and it is no read that can be asked of every shard."""

    code = "SW604"
    kind = "no-shard-key"


class NotMergeable(SessionError):
    """The statement would have to be merged over shards in a way that cannot be done rightly; it is refused, not guessed."""

    code = "SW605"
    kind = "not-mergeable"


class CrossShardTransaction(SessionError):
    """One transaction tried to write on two shards, which only `Session(cross_shard="two_phase")` makes atomic.

    It is raised there too, for what PostgreSQL cannot prepare: a transaction that used LISTEN or NOTIFY, a temporary table,
    a cursor WITH HOLD or an exported snapshot.
    """

    code = "SW606"
    kind = "cross-shard-transaction"


class CommitUnknown(SessionError):
    """The answer to COMMIT was lost. The transaction may have been committed or not; it is never sent again.

    `cluster.commit_outcome(error)` finds out: by `pg_xact_status` on the shard, or, for a transaction that wrote on several
    shards, by its row in the catalog (`error.facts["transaction"]`).
    """

    code = "SW607"
    kind = "commit-unknown"


class ShardUnavailable(SessionError):
    """The key's shard cannot be reached. Other shards are not affected."""

    code = "SW608"
    kind = "shard-unavailable"
    retriable = True


class WriteRefused(SessionError):
    """A shard's guard refused the write, for what it is and not for where it was sent.

    A shard key cannot be changed (delete the row and insert it anew), TRUNCATE is refused while rows move, and a
    reference table is written on its home shard only.
    """

    code = "SW609"
    kind = "write-refused"


class TransactionGivenUp(SessionError):
    """A transaction on several shards was rolled back by `shardwright tx recover` before its session had decided.

    It had been taken for one whose session has died, or the catalog no longer knows it. Nothing of it is stored: run it again.
    """

    code = "SW610"
    kind = "transaction-given-up"
    retriable = True


class PoolDeadlock(SessionError):
    """Transactions on several shards hold connections and wait for each other's: this one was ended before it would wait.

    Nothing of it is stored. Roll back and run it again. Fewer such transactions at a time, or larger pools, make it rare;
    those that reach their shards in the order of the shards' names, as scatters do, never meet each other that way.
    """

    code = "SW611"
    kind = "pool-deadlock"
    retriable = True


# ---------------------------------------------------------------- our own promises


class InvariantError(ShardwrightError):
    """A promise of shardwright itself does not hold: please report it."""

    kind = "invariant"


class InvariantFailed(InvariantError):
    """A check of shardwright's own promises failed; the message names the promise and the evidence."""

    code = "SW701"
    kind = "invariant-failed"


class FailpointReached(InvariantError):
    """`SHARDWRIGHT_FAILPOINT` asked for an error at this step, and it was reached."""

    code = "SW702"
    kind = "failpoint-reached"


def error_classes() -> Iterator[type[ShardwrightError]]:
    """Every numbered error class, in the order of their numbers."""

    def walk(cls: type[ShardwrightError]) -> Iterator[type[ShardwrightError]]:
        if cls.__dict__.get("code"):  # its own: a room may refine a class for itself without a page of its own
            yield cls
        for sub in cls.__subclasses__():
            yield from walk(sub)

    yield from sorted(walk(ShardwrightError), key=lambda cls: cls.code)
