"""What must hold of the phases, whatever they are: computed from the tables in phases.py."""

from __future__ import annotations

import itertools

import pytest

from shardwright.reshard.phases import (
    OWNS,
    SENTENCES,
    TERMINAL,
    TRANSITIONS,
    Event,
    Goal,
    IllegalStep,
    Phase,
    allowed_goals,
    follow,
    next_event,
)


def _reachable(start: Phase) -> set[Phase]:
    found = {start}
    while more := {after for (before, _), after in TRANSITIONS.items() if before in found} - found:
        found |= more
    return found


def test_terminal_phases_own_nothing_and_have_no_exit() -> None:
    for phase in TERMINAL:
        assert OWNS[phase] == frozenset()
        assert not [1 for before, _ in TRANSITIONS if before is phase]
        assert allowed_goals(phase) == frozenset()


def test_every_phase_is_reached_and_reaches_an_end() -> None:
    assert _reachable(Phase.PLANNED) == set(Phase)
    for phase in Phase:
        assert _reachable(phase) & TERMINAL


def test_only_a_verified_operation_is_switched() -> None:
    switching = {before for (before, _), after in TRANSITIONS.items() if after is Phase.SWITCHING}
    assert switching == {Phase.VERIFIED, Phase.REVERTING}
    assert {before for (before, _), after in TRANSITIONS.items() if after is Phase.CLEANING} == {Phase.SWITCHED}


def test_nothing_that_was_switched_is_aborted_without_going_back() -> None:
    aborting = {before for (before, _), after in TRANSITIONS.items() if after is Phase.ABORTING}
    assert not aborting & {Phase.SWITCHING, Phase.SWITCHED, Phase.REVERTING, Phase.CLEANING}


def test_every_other_step_is_refused() -> None:
    for phase, event in itertools.product(Phase, Event):
        if (phase, event) in TRANSITIONS:
            assert follow(phase, event) is TRANSITIONS[phase, event]
        else:
            with pytest.raises(IllegalStep):
                follow(phase, event)


def test_every_phase_is_described() -> None:
    assert set(SENTENCES) == set(OWNS) == set(Phase)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in TERMINAL])
def test_every_goal_that_may_be_set_is_reached(phase: Phase) -> None:
    for goal in allowed_goals(phase):
        at, passed = phase, []
        while (event := next_event(at, goal)) is not None:
            passed.append(at)
            assert len(passed) < 2 * len(Phase), f"{goal} from {phase} goes in circles: {passed}"
            at = follow(at, event)
        # a goal behind the phase (verified, when it is reverted) is reached by going round
        assert at.value == goal.value, f"from {phase} towards {goal} the road ends in {at}"


def test_a_goal_that_cannot_be_reached_is_not_allowed() -> None:
    assert Goal.ABORTED not in allowed_goals(Phase.SWITCHED)
    assert Goal.REVERTED not in allowed_goals(Phase.CLEANING)
    assert allowed_goals(Phase.ABORTING) == {Goal.ABORTED}
