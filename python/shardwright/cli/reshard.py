"""``shardwright reshard``: move ranges between shards while the application keeps running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.reshard_asked import Asked, read_settings
from shardwright.cli.reshard_drive import Interrupts, answer, drive, explained, guarded, warnings_shown
from shardwright.cli.reshard_screen import at_rest, line, listed, plan_screen
from shardwright.cli.reshard_watch import follow

if TYPE_CHECKING:
    import psycopg

app = App(name="reshard", help="Move ranges between shards while the application keeps running.")

NOTHING = Asked()
Detach = Annotated[bool, Parameter(negative=(), help="Only record what is wanted; a `shardwright worker` does it.")]


def _example(*commands: str) -> str:
    return "\n\n".join(["Example:", *(f"    {command}" for command in commands)])


@app.command(
    help_epilogue=_example(
        "shardwright reshard plan --add s3", "shardwright reshard plan --move 'users:[0,128)' --to s2 --json"
    )
)
def plan(*, asked: Asked = NOTHING, common: Common = DEFAULTS) -> Answer:
    """Show what would move, with rows, bytes and an estimate. Changes nothing."""
    with common.connect() as catalog:
        made = asked.plan(catalog)
    step = f"shardwright reshard start {asked.words()} --plan {made.fingerprint}"
    return Answer(made.as_json(), plan_screen(made), next_steps=[step])


@app.command(
    help_epilogue=_example(
        "shardwright reshard start --add s3", "shardwright reshard start --drain s1 --set copy_workers=4 --detach"
    )
)
def start(
    *,
    asked: Asked = NOTHING,
    plan: str | None = None,
    settings: Annotated[Sequence[str], Parameter(name="--set", negative=())] = (),
    until: Literal["verified", "switched", "done"] = "verified",
    detach: Detach = False,
    common: Common = DEFAULTS,
) -> Answer:
    """Start an operation and bring it to `verified`: copied, kept in step, compared. Nothing is switched.

    It takes the same options as `reshard plan`. Ctrl-C leaves it where it stands; `reshard resume` goes on.

    Args:
        asked: what is to move.
        plan: a plan's fingerprint; refused if the plan that would be made now is another one.
        settings: NAME=VALUE, any number of times: copy_workers (threads that copy), fence_lock_timeout_ms (how long one
            try to fence may make writers wait), fence_attempts, max_pause_ms (how long a fenced batch may wait for its
            last changes), catch_up_seconds, certificate_seconds (how old a comparison may be at the switch).
        until: go on without asking, to `switched` or to `done` (rolling back is not possible after that).
        detach: see below.
    """
    from shardwright.reshard import operate

    wanted = read_settings(settings)
    with Interrupts() as interrupts:
        try:
            with common.connect() as catalog:
                made = asked.plan(catalog)
                if plan is not None and plan != made.fingerprint:
                    raise errors.OperationConflict(
                        f"the plan made now is {made.fingerprint}, not {plan}: the shard map or the shards changed",
                        fix=f"shardwright reshard plan {asked.words()}",
                    )
                interrupts.check()
                number = operate.start(catalog, made, wanted)
                if until != "verified":
                    operate.set_goal(catalog, number, until)
        except (errors.Interrupted, KeyboardInterrupt):
            raise errors.Interrupted(
                "interrupted before the operation was seen to be recorded", fix="shardwright reshard status"
            ) from None
        if not common.json:
            common.output.note(f"operation {number} is recorded: {asked.words()}")
        return _go(common, number, interrupts, detach=detach)


@app.command(help_epilogue=_example("shardwright reshard switch", "shardwright reshard switch 4 --json"))
def switch(operation: int | None = None, /, *, detach: Detach = False, common: Common = DEFAULTS) -> Answer:
    """Hand everything that moves over to the new shards, batch by batch, each in milliseconds.

    Every change flows back from then on, so `reshard rollback` loses nothing until `reshard finish`.

    Args:
        operation: its number; may be left out when exactly one is live.
    """
    return _towards("switched", common, operation, detach=detach)


@app.command(help_epilogue=_example("shardwright reshard rollback"))
def rollback(operation: int | None = None, /, *, detach: Detach = False, common: Common = DEFAULTS) -> Answer:
    """Hand everything back to the old shards, with all that was written since the switch.

    Args:
        operation: its number; may be left out when exactly one is live.
    """
    return _towards("reverted", common, operation, detach=detach)


@app.command(help_epilogue=_example("shardwright reshard finish"))
def finish(operation: int | None = None, /, *, detach: Detach = False, common: Common = DEFAULTS) -> Answer:
    """Close the way back and delete the rows that moved on their old shards. Nothing of the operation stays.

    Args:
        operation: its number; may be left out when exactly one is live.
    """
    return _towards(
        "done", common, operation, detach=detach, only_from=("switching", "switched", "reverting", "cleaning", "done")
    )


@app.command(help_epilogue=_example("shardwright reshard abort"))
def abort(operation: int | None = None, /, *, detach: Detach = False, common: Common = DEFAULTS) -> Answer:
    """Take away everything that an operation made; the old shards serve all of it. After the switch: roll back first.

    Args:
        operation: its number; may be left out when exactly one is live.
    """
    return _towards("aborted", common, operation, detach=detach)


@app.command(help_epilogue=_example("shardwright reshard resume", "shardwright reshard resume 4 --take-over"))
def resume(
    operation: int | None = None,
    /,
    *,
    take_over: Annotated[bool, Parameter(negative=())] = False,
    common: Common = DEFAULTS,
) -> Answer:
    """Go on with an operation that was interrupted or failed, towards the goal that is set.

    A worker that was killed on this host is followed at once; one elsewhere is watched, and followed when its lease
    ends.

    Args:
        operation: its number; may be left out when exactly one is live.
        take_over: do not wait for another worker's lease to end. It can change nothing any more from then on.
    """
    with Interrupts() as interrupts:
        with common.connect() as catalog:
            number = _number(catalog, operation)
        return drive(common, number, interrupts, take_over=take_over)


@app.command(help_epilogue=_example("shardwright reshard verify"))
def verify(operation: int | None = None, /, *, common: Common = DEFAULTS) -> Answer:
    """Compare both sides of an operation row by row once more, and keep the certificate that the switch asks for.

    Args:
        operation: its number; may be left out when exactly one is live.
    """
    from shardwright.reshard import operate

    with Interrupts() as interrupts:
        with common.connect() as catalog:
            number = _number(catalog, operation)
        with warnings_shown(common.output):
            seen = guarded(
                common, number, lambda: operate.verify(common.dsn(), number, interrupts.check), changed=False
            )
    return answer(common.output, seen, shown_live=False)


@app.command(help_epilogue=_example("shardwright reshard status", "shardwright reshard status 4 --json"))
def status(operation: int | None = None, /, *, common: Common = DEFAULTS) -> Answer:
    """Show how an operation does; without a number the live ones, or the newest ten.

    Args:
        operation: its number.
    """
    from shardwright.catalog import operations
    from shardwright.reshard import status as statuses

    with common.connect() as catalog:
        if operation is not None:
            return answer(common.output, statuses.of(catalog, operation), shown_live=False)
        numbers = [found.id for found in operations.list_live(catalog) or operations.list_all(catalog, 10)]
        found = [statuses.of(catalog, number) for number in numbers]
    steps = [step for one in found for step in one.next_steps] or ["shardwright reshard plan --help"]
    return Answer(
        {"operations": [one.as_json() for one in found]}, [listed(found)], next_steps=list(dict.fromkeys(steps))
    )


@app.command(help_epilogue=_example("shardwright reshard watch", "shardwright reshard watch 4 | tee reshard.log"))
def watch(operation: int | None = None, /, *, common: Common = DEFAULTS) -> int:
    """Watch an operation until it is where it was wanted, or until it fails. Changes nothing; Ctrl-C ends the watching only.

    On a terminal the screen is renewed in place; in a pipe there is a line a second, with --json a line of JSON.

    Args:
        operation: its number; may be left out when exactly one is live.
    """
    with common.connect() as catalog:
        number = _number(catalog, operation)
    return follow(common, number)


# ------------------------------------------------------------------ what the verbs share


def _towards(
    goal: str, common: Common, operation: int | None, *, detach: bool, only_from: tuple[str, ...] = ()
) -> Answer:
    """Set a goal, then bring the operation there."""
    from shardwright.catalog import operations
    from shardwright.reshard import operate

    with Interrupts() as interrupts:
        with common.connect() as catalog:
            number = _number(catalog, operation)
            phase = operations.get(catalog, number).phase
            try:
                if only_from and phase not in only_from:
                    raise errors.WrongPhase(
                        f"operation {number} is {phase} and cannot become {goal} before it is {only_from[0]}",
                        phase=phase,
                    )
                operate.set_goal(catalog, number, goal)
            except errors.WrongPhase as error:
                raise explained(common, number, error, changed=False) from None
        return _go(common, number, interrupts, detach=detach)


def _go(common: Common, number: int, interrupts: Interrupts, *, detach: bool) -> Answer:
    from shardwright.reshard import status as statuses

    if not detach:
        return drive(common, number, interrupts)
    with common.connect() as catalog:
        seen = statuses.of(catalog, number)
    if at_rest(seen) or seen.worker:
        return answer(common.output, seen, shown_live=False)
    steps = ["shardwright worker", f"shardwright reshard watch {number}", *seen.next_steps]
    return Answer(seen.as_json(), [line(seen)], next_steps=steps)


def _number(catalog: psycopg.Connection, operation: int | None) -> int:
    """The operation that is meant.

    Raises:
        UnknownOperation: there is none of that number, or none is live.
        BadOption: no number was given and several are live.
    """
    from shardwright.catalog import operations

    if operation is not None:
        return operations.get(catalog, operation).id
    live = [found.id for found in operations.list_live(catalog)]
    if not live:
        raise errors.UnknownOperation("no operation is live", fix="shardwright reshard plan --help")
    if len(live) > 1:
        raise errors.BadOption(
            f"operations {', '.join(map(str, live))} are live: say which", fix="shardwright reshard status"
        )
    return live[0]
