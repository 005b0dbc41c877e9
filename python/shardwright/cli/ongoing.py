"""What a long command is at: in place on a terminal, as lines on stderr in a pipe, not at all in JSON."""

from __future__ import annotations

import time
from contextlib import ExitStack

from shardwright.cli.output import Answer, Output

#: Seconds between two lines about the same thing.
_EVERY = 2.0


class Ongoing:
    """Tells what goes on.

    Args:
        output: where to.
        stack: ends the display.
    """

    def __init__(self, output: Output, stack: ExitStack) -> None:
        self._output = output
        self._renew = stack.enter_context(output.live()) if output.is_terminal and not output.as_json else None
        self._said, self._at = "", 0.0

    def tell(self, what: str, how_far: str = "") -> None:
        """Show it.

        Args:
            what: what is being done; something else is shown at once.
            how_far: how far it is, which is shown now and then.
        """
        if self._output.as_json:
            return
        if self._renew is not None:
            self._renew(Answer(None, [what + how_far], next_steps=None))
            return
        now = time.monotonic()
        if what != self._said or now - self._at >= _EVERY:
            self._said, self._at = what, now
            self._output.note(what + how_far)
