"""The root of the command line, and what its verbs share.

How a verb is made. One file a verb or a verb group, with the verb's name: ``cli/shard.py``. It is imported only when
the verb is used, and it defines ``app``:

    app = App(name="shard", help="Add, list and remove shards.")      # a group: shardwright shard add ...

    @app.command                                                       # a single verb (init, route): @app.default
    def add(name: str, dsn: str, /, *, region: str = "", common: Common = DEFAULTS) -> Answer:
        \"\"\"Add a shard.

        Args:
            name: its name in this cluster.      # shown by --help
        \"\"\"
        with common.connect() as catalog:        # --catalog; the schema's version is checked
            shard = shards.add_shard(catalog, name, dsn, region=region)
        return Answer(
            {"shard": shard.name},                           # what --json prints
            [f"shard {shard.name} is added"],                # what people see: strings, output.Table, mappings
            next_steps=["shardwright table register MODULE:METADATA"],
        )

then it is named in `VERBS` below. A verb raises errors of `shardwright.errors` and prints nothing itself. One that
reports while it works uses ``common.output``: ``.note(text)`` for people (stderr), ``.item(value, text)`` for one line
of a stream, ``.live()`` for a display that is renewed. Whatever leaves goes through `output.redact`.

Every option is also an environment variable (``--dry-run``: SHARDWRIGHT_DRY_RUN) and a key of ``[tool.shardwright]`` in
pyproject.toml or of shardwright.toml, which may hold a table for each verb: ``[tool.shardwright.dev.up]``.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError
from cyclopts.config import Env, Toml

from shardwright import errors
from shardwright.cli import version
from shardwright.cli.output import Answer, Output, ReaderGone

if TYPE_CHECKING:
    import psycopg

#: The verbs, each in the module of its name, and what the root's help says of it.
VERBS = {
    "init": "Make an empty database the catalog of a cluster, or bring a catalog up to date.",
    "shard": "Add, list and remove shards.",
    "keyspace": "Create and list keyspaces.",
    "table": "Register tables on every shard, adopt existing ones, list them.",
    "unique": "Compare the directory of values that are unique over all shards with the rows, and mend it.",
    "route": "Tell which shard a key lives on.",
    "lint": "Tell what of an application's models and statements would be refused, or ask every shard.",
    "doctor": "Look for what is wrong or will be: connections that do not fit, shards that are not there.",
    "status": "Show the cluster: shards, ranges, tables, operations and their lag.",
    "reshard": "Move ranges between shards while the application keeps running.",
    "migrate": "Run schema migrations (Alembic) on every shard.",
    "partition": "Keep the time partitions of every shard in step with their policies.",
    "tx": "List and end transactions on several shards whose sessions did not.",
    "worker": "Run operations, and keep partitions in step, until told to stop.",
    "leave": "Take everything of shardwright off a cluster that is down to one shard.",
    "demo": "Reshard a live cluster on this machine and check every promise.",
    "dev": "Start and stop a local cluster for development.",
    "explain": "Print the page of an error number.",
}

app = App(
    name="shardwright",
    help="PostgreSQL sharding and online resharding: no proxy, no server extension.",
    version=version,
    config=[
        Env("SHARDWRIGHT_", command=False),
        Toml("shardwright.toml", search_parents=True),
        Toml("shardwright.toml", search_parents=True, use_commands_as_keys=False, allow_unknown=True),
        Toml("pyproject.toml", root_keys=("tool", "shardwright"), search_parents=True),
        Toml(
            "pyproject.toml",
            root_keys=("tool", "shardwright"),
            search_parents=True,
            use_commands_as_keys=False,
            allow_unknown=True,
        ),
    ],
)
for _verb, _help in VERBS.items():
    app.command(f"shardwright.cli.{_verb}:app", name=_verb, help=_help)
app.register_install_completion_command()


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """The options that every command takes."""

    catalog: Annotated[str | None, Parameter(help="The catalog's DSN (libpq's URI or key=value form).")] = None
    json: Annotated[bool, Parameter(help="Print one JSON value, errors included.", negative=())] = False

    @cached_property
    def output(self) -> Output:
        """Where to print while the command works."""
        return Output(self.json)

    def dsn(self) -> str:
        """The catalog's DSN.

        Raises:
            BadOption: none was given.
        """
        if not self.catalog:
            raise errors.BadOption("no catalog was given", fix="give --catalog DSN or set SHARDWRIGHT_CATALOG")
        return self.catalog

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the catalog, whose schema has been checked to fit this program.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary: it cannot be used.
            CatalogNewer, CatalogOlder: it was made by another version, or is no catalog yet.
        """
        from shardwright import engines
        from shardwright.catalog import migrations

        connection = engines.connect_catalog(self.dsn())
        try:
            migrations.check(connection, "catalog")
        except BaseException:
            connection.close()
            raise
        return connection


#: The value of a command's `common` where none of its options was given.
DEFAULTS = Common()


def run(words: Sequence[str]) -> int:
    """Parse and run one command line, print its answer or its error, and return the exit code."""
    output = Output(_wants_json(words))
    try:
        try:
            with _signals_interrupt():
                try:
                    command, bound, _ = app.parse_args(list(words), exit_on_error=False, print_error=False)
                except CycloptsError as error:
                    raise _usage(error) from error
                for value in bound.arguments.values():
                    if isinstance(value, Common):  # --json may also come from the environment or a file
                        output = value.output
                answer = command(*bound.args, **bound.kwargs)
            return output.finish(answer)
        except KeyboardInterrupt:
            return output.error(errors.Interrupted("interrupted", fix="run the same command again"))
        except errors.ShardwrightError as error:
            return output.error(error)
        except ReaderGone:
            raise
        except Exception as error:  # whatever it is: people get one line, programs get JSON
            if os.environ.get("SHARDWRIGHT_DEBUG") == "1":
                raise
            return output.error(unexpected(error))
    except ReaderGone:
        # As with other programs: the reader of our output has gone. What is still buffered must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def unexpected(error: Exception) -> errors.ShardwrightError:
    """An error of another library, or a mistake of ours, as one of our own."""
    said = " ".join(str(error).split()) or "no further words"
    sqlstate = getattr(error, "sqlstate", None)  # psycopg's, without importing it
    if sqlstate == "55P03":
        return errors.LockTimeout(f"a lock could not be had in time: {said}", fix="run the same command again")
    return errors.ShardwrightError(
        f"unexpected {type(error).__name__}{f' ({sqlstate})' if sqlstate else ''}: {said}",
        fix="set SHARDWRIGHT_DEBUG=1 for the whole story, and report it",
    )


def _usage(error: CycloptsError) -> errors.BadOption:
    chain = error.command_chain or ()
    if isinstance(error, UnknownCommandError) and not chain:
        # Its own text would import every verb.
        given = (error.unused_tokens or [""])[0]
        near = difflib.get_close_matches(given, VERBS, 1)
        said = f"no verb is called {given}" + (f"; did you mean {near[0]}?" if near else "")
    else:
        said = " ".join(str(error).split())
    return errors.BadOption(said, fix=f"{' '.join(['shardwright', *chain])} --help")


def _wants_json(words: Sequence[str]) -> bool:
    before = list(words)[: words.index("--")] if "--" in words else words
    return "--json" in before or os.environ.get("SHARDWRIGHT_JSON", "").lower() in ("1", "true", "yes")


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: what it started is stopped first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # what is ignored stays ignored: nohup
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["DEFAULTS", "VERBS", "Answer", "Common", "app", "run"]
