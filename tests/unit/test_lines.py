"""A line: nobody is passed by, nobody is forgotten."""

from __future__ import annotations

import random
import threading

from fix_sessions import until
from shardwright.session.lines import Line


def test_places_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    line, got = Line(1), []
    assert line.enter(0)

    def take(number: int) -> None:
        assert line.enter(60)
        got.append(number)
        line.leave()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(20)]
    for at, thread in enumerate(threads):
        thread.start()
        until(lambda at=at: len(line._waiting) == at + 1, "it does not wait")
    line.leave()
    # Whoever asks again waits behind them.
    assert line.enter(60)
    assert got == list(range(20))
    line.leave()
    for thread in threads:
        thread.join()


def test_who_has_waited_too_long_leaves_the_line() -> None:
    line = Line(1)
    assert line.enter(0)
    assert not line.enter(0.01)
    line.leave()
    assert line.enter(0)
    assert not line.enter(0)


def test_no_place_is_lost_and_none_is_given_twice(rng: random.Random) -> None:
    line, inside, most = Line(3), [0], [0]
    lock = threading.Lock()
    waits = [rng.choice([0, 0.0001, 0.001, 60]) for _ in range(30)]

    def use(wait: float) -> None:
        for _ in range(200):
            if line.enter(wait):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with lock:
                    inside[0] -= 1
                line.leave()

    threads = [threading.Thread(target=use, args=(wait,)) for wait in waits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert most[0] <= 3
    assert [line.enter(0) for _ in range(4)] == [True, True, True, False]
