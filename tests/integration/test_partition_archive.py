"""A partition in Parquet: every type comes back as it was, and what is wrong with a file or its place is noticed."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pyarrow.fs
import pyarrow.parquet
import pytest

from fix_retention import TYPES, make_every_type, rows_of
from shardwright import engines, errors
from shardwright.partition import archive, archived_columns, manifest, stores
from shardwright.partition.manifest import Whose

pytestmark = pytest.mark.newest_postgres


def whose(name: str = "every", **changed: object) -> Whose:
    fields = {
        "cluster": "c0ffee", "shard": "s1", "schema": "public", "table": "parent", "partition": name,
        "key": "timestamptz", "lower": 1356998400000000, "upper": 1359676800000000,
    }  # fmt: skip
    return Whose(**{**fields, **changed})  # type: ignore[arg-type]


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    class Here:
        name = "s1"
        conninfo = database

    with engines.connect_shard(Here()) as opened:
        yield opened


def files(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_every_type_comes_back_as_it_was(connection: psycopg.Connection, place: Path) -> None:
    make_every_type(connection)
    store = stores.open_store(str(place))
    done = archive.archive(connection, whose(), store)
    assert done.written
    made = done.manifest
    assert made.rows == max(len(values) for _, values in TYPES.values()) + 1
    stem = "s1/public.parent/20130101T000000Z_20130201T000000Z_" + archived_columns.schema_hash(made.columns)
    assert files(place) == [f"{stem}.json", f"{stem}.parquet"]
    connection.execute("CREATE TABLE public.again (LIKE public.every INCLUDING GENERATED)")
    stored = archived_columns.stored(made.columns)
    for block in archive.read_blocks(made, store):
        archive.copy_in(connection, archive.copy_statement("public.again", stored), [block])
    everything = ", ".join(f"t.{column.quoted}" for column in made.columns)
    assert rows_of(connection, "public.again", everything) == rows_of(connection, "public.every", everything)
    assert manifest.loads(manifest.dumps(made).decode(), "here") == made


def test_what_the_file_says_of_itself(connection: psycopg.Connection, place: Path) -> None:
    make_every_type(connection)
    made = archive.archive(connection, whose(), stores.open_store(str(place))).manifest
    schema = pyarrow.parquet.read_schema(place / made.file)
    said = {field.name: str(field.type) for field in schema}
    assert said["c_timestamptz"] == "timestamp[us, tz=UTC]"
    assert said["c_timestamptz_far"] == said["c_decimal_nan"] == said["c_numeric"] == said["c_jsonb"] == "string"
    assert said["c_decimal"] == "decimal128(20, 4)"
    assert said["c_date"] == "date32[day]"
    assert "made" not in said
    assert schema.field("c_timestamptz_far").metadata[b"pg_type"] == b"timestamp with time zone"
    assert schema.field("c_moods").metadata[b"pg_type"] == b"public.mood[]"
    assert [column.name for column in made.columns if column.generated] == ["made"]
    assert any(column["name"] == "made" and column["generated"] == "s" for column in made.layout["columns"])
    value = json.loads((place / manifest.manifest_path(made.file)).read_text())
    assert (value["from"], value["to"]) == ("2013-01-01T00:00:00+00:00", "2013-02-01T00:00:00+00:00")


def test_row_groups_are_bounded(connection: psycopg.Connection, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.execute(
        "CREATE TABLE public.many AS SELECT n, repeat('x', 100) AS t, decode(md5(n::text), 'hex') AS b "
        "FROM generate_series(1, 5000) n"
    )
    connection.execute("INSERT INTO public.many VALUES (0, repeat('y', 400000), NULL)")
    monkeypatch.setattr(archive, "BLOCK_BYTES", 100_000)
    made = archive.archive(connection, whose("many"), stores.open_store(str(place))).manifest
    found = pyarrow.parquet.ParquetFile(place / made.file).metadata
    assert (found.num_rows, made.rows) == (5001, 5001)
    assert found.num_row_groups > 5
    assert max(found.row_group(n).num_rows for n in range(found.num_row_groups)) < 1000


def test_an_empty_partition_and_one_of_a_single_column(connection: psycopg.Connection, place: Path) -> None:
    connection.execute("CREATE TABLE public.nothing (a text, b bytea, c uuid)")
    store = stores.open_store(str(place))
    assert archive.archive(connection, whose("nothing"), store).manifest.rows == 0
    connection.execute("CREATE TABLE public.single AS SELECT * FROM (VALUES (NULL), (''), ('x'), (NULL)) v(a)")
    made = archive.archive(connection, whose("single"), store).manifest
    assert made.rows == 4
    archive.verify(connection, made, store)


def test_a_valid_archive_is_used_again_and_a_broken_one_replaced(connection: psycopg.Connection, place: Path) -> None:
    connection.execute("CREATE TABLE public.some AS SELECT n FROM generate_series(1, 100) n")
    store = stores.open_store(str(place))
    first = archive.archive(connection, whose("some"), store).manifest
    written = (place / first.file).stat().st_mtime_ns
    again = archive.archive(connection, whose("some"), store)
    assert again.manifest == first
    assert not again.written
    assert (place / first.file).stat().st_mtime_ns == written
    (place / first.file).write_bytes((place / first.file).read_bytes()[:-1] + b"x")
    assert archive.archive(connection, whose("some"), store).written
    (place / manifest.manifest_path(first.file)).write_text("{")
    assert archive.archive(connection, whose("some"), store).written
    (place / first.file).unlink()
    assert archive.archive(connection, whose("some"), store).written
    connection.execute("INSERT INTO public.some VALUES (101)")
    assert archive.archive(connection, whose("some"), store).manifest.rows == 101
    connection.execute("UPDATE public.some SET n = 0 WHERE n = 101")
    last = archive.archive(connection, whose("some"), store)
    assert last.written
    archive.verify(connection, last.manifest, store)


def test_another_clusters_archive_is_left_alone(connection: psycopg.Connection, place: Path) -> None:
    connection.execute("CREATE TABLE public.some AS SELECT 1 AS n")
    store = stores.open_store(str(place))
    archive.archive(connection, whose("some"), store)
    before = {name: (place / name).read_bytes() for name in files(place)}
    connection.execute("UPDATE public.some SET n = 2")
    with pytest.raises(errors.ArchiveUnusable, match="another cluster") as refused:
        archive.archive(connection, whose("some", cluster="other"), store)
    assert refused.value.fix
    assert {name: (place / name).read_bytes() for name in files(place)} == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "foreign"])
def test_a_file_that_changes_before_it_is_read_back(
    connection: psycopg.Connection, place: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    connection.execute("CREATE TABLE public.some AS SELECT n, md5(n::text) AS m FROM generate_series(1, 1000) n")
    store = stores.open_store(str(place))

    def harm(name: str) -> None:
        if name != "partition.archive_written":
            return
        (file,) = place.rglob("*.parquet")
        data = file.read_bytes()
        if damage == "cut":
            file.write_bytes(data[: len(data) // 2])
        elif damage == "flipped":
            file.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
        elif damage == "gone":
            file.unlink()
        else:
            pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), file)

    monkeypatch.setattr(archive, "reach", harm)
    with pytest.raises(errors.ArchiveUnusable) as refused:
        archive.archive(connection, whose("some"), store)
    assert refused.value.fix
    assert not list(place.rglob("*.json"))
    monkeypatch.undo()
    assert archive.archive(connection, whose("some"), store).written


def test_rows_that_read_back_differently(
    connection: psycopg.Connection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("CREATE TABLE public.some AS SELECT n, 'a' AS t FROM generate_series(1, 1000) n")
    store = stores.open_store(str(place))
    module = archive.parquet_module()
    honest = module.BlockWriter.write
    monkeypatch.setattr(
        module.BlockWriter, "write", lambda self, block: honest(self, block.replace(b"500,a", b"500,b"))
    )
    with pytest.raises(errors.ArchiveDiffers, match="1000 rows with checksum") as refused:
        archive.archive(connection, whose("some"), store)
    assert refused.value.exit_code == 5
    assert files(place) == []
    monkeypatch.setattr(module.BlockWriter, "write", lambda self, block: honest(self, block.replace(b"500,a\n", b"")))
    with pytest.raises(errors.ArchiveDiffers, match="999 rows"):
        archive.archive(connection, whose("some"), store)


def test_a_disk_that_is_full(connection: psycopg.Connection, place: Path) -> None:
    connection.execute("CREATE TABLE public.some AS SELECT md5(n::text) AS m FROM generate_series(1, 20000) n")
    store = stores.open_store(str(place))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(errors.ArchiveUnusable, match=r"cannot be written: .*File too large") as refused:
            archive.archive(connection, whose("some"), store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "room" in refused.value.fix
    assert files(place) == []


def test_a_directory_that_cannot_be_written(connection: psycopg.Connection, place: Path) -> None:
    connection.execute("CREATE TABLE public.some AS SELECT 1 AS n")
    (place / "s1").write_text("a file where a directory must be")
    with pytest.raises(errors.ArchiveUnusable, match=r"cannot be .*Not a directory") as refused:
        archive.archive(connection, whose("some"), stores.open_store(str(place)))
    assert str(place) in refused.value.fix


def test_places_that_are_refused(workdir: Path) -> None:
    for place, kind in (
        ("archives", errors.BadOption),
        (str(workdir / "missing"), errors.ArchiveUnusable),
        ("s3://key:secret@bucket/x", errors.SecretInConninfo),
        ("nonsense://x", errors.BadOption),
    ):
        with pytest.raises(kind) as refused:
            stores.open_store(place)
        assert refused.value.fix
        assert "secret" not in refused.value.message


def test_a_file_uri_is_a_directory(connection: psycopg.Connection, workdir: Path) -> None:
    place = workdir / "mit Raum"
    place.mkdir()
    connection.execute("CREATE TABLE public.some AS SELECT 1 AS n")
    made = archive.archive(connection, whose("some"), stores.open_store(place.as_uri())).manifest
    assert (place / made.file).is_file()


def test_a_store_of_pyarrow(connection: psycopg.Connection, place: Path) -> None:
    """The way of object stores, on a file system of pyarrow's own."""
    make_every_type(connection)
    store = stores.RemoteStore("test://", pyarrow.fs.LocalFileSystem(), str(place))
    made = archive.archive(connection, whose(), store).manifest
    assert not archive.archive(connection, whose(), store).written
    written = Path(made.file)
    assert store.names(str(written.parent)) == [f"{written.stem}.json", f"{written.stem}.parquet"]
    assert store.names("nowhere") == []
    store.remove("nowhere/at-all")
    (place / made.file).write_bytes(b"PAR1")
    with pytest.raises(errors.ArchiveUnusable):
        archive.verify(connection, made, store)


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch, connection: psycopg.Connection, place: Path) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "shardwright.partition.parquet", raising=False)
    monkeypatch.setattr("shardwright.partition.parquet", None, raising=False)
    monkeypatch.delattr("shardwright.partition.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(errors.MissingExtra) as refused:
        archive.archive(connection, whose("some"), stores.open_store(str(place)))
    assert "shardwright[archive]" in refused.value.fix


def test_names_and_windows_that_are_hard_to_write(place: Path) -> None:
    columns: tuple[archived_columns.ArchivedColumn, ...] = ()
    path = manifest.file_path(whose(schema="a/b", table='..".é', lower=None, upper=2**62), columns)
    assert path.startswith("s1/a%2Fb...%22.é/open_4611686018427387904us_")
    assert manifest.directory_of("..", "s", "t").startswith("%2E./")
    long = manifest.directory_of("s", "é" * 31, "/" * 63)
    assert all(len(part.encode()) < 255 for part in long.split("/"))
    assert manifest.moment(0, "timestamp") == "1970-01-01T00:00:00"
    assert manifest.moment(1, "timestamptz") == "1970-01-01T00:00:00.000001+00:00"


def test_a_newer_manifest_is_not_guessed_at() -> None:
    with pytest.raises(errors.ArchiveUnusable, match="later version"):
        manifest.loads('{"format": 2}', "here")
