"""The circuit breaker: a state machine, with the time in our hands."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shardwright import errors
from shardwright.session.breaker import Breaker, BreakerOptions


def make(jitter: Callable[[], float] = lambda: 1.0, **options: float) -> Breaker:
    return Breaker("s1", "primary", BreakerOptions(**options), jitter)  # type: ignore[arg-type]


def refused(breaker: Breaker, now: float) -> float:
    """For how long it says that it is open."""
    with pytest.raises(errors.ShardUnavailable) as caught:
        breaker.enter(now)
    assert caught.value.retriable
    assert caught.value.facts["shard"] == "s1"
    assert caught.value.facts["role"] == "primary"
    found: float = caught.value.facts["retry_after"]
    return found


def test_failures_in_a_row_open_it() -> None:
    breaker = make(threshold=3)
    for _ in range(2):
        assert not breaker.failed(10, "no answer")
        assert breaker.enter(10) is None
    assert breaker.failed(10, "no answer")
    assert breaker.state(10) == "open"
    assert refused(breaker, 10.25) == 0.75


def test_an_answer_forgets_the_failures() -> None:
    breaker = make(threshold=2)
    for _ in range(5):
        assert not breaker.failed(0, "x")
        assert breaker.is_troubled
        assert not breaker.heard()
        assert not breaker.is_troubled
    assert breaker.enter(0) is None


def test_one_tries_when_the_pause_is_over() -> None:
    breaker = make(threshold=1)
    breaker.failed(0, "x")
    assert breaker.state(1) == "half-open"
    trial = breaker.enter(1)
    assert trial is not None
    assert refused(breaker, 1) == 1.0
    assert breaker.heard()
    breaker.leave(trial)
    assert breaker.state(1) == "closed"
    assert breaker.enter(1) is None


def test_pauses_double_up_to_a_ceiling_and_begin_anew_after_an_answer() -> None:
    breaker, now, pauses = make(threshold=1, cool_down=1, ceiling=5), 0.0, []
    breaker.failed(now, "x")
    for _ in range(5):
        pauses.append(refused(breaker, now))
        now += pauses[-1]
        trial = breaker.enter(now)
        assert breaker.failed(now, "x")
        breaker.leave(trial)
    assert pauses == [1, 2, 4, 5, 5]
    breaker.heard()
    breaker.failed(now, "x")
    assert refused(breaker, now) == 1


def test_pauses_are_jittered_and_keep_below_the_ceiling() -> None:
    factors = iter([0.75, 1.25])
    breaker = make(jitter=lambda: next(factors), threshold=1, cool_down=2, ceiling=4)
    breaker.failed(0, "x")
    assert refused(breaker, 0) == 1.5
    breaker.enter(1.5)
    breaker.failed(1.5, "x")
    assert refused(breaker, 1.5) == 4


def test_a_trial_that_learns_nothing_leaves_it_to_the_next() -> None:
    breaker = make(threshold=1)
    breaker.failed(0, "x")
    first = breaker.enter(1)
    refused(breaker, 1)
    breaker.leave(first)
    second = breaker.enter(1)
    assert second is not None
    # One that comes late does not end another's trial.
    breaker.leave(first)
    refused(breaker, 1)


def test_failures_of_calls_made_before_do_not_prolong_the_pause() -> None:
    breaker = make(threshold=1)
    breaker.failed(0, "x")
    for at in (0.1, 0.5, 0.9):
        assert not breaker.failed(at, "x")
        assert not breaker.trip(at, "x")
    assert breaker.state(1) == "half-open"


def test_certainty_opens_it_at_once() -> None:
    breaker = make(threshold=3)
    assert breaker.trip(0, "it is silent")
    with pytest.raises(errors.ShardUnavailable, match="it is silent"):
        breaker.check(0.5)
    breaker.check(1)
    assert breaker.heard()


def test_threshold_0_never_opens() -> None:
    breaker = make(threshold=0)
    for _ in range(100):
        assert not breaker.failed(0, "x")
        assert not breaker.trip(0, "x")
    assert breaker.enter(0) is None


@pytest.mark.parametrize("options", [{"threshold": -1}, {"cool_down": 0}, {"cool_down": 5, "ceiling": 4}])
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(errors.BadOption):
        make(**options)


def test_one_of_many_threads_tries() -> None:
    breaker = make(threshold=1)
    breaker.failed(0, "x")
    together, trials = threading.Barrier(16), []

    def ask() -> None:
        together.wait()
        with contextlib.suppress(errors.ShardUnavailable):
            trials.append(breaker.enter(1))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trials) == 1
    assert trials[0] is not None


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, beside a model that is as plain as can be."""

    @initialize(threshold=st.integers(1, 4), cool_down=st.floats(0.1, 4), factor=st.floats(0.75, 1.25))
    def begin(self, threshold: int, cool_down: float, factor: float) -> None:
        self.options = BreakerOptions(threshold, cool_down, cool_down * 8)
        self.breaker = Breaker("s1", "primary", self.options, lambda: factor)
        self.now = 0.0
        self.in_a_row = 0
        self.open_until: float | None = None
        self.trial: object | None = None

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(certain=st.booleans())
    def fails(self, certain: bool) -> None:
        self.in_a_row += not certain
        waits = self.open_until is not None and self.now < self.open_until
        opens = not waits and (certain or self.open_until is not None or self.in_a_row >= self.options.threshold)
        assert (self.breaker.trip if certain else self.breaker.failed)(self.now, "x") == opens
        if opens:
            self.trial = None
            with pytest.raises(errors.ShardUnavailable) as caught:
                self.breaker.check(self.now)
            self.open_until = self.now + caught.value.facts["retry_after"]
            assert 0 < caught.value.facts["retry_after"] <= self.options.ceiling * (1 + 1e-9)

    @rule()
    def answers(self) -> None:
        assert self.breaker.heard() == (self.open_until is not None)
        self.in_a_row, self.open_until, self.trial = 0, None, None

    @rule()
    def asks(self) -> None:
        passes = self.open_until is None or (self.now >= self.open_until and self.trial is None)
        if not passes:
            assert refused(self.breaker, self.now) > 0
            return
        trial = self.breaker.enter(self.now)
        assert (trial is None) == (self.open_until is None)
        self.trial = trial

    @rule()
    def gives_up(self) -> None:
        self.breaker.leave(self.trial)
        self.trial = None

    @invariant()
    def its_state_is_the_models(self) -> None:
        if not hasattr(self, "breaker"):
            return
        if self.open_until is None:
            assert self.breaker.state(self.now) == "closed"
        else:
            assert self.breaker.state(self.now) == ("open" if self.now < self.open_until else "half-open")


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
