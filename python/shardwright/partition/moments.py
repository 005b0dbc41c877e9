"""Moments as PostgreSQL writes and reads them, on the axis of integers: beyond the years of `datetime` too. Pure.

PostgreSQL's calendar is the proleptic Gregorian one. Its infinite moments lie at the ends of int8, as they
do inside the server.
"""

from __future__ import annotations

import re
from typing import Final

from shardwright.partition.clocks import DAY, SECOND

#: The moments that PostgreSQL calls infinity and -infinity.
INFINITY: Final = 2**63 - 1
MINUS_INFINITY: Final = -(2**63)
#: The first moment of a timestamp, 4714-11-24 BC (`MIN_TIMESTAMP`); a date begins there too.
EARLIEST: Final = -210_866_803_200 * SECOND

_DAYS_OF_400_YEARS: Final = 146_097
#: From 0000-03-01, with which a year of this arithmetic begins, to 1970-01-01.
_DAYS_TO_1970: Final = 719_468

_MOMENT = re.compile(
    r"(?P<year>\d{4,7})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?: (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?"
    r"(?P<offset>(?P<sign>[+-])(?P<oh>\d\d)(?::(?P<om>\d\d)(?::(?P<os>\d\d))?)?)?)?"
    r"(?P<bc> BC)?"
)


def days_of(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a day; the year before 1 is 0."""
    # Years that begin in March have their leap day at the end, and months of lengths that a line fits.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    era, of_era = divmod(year, 400)
    days = of_era * 365 + of_era // 4 - of_era // 100 + (153 * month + 2) // 5 + day - 1
    return era * _DAYS_OF_400_YEARS + days - _DAYS_TO_1970


def civil_of(days: int) -> tuple[int, int, int]:
    """Year, month and day of a number of days from 1970-01-01; the year before 1 is 0."""
    era, of_era = divmod(days + _DAYS_TO_1970, _DAYS_OF_400_YEARS)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    year += era * 400
    return (year, month + 3, day) if month < 10 else (year + 1, month - 9, day)


def text_of(at: int, form: str) -> str:
    """A moment as PostgreSQL reads it under every DateStyle and TimeZone.

    Args:
        at: the moment on the axis.
        form: ``timestamptz``, with the offset ``+00``; ``timestamp``; or ``date``.
    """
    if at in (INFINITY, MINUS_INFINITY):
        return "infinity" if at == INFINITY else "-infinity"
    days, rest = divmod(at, DAY)
    year, month, day = civil_of(days)
    text = f"{year if year > 0 else 1 - year:04d}-{month:02d}-{day:02d}"
    if form != "date":
        seconds, fraction = divmod(rest, SECOND)
        text += f" {seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        text += f".{fraction:06d}".rstrip("0") if fraction else ""
        text += "+00" if form == "timestamptz" else ""
    return text if year > 0 else text + " BC"


def parse(text: str) -> int | None:
    """The moment that PostgreSQL printed under DateStyle ISO; without an offset it is taken as it stands.

    Args:
        text: ``2026-11-01 00:00:00+00``, ``2026-11-01``, ``0044-03-15 12:00:00 BC``, ``infinity``.

    Returns:
        The moment, exact, whatever its year; None where the text is no such moment.
    """
    if text in ("infinity", "-infinity"):
        return INFINITY if text == "infinity" else MINUS_INFINITY
    found = _MOMENT.fullmatch(text)
    if found is None:
        return None
    year = int(found["year"])
    at = days_of(1 - year if found["bc"] else year, int(found["month"]), int(found["day"])) * DAY
    if found["hour"]:
        at += _clock(found["hour"], found["minute"], found["second"]) * SECOND
        at += int((found["fraction"] or "").ljust(6, "0"))
    if found["offset"]:
        offset = _clock(found["oh"], found["om"], found["os"]) * SECOND
        at -= offset if found["sign"] == "+" else -offset
    return at


def _clock(hour: str, minute: str | None, second: str | None) -> int:
    return int(hour) * 3600 + int(minute or 0) * 60 + int(second or 0)
