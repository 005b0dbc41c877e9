"""The phases of an operation: every phase, every legal step, what an operator reads, and what each phase owns.

Two rules. Everything that decides which phase may follow which stands in this file (the catalog's table `transitions`
says it once more, and a test makes the two agree). Nothing here does I/O or knows who runs it.

    planned -> prepared -> copying -> catching_up -> verified -> switching -> switched -> cleaning -> done
                                                        ^             \\           |
                                                        |              v          v
                                                     reverted <---- reverting <---+
    planned .. verified, reverted -> aborting -> aborted
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """Where an operation stands; the text is what the catalog stores."""

    PLANNED = "planned"
    PREPARED = "prepared"
    COPYING = "copying"
    CATCHING_UP = "catching_up"
    VERIFIED = "verified"
    SWITCHING = "switching"
    SWITCHED = "switched"
    REVERTING = "reverting"
    REVERTED = "reverted"
    CLEANING = "cleaning"
    DONE = "done"
    ABORTING = "aborting"
    ABORTED = "aborted"


class Event(StrEnum):
    """What moves an operation on. A phase that ends in -ing is entered first and worked in; the work's end leads on."""

    PREPARE = "prepare"
    COPY = "copy"
    CATCH_UP = "catch_up"
    VERIFY = "verify"
    SWITCH = "switch"
    ROLL_BACK = "roll_back"
    FINISH = "finish"
    ABORT = "abort"


class Goal(StrEnum):
    """What an operator wants an operation to reach."""

    VERIFIED = "verified"
    SWITCHED = "switched"
    REVERTED = "reverted"
    DONE = "done"
    ABORTED = "aborted"


class Resource(StrEnum):
    """What an operation makes on shards, and must take away again."""

    GUARD = "importing ranges and guards on the target"
    FORWARD_PUBLICATION = "publication on the source"
    FORWARD_SLOT = "replication slot on the source"
    FORWARD_SUBSCRIPTION = "subscription on the target"
    REVERSE_PUBLICATION = "publication on the target"
    REVERSE_SLOT = "replication slot on the target"
    REVERSE_SUBSCRIPTION = "subscription on the source"
    COPIES = "rows on the side that does not serve them"


class IllegalStep(Exception):
    """The event has no meaning in the phase."""


TRANSITIONS: Final[dict[tuple[Phase, Event], Phase]] = {
    (Phase.PLANNED, Event.PREPARE): Phase.PREPARED,
    (Phase.PREPARED, Event.COPY): Phase.COPYING,
    (Phase.COPYING, Event.CATCH_UP): Phase.CATCHING_UP,
    # a lost slot or snapshot means copy again
    (Phase.CATCHING_UP, Event.COPY): Phase.COPYING,
    (Phase.CATCHING_UP, Event.VERIFY): Phase.VERIFIED,
    (Phase.VERIFIED, Event.VERIFY): Phase.VERIFIED,
    (Phase.VERIFIED, Event.COPY): Phase.COPYING,
    (Phase.VERIFIED, Event.SWITCH): Phase.SWITCHING,
    (Phase.SWITCHING, Event.SWITCH): Phase.SWITCHED,
    (Phase.SWITCHING, Event.ROLL_BACK): Phase.REVERTING,
    (Phase.SWITCHED, Event.VERIFY): Phase.SWITCHED,
    (Phase.SWITCHED, Event.ROLL_BACK): Phase.REVERTING,
    (Phase.REVERTING, Event.ROLL_BACK): Phase.REVERTED,
    # a roll back that cannot go on, or is not wanted any more, is turned round
    (Phase.REVERTING, Event.SWITCH): Phase.SWITCHING,
    (Phase.REVERTED, Event.VERIFY): Phase.VERIFIED,
    (Phase.REVERTED, Event.COPY): Phase.COPYING,
    (Phase.SWITCHED, Event.FINISH): Phase.CLEANING,
    (Phase.CLEANING, Event.FINISH): Phase.DONE,
    (Phase.PLANNED, Event.ABORT): Phase.ABORTING,
    (Phase.PREPARED, Event.ABORT): Phase.ABORTING,
    (Phase.COPYING, Event.ABORT): Phase.ABORTING,
    (Phase.CATCHING_UP, Event.ABORT): Phase.ABORTING,
    (Phase.VERIFIED, Event.ABORT): Phase.ABORTING,
    (Phase.REVERTED, Event.ABORT): Phase.ABORTING,
    (Phase.ABORTING, Event.ABORT): Phase.ABORTED,
}

TERMINAL: Final = frozenset({Phase.DONE, Phase.ABORTED})

#: In these phases some points of the operation may be served by the target.
PAST_FIRST_COMMIT: Final = frozenset({Phase.SWITCHING, Phase.SWITCHED, Phase.REVERTING, Phase.CLEANING})

SENTENCES: Final[dict[Phase, str]] = {
    Phase.PLANNED: "The moving points are recorded; nothing exists on the shards yet.",
    Phase.PREPARED: "Ranges are split off, target tables and the publication exist; the source serves everything.",
    Phase.COPYING: "Rows are being copied from one snapshot; the source serves everything.",
    Phase.CATCHING_UP: "Changes made since the snapshot are being applied on the target; the source serves everything.",
    Phase.VERIFIED: "Source and target agreed at one point in time and are kept in step; ready to switch.",
    Phase.SWITCHING: "Ranges are being handed over to the target, batch by batch.",
    Phase.SWITCHED: "The target serves everything that moves; every change flows back, so rolling back loses nothing.",
    Phase.REVERTING: "Ranges are being handed back to the source, batch by batch.",
    Phase.REVERTED: "The source serves everything again; the target is kept in step.",
    Phase.CLEANING: "The way back is closed; the rows left on the source are being deleted.",
    Phase.DONE: "The target serves what was moved; nothing is left behind.",
    Phase.ABORTING: "What was made is being taken away; the source serves everything.",
    Phase.ABORTED: "Nothing was moved; nothing is left behind.",
}

_PREPARED: Final = frozenset({Resource.GUARD, Resource.FORWARD_PUBLICATION})
_COPYING: Final = _PREPARED | {Resource.FORWARD_SLOT, Resource.COPIES}
_CAUGHT_UP: Final = _COPYING | {Resource.FORWARD_SUBSCRIPTION}
_ALL: Final = frozenset(Resource)

#: What a switch makes before it hands anything over.
REVERSE: Final = frozenset({Resource.REVERSE_PUBLICATION, Resource.REVERSE_SLOT, Resource.REVERSE_SUBSCRIPTION})

#: What may exist on shards while an operation stands in a phase. Clean-up takes away the difference to the next one.
OWNS: Final[dict[Phase, frozenset[Resource]]] = {
    Phase.PLANNED: frozenset(),
    Phase.PREPARED: _PREPARED,
    Phase.COPYING: _COPYING,
    Phase.CATCHING_UP: _CAUGHT_UP,
    Phase.VERIFIED: _ALL,
    Phase.SWITCHING: _ALL,
    Phase.SWITCHED: _ALL,
    Phase.REVERTING: _ALL,
    Phase.REVERTED: _ALL,
    Phase.CLEANING: _ALL,
    Phase.DONE: frozenset(),
    Phase.ABORTING: _ALL,
    Phase.ABORTED: frozenset(),
}


def follow(phase: Phase, event: Event) -> Phase:
    """The phase that `event` leads to from `phase`.

    Raises:
        IllegalStep: the event has no meaning there.
    """
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise IllegalStep(f"{event} has no meaning in phase {phase}") from None


#: For each goal, the event to go on with from each phase; a phase that is missing has reached the goal or cannot.
_FORWARD: Final = {
    Phase.PLANNED: Event.PREPARE,
    Phase.PREPARED: Event.COPY,
    Phase.COPYING: Event.CATCH_UP,
    Phase.CATCHING_UP: Event.VERIFY,
    Phase.REVERTED: Event.VERIFY,
    Phase.REVERTING: Event.ROLL_BACK,
}
_SWITCH: Final = {
    **_FORWARD,
    Phase.VERIFIED: Event.SWITCH,
    Phase.SWITCHING: Event.SWITCH,
    Phase.REVERTING: Event.SWITCH,
}
_ROADS: Final[dict[Goal, dict[Phase, Event]]] = {
    Goal.VERIFIED: _FORWARD,
    Goal.SWITCHED: _SWITCH,
    Goal.DONE: {**_SWITCH, Phase.SWITCHED: Event.FINISH, Phase.CLEANING: Event.FINISH},
    Goal.REVERTED: {
        Phase.SWITCHING: Event.ROLL_BACK,
        Phase.SWITCHED: Event.ROLL_BACK,
        Phase.REVERTING: Event.ROLL_BACK,
    },
    Goal.ABORTED: {
        Phase.SWITCHING: Event.ROLL_BACK,
        Phase.REVERTING: Event.ROLL_BACK,
        **{phase: event for (phase, event) in TRANSITIONS if event is Event.ABORT},
    },
}


def next_event(phase: Phase, goal: Goal) -> Event | None:
    """The event to go on with from `phase` towards `goal`; None where the road ends."""
    return _ROADS[goal].get(phase)


def allowed_goals(phase: Phase) -> frozenset[Goal]:
    """The goals that an operator may set while an operation stands in `phase`.

    ABORTED is allowed before the first commit and after a roll back; in `switching` it rolls back first.
    """
    if phase in TERMINAL:
        return frozenset()
    if phase is Phase.CLEANING:
        return frozenset({Goal.DONE})
    if phase is Phase.ABORTING:
        return frozenset({Goal.ABORTED})
    if phase is Phase.SWITCHED:
        return frozenset({Goal.SWITCHED, Goal.REVERTED, Goal.DONE})
    if phase in (Phase.SWITCHING, Phase.REVERTING):
        return frozenset({Goal.SWITCHED, Goal.REVERTED, Goal.DONE, Goal.ABORTED})
    return frozenset({Goal.VERIFIED, Goal.SWITCHED, Goal.DONE, Goal.ABORTED})


def reached(phase: Phase, goal: Goal) -> bool:
    """Whether `goal` is reached in `phase`."""
    return phase.value == goal.value
