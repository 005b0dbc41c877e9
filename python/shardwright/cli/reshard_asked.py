"""What `reshard plan` and `reshard start` are asked for: one request, its options, and the words to ask again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shardwright.errors import BadOption

if TYPE_CHECKING:
    import psycopg

    from shardwright.reshard.plan import Plan


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """The options that say what is to move; exactly one of the first four."""

    add: Annotated[str | None, Parameter(help="Give this shard its share; it was added by `shard add`.")] = None
    drain: Annotated[str | None, Parameter(help="Take everything from this shard.")] = None
    weights: Annotated[str | None, Parameter(help="New weights: s1=1,s2=2. Shards not named keep theirs.")] = None
    move: Annotated[str | None, Parameter(help="KEYSPACE:[LO,HI) goes to the shard of --to.")] = None
    to: Annotated[str | None, Parameter(help="The shard that gets what --move names.")] = None
    batches: Annotated[
        str | None,
        Parameter(help="Where batches end, as shares of a move's points: 0.01,0.11,1. The first batch is one point."),
    ] = None

    def plan(self, catalog: psycopg.Connection) -> Plan:
        """Make the plan; changes nothing.

        Raises:
            BadOption: an option cannot be read.
            UsageError: see `operate.plan`.
        """
        from shardwright.reshard import operate

        options: dict[str, Any] = {}
        if self.batches is not None:
            options["batch_shares"] = _shares(self.batches)
        return operate.plan(
            catalog,
            add=self.add,
            drain=self.drain,
            weights=_weights(self.weights) if self.weights is not None else None,
            move=self.move,
            to=self.to,
            **options,
        )

    def words(self) -> str:
        """The options as they are typed."""
        given = vars(self).items()
        return shlex.join(word for name, value in given if value is not None for word in (f"--{name}", value))


def read_settings(given: Sequence[str]) -> dict[str, float]:
    """The values of ``--set NAME=VALUE``.

    Raises:
        BadOption: one is not a name and a number, or a name comes twice.
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name in found:
            raise BadOption(f"setting {name} is given twice", fix="shardwright reshard start --help")
        number = _number("--set", text, value)
        found[name] = int(number) if number.is_integer() else number
    return found


def _weights(text: str) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        # isdecimal: int() itself would take "1_0" and " 1"
        if not name or not (value.isascii() and value.isdecimal()) or name in found:
            raise BadOption(
                f"--weights {text}: each shard once, with an integer from 0 on", fix="for example --weights s1=1,s2=2"
            )
        found[name] = int(value)
    return found


def _shares(text: str) -> tuple[float, ...]:
    return tuple(_number("--batches", text, part) for part in text.split(","))


def _number(option: str, text: str, part: str) -> float:
    try:
        number = float(part)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadOption(f"{option} {text}: {part!r} is not a number", fix="shardwright reshard start --help")
    return number
