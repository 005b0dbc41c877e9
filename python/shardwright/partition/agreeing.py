"""Where shards contradict each other, or the catalog, in the partitions that they have of one table. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardwright.partition.carried import qualified
from shardwright.partition.convertible import Reason
from shardwright.partition.declare import Declared, by_position, overlap, told
from shardwright.partition.handmade import FoundLeaf
from shardwright.partition.shapes import Partition, PartitionedTable
from shardwright.routing.predicates import quote_identifier as ident

Span = tuple[int | None, int | None]


@dataclass(frozen=True)
class Here:
    """A partition of one shard with its bounds on the axis; no DEFAULT."""

    shard: str
    leaf: FoundLeaf
    lower: int | None
    upper: int | None

    @property
    def span(self) -> Span:
        """Its bounds."""
        return self.lower, self.upper

    @property
    def is_our_guard(self) -> bool:
        """Whether it is a guard with our mark: its bounds follow from what its shard has."""
        return self.leaf.role in ("before", "after")


def contradictions(table: PartitionedTable, declared: Declared, here: Sequence[Here]) -> list[tuple[str, Reason]]:
    """What keeps the shards' partitions from being one list, by shard.

    Args:
        table: whose partitions.
        declared: what the catalog lists already.
        here: what all shards have.
    """
    return [*_names(table, here), *_listed(table, declared, here), *_overlaps(table, declared, here)]


def _names(table: PartitionedTable, here: Sequence[Here]) -> Iterator[tuple[str, Reason]]:
    """One span has one name, and one name one span."""
    by_span: dict[Span, Here] = {}
    by_name: dict[str, Here] = {}
    for one in here:
        if one.is_our_guard:
            continue
        full = qualified(one.leaf.schema, one.leaf.name)
        first, same = by_span.setdefault(one.span, one), by_name.setdefault(one.leaf.name, one)
        if first.leaf.name != one.leaf.name:
            yield (
                one.shard,
                Reason(
                    f"calls {told(table, *one.span)} {one.leaf.name}, and shard {first.shard} calls it {first.leaf.name}",
                    f"ALTER TABLE {full} RENAME TO {ident(first.leaf.name)}",
                ),
            )
        elif same.span != one.span:
            yield (
                one.shard,
                Reason(
                    f"has {one.leaf.name} for {told(table, *one.span)}, and shard {same.shard} has it for "
                    f"{told(table, *same.span)}",
                    f"ALTER TABLE {full} RENAME TO a name of its own, if the two do not overlap; else make their bounds equal",
                ),
            )


def _listed(table: PartitionedTable, declared: Declared, here: Sequence[Here]) -> Iterator[tuple[str, Reason]]:
    wanted = {one.name: one for one in declared.wanted}
    retired = {one.name for one, _ in declared.retired}
    for one in here:
        name = one.leaf.name
        if name in retired and not one.leaf.role:
            yield (
                one.shard,
                Reason(
                    f"has {name} attached again, whose time is over by the policy",
                    "a longer `keep` in the policy; or detach it, and bring it back by shardwright partition restore",
                ),
            )
        elif name in wanted and not wanted[name].is_guard and wanted[name].span != one.span:
            yield (
                one.shard,
                Reason(
                    f"has {name} for {told(table, *one.span)}, and it is declared for {told(table, *wanted[name].span)}",
                    f"detach it, and attach it to {table.full_name} with the declared bounds",
                ),
            )


def _overlaps(table: PartitionedTable, declared: Declared, here: Sequence[Here]) -> Iterator[tuple[str, Reason]]:
    """Spans that meet without being the same. On one shard PostgreSQL refuses them; nobody does between shards."""
    known = declared.names()
    #: Of each span: the shard, None for the catalog, and the name.
    spans: dict[Span, tuple[str | None, str]] = {
        one.span: (None, one.name) for one in declared.wanted if not one.is_guard
    }
    for one in here:
        if not one.is_our_guard and one.leaf.name not in known:
            spans.setdefault(one.span, (one.shard, one.leaf.name))
    furthest: Span | None = None
    for span in sorted(spans, key=lambda span: by_position(Partition("", *span))):
        if furthest is not None and overlap(furthest, span):
            mine, other = sorted((span, furthest), key=lambda span: spans[span][0] is None)
            shard, name = spans[mine]
            where = "the catalog" if spans[other][0] is None else f"shard {spans[other][0]}"
            yield (
                str(shard),
                Reason(
                    f"has {name} for {told(table, *mine)}, which overlaps {spans[other][1]} of {where} for "
                    f"{told(table, *other)}",
                    f"detach {name}, make partitions with the bounds of {where}, and insert its rows",
                ),
            )
        if furthest is None or _ends_later(span, furthest):
            furthest = span
    for guard in (one for one in declared.wanted if one.is_guard):
        for one in here:
            if not one.leaf.role and one.leaf.name not in known and overlap(guard.span, one.span):
                yield (
                    one.shard,
                    Reason(
                        f"has {one.leaf.name} for {told(table, *one.span)}, where the guard {guard.name} is declared",
                        f"detach {one.leaf.name}, and insert its rows into {table.full_name}",
                    ),
                )


def _ends_later(span: Span, than: Span) -> bool:
    return than[1] is not None and (span[1] is None or span[1] > than[1])
