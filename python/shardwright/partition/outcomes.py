"""What became of a plan: for each table and shard done, deferred or failed, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg

from shardwright import errors
from shardwright.partition.plan import Plan, Step

#: Days for which runs are kept in the catalog.
_KEPT = 30


@dataclass(frozen=True)
class Outcome:
    """What became of one table's steps on one shard."""

    table_id: int
    #: ``schema.table``.
    table: str
    shard: str
    #: ``done``; ``deferred``: the next run takes it up; ``failed``: a person must look.
    outcome: str
    #: Steps that were done.
    done: int = 0
    #: Why not all of them: the error's number, message and fix, the step, and who was in the way.
    reason: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Kind of the step that did not succeed; empty where none was begun."""
        return str(self.reason.get("step", "")).partition(" ")[0]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """What became of a plan."""

    plan: Plan
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        """What a person must look at."""
        return [one for one in self.outcomes if one.outcome == "failed"]

    @property
    def deferred(self) -> list[Outcome]:
        """What the next run takes up."""
        return [one for one in self.outcomes if one.outcome == "deferred"]

    @property
    def exit_code(self) -> int:
        """0: all is well; 3: a person must act; 4: something was deferred, call again."""
        if self.failed or self.plan.needs_human:
            return errors.PreconditionError.exit_code
        return errors.ConflictError.exit_code if self.deferred else 0

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return {
            "ok": self.exit_code == 0,
            "plan": self.plan.to_json(),
            "outcomes": [one.to_json() for one in self.outcomes],
        }


def reason_of(error: Exception, step: Step | None = None) -> dict[str, Any]:
    """An error as the reason of an outcome.

    Args:
        error: what stopped a step.
        step: that step.
    """
    found: dict[str, Any] = {"step": f"{step.kind} {step.name}"} if step is not None else {}
    if isinstance(error, errors.ShardwrightError):
        found |= {"code": error.code, "message": error.message, "fix": error.fix}
        if blockers := error.facts.get("blockers"):
            found["blockers"] = list(blockers)
        return found
    state = getattr(error, "sqlstate", None)
    return found | {
        "code": state or "",
        "message": " ".join(str(error).split()),
        "fix": "mend the cause; it is tried again",
    }


def record(catalog: psycopg.Connection, plan: Plan, outcomes: Iterable[Outcome]) -> None:
    """Write outcomes into the catalog; runs of more than 30 days ago go.

    Args:
        catalog: connection to the catalog.
        plan: what was to be done.
        outcomes: what became of it.
    """
    rows = [
        (one.table_id, one.shard, plan.fingerprint, one.outcome, {"steps": one.done, **dict(one.reason)})
        for one in outcomes
    ]
    if not rows:
        return
    catalog.execute(
        "WITH old AS (DELETE FROM shardwright.partition_runs WHERE at < clock_timestamp() - make_interval(days => %s)) "
        "INSERT INTO shardwright.partition_runs (table_id, shard, plan, outcome, detail) "
        "SELECT * FROM unnest(%s::int[], %s::text[], %s::text[], %s::text[], %s::jsonb[])",
        (_KEPT, *([row[at] for row in rows] for at in range(4)), [json.dumps(row[4]) for row in rows]),
    )
