"""Moments that a person gives as options."""

from __future__ import annotations

from datetime import UTC, datetime

from shardwright import errors


def asked_moment(text: str | None) -> datetime | None:
    """Read an option that is a moment; None where it was not given.

    Args:
        text: ISO 8601; UTC where it has no offset.

    Raises:
        BadOption: it is no moment.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise errors.BadOption(f"not a moment: {text!r}", fix="ISO 8601, such as 2026-12-31T00:00+00:00") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
