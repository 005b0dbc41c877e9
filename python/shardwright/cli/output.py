"""The one place that prints: for people (colours on a terminal, plain text in a pipe) or for programs (JSON).

A command's value goes to stdout, everything else to stderr. Nothing leaves with a password in it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from shardwright.errors import ShardwrightError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# In the userinfo of a URI, in its query, and in libpq's key=value form (also when quoted inside an SQL string).
_IN_URI = re.compile(r"(://[^\s/:@'\"]*):[^\s'\"]*@")
_AS_KEY = re.compile(r"\b((?:ssl)?password|passwd|pwd)(\s*=\s*)(?:''.*?''|'(?:[^'\\]|\\.)*'|[^\s&'\"]+)", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with every password of a connection string replaced."""
    return _AS_KEY.sub(r"\1\2***", _IN_URI.sub(r"\1:***@", text))


class Word(str):
    """A word that has a colour on a terminal."""

    style = ""


def good(text: object) -> Word:
    """A word for what is as it should be."""
    return _word(text, "green")


def warn(text: object) -> Word:
    """A word for what needs attention."""
    return _word(text, "yellow")


def bad(text: object) -> Word:
    """A word for what is wrong."""
    return _word(text, "red")


def _word(text: object, style: str) -> Word:
    word = Word(text)
    word.style = style
    return word


@dataclass(frozen=True)
class Table:
    """Rows under headings. Columns that hold only numbers are aligned to the right.

    Attributes:
        columns: the headings.
        rows: cells; numbers, strings, `Word`, or None for "not known".
        empty: what to say when there is no row.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    empty: str = "none"


#: What people are shown: a line, a table, or names with values.
Part = str | Table | Mapping[str, object]


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    Attributes:
        value: for ``--json``; a mapping is given the key ``next_steps``.
        shown: for people.
        next_steps: command lines that make sense now; None leaves the key out of the JSON.
        exit_code: what the program exits with.
    """

    value: Any
    shown: Sequence[Part] = ()
    next_steps: Sequence[str] | None = field(default=())
    exit_code: int = 0


class ReaderGone(Exception):
    """Whoever read our output has gone."""


class Output:
    """Where one command's words go."""

    def __init__(self, as_json: bool) -> None:
        """Print for programs or for people."""
        self.as_json = as_json
        self._in_lines = False

    def finish(self, answer: object) -> int:
        """Print what a command returned; the exit code."""
        if isinstance(answer, Answer):
            if self.as_json:
                self._json(_with_next_steps(answer.value, answer.next_steps))
            else:
                steps = [f"next: {step}" for step in answer.next_steps or ()]
                self._show([*answer.shown, *steps])
            code = answer.exit_code
        else:
            code = answer if isinstance(answer, int) else 0
        self._flush()
        return code

    def error(self, error: ShardwrightError) -> int:
        """Print an error: its cause and its fix on stderr, and with ``--json`` the whole of it on stdout."""
        explain = f"shardwright explain {error.code}" if error.code else ""
        fix = error.fix or explain or "set SHARDWRIGHT_DEBUG=1 for the whole story, and report it"
        first, *more = error.message.splitlines() or ["it said nothing"]
        lines = [f"error[{error.code or 'unexpected'}] {first}", *(f"  {line}" for line in more)]
        if error.durable_change:
            lines.append("state: something was changed that outlives this failure")
        if not error.ownership_known:
            lines.append("state: it is not known which shard owns the rows; do not try again, look first")
        # what a failed operation left, in sentences, and the commands that go on or back out
        lines += [f"state: {sentence}" for sentence in error.facts.get("stands", ())]
        next_steps = list(error.facts.get("next_steps", ()))
        self._err([*lines, f"fix: {' '.join(fix.split())}", *(f"next: {step}" for step in next_steps)])
        if self.as_json:
            steps = [s for s in dict.fromkeys((*next_steps, error.fix, explain)) if s.startswith("shardwright ")]
            # a stream of lines ends with a line
            self._json({"error": error.as_json(), "next_steps": steps}, indent=None if self._in_lines else 2)
        self._flush()
        return error.exit_code

    def note(self, text: str) -> None:
        """Tell people what is going on; on stderr, so that it does not mix with the answer."""
        self._err([text])

    def item(self, value: Any, text: str) -> None:
        """Print one item of a stream at once: a line of JSON, or a line of text."""
        self._in_lines = True
        if self.as_json:
            self._json(value, indent=None)
        else:
            self._show([text])
        self._flush()

    def lines(self, texts: Iterable[str]) -> None:
        """Print finished lines of a long stream, many at once."""
        _write(sys.stdout, "".join(f"{text}\n" for text in texts))
        self._flush()

    @contextmanager
    def live(self) -> Iterator[Callable[[Answer], None]]:
        """A display that is renewed by each call: in place on a terminal, as blocks in a pipe, as lines of JSON."""
        if self.as_json or not self.is_terminal:
            last: list[object] = [None]

            def renew(answer: Answer) -> None:
                seen = answer.value if self.as_json else answer.shown
                if seen != last[0]:
                    last[0] = seen
                    if self.as_json:
                        self._json(_with_next_steps(answer.value, answer.next_steps), indent=None)
                    else:
                        self._show(answer.shown)
                    self._flush()

            yield renew
            return
        from rich.console import Group
        from rich.live import Live

        with Live(console=self._console(), auto_refresh=False, transient=False) as display:
            yield lambda answer: display.update(Group(*map(_rich, answer.shown)), refresh=True)

    @property
    def is_terminal(self) -> bool:
        """Whether people watch stdout."""
        return sys.stdout.isatty()

    # ------------------------------------------------------------ how it is done

    def _json(self, value: Any, indent: int | None = 2) -> None:
        _write(sys.stdout, json.dumps(_clean(value), indent=indent, ensure_ascii=False, default=str) + "\n")

    def _show(self, parts: Sequence[Part]) -> None:
        if self.is_terminal:
            for part in parts:
                self._console().print(_rich(part), soft_wrap=isinstance(part, str))
        else:
            _write(sys.stdout, "".join(f"{line}\n" for part in parts for line in _plain(part)))

    def _err(self, lines: Sequence[str]) -> None:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            console = Console(file=sys.stderr)
            for line in lines:
                text = Text(redact(line))
                text.highlight_regex(r"^error\[\w+\]", "bold red")
                text.highlight_regex(r"^(fix|state|next):", "bold")
                console.print(text, soft_wrap=True)
        else:
            _write(sys.stderr, "".join(f"{redact(line)}\n" for line in lines))

    def _console(self) -> Console:
        from rich.console import Console

        return Console(file=sys.stdout)

    def _flush(self) -> None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderGone from None


def _write(stream: IO[str], text: str) -> None:
    try:
        stream.write(text)
    except BrokenPipeError:
        raise ReaderGone from None


def _with_next_steps(value: Any, steps: Sequence[str] | None) -> Any:
    if steps is None or not isinstance(value, Mapping):
        return value
    return {**value, "next_steps": list(steps)}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return redact(str(value))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return redact(str(value))


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _right(table: Table, column: int) -> bool:
    cells = [row[column] for row in table.rows]
    return any(cell is not None for cell in cells) and all(map(_is_number, cells))


def _plain(part: Part) -> Iterator[str]:
    """Lines of text, the same on every terminal and in every pipe."""
    if isinstance(part, str):
        yield from redact(part).splitlines() or [""]
    elif isinstance(part, Table):
        if not part.rows:
            yield part.empty
            return
        cells = [[_cell(value) for value in row] for row in part.rows]
        widths = [max(map(len, column)) for column in zip(part.columns, *cells, strict=True)]
        right = [_right(part, i) for i in range(len(widths))]
        for row in [list(part.columns), *cells]:
            padded = (
                text.rjust(width) if to_right else text.ljust(width)
                for text, width, to_right in zip(row, widths, right, strict=True)
            )
            yield "  ".join(padded).rstrip()
    else:
        width = max(map(len, part), default=0)
        for name, value in part.items():
            yield f"{name.ljust(width)}  {_cell(value)}"


def _rich(part: Part) -> RenderableType:
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(value: object) -> Text:
        return Text(_cell(value), style=getattr(value, "style", ""))

    if isinstance(part, str):
        return text(part)
    if isinstance(part, Table):
        if not part.rows:
            return Text(part.empty, style="dim")
        grid = RichTable(box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(part.columns):
            grid.add_column(name, justify="right" if _right(part, i) else "left", overflow="fold")
        for row in part.rows:
            grid.add_row(*map(text, row))
        return grid
    facts = RichTable.grid(padding=(0, 2))
    for name, value in part.items():
        facts.add_row(Text(name, style="bold"), text(value))
    return facts
