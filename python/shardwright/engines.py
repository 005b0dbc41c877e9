"""The only place that opens connections: catalog, shards, replication; each with its settings pinned.

Passwords never come from the catalog. libpq's own means serve (``PGPASSFILE``, ``~/.pgpass``, ``PGPASSWORD``,
``PGSERVICE``), and ``SHARDWRIGHT_PASSWORD_<SHARD>`` where two shards need different ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg import conninfo

from shardwright import errors

if TYPE_CHECKING:
    import sqlalchemy

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

_KEEPALIVES = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}
_SECRETS = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)|(//[^:/@\s]*:)[^@\s]*(@)", re.IGNORECASE)


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
    options = {"connect_timeout": "10", **_KEEPALIVES, **extra, "application_name": application_name}
    if password is not None:
        options["password"] = password
    try:
        return psycopg.Connection.connect(
            conninfo.make_conninfo(dsn, **options), autocommit=True, prepare_threshold=None
        )
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


def session_engine(
    shard: HasConninfo,
    connection_class: type[psycopg.Connection[Any]],
    vet: Callable[[Any], None],
    *,
    application_name: str,
    pool_size: int,
    max_overflow: int,
    prepare_threshold: int | None,
    **options: Any,
) -> sqlalchemy.Engine:
    """The SQLAlchemy engine of an application's sessions on one shard's primary. Connects when it is first used.

    Settings are the server's and the role's own, as an application expects; only its primary is accepted (unless the
    connection string says otherwise by `target_session_attrs`, as it must behind Pgpool-II).

    Args:
        shard: whom to call.
        connection_class: what its connections are.
        vet: called with each new connection, in autocommit mode; raises where it must not be used.
        application_name: as shown in pg_stat_activity.
        pool_size: connections kept open.
        max_overflow: connections opened beyond them while they are needed.
        prepare_threshold: psycopg's; None never prepares, which PgBouncer in transaction mode asks for.
        options: further arguments of `sqlalchemy.create_engine`.

    Returns:
        The engine; errors of connecting are `ShardUnavailable`.
    """
    # Here and not above: the command line opens connections without SQLAlchemy.
    import sqlalchemy.event

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", pool_size=pool_size, max_overflow=max_overflow, pool_use_lifo=True, **options
    )

    def connect(_dialect: object, _record: object, _args: object, arguments: dict[str, Any]) -> psycopg.Connection[Any]:
        asked = conninfo.conninfo_to_dict(shard.conninfo)
        wanted = {"target_session_attrs": "primary", "connect_timeout": "10", **_KEEPALIVES}
        wanted = {name: value for name, value in wanted.items() if name not in asked}
        wanted["application_name"] = application_name
        if (password := shard_password(shard.name)) is not None:
            wanted["password"] = password
        try:
            opened = connection_class.connect(
                conninfo.make_conninfo(shard.conninfo, **wanted),
                autocommit=True,
                prepare_threshold=prepare_threshold,
                **arguments,
            )
        except psycopg.OperationalError as error:
            said = connect_error(f"shard {shard.name}", error)
            raise errors.ShardUnavailable(said.message, fix=said.fix, shard=shard.name) from None
        try:
            vet(opened)
        except BaseException:
            opened.close()
            raise
        opened.autocommit = False
        return opened

    sqlalchemy.event.listen(engine, "do_connect", connect)
    return engine
