"""Days without midnight, days left out, hours shown twice, weeks 53 and leap days."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from shardwright.partition import clocks
from shardwright.partition.calendar import Window, expired, label, now_on_axis, shift, wanted, window_at, windows
from shardwright.routing.policy import Policy, Span

HOUR = 3600 * 10**6


def at(*fields: int) -> int:
    """The instant of a moment of UTC, or the wall of a reading."""
    return clocks.wall_of(datetime(*fields))  # type: ignore[arg-type]


def utc(moment: int) -> str:
    return f"{clocks.datetime_of(moment):%Y-%m-%d %H:%M}"


def policy(every: str = "1 day", zone: str = "UTC", **options: Any) -> Policy:
    return Policy("at", every, zone=zone, **options)


def starts(every: str, zone: str, first: int, last: int, key: str = "timestamptz", **options: Any) -> list[str]:
    return [utc(window.lower) for window in windows(policy(every, zone, **options), key, first, last)]


def labels(every: str, zone: str, first: int, last: int, key: str = "timestamptz", **options: Any) -> list[str]:
    declared = policy(every, zone, **options)
    return [label(declared, key, window) for window in windows(declared, key, first, last)]


def test_days_are_23_and_25_hours_long() -> None:
    berlin = policy(zone="Europe/Berlin")
    assert starts("1 day", "Europe/Berlin", at(2026, 3, 28, 23), at(2026, 3, 29, 23)) == [
        "2026-03-28 23:00",
        "2026-03-29 22:00",
    ]
    lengths = [
        (w.upper - w.lower) // HOUR for w in windows(berlin, "timestamptz", at(2026, 10, 23, 22), at(2026, 10, 26))
    ]
    assert lengths == [24, 25, 24]


def test_a_zone_without_midnight() -> None:
    """Clocks go from 23:59:59 to 01:00: the day begins at 01:00."""
    assert starts("1 day", "America/Santiago", at(2026, 9, 5, 4), at(2026, 9, 7, 3)) == [
        "2026-09-05 04:00",
        "2026-09-06 04:00",
    ]
    assert window_at(policy(zone="America/Santiago"), "timestamptz", at(2026, 9, 6, 5)).upper == at(2026, 9, 7, 3)
    assert starts("1 day", "America/Havana", at(2026, 3, 8, 5), at(2026, 3, 8, 6)) == ["2026-03-08 05:00"]
    assert starts("1 day", "Asia/Beirut", at(2026, 3, 28, 22), at(2026, 3, 28, 23)) == ["2026-03-28 22:00"]
    # An anchor within the gap: the window begins where the gap ends.
    assert starts("1 day", "Europe/Berlin", at(2026, 3, 29, 1), at(2026, 3, 30), anchor="2026-01-01T02:30") == [
        "2026-03-29 01:00"
    ]


def test_a_repeated_midnight_begins_the_day_once() -> None:
    """Havana shows 00:00 to 00:59 twice."""
    assert starts("1 day", "America/Havana", at(2025, 11, 2, 4), at(2025, 11, 3, 5)) == ["2025-11-02 04:00"]
    # Beirut's 23:00 to 23:59 are shown twice: midnight is after both.
    assert starts("1 day", "Asia/Beirut", at(2026, 10, 24, 21), at(2026, 10, 24, 23)) == [
        "2026-10-23 21:00",
        "2026-10-24 22:00",
    ]


def test_a_skipped_day_has_no_window() -> None:
    """Apia went from the 29th to the 31st of December 2011."""
    first, last = at(2011, 12, 29, 10), at(2012, 1, 1, 10)
    assert labels("1 day", "Pacific/Apia", first, last) == ["20111229", "20111231", "20120101"]
    assert starts("1 day", "Pacific/Apia", first, last) == ["2011-12-29 10:00", "2011-12-30 10:00", "2011-12-31 10:00"]
    assert labels("1 day", "Pacific/Apia", at(2011, 12, 28), at(2012, 1, 1), key="timestamp") == [
        "20111228",
        "20111229",
        "20111230",
        "20111231",
    ]
    # A month that begins on the day that was left out.
    assert starts("1 month", "Pacific/Apia", at(2011, 12, 30), at(2012, 1, 1), anchor="2000-01-30") == [
        "2011-11-30 10:00",
        "2011-12-30 10:00",
    ]
    # Sign -1 and 1 over it: the day that is left out is the moment at which the next one begins.
    assert shift(policy(zone="Pacific/Apia"), "timestamptz", at(2011, 12, 29, 10), Span(1, "day"), 1) == at(
        2011, 12, 30, 10
    )


def test_half_an_hour_of_summer() -> None:
    howe = policy(zone="Australia/Lord_Howe")
    lengths = [(w.upper - w.lower) / HOUR for w in windows(howe, "timestamptz", at(2026, 4, 3, 13), at(2026, 4, 5, 13))]
    assert lengths == [24, 24.5]
    assert [
        (w.upper - w.lower) / HOUR for w in windows(howe, "timestamptz", at(2026, 10, 3, 14), at(2026, 10, 3, 15))
    ] == [23.5]


def test_hours_are_of_one_length_and_named_in_utc() -> None:
    """Through Berlin's autumn night, whose 02 o'clock comes twice."""
    first, last = at(2026, 10, 24, 23), at(2026, 10, 25, 3)
    assert labels("1 hour", "Europe/Berlin", first, last) == [
        "20261024t23",
        "20261025t00",
        "20261025t01",
        "20261025t02",
    ]
    # From midnight of 1970 in Berlin, an hour before UTC's.
    assert starts("6 hours", "Europe/Berlin", at(2026, 10, 25), at(2026, 10, 26)) == [
        "2026-10-24 23:00",
        "2026-10-25 05:00",
        "2026-10-25 11:00",
        "2026-10-25 17:00",
        "2026-10-25 23:00",
    ]
    assert starts("6 hours", "UTC", at(2026, 10, 25), at(2026, 10, 25, 7)) == ["2026-10-25 00:00", "2026-10-25 06:00"]
    assert labels("1 hour", "Asia/Kolkata", at(2026, 1, 1), at(2026, 1, 1, 1)) == ["20251231t2330", "20260101t0030"]
    assert starts("5 hours", "UTC", at(2026, 1, 1, 1), at(2026, 1, 1, 6), anchor="2026-01-01T03:00") == [
        "2025-12-31 22:00",
        "2026-01-01 03:00",
    ]


def test_iso_weeks() -> None:
    """2026 has a week 53, and 2027-01-01 lies in it."""
    assert labels("1 week", "UTC", at(2026, 12, 28), at(2027, 1, 5)) == ["2026w53", "2027w01"]
    assert starts("1 week", "UTC", at(2027, 1, 1), at(2027, 1, 2)) == ["2026-12-28 00:00"]
    assert date(2027, 1, 1).isocalendar().week == 53
    assert labels("2 weeks", "UTC", at(2026, 1, 1), at(2026, 1, 20)) == ["2025w52", "2026w02", "2026w04"]
    # Weeks that begin on Sunday are no ISO weeks: they are called by their first day.
    assert labels("1 week", "UTC", at(2026, 11, 29), at(2026, 11, 30), anchor="2026-01-04") == ["20261129"]


def test_months_that_begin_after_the_28th() -> None:
    """Where a month has no such day, it begins on its last: as in PostgreSQL's `date + n * interval '1 month'`."""
    assert labels("1 month", "UTC", at(2024, 1, 31), at(2024, 5, 1), anchor="2024-01-31") == [
        "20240131",
        "20240229",
        "20240331",
        "20240430",
    ]
    assert (
        labels("1 month", "UTC", at(2023, 2, 28), at(2023, 3, 30), anchor="2024-01-30") == ["20230228", "20230330"][:1]
    )
    assert labels("1 year", "UTC", at(2024, 2, 29), at(2028, 3, 1), anchor="2024-02-29") == [
        "20240229",
        "20250228",
        "20260228",
        "20270228",
        "20280229",
    ]


@pytest.mark.parametrize(
    ("every", "anchor", "expected"),
    [
        ("1 month", None, "2026_11"),
        ("3 months", None, "2026_10"),
        ("1 month", "2026-01-15", "20261115"),
        ("1 quarter", None, "2026q4"),
        ("1 quarter", "2026-02-01", "2026_11"),
        ("1 quarter", "2026-01-02T06:00", "20261002"),
        ("1 year", None, "2026"),
        ("5 years", None, "2025"),
        ("1 year", "2020-04-01", "2026_04"),
        ("1 day", None, "20261125"),
        ("1 day", "2026-01-01T06:00", "20261125"),
        ("1 week", "2026-01-05T06:00", "2026w48"),
    ],
)
def test_labels(every: str, anchor: str | None, expected: str) -> None:
    declared = policy(every, anchor=anchor)
    window = window_at(declared, "timestamptz", at(2026, 11, 25, 12))
    assert label(declared, "timestamptz", window) == expected
    # A piece of a window that was clipped to its neighbours is called as the whole.
    assert label(declared, "timestamptz", Window(window.lower + 1, window.upper)) == expected


def test_columns_without_a_zone_have_windows_of_the_wall() -> None:
    """And see the time through the zone."""
    santiago = policy(zone="America/Santiago")
    assert window_at(santiago, "date", at(2026, 9, 6)) == Window(at(2026, 9, 6), at(2026, 9, 7))
    now = datetime(2026, 9, 6, 3, 59, 59, tzinfo=UTC)
    assert now_on_axis(santiago, "timestamp", now) == at(2026, 9, 5, 23, 59, 59)
    assert now_on_axis(santiago, "timestamp", now + timedelta(seconds=1)) == at(2026, 9, 6, 1)
    assert now_on_axis(santiago, "timestamptz", now.astimezone(zoneinfo.ZoneInfo("Asia/Tokyo"))) == at(
        2026, 9, 6, 3, 59, 59
    )
    assert wanted(policy(zone="Asia/Tokyo", ahead=1), "date", datetime(2026, 11, 25, 15, tzinfo=UTC)) == [
        Window(at(2026, 11, 26), at(2026, 11, 27)),
        Window(at(2026, 11, 27), at(2026, 11, 28)),
    ]


def test_retention_counts_in_the_zone() -> None:
    declared = policy(zone="Europe/Berlin", keep="1 day")
    upper = window_at(declared, "timestamptz", at(2026, 3, 27, 23)).upper
    assert utc(upper) == "2026-03-28 23:00"
    over = datetime(2026, 3, 29, 22, tzinfo=UTC)  # midnight again, 23 hours later
    assert expired(declared, "timestamptz", upper, over)
    assert not expired(declared, "timestamptz", upper, over - timedelta(microseconds=1))
    hours = policy(zone="Europe/Berlin", keep="24 hours")
    assert not expired(hours, "timestamptz", upper, over)
    assert expired(hours, "timestamptz", upper, over + timedelta(hours=1))
    assert not expired(policy(), "timestamptz", upper, datetime(9000, 1, 1, tzinfo=UTC))
    # On a column of walls, by what the zone's clock shows.
    walls = policy(zone="Asia/Tokyo", keep="30 days")
    assert expired(walls, "date", at(2026, 11, 1), datetime(2026, 11, 30, 15, tzinfo=UTC))
    assert not expired(walls, "date", at(2026, 11, 1), datetime(2026, 11, 30, 14, 59, 59, 999_999, tzinfo=UTC))


def test_a_month_later_is_the_same_day_or_the_last() -> None:
    def later(month: int, day: int, count: int, unit: str = "month") -> str:
        return utc(shift(policy(), "timestamptz", at(2026, month, day), Span(count, unit), 1))[:10]

    assert later(1, 31, 1) == "2026-02-28"
    assert later(1, 31, 2) == "2026-03-31"
    assert later(11, 30, 3) == "2027-02-28"
    assert later(11, 30, 1, "quarter") == "2027-02-28"
    assert later(2, 28, 2, "year") == "2028-02-28"
    assert utc(shift(policy(), "timestamptz", at(2024, 2, 29), Span(1, "year"), -1))[:10] == "2023-02-28"
