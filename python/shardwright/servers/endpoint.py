"""Where a server listens, and the databases on it."""

from __future__ import annotations

from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
from psycopg import sql

from shardwright.errors import CannotConnect


class Endpoint:
    """A PostgreSQL server that answers somewhere; whoever started it.

    Attributes:
        host: where it listens.
        port: its TCP port.
        user: a superuser of it.
        password: the superuser's password, None where the server trusts its host.
    """

    def __init__(self, host: str, port: int, user: str = "postgres", password: str | None = None) -> None:
        self.host = host
        self.port = port
        self.user = user
        self.password = password

    def dsn(self, dbname: str = "postgres") -> str:
        """The URI of a database on this server, never with a password."""
        return f"postgresql://{quote(self.user, safe='')}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def connect(self, dbname: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """A connection as superuser, in autocommit mode unless said otherwise.

        Raises:
            CannotConnect: the server does not answer, or refuses.
        """
        options = {
            "autocommit": True,
            "connect_timeout": 10,
            "application_name": "shardwright servers",
            **options,
        }
        try:
            return psycopg.connect(self.dsn(dbname), password=self.password, **options)
        except psycopg.OperationalError as error:
            raise CannotConnect(f"{self.host}:{self.port}: {str(error).strip()}") from error

    def execute(self, statement: LiteralString | sql.Composed, dbname: str = "postgres") -> list[Any]:
        """Run one statement as superuser and return its rows."""
        with self.connect(dbname) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str) -> str:
        """Create an empty UTF-8 database and return its DSN."""
        with self.connect() as server:
            row = server.execute("SHOW fsync").fetchone()
            # Copying the template's files is quicker than logging its pages, unless each of them must reach the disk.
            strategy = sql.SQL("FILE_COPY" if row == ("off",) else "WAL_LOG")
            server.execute(sql.SQL("CREATE DATABASE {} STRATEGY {}").format(sql.Identifier(name), strategy))
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database with everything that hangs on it: sessions, subscriptions and replication slots."""
        with self.connect() as server:
            row = server.execute(
                "SELECT EXISTS (SELECT FROM pg_subscription WHERE subdbid = d.oid)"
                " OR EXISTS (SELECT FROM pg_replication_slots WHERE database = d.datname)"
                " FROM pg_database d WHERE datname = %s",
                (name,),
            ).fetchone()
            if row is None:
                return
            if row[0]:
                self._end_streams(name)
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _end_streams(self, name: str) -> None:
        """Drop a database's subscriptions and slots; nobody can connect to it any more."""
        with self.connect(name) as inside:
            inside.execute("SET statement_timeout = '60s'")
            rows = inside.execute(
                "SELECT subname FROM pg_subscription WHERE subdbid ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            ).fetchall()
            for (subscription,) in rows:
                for change in (
                    "ALTER SUBSCRIPTION {} DISABLE",
                    "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
                ):
                    inside.execute(sql.SQL(change).format(sql.Identifier(subscription)))
                inside.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(subscription)))
            # Else a subscriber elsewhere comes back to its slot between these two.
            self.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
            inside.execute(
                "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
                " WHERE database = current_database() AND active_pid IS NOT NULL"
            )
            inside.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                " WHERE database = current_database()"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.host}:{self.port})"
