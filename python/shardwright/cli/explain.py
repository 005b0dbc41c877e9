"""``shardwright explain``: the pages of the error numbers, offline, and the reference page made of them.

``python -m shardwright.cli.explain`` prints ``docs/reference/errors.md``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from cyclopts import App

from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Table
from shardwright.errors import BadOption, ShardwrightError, error_classes

app = App(name="explain", help="Print the page of an error number.")


@app.default
def explain(number: str = "", /, *, common: Common = DEFAULTS) -> Answer:
    """Print the page of an error number, or the list of all of them.

    Args:
        number: such as SW101; its kind (unknown-shard) will do too.
    """
    if not number:
        pages = [_facts(cls) for cls in error_classes()]
        rows = [(page["code"], page["kind"], page["exit_code"], _summary(str(page["page"]))) for page in pages]
        return Answer({"errors": pages}, [Table(("error", "kind", "exit", "what it says"), rows)])
    cls = _find(number)
    page = _facts(cls)
    exits = f"exit code {cls.exit_code}" + (", the same call may succeed later" if cls.retriable else "")
    return Answer(page, [f"{cls.code}  {cls.kind}  ({exits})", "", str(page["page"])], next_steps=[])


def reference() -> str:
    """The reference page of all errors, in Markdown."""
    return "\n".join(_reference())


def _reference() -> Iterator[str]:
    yield "# Errors"
    yield ""
    yield "Every error has a number that is never used for another one. `shardwright explain SW101` prints its entry."
    yield "In Python the classes are in `shardwright.errors`; the group that a class is in decides the exit code."
    group: type[ShardwrightError] | None = None
    for cls in error_classes():
        if cls.__bases__[0] is not group:
            group = cls.__bases__[0]
            yield ""
            yield f"## {group.__name__}: exit code {group.exit_code}"
            yield ""
            yield _page(group)
        yield ""
        yield f"### {cls.code} {cls.__name__}"
        yield ""
        yield f"`{cls.kind}`" + (", the same call may succeed later" if cls.retriable else "")
        yield ""
        yield _page(cls)
    yield ""


def _find(number: str) -> type[ShardwrightError]:
    wanted = number.strip().lower()
    for cls in error_classes():
        if wanted in (cls.code.lower(), cls.code.lower().removeprefix("sw"), cls.kind, cls.__name__.lower()):
            return cls
    raise BadOption(f"no error has the number {number}", fix="shardwright explain")


def _facts(cls: type[ShardwrightError]) -> dict[str, object]:
    return {
        "code": cls.code,
        "kind": cls.kind,
        "class": cls.__name__,
        "exit_code": cls.exit_code,
        "retriable": cls.retriable,
        "page": _page(cls),
    }


def _page(cls: type[ShardwrightError]) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _summary(page: str) -> str:
    first = " ".join(page.split("\n\n")[0].split())
    sentence = first.split(". ")[0].rstrip(".")
    return sentence if len(sentence) <= 90 else sentence[:87] + "..."


if __name__ == "__main__":
    print(reference(), end="")
