"""By which policy a table is taken over: what a person says, before what pg_partman was told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from shardwright import errors
from shardwright.partition import calendar, clocks, codecs, moments
from shardwright.partition.handmade import FoundTable
from shardwright.partition.partman import PartmanSet
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

#: Lengths that are tried where nobody says one, from long to short.
_COMMON: Final = ("1 year", "1 quarter", "1 month", "1 week", "1 day", "1 hour")


@dataclass(frozen=True)
class Wish:
    """What a person says of the policy; what is None is taken from elsewhere."""

    #: A declaration with all of it, instead of the others.
    declared: Declaration | None = None
    by: str | None = None
    every: str | None = None
    keep: str | None = None
    ahead: int | None = None
    holds: str | None = None
    zone: str | None = None
    anchor: str | None = None

    def given(self) -> dict[str, Any]:
        """What was said, in the words of a policy."""
        said = {name: value for name, value in asdict(replace(self, declared=None)).items() if value is not None}
        return {{"by": "column", "holds": "key"}.get(name, name): value for name, value in said.items()}


def resolve(
    table: str,
    wish: Wish,
    kept: Policy | None,
    partman: Iterable[PartmanSet],
    found: FoundTable,
    column_type: str | None,
) -> tuple[Policy, str, list[str]]:
    """The policy, where it is from, and what people should know of that.

    Args:
        table: ``schema.table``, for messages.
        wish: what is asked for.
        kept: the policy that the catalog has for it.
        partman: what pg_partman was told, on shards where it was.
        found: the table on the first shard that has it.
        column_type: of the column by which it is partitioned, as ``format_type`` prints it; None where it is none.

    Returns:
        The policy; ``given``, ``catalog`` or ``pg_partman``; notes.

    Raises:
        BadDeclaration: nobody says how long a window is, or what was said is no policy.
        BadOption: the catalog has another policy already.
    """
    given = wish.given()
    asked = wish.declared.policy if wish.declared is not None else None
    if kept is not None:
        if (asked is not None and asked != kept) or any(getattr(kept, name) != value for name, value in given.items()):
            raise errors.BadOption(
                f"{table} has a policy already: {kept.to_json()}",
                fix="leave the policy out; it is changed by shardwright table register",
            )
        return kept, "catalog", []
    if asked is not None:
        return asked, "given", []
    said: dict[str, Any] = {"column": found.columns[0]}
    notes: list[str] = []
    for one in list(partman)[:1]:
        said |= one.policy
        notes += [f"pg_partman: {note}" for note in one.notes if not _answered(note, given)]
        notes.append(f"once you are content, take it out of pg_partman: {one.forget}")
    said |= given
    if "every" not in said:
        raise errors.BadDeclaration(
            f"nothing says how long a window of {table} is to be",
            fix=_proposal(said, found, column_type) or '--every "1 month", or --declared with a file or a model',
        )
    policy = Policy(**said)
    if "anchor" not in said and column_type is not None:
        policy, more = _anchored(policy, found, column_type)
        notes += more
    return policy, "pg_partman" if set(said) - set(given) - {"column"} else "given", notes


def _answered(note: str, given: Mapping[str, Any]) -> bool:
    return any(f"--{name}" in note for name in given)


def _newest(policy: Policy, found: FoundTable, column_type: str) -> tuple[str, int, int] | None:
    """The key, and the bounds of the newest partition that has both."""
    try:
        key = codecs.resolve_key(policy, column_type)
        spans = [
            codecs.parse_bounds(policy, key, leaf.bounds) for leaf in found.leaves if leaf.bounds not in ("", "DEFAULT")
        ]
    except (errors.UnfitTable, errors.BadDeclaration):
        return None  # told elsewhere, with all other reasons
    whole = [
        (lower, upper)
        for lower, upper in spans
        if lower is not None and upper is not None and lower >= clocks.FIRST and upper < clocks.LAST
    ]
    return (key, *max(whole)) if whole else None


def _proposal(said: Mapping[str, Any], found: FoundTable, column_type: str | None) -> str | None:
    """The length that the newest partition has, as an option."""
    for every in _COMMON if column_type is not None else ():
        policy = Policy(**{**said, "every": every})
        newest = _newest(policy, found, str(column_type))
        if newest is not None:
            key, lower, upper = newest
            window = calendar.window_at(policy, key, lower)
            if (window.lower, window.upper) == (lower, upper):
                return f'--every "{every}", as the newest partition has it'
    return None


def _anchored(policy: Policy, found: FoundTable, column_type: str) -> tuple[Policy, list[str]]:
    """The policy with the anchor by which windows go on as the newest partition does, where it is as long as one."""
    newest = _newest(policy, found, column_type)
    if newest is None:
        return policy, []
    key, lower, upper = newest
    if calendar.window_at(policy, key, lower).lower == lower or lower % clocks.SECOND:
        return policy, []
    wall = lower if key in calendar.WALL_KEYS else clocks.clock(policy.zone).read(lower)
    anchored = replace(policy, anchor=moments.text_of(wall, "timestamp").replace(" ", "T"))
    window = calendar.window_at(anchored, key, lower)
    if (window.lower, window.upper) != (lower, upper):
        return policy, []
    return anchored, [
        f"windows go on as the newest partition does, from {anchored.anchor} on (anchor); --zone makes them begin with the "
        "days of a zone"
    ]
