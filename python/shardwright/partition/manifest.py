"""What is written beside an archive's file: whose rows they are, and how to know that they are all there. Pure.

The manifest is written last. A file without one, or whose hash is not the manifest's, is no archive.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shardwright import errors
from shardwright.partition.archived_columns import ArchivedColumn, schema_hash

#: Raised when a reader of the present version could not make sense of what a later one writes.
FORMAT = 1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The first and the last microsecond that a datetime holds, from 1970.
_FIRST, _LAST = -62135596800000000, 253402300799999999

#: What not every file system has in names; the length that all have.
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\%:*?"<>|]')
_MOST_BYTES = 200

#: Keys whose axis is an instant; on the others' axis it is the wall clock's time.
_INSTANTS = frozenset({"timestamptz", "epoch_s", "epoch_ms", "epoch_us", "uuid7", "snowflake"})


@dataclass(frozen=True)
class Whose:
    """One partition of one table on one shard."""

    #: The cluster's id: two clusters do not share archives, even in one directory.
    cluster: str
    shard: str
    schema: str
    table: str
    #: The partition's name.
    partition: str
    #: One of `policy.KEYS`.
    key: str
    #: Microseconds of the policy's axis; None is its end.
    lower: int | None
    upper: int | None
    #: ``window`` or ``whole``.
    role: str = "window"

    @property
    def name(self) -> str:
        """``schema.partition``, for messages."""
        return f"{self.schema}.{self.partition}"


@dataclass(frozen=True)
class Manifest:
    """An archive of one partition."""

    whose: Whose
    columns: tuple[ArchivedColumn, ...]
    #: The partition's layout: its keys, checks, comments and grants, as `catalog.layout` reads it.
    layout: dict[str, Any]
    rows: int
    #: Sum of the rows' 64-bit hashes; see `archived_columns.sums_sql`.
    checksum: int
    #: Where the file is, below the directory or URI.
    file: str
    bytes: int
    sha256: str
    #: ``shardwright 0.1.0``, and PostgreSQL's version number.
    tool: str
    server: int
    written_at: str

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value; `from_json` reads it back. The checksum is text: it is longer than a double."""
        own = {name: value for name, value in vars(self).items() if name not in ("whose", "columns", "checksum")}
        window = {
            "from": moment(self.whose.lower, self.whose.key),
            "to": moment(self.whose.upper, self.whose.key),
        }
        return {
            "format": FORMAT,
            **asdict(self.whose),
            **window,
            **own,
            "checksum": str(self.checksum),
            "columns": [asdict(column) for column in self.columns],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` wrote.

        Args:
            value: decoded JSON.

        Raises:
            ArchiveUnusable: it is no manifest, or a later version's.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise errors.ArchiveUnusable(
                "this is no manifest of an archive, or one of a later version of shardwright",
                fix="use the version of shardwright that wrote it",
            )
        try:
            return cls(
                whose=Whose(**{name: value[name] for name in Whose.__dataclass_fields__}),
                columns=tuple(ArchivedColumn(**column) for column in value["columns"]),
                checksum=int(value["checksum"]),
                **{
                    name: value[name]
                    for name in cls.__dataclass_fields__
                    if name not in ("whose", "columns", "checksum")
                },
            )
        except (KeyError, TypeError, ValueError) as error:
            raise errors.ArchiveUnusable(
                f"the manifest is damaged: {type(error).__name__} {error}", fix="take it from a copy of the archive"
            ) from error

    def holds_what(self, whose: Whose, columns: tuple[ArchivedColumn, ...], rows: int, checksum: int) -> bool:
        """Whether it is an archive of these rows, of this partition.

        Args:
            whose: the partition.
            columns: its columns.
            rows: how many it has.
            checksum: of its rows.
        """
        return (self.whose, schema_hash(self.columns), self.rows, self.checksum) == (
            whose,
            schema_hash(columns),
            rows,
            checksum,
        )


def file_path(whose: Whose, columns: tuple[ArchivedColumn, ...]) -> str:
    """Where the archive of a partition is, below the directory or URI: shard, table, window and the columns' hash.

    Args:
        whose: the partition.
        columns: its columns.
    """
    window = f"{_compact(whose.lower, whose.key)}_{_compact(whose.upper, whose.key)}"
    return f"{directory_of(whose.shard, whose.schema, whose.table)}/{window}_{schema_hash(columns)}.parquet"


def directory_of(shard: str, schema: str, table: str) -> str:
    """The directory of one table's archives of one shard.

    Args:
        shard: the shard's name.
        schema: the table's schema.
        table: its name.
    """
    return f"{_component(shard)}/{_component(f'{schema}.{table}')}"


def manifest_path(file: str) -> str:
    """The manifest of an archive's file.

    Args:
        file: the file's path.
    """
    return file.removesuffix(".parquet") + ".json"


def dumps(manifest: Manifest) -> bytes:
    """A manifest as it is written.

    Args:
        manifest: what to write.
    """
    return (json.dumps(manifest.to_json(), indent=1, ensure_ascii=False) + "\n").encode()


def loads(text: str, place: str) -> Manifest:
    """Read a manifest.

    Args:
        text: what its file holds.
        place: where it is, for the message.

    Raises:
        ArchiveUnusable: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError:
        raise errors.ArchiveUnusable(
            f"the manifest {place} is damaged", fix="take it from a copy of the archive", place=place
        ) from None
    return Manifest.from_json(value)


def moment(at: int | None, key: str) -> str | None:
    """A point of the axis for people: ISO 8601, with an offset where it is an instant; None for the axis' end.

    Args:
        at: microseconds since 1970.
        key: one of `policy.KEYS`.
    """
    if at is None:
        return None
    if not _FIRST <= at <= _LAST:
        return f"{at} us"
    text = (_EPOCH + timedelta(microseconds=at)).isoformat()
    return text if key in _INSTANTS else text.removesuffix("+00:00")


def _compact(at: int | None, key: str) -> str:
    if at is None:
        return "open"
    if not _FIRST <= at <= _LAST:
        return f"{at}us"
    when = _EPOCH + timedelta(microseconds=at)
    text = f"{when.year:04}" + when.strftime("%m%dT%H%M%S") + (f".{when.microsecond:06}" if when.microsecond else "")
    return text + ("Z" if key in _INSTANTS else "")


def _component(name: str) -> str:
    """A name as one component of a path, whatever is in it."""
    kept = _UNFIT.sub(lambda found: f"%{ord(found[0]):02X}", name)
    if kept.startswith("."):
        kept = "%2E" + kept[1:]
    if len(kept.encode()) > _MOST_BYTES:
        digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
        kept = kept.encode()[:_MOST_BYTES].decode(errors="ignore") + "~" + digest
    return kept
