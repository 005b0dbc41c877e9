"""One shard's part of a restore: its table made, filled from archives, and compared, before anything is attached.

What was made and is not attached yet is seen by nobody. After a crash it carries our mark in the state ``made``, and the
next restore begins it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from shardwright import engines, errors, failpoints
from shardwright.catalog import ddl, probe
from shardwright.partition import archive, archived_columns, codecs, leaves, marks
from shardwright.partition.archived_columns import Survey
from shardwright.partition.copying import copy_in
from shardwright.partition.manifest import Manifest
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite
from shardwright.partition.stores import Store


@dataclass
class Bringing:
    """One window that comes back to one shard."""

    site: PartitionSite
    one: Partition
    #: SQL that is true for rows that belong to this shard; None: all do.
    owned: str | None
    #: ``load`` from archives; ``reattach``: its table is there still; ``present``: it is attached with these very rows.
    how: str = "load"
    #: Rows that were loaded from each archive, by its shard.
    loaded: dict[str, int] = field(default_factory=dict)
    survey: Survey | None = None
    #: The archive of this very shard.
    own: Manifest | None = None

    @property
    def name(self) -> str:
        """``window on shard s1``, for messages."""
        return f"{self.one.name} of {self.site.table.name} on shard {self.site.shard.name}"

    @property
    def qualified(self) -> str:
        """Its table as SQL."""
        return self.site.leaf(self.one.name).as_string(self.site.connection)

    # ---------------------------------------------------------------- before anything is changed

    def look(self, sources: Sequence[Manifest]) -> None:
        """Find out how it comes back, and whether it can; nothing is changed.

        Args:
            sources: archives of this window.

        Raises:
            UnfitTable: something else has its name, it has other rows, or its columns are not the archive's.
        """
        standing = leaves.find(self.site, self.one.name)
        own = self.own = next((made for made in sources if made.whose.shard == self.site.shard.name), None)
        for made in sources:
            self._check_columns(made)
        if standing is None or (standing.marked and standing.state == "made"):
            return
        if not standing.marked or standing.pending:
            what = "is about to be detached" if standing.pending else "is there already, and not ours"
            raise self._unfit(f"{what}", "shardwright partition tick" if standing.pending else "rename it")
        if not probe.has_rows(self.site.connection, self.site.schema, self.one.name):
            return
        if own is not None:
            found = archived_columns.survey(self.site.connection, self.qualified, own.columns)
            if (found.rows, found.checksum) != (own.rows, own.checksum):
                raise self._unfit(
                    f"has {found.rows} rows that are not those of the archive",
                    "look at them; archive or delete them, then run this again",
                )
        elif standing.attached:
            raise self._unfit("is attached and has rows", "nothing to do")
        self.how = "present" if standing.attached else "reattach"
        if self.owned is not None and self.how == "reattach":
            row = self.site.connection.execute(
                f"SELECT EXISTS (SELECT FROM ONLY {self.qualified} WHERE NOT {self.owned})".encode()
            ).fetchone()
            if row is not None and row[0]:
                if own is None:
                    raise errors.MisplacedRows(
                        f"{self.name} has rows whose points the shard does not own any more",
                        fix="archive it, which `archive=` of the policy asks for, then restore it",
                        table=self.site.table.name,
                        shard=self.site.shard.name,
                    )
                self.how = "load"

    def _unfit(self, what: str, fix: str) -> errors.UnfitTable:
        return errors.UnfitTable(
            f"{self.name} cannot be restored: it {what}",
            fix=fix,
            table=self.site.table.name,
            shard=self.site.shard.name,
        )

    def _check_columns(self, made: Manifest) -> None:
        site = self.site
        have = {
            column.name: column
            for column in archived_columns.columns_of(site.connection, site.parent.as_string(site.connection))
        }
        wrong = []
        for column in archived_columns.stored(made.columns):
            mine = have.get(column.name)
            if mine is None:
                wrong.append(f"{column.name} is no more")
            elif mine.generated:
                wrong.append(f"{column.name} is computed now")
            elif mine.type != column.type:
                wrong.append(f"{column.name} was {column.type} and is {mine.type}")
        if wrong:
            raise self._unfit(
                f"was archived when the table had other columns: {', '.join(wrong)}",
                "read the Parquet file with a tool of your choice; it says each column's type",
            )

    # ---------------------------------------------------------------- the table

    def make(self) -> None:
        """Make the table, empty; what a restore that crashed left is dropped first."""
        if self.how != "load":
            return
        site = self.site

        def make() -> None:
            standing = leaves.find(site, self.one.name)
            if standing is not None:
                if standing.attached:
                    site.connection.execute(
                        sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(site.parent, site.leaf(self.one.name))
                    )
                self._check_worthless(standing)
                site.connection.execute(sql.SQL("DROP TABLE {}").format(site.leaf(self.one.name)))
            leaves.make(site, self.one)
            self._mark("made")

        site.patiently(make, also=[self.one.name], readers=True)
        failpoints.reach("partition.restore_made")

    def _check_worthless(self, standing: leaves.Standing) -> None:
        """That a table which is about to be made anew has no row but those of the archive; under its lock."""
        if standing.marked and standing.state == "made" and not standing.attached:
            return
        site = self.site
        site.connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(site.leaf(self.one.name)))
        if not standing.marked:
            raise self._unfit("is there already, and not ours", "rename it")
        if not probe.has_rows(site.connection, site.schema, self.one.name):
            return
        if self.own is not None:
            found = archived_columns.survey(site.connection, self.qualified, self.own.columns)
            if (found.rows, found.checksum) == (self.own.rows, self.own.checksum):
                return
        raise self._unfit("has rows that are not those of the archive", "look at them, then run this again")

    def _mark(self, state: str) -> None:
        self.site.mark(self.one, state)

    def load(self, made: Manifest, store: Store) -> None:
        """Load the rows of one archive that belong here.

        Args:
            made: its manifest.
            store: where it is.

        Raises:
            ArchiveUnusable: the file cannot be read.
            UnfitTable: the table does not take the rows.
        """
        if self.how != "load":
            return
        where = self.owned or ""
        statement = archive.copy_statement(self.qualified, archived_columns.stored(made.columns), where)
        with engines.connect_shard(self.site.shard, "shardwright restore") as connection:
            archive.prepare(connection)
            for block in archive.read_blocks(made, store):
                try:
                    rows = copy_in(connection, statement, [block])
                except (psycopg.DataError, psycopg.IntegrityError) as error:
                    raise self._unfit(
                        f"does not take the archive's rows: {' '.join(str(error).split())}",
                        "change the table so that it does, or read the Parquet file with a tool of your choice",
                    ) from error
                self.loaded[made.whose.shard] = self.loaded.get(made.whose.shard, 0) + rows
                failpoints.reach("partition.restore_half_loaded")
                self.site.on_progress()

    def count(self, columns: Sequence[archived_columns.ArchivedColumn]) -> Survey:
        """Count and hash what is there now.

        Args:
            columns: the archive's.
        """
        self.survey = archived_columns.survey(self.site.connection, self.qualified, columns)
        return self.survey

    def ready(self) -> None:
        """Give the table what lets it be attached at once: the CHECK of its bounds, and valid foreign keys.

        Raises:
            UnfitTable: rows refer to rows that are not there any more.
        """
        site, connection = self.site, self.site.connection
        if self.how == "present":
            return
        if self.how == "reattach":
            text = codecs.check_sql(
                site.policy,
                site.key,
                site.column.as_string(connection),
                self.one.lower,
                self.one.upper,
                site.column_type,
            )
            with connection.transaction():
                for what in (
                    sql.SQL("DROP CONSTRAINT IF EXISTS {}").format(sql.Identifier(leaves.BOUNDS_CHECK)),
                    sql.SQL("ADD CONSTRAINT {} CHECK {}").format(
                        sql.Identifier(leaves.BOUNDS_CHECK), ddl.printed(text)
                    ),
                ):
                    connection.execute(sql.SQL("ALTER TABLE {} {}").format(site.leaf(self.one.name), what))
        for name, definition, schema, table in _foreign_keys(site, self.one.name):
            leaf = site.leaf(self.one.name)
            site.patiently(
                lambda leaf=leaf, name=name, definition=definition: connection.execute(  # type: ignore[misc]
                    sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} NOT VALID").format(
                        leaf, sql.Identifier(name), ddl.printed(definition)
                    )
                ),
                also=[self.one.name, *([table] if schema == site.schema else [])],
            )
            try:
                connection.execute(sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(leaf, sql.Identifier(name)))
            except psycopg.errors.ForeignKeyViolation as error:
                raise self._unfit(
                    f"has rows that refer to rows of {schema}.{table} which are not there ({name}: "
                    f"{error.diag.message_detail})",
                    f"restore the window of {table} first",
                ) from error

    def undo(self) -> None:
        """Drop what `make` made, unless it is attached by now; a table that was there before stays."""
        site = self.site
        if self.how == "load" and not site.connection.closed:
            standing = leaves.find(site, self.one.name)
            if standing is not None and standing.marked and standing.state == "made" and not standing.attached:
                with site.connection.transaction():
                    site.connection.execute(sql.SQL("DROP TABLE {}").format(site.leaf(self.one.name)))
                    marks.forget(site.connection, site.schema, self.one.name)


def _foreign_keys(site: PartitionSite, name: str) -> list[tuple[str, str, str, str]]:
    """The parent's foreign keys that a table lacks: name, definition, and the table that each points to."""
    return site.connection.execute(
        "SELECT o.conname, pg_get_constraintdef(o.oid), n.nspname, c.relname FROM pg_constraint o "
        "JOIN pg_class c ON c.oid = o.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE o.conrelid = %s::regclass AND o.contype = 'f' AND o.conparentid = 0 AND NOT EXISTS ("
        "SELECT FROM pg_constraint mine WHERE mine.conrelid = %s::regclass AND mine.contype = 'f' "
        "AND mine.conname = o.conname) ORDER BY 1",
        (site.parent.as_string(site.connection), site.leaf(name).as_string(site.connection)),
    ).fetchall()
