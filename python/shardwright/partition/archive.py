"""One partition into one Parquet file: written, read back, counted and hashed again by PostgreSQL, and only then believed.

The checksum is computed inside PostgreSQL: the number of rows and the sum of their 64-bit hashes, which do not depend on
the rows' order. What is read back from the file goes into a temporary table of the same types, a row group at a time,
where PostgreSQL computes the same. So the file is proven by the very way on which a restore brings it back.

Memory is bounded by a row group, the disk of the shard too.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from types import ModuleType
from typing import BinaryIO, cast

import psycopg
from psycopg import sql

from shardwright import errors
from shardwright.catalog import layout
from shardwright.failpoints import reach
from shardwright.partition import archived_columns, manifest, stores
from shardwright.partition.archived_columns import ArchivedColumn, Survey
from shardwright.partition.copying import blocks_out, copy_in
from shardwright.partition.manifest import Manifest, Whose
from shardwright.partition.stores import Store

_log = logging.getLogger(__name__)

#: Bytes of CSV that one row group is made from; a row that is longer has one of its own.
BLOCK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Archived:
    """What became of one partition."""

    manifest: Manifest
    #: False where a valid archive of these very rows was there already.
    written: bool


def prepare(connection: psycopg.Connection) -> None:
    """Give a connection the settings that text forms in archives depend on, besides those that `engines` pins.

    Args:
        connection: to a shard.
    """
    connection.execute("SELECT set_config('client_encoding', 'UTF8', false), set_config('lc_monetary', 'C', false)")


def parquet_module() -> ModuleType:
    """`partition.parquet`, which needs pyarrow.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        from shardwright.partition import parquet
    except ImportError as error:
        raise stores.missing_extra() from error
    return parquet


def archive(
    connection: psycopg.Connection,
    whose: Whose,
    store: Store,
    on_progress: Callable[[], None] = lambda: None,
) -> Archived:
    """Write a partition that nobody writes to any more into a store, and verify it. May be run again after a crash.

    Args:
        connection: to the shard, for this alone: it is closed when the copy breaks off.
        whose: the partition.
        store: where to.
        on_progress: called after each row group; it may raise to stop.

    Returns:
        The manifest, which is in the store by now, and whether anything was written.

    Raises:
        ArchiveUnusable: the store cannot be written or read, or another cluster's archive is there.
        ArchiveDiffers: what was read back is not what the partition holds.
        MissingExtra: pyarrow is not installed.
    """
    parquet_module()
    prepare(connection)
    qualified = sql.Identifier(whose.schema, whose.partition).as_string(connection)
    with _snapshot(connection):
        found = archived_columns.survey(connection, qualified, archived_columns.columns_of(connection, qualified))
        path = manifest.file_path(whose, found.columns)
        if (there := _existing(store, path, whose, found)) is not None:
            _log.info("partition %s is archived at %s already", whose.name, path)
            return Archived(there, written=False)
        described = json.loads(json.dumps(layout.layout_of(connection, whose.schema, whose.partition).to_json()))
        with stores.explained("written", store.place):
            written = _write(connection, qualified, found.columns, store, path, on_progress)
    reach("partition.archive_written")
    made = Manifest(
        whose=whose,
        columns=found.columns,
        layout=described,
        rows=found.rows,
        checksum=found.checksum,
        file=path,
        bytes=written.size,
        sha256=written.sha256,
        tool=f"shardwright {metadata.version('shardwright')}",
        server=connection.info.server_version,
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        verify(connection, made, store, on_progress)
    except errors.ArchiveDiffers:
        with stores.explained("mended", store.place):
            store.remove(path)
        raise
    reach("partition.archive_verified")
    with stores.explained("written", store.place), store.writing(manifest.manifest_path(path)) as file:
        file.write(manifest.dumps(made))
    reach("partition.archive_manifest_written")
    return Archived(made, written=True)


@contextmanager
def _snapshot(connection: psycopg.Connection) -> Iterator[None]:
    """Count, hash and copy must see the same rows."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("ROLLBACK")


def _existing(store: Store, path: str, whose: Whose, found: Survey) -> Manifest | None:
    """A valid archive of these rows; None where it is missing, broken, or of other rows: then it is written anew."""
    with stores.explained("read", store.place):
        text = stores.read_text(store, manifest.manifest_path(path))
        if text is None:
            return None
        try:
            there = manifest.loads(text, manifest.manifest_path(path))
        except errors.ArchiveUnusable as error:
            _log.warning("the archive of %s is written anew: %s", whose.name, error)
            return None
        if there.whose.cluster != whose.cluster:
            raise errors.ArchiveUnusable(
                f"{store.place} has the archive {path} of another cluster ({there.whose.cluster})",
                fix="give each cluster a directory of its own: change archive= of the policy",
                place=store.place,
            )
        if not there.holds_what(whose, found.columns, found.rows, found.checksum):
            return None
        try:
            check_file(there, store)
        except errors.ArchiveUnusable as error:
            _log.warning("the archive of %s is written anew: %s", whose.name, error)
            return None
    return there


def _write(
    connection: psycopg.Connection,
    qualified: str,
    columns: Sequence[ArchivedColumn],
    store: Store,
    path: str,
    on_progress: Callable[[], None],
) -> stores.Hashing:
    in_file = archived_columns.stored(columns)
    sent = ", ".join(column.sent for column in in_file)
    copy = f"COPY (SELECT {sent} FROM ONLY {qualified}) TO STDOUT (FORMAT csv)".encode()
    with store.writing(path) as file:
        hashing = stores.Hashing(file)
        writer = parquet_module().BlockWriter(cast(BinaryIO, hashing), in_file)
        blocks = blocks_out(connection, copy, BLOCK_BYTES)
        try:
            for block in blocks:
                writer.write(block)
                reach("partition.archive_half_written")
                on_progress()
            writer.close()
        except BaseException:
            hashing.abandoned = True
            blocks.close()
            with contextlib.suppress(Exception):
                writer.close()
            raise
    return hashing


def check_file(made: Manifest, store: Store) -> None:
    """Check that an archive's file is byte for byte the one that its manifest speaks of.

    Args:
        made: its manifest.
        store: where it is.

    Raises:
        ArchiveUnusable: it is missing, or another one.
    """
    with stores.explained("read", store.place):
        try:
            found = stores.sha256_of(store, made.file)
        except FileNotFoundError:
            raise errors.ArchiveUnusable(
                f"{store.place} has the manifest of {made.whose.name}, and not its file {made.file}",
                fix="put the file back from a copy of the archive",
                place=store.place,
            ) from None
    if found != made.sha256:
        raise errors.ArchiveUnusable(
            f"the file {made.file} at {store.place} was changed or damaged: its SHA-256 is {found[:16]}..., "
            f"and the manifest says {made.sha256[:16]}...",
            fix="put the file back from a copy of the archive",
            place=store.place,
        )


def verify(
    connection: psycopg.Connection, made: Manifest, store: Store, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Read an archive's file back, and let PostgreSQL count and hash the rows that come out of it.

    Args:
        connection: to a shard that has the columns' types.
        made: the archive's manifest.
        store: where it is.
        on_progress: called after each row group; it may raise to stop.

    Raises:
        ArchiveUnusable: the file cannot be read, or is not the one that was written.
        ArchiveDiffers: its rows are not those that the manifest tells of.
    """
    prepare(connection)
    check_file(made, store)
    in_file = archived_columns.stored(made.columns)
    types = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.type)) for column in in_file
    )
    try:
        connection.execute(sql.SQL("CREATE TEMP TABLE {} ({})").format(sql.Identifier(_NAME), types))
    except psycopg.errors.InsufficientPrivilege as error:
        raise errors.UnfitServer(
            f"an archive is verified in a temporary table, which the role may not make: {error.diag.message_primary}",
            fix=f"GRANT TEMPORARY ON DATABASE {connection.info.dbname} TO {connection.info.user}",
        ) from error
    table = f'pg_temp."{_NAME}"'
    sums = f"SELECT {archived_columns.sums_sql(in_file)} FROM {table}".encode()
    rows = checksum = 0
    try:
        for block in read_blocks(made, store):
            copy_in(connection, copy_statement(table, in_file), [block])
            found = connection.execute(sums).fetchone()
            assert found is not None
            rows, checksum = rows + int(found[0]), checksum + int(found[1])
            connection.execute(f"TRUNCATE {table}".encode())
            on_progress()
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise _differs(made, store, f"PostgreSQL does not take it: {' '.join(str(error).split())}") from error
    finally:
        if not connection.closed:
            connection.execute(f"DROP TABLE {table}".encode())
    if (rows, checksum) != (made.rows, made.checksum):
        raise _differs(made, store, f"{rows} rows with checksum {checksum}, and not {made.rows} with {made.checksum}")


_NAME = "shardwright_read_back"


def _differs(made: Manifest, store: Store, what: str) -> errors.ArchiveDiffers:
    return errors.ArchiveDiffers(
        f"what was read back of the archive of {made.whose.name} at {store.place} differs: {what}",
        fix="nothing was dropped; check the disk or the store, then: shardwright partition tick",
        place=store.place,
        file=made.file,
    )


def read_blocks(made: Manifest, store: Store) -> Iterator[memoryview]:
    """The rows of an archive, a row group at a time, as CSV for `copy_statement`.

    Args:
        made: its manifest.
        store: where it is.

    Raises:
        ArchiveUnusable: the file cannot be read as what the manifest says.
    """
    with stores.explained("read", store.place):
        try:
            with store.open(made.file) as file:
                yield from parquet_module().blocks_in(file, archived_columns.stored(made.columns))
        except ValueError as error:
            raise errors.ArchiveUnusable(
                f"the file {made.file} at {store.place} is not what its manifest says: {' '.join(str(error).split())}",
                fix="put the file back from a copy of the archive",
                place=store.place,
            ) from error


def copy_statement(table: str, columns: Sequence[ArchivedColumn], where: str = "") -> bytes:
    """The COPY that takes the rows of `read_blocks`.

    Args:
        table: as SQL.
        columns: those in the file.
        where: SQL of a condition; other rows are left out.
    """
    names = ", ".join(column.quoted for column in columns)
    return f"COPY {table} ({names}) FROM STDIN (FORMAT csv){f' WHERE {where}' if where else ''}".encode()
