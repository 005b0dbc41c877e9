"""The mutants, each with the promise that it breaks and a test that must notice."""

from __future__ import annotations

from .moves import MOVES
from .partitions import PARTITIONS
from .sessions import SESSIONS

MUTANTS = (*MOVES, *SESSIONS, *PARTITIONS)
