"""Where archives are kept: a directory of this machine, or whatever `pyarrow.fs` reaches by a URI.

A file of a directory is written under another name, made durable, and renamed when it is whole. An object store shows
an object only when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from shardwright import errors

_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_READ_BYTES = 1 << 20
_PARTIAL = ".part"

#: Stores that have no directories to be made.
_FLAT = {"s3", "gcs", "abfs"}


class Store(Protocol):
    """A place for archives. Paths are relative, with slashes."""

    #: As it was given, for messages and for the catalog.
    place: str

    def writing(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file to write from its beginning to its end; it appears when the block ends without an error."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A seekable file to read; FileNotFoundError where there is none."""
        ...

    def names(self, directory: str) -> list[str]:
        """Names of files and directories in a directory; none where it does not exist."""
        ...

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""
        ...


class Hashing:
    """A file to write that knows the size and the SHA-256 of what went through it."""

    def __init__(self, file: BinaryIO) -> None:
        """Pass everything on to `file`."""
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0
        self.closed = False
        #: What is written from now on goes nowhere: a Parquet writer that is given up writes its footer all the same.
        self.abandoned = False

    def write(self, data: Any) -> int:
        """Write bytes."""
        view = memoryview(data).cast("B")
        if self.abandoned:
            return len(view)
        self._file.write(view)
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._file.flush()

    def close(self) -> None:
        """Leave the file to whoever opened it."""

    def tell(self) -> int:
        """How many bytes were written."""
        return self.size

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written so far, in hex."""
        return self._digest.hexdigest()


def open_store(place: str) -> Store:
    """The store at a directory or URI.

    Args:
        place: an absolute directory that exists, ``file:///...``, or another URI that `pyarrow.fs` knows: ``s3://bucket/prefix``.

    Raises:
        BadOption: it is relative, or no URI that pyarrow knows.
        SecretInConninfo: it carries a password or key.
        ArchiveUnusable: the directory does not exist.
        MissingExtra: pyarrow is not installed.
    """
    if not _URI.match(place):
        return LocalStore(place, Path(place))
    parts = urlsplit(place)
    if parts.password is not None or (parts.scheme != "abfs" and parts.username is not None):
        raise errors.SecretInConninfo(
            f"the archive's URI carries a key: {parts.scheme}://***@{parts.hostname}{parts.path}",
            fix="leave it out; the environment or the profile of the store's own tools serves, such as AWS_PROFILE",
        )
    if parts.scheme == "file":
        return LocalStore(place, Path(unquote(parts.path)))
    arrow_fs = _arrow_fs()
    try:
        filesystem, path = arrow_fs.FileSystem.from_uri(place)
    except (ValueError, OSError, NotImplementedError) as error:
        raise errors.BadOption(
            f"archives cannot be kept at {place}: {_said(error)}",
            fix="an absolute directory, file:///..., s3://bucket/prefix, gs://bucket/prefix or abfs://container@account/prefix",
        ) from error
    return RemoteStore(place, filesystem, path)


def _arrow_fs() -> Any:
    try:
        import pyarrow.fs
    except ImportError as error:
        raise missing_extra() from error
    return pyarrow.fs


def missing_extra() -> errors.MissingExtra:
    """The error of whoever archives without pyarrow."""
    return errors.MissingExtra("archiving needs pyarrow", fix='pip install "shardwright[archive]"')


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def explained(what: str, place: str) -> Iterator[None]:
    """Say in our words that a store failed.

    Args:
        what: what was done, for the message: ``written``.
        place: where.

    Raises:
        ArchiveUnusable: an OSError, or pyarrow's.
    """
    try:
        yield
    except errors.ShardwrightError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("pyarrow"):
            raise
        raise errors.ArchiveUnusable(
            f"the archive at {place} cannot be {what}: {_said(error)}",
            fix=f"make {place} reachable and writable, with room, for whoever runs shardwright; then run this again",
            place=place,
        ) from error


def sha256_of(store: Store, path: str) -> str:
    """SHA-256 of a file, in hex, read to its end.

    Args:
        store: where it is.
        path: the file.
    """
    digest = hashlib.sha256()
    with store.open(path) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_text(store: Store, path: str) -> str | None:
    """A small file as text; None where there is none.

    Args:
        store: where it is.
        path: the file.
    """
    try:
        with store.open(path) as file:
            return bytes(file.read()).decode()
    except FileNotFoundError:
        return None


class LocalStore:
    """A directory of this machine."""

    def __init__(self, place: str, root: Path) -> None:
        """Check the directory.

        Raises:
            BadOption: it is relative.
            ArchiveUnusable: it does not exist.
        """
        if not root.is_absolute():
            raise errors.BadOption(
                f"{place} depends on where a worker was started", fix=f"give an absolute directory: {root.absolute()}"
            )
        self.place = place
        self._root = root
        # Not made here: where a volume is not mounted, the files would be gone once it is.
        if not root.is_dir():
            raise errors.ArchiveUnusable(f"there is no directory {root}", fix=f"mkdir -p {root}", place=place)

    @contextmanager
    def writing(self, path: str) -> Iterator[BinaryIO]:
        """As `Store.writing`; what crashed writers left of this file is removed first."""
        there = self._root / path
        _make_directories(self._root, there.parent)
        for left in there.parent.glob(f".{there.name}.*{_PARTIAL}"):
            left.unlink(missing_ok=True)
        partial = there.with_name(f".{there.name}.{secrets.token_hex(4)}{_PARTIAL}")
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.rename(there)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(there.parent)

    def open(self, path: str) -> BinaryIO:
        """As `Store.open`."""
        return (self._root / path).open("rb")

    def names(self, directory: str) -> list[str]:
        """As `Store.names`."""
        there = self._root / directory
        return sorted(child.name for child in there.iterdir()) if there.is_dir() else []

    def remove(self, path: str) -> None:
        """As `Store.remove`."""
        (self._root / path).unlink(missing_ok=True)


def _make_directories(root: Path, wanted: Path) -> None:
    missing = []
    while wanted != root and not wanted.is_dir():
        missing.append(wanted)
        wanted = wanted.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        _sync(directory.parent)


def _sync(directory: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RemoteStore:
    """What pyarrow reaches."""

    def __init__(self, place: str, filesystem: Any, root: str) -> None:
        """Keep archives under `root` of a pyarrow file system."""
        self.place = place
        self._filesystem = filesystem
        self._root = root

    def _path(self, path: str) -> str:
        return str(PurePosixPath(self._root, path))

    @contextmanager
    def writing(self, path: str) -> Iterator[BinaryIO]:
        """As `Store.writing`. Where an upload that broke off leaves half a file, it has no manifest that says its hash."""
        there = self._path(path)
        if self._filesystem.type_name not in _FLAT:
            self._filesystem.create_dir(str(PurePosixPath(there).parent), recursive=True)
        with self._filesystem.open_output_stream(there) as file:
            yield file

    def open(self, path: str) -> BinaryIO:
        """As `Store.open`."""
        file: BinaryIO = self._filesystem.open_input_file(self._path(path))
        return file

    def names(self, directory: str) -> list[str]:
        """As `Store.names`."""
        selector = _arrow_fs().FileSelector(self._path(directory), allow_not_found=True)
        return sorted(found.base_name for found in self._filesystem.get_file_info(selector))

    def remove(self, path: str) -> None:
        """As `Store.remove`."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(path))
