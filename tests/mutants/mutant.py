"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change of the package's source that makes it wrong."""

    name: str
    #: What goes wrong with it, for people.
    breaks: str
    #: File below python/shardwright.
    file: str
    #: (what stands there, what is put instead), each found exactly once.
    edits: tuple[tuple[str, str], ...]
    #: Arguments of pytest: tests of which one at least must fail.
    tests: tuple[str, ...]
