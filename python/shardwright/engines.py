"""The only place that opens connections: catalog, shards, replication; each with its settings pinned.

Passwords never come from the catalog. libpq's own means serve (``PGPASSFILE``, ``~/.pgpass``, ``PGPASSWORD``,
``PGSERVICE``), and ``SHARDWRIGHT_PASSWORD_<SHARD>`` where two shards need different ones.
"""

from __future__ import annotations

import os
import re
import socket
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import conninfo

from shardwright import errors

C = TypeVar("C", bound=psycopg.Connection[Any])

#: Settings of every connection of ours. Text forms must not depend on the server's configuration, RLS must raise
#: instead of hiding rows, and no server-side timeout may end a guard transaction or a snapshot.
PINNED = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "search_path": "pg_catalog, pg_temp",
    "row_security": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "synchronous_commit": "on",
}

#: By which the system notices a peer that has gone.
KEEPALIVES = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}
_SECRETS = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)|(//[^:/@\s]*:)[^@\s]*(@)", re.IGNORECASE)


#: Connections that this process has opened and that still live.
_opened: weakref.WeakSet[psycopg.BaseConnection[Any]] = weakref.WeakSet()


def remember(opened: object) -> None:
    """Cut a connection off in every child that this process forks.

    Args:
        opened: the connection; only libpq's have something to say when they are let go.
    """
    if isinstance(opened, psycopg.BaseConnection):
        _opened.add(opened)


def _cut_off() -> None:
    """In the child of a fork: its copies of the parent's connections lead nowhere from now on.

    The child shares the parent's sockets. Anything that it sent would be taken for the parent's, the farewell of a
    connection that is closed or collected included.
    """
    for connection in list(_opened):
        if not connection.closed:
            ours, theirs = socket.socketpair()
            os.dup2(ours.fileno(), connection.fileno(), inheritable=False)
            ours.close()
            theirs.close()
    _opened.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cut_off)


class HasConninfo(Protocol):
    """What is needed to reach a shard; `catalog.shards.Shard` is one."""

    @property
    def name(self) -> str:
        """The shard's name."""
        ...

    @property
    def conninfo(self) -> str:
        """Its connection string, without a password."""
        ...


def redact(text: str) -> str:
    """`text` with every password in it replaced by ``***`` (key=value and URI forms)."""
    return _SECRETS.sub(lambda found: (found[1] or found[3]) + "***" + (found[4] or ""), text)


def without_secret(dsn: str) -> str:
    """Check a connection string that is to be stored.

    Returns:
        The string in libpq's key=value form.

    Raises:
        BadOption: it cannot be parsed.
        SecretInConninfo: it carries a password.
    """
    try:
        parts: dict[str, Any] = conninfo.conninfo_to_dict(dsn)
    except psycopg.Error as error:
        raise errors.BadOption(
            f"not a connection string: {redact(str(error)).strip()}",
            fix="give libpq's key=value form or a postgresql:// URI",
        ) from None
    if parts.pop("password", None) is not None or parts.pop("sslpassword", None) is not None:
        raise errors.SecretInConninfo(
            "the connection string carries a password, and the catalog stores no secrets",
            fix="leave it out; put it into ~/.pgpass, PGPASSWORD or SHARDWRIGHT_PASSWORD_<SHARD>",
        )
    return conninfo.make_conninfo(**parts)


def shard_password(name: str) -> str | None:
    """The password that the environment gives for one shard, or None."""
    return os.environ.get("SHARDWRIGHT_PASSWORD_" + re.sub(r"\W", "_", name).upper())


class HasSubscribersConninfo(HasConninfo, Protocol):
    """What is needed to let another shard's server reach this one; `catalog.roster.Shard` is one."""

    @property
    def subscribers_conninfo(self) -> str:
        """Its connection string as seen from other servers, without a password."""
        ...


def subscription_conninfo(shard: HasSubscribersConninfo) -> str:
    """The connection string that a subscription to a shard stores.

    The apply worker sees no environment of ours. A password that we were given goes into pg_subscription with it, where
    only superusers read it; a password file on the subscriber's host is the better way, and then none is given to us.

    Args:
        shard: the publisher.
    """
    password = shard_password(shard.name) or os.environ.get("PGPASSWORD")
    return conninfo.make_conninfo(shard.subscribers_conninfo, **({"password": password} if password else {}))


def _open(what: str, dsn: str, application_name: str, password: str | None, **extra: str) -> psycopg.Connection:
    options = {"connect_timeout": "10", **KEEPALIVES, **extra, "application_name": application_name}
    if password is not None:
        options["password"] = password
    try:
        opened = psycopg.Connection.connect(
            conninfo.make_conninfo(dsn, **options), autocommit=True, prepare_threshold=None
        )
        remember(opened)
        return opened
    except psycopg.ProgrammingError as error:
        raise errors.BadOption(f"not a connection string for {what}: {redact(str(error)).strip()}") from None
    except psycopg.OperationalError as error:
        raise connect_error(what, error) from None


def connect_error(what: str, error: psycopg.OperationalError) -> errors.PreconditionError:
    """The error of ours for a connection that could not be opened.

    Args:
        what: who was called, for the message: ``shard s1``, ``the catalog``.
        error: what psycopg raised.
    """
    said = redact(" ".join(str(error).split()))
    if "no password supplied" in said:
        return errors.PasswordMissing(
            f"{what} asks for a password, and none was given",
            fix="put it into ~/.pgpass, PGPASSWORD or SHARDWRIGHT_PASSWORD_<SHARD>",
        )
    if "hot standby mode" in said or "not primary" in said or "is in recovery" in said:
        return errors.NotPrimary(f"{what} is a standby", fix="give the primary's address")
    return errors.CannotConnect(
        f"cannot connect to {what}: {said}", fix="is the server running, and does pg_hba.conf let us in?"
    )


#: The timeline that a primary writes; a standby cannot say.
_TIMELINE = (
    "CASE WHEN NOT pg_catalog.pg_is_in_recovery() "
    "THEN pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END"
)


def _refuse_old_primary(connection: psycopg.Connection, what: str, highest: int) -> None:
    row = connection.execute(f"SELECT {_TIMELINE}".encode()).fetchone()
    timeline = int(row[0], 16) if row is not None and row[0] else highest
    if timeline < highest:
        connection.close()
        raise errors.NotPrimary(
            f"{what} answers on timeline {timeline}, and a primary on timeline {highest} was seen: this one is a former primary",
            fix="stop it, or make it a standby; `shardwright shard add` stores the new primary's address, or accepts this one",
        )


def _pin(connection: psycopg.Connection, what: str, replica_role: bool) -> None:
    settings = dict(PINNED)
    if connection.info.server_version >= 170000:
        settings["transaction_timeout"] = "0"
    names = ", ".join(f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in settings.items())
    row = connection.execute(f"SELECT pg_catalog.pg_is_in_recovery(), {names}".encode()).fetchone()
    if row is not None and row[0]:
        connection.close()
        raise errors.NotPrimary(f"{what} is a standby", fix="give the primary's address")
    if replica_role:
        try:
            connection.execute("SET session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            connection.close()
            raise errors.UnfitServer(
                f"the role may not set session_replication_role on {what}",
                fix="GRANT SET ON PARAMETER session_replication_role TO the role",
            ) from None


def connect_catalog(dsn: str, application_name: str = "shardwright") -> psycopg.Connection:
    """A connection to the catalog, in autocommit mode.

    Raises:
        CannotConnect, PasswordMissing, NotPrimary, BadOption: as their names say.
    """
    connection = _open("the catalog", dsn, application_name, None)
    _pin(connection, "the catalog", replica_role=False)
    return connection


def connect_shard(
    shard: HasConninfo, application_name: str = "shardwright", *, replica_role: bool = False
) -> psycopg.Connection:
    """A connection to a shard's primary, in autocommit mode, for our own work (not for applications' sessions).

    Args:
        shard: whom to call.
        application_name: as shown in pg_stat_activity.
        replica_role: set session_replication_role to replica, so that guards and foreign keys do not fire.

    Raises:
        CannotConnect, PasswordMissing, NotPrimary, BadOption: as their names say.
        UnfitServer: the role may not set session_replication_role.
    """
    what = f"shard {shard.name}"
    connection = _open(what, shard.conninfo, application_name, shard_password(shard.name))
    _pin(connection, what, replica_role)
    if highest := getattr(shard, "timeline", 0):
        _refuse_old_primary(connection, what, highest)
    return connection


def connect_replication(shard: HasConninfo, application_name: str = "shardwright") -> psycopg.Connection:
    """A connection that speaks the replication protocol (simple queries only), with a lock_timeout of 10 s.

    Making a slot waits for every transaction that is open in the whole cluster. statement_timeout does not bound that
    wait, lock_timeout does.

    Raises:
        CannotConnect, PasswordMissing: as their names say.
    """
    return _open(
        f"shard {shard.name}",
        shard.conninfo,
        application_name,
        shard_password(shard.name),
        replication="database",
        options="-c lock_timeout=10s -c statement_timeout=0 -c idle_in_transaction_session_timeout=0",
    )


def each_host(dsn: str) -> list[str]:
    """A connection string for each of the hosts that one names, in its order.

    Args:
        dsn: with ``host=a,b port=5432,5433``, or with one host, or none.

    Returns:
        One string a host; the string itself where there is but one.
    """
    parts: dict[str, Any] = conninfo.conninfo_to_dict(dsn)
    lists = {name: str(parts[name]).split(",") for name in ("host", "hostaddr", "port") if name in parts}
    hosts = max((len(lists[name]) for name in ("host", "hostaddr") if name in lists), default=1)
    if hosts == 1:
        return [dsn]
    # One port is every host's.
    return [
        conninfo.make_conninfo(**parts | {name: found[at if len(found) > 1 else 0] for name, found in lists.items()})
        for at in range(hosts)
    ]


class ShardDialer:
    """Opens applications' connections to one shard's primary, whichever of its hosts that is.

    The hosts are tried one by one, and the one that served last comes first: a host that is gone costs its time once. A
    host that calls itself the primary and is refused by `vet` is passed over like one that does not answer.

    Args:
        shard: whom to call. Settings are the server's and the role's own, as an application expects; only a primary is
            accepted, unless the connection string says otherwise by `target_session_attrs`, as it must behind Pgpool-II.
        application_name: as shown in pg_stat_activity.
        connect_timeout: seconds for each host, 2 at least.
    """

    def __init__(self, shard: HasConninfo, application_name: str, connect_timeout: float) -> None:
        self._what = f"shard {shard.name}"
        self._shard = shard.name
        self.connect_timeout = connect_timeout
        asked = conninfo.conninfo_to_dict(shard.conninfo)
        wanted = {
            "target_session_attrs": "primary",
            "connect_timeout": str(max(2, round(connect_timeout))),
            **KEEPALIVES,
            "tcp_user_timeout": "10000",
        }
        self._more = {name: value for name, value in wanted.items() if name not in asked}
        self._more["application_name"] = application_name
        self._hosts = each_host(shard.conninfo)

    def places(self) -> list[str]:
        """A connection string for each host, with its password where one is given: the likeliest host first."""
        more = dict(self._more)
        if (password := shard_password(self._shard)) is not None:
            more["password"] = password
        return [conninfo.make_conninfo(host, **more) for host in list(self._hosts)]

    def served(self, at: int) -> None:
        """Take note of the place that serves.

        Args:
            at: its index in `places`.
        """
        if at:
            hosts = list(self._hosts)
            self._hosts = [hosts[at], *hosts[:at], *hosts[at + 1 :]]

    def unavailable(self, said: Sequence[Exception]) -> errors.ShardUnavailable:
        """The error for a shard none of whose hosts serves.

        Args:
            said: what the driver raised for each, or what `vet` did.
        """
        found = [
            one
            if isinstance(one, errors.ShardUnavailable)
            else connect_error(self._what, one if isinstance(one, psycopg.OperationalError) else _operational(one))
            for one in said
        ]
        message = "; ".join(dict.fromkeys(one.message for one in found))
        return errors.ShardUnavailable(message, fix=found[-1].fix, shard=self._shard)

    def open(
        self, connection_class: type[C], vet: Callable[[C], None], prepare_threshold: int | None, **arguments: Any
    ) -> C:
        """A psycopg connection, in autocommit mode.

        Args:
            connection_class: what it is.
            vet: called with it; raises ShardUnavailable where it must not be used.
            prepare_threshold: psycopg's; None never prepares, which PgBouncer in transaction mode asks for.
            arguments: further ones of `psycopg.Connection.connect`; they come before those of the shard's address.

        Raises:
            ShardUnavailable: no host serves.
        """
        said: list[Exception] = []
        for at, place in enumerate(self.places()):
            try:
                opened = connection_class.connect(
                    place, autocommit=True, prepare_threshold=prepare_threshold, **arguments
                )
            except psycopg.OperationalError as error:
                said.append(error)
                continue
            remember(opened)
            try:
                vet(opened)
            except BaseException as error:
                opened.close()
                if not isinstance(error, (errors.ShardUnavailable, psycopg.OperationalError)):
                    raise
                said.append(error)
                continue
            self.served(at)
            return opened
        raise self.unavailable(said) from None


def _operational(error: Exception) -> psycopg.OperationalError:
    """Another driver's error as psycopg would say it."""
    return psycopg.OperationalError(str(error) or type(error).__name__)
