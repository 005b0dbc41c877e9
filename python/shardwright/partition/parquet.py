"""Rows to Parquet and back, a block of rows at a time: PostgreSQL and pyarrow talk CSV, which both do fast.

This module needs pyarrow, which is an extra: import it by `archive.parquet_module`.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from shardwright.partition.archived_columns import ArchivedColumn

_TYPES = {
    "bool": pa.bool_(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint32": pa.uint32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "text": pa.string(),
    "binary": pa.binary(),
    "uuid": pa.uuid(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
}

_TWO = pa.scalar(2, pa.int32())


def _type(column: ArchivedColumn) -> pa.DataType:
    return pa.decimal128(*column.digits) if column.form == "decimal" else _TYPES[column.form]


def schema_of(columns: Sequence[ArchivedColumn]) -> pa.Schema:
    """The file's schema: each field says in its metadata what PostgreSQL's type was.

    Args:
        columns: the columns in the file.
    """
    return pa.schema(
        [
            pa.field(column.name, _type(column), metadata={"pg_type": column.type, "pg_form": column.form})
            for column in columns
        ]
    )


class BlockWriter:
    """Writes blocks of CSV rows into one Parquet file, a row group each."""

    def __init__(self, file: BinaryIO, columns: Sequence[ArchivedColumn]) -> None:
        """Begin a file.

        Args:
            file: where its bytes go, in order.
            columns: the columns in the file, in the order in which COPY sends them.
        """
        self._columns = columns
        self._schema = schema_of(columns)
        self._writer = pq.ParquetWriter(pa.PythonFile(file, mode="w"), self._schema, compression="zstd")
        self._names = [f"c{number}" for number in range(len(columns))]
        read_as = {
            name: pa.string() if column.form in ("binary", "uuid") else self._schema.field(number).type
            for number, (name, column) in enumerate(zip(self._names, columns, strict=True))
        }
        self._parse = pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)
        self._convert = pyarrow.csv.ConvertOptions(
            column_types=read_as,
            # as PostgreSQL has it: nothing is NULL, "" is an empty string
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t"],
            false_values=["f"],
        )
        # A header line, so that a value that begins with U+FEFF is not taken for a byte order mark.
        self._header = (",".join(self._names) + "\n").encode()

    def write(self, block: bytes) -> int:
        """Write one row group.

        Args:
            block: whole rows of CSV as COPY sends them, in UTF-8.

        Returns:
            How many rows there were.
        """
        data = self._header + block
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            # one block: a row must not be cut
            read_options=pyarrow.csv.ReadOptions(block_size=min(len(data) + 1, 2**31 - 1)),
            parse_options=self._parse,
            convert_options=self._convert,
        ).combine_chunks()
        arrays = [
            _unhex(table.column(number), field.type) if column.form in ("binary", "uuid") else table.column(number)
            for number, (column, field) in enumerate(zip(self._columns, self._schema, strict=True))
        ]
        made = pa.Table.from_arrays(arrays, schema=self._schema)
        if made.num_rows:
            self._writer.write_table(made, row_group_size=made.num_rows)
        return int(made.num_rows)

    def close(self) -> None:
        """Write the file's footer. Without it the file is no Parquet file."""
        self._writer.close()


def blocks_in(file: BinaryIO, columns: Sequence[ArchivedColumn]) -> Iterator[memoryview]:
    """Read a Parquet file back: each row group as rows of CSV, in which every value is quoted and NULL is nothing.

    Args:
        file: seekable.
        columns: the columns that the file must have, in order.

    Raises:
        ValueError: its columns are others.
        pyarrow.ArrowException: it is no whole Parquet file.
    """
    with pq.ParquetFile(pa.PythonFile(file, mode="r"), pre_buffer=False) as source:
        expected = schema_of(columns)
        if not source.schema_arrow.equals(expected, check_metadata=False):
            raise ValueError(f"the file's columns are {_said(source.schema_arrow)}, not {_said(expected)}")
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid")
        for group in range(source.num_row_groups):
            table = source.read_row_group(group).combine_chunks()
            arrays = [_plain(table.column(number), column.form) for number, column in enumerate(columns)]
            sink = pa.BufferOutputStream()
            pyarrow.csv.write_csv(
                pa.Table.from_arrays(arrays, names=[str(n) for n in range(len(arrays))]), sink, options
            )
            yield memoryview(sink.getvalue())


def _said(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _plain(column: pa.ChunkedArray, form: str) -> Any:
    """A column in a type that is written into CSV as PostgreSQL reads it."""
    if form == "timestamptz":
        return column.cast(pa.timestamp("us"))  # the reading session's zone is UTC
    if form in ("binary", "uuid"):
        whole = _whole(column)
        if form == "uuid":
            whole = whole.storage.cast(pa.binary())
        hexed = _hex(whole)
        return pc.binary_join_element_wise(pa.scalar("\\x"), hexed, "") if form == "binary" else hexed
    return column


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The one chunk of a column."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _unhex(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.Array:
    """Hexadecimal text as bytes, the whole column at once."""
    texts = _rebased(_whole(column) if column.num_chunks else pa.array([], pa.string()))
    if wanted == pa.uuid():
        validity = texts.buffers()[0]
        data = pc.fill_null(texts, "0" * 32).buffers()[2]
        raw = binascii.unhexlify(memoryview(data)[: 32 * len(texts)]) if len(texts) else b""
        fixed = pa.Array.from_buffers(pa.binary(16), len(texts), [validity, pa.py_buffer(raw)], texts.null_count)
        return pa.ExtensionArray.from_storage(pa.uuid(), fixed)
    validity, offsets, data = texts.buffers()
    halved = _scaled(offsets, len(texts), lambda values: pc.divide(values, _TWO))
    raw = binascii.unhexlify(memoryview(data)[: _last(offsets, len(texts))]) if data is not None else b""
    return pa.Array.from_buffers(pa.binary(), len(texts), [validity, halved, pa.py_buffer(raw)], texts.null_count)


def _hex(values: pa.Array) -> pa.Array:
    """Bytes as hexadecimal text, the whole column at once."""
    values = _rebased(values)
    validity, offsets, data = values.buffers()
    doubled = _scaled(offsets, len(values), lambda found: pc.multiply_checked(found, _TWO))
    text = binascii.hexlify(memoryview(data)[: _last(offsets, len(values))]) if data is not None else b""
    return pa.Array.from_buffers(pa.string(), len(values), [validity, doubled, pa.py_buffer(text)], values.null_count)


def _rebased(values: pa.Array) -> pa.Array:
    """The same values in buffers that begin with the first of them."""
    if values.offset == 0:
        return values
    return pa.concat_arrays([values, values.slice(0, 0)])


def _offsets(buffer: pa.Buffer, length: int) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), length + 1, [None, buffer])


def _last(buffer: pa.Buffer | None, length: int) -> int:
    return int(_offsets(buffer, length)[length].as_py()) if buffer is not None and length else 0


def _scaled(buffer: pa.Buffer | None, length: int, change: Any) -> pa.Buffer:
    if buffer is None or not length:
        return pa.py_buffer(bytes(4 * (length + 1)))
    return change(_offsets(buffer, length)).buffers()[1]
