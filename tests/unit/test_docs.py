"""The pages of docs/ and README.md name what exists: steps, failpoints, errors, commands, settings, tables, files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest

from shardwright import core
from shardwright.cli.app import app
from shardwright.errors import error_classes
from shardwright.failpoints import FAILPOINTS
from shardwright.reshard.operate import SETTINGS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md"), ROOT / "README.md"])
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
STEPS = ROOT / "python" / "shardwright" / "reshard" / "steps"


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---------------------------------------------------------------- steps, failpoints, settings


def test_every_step_has_its_page() -> None:
    modules = {file.stem for file in STEPS.glob("*.py")} - {"__init__"}
    assert {file.stem for file in (DOCS / "steps").glob("*.md")} == modules
    for step in sorted(modules):
        page = TEXTS[DOCS / "steps" / f"{step}.md"]
        assert page.startswith(f"# {step}\n")
        assert f"reshard/steps/{step}.py" in page


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_every_failpoint_is_named_on_one_page(failpoint: str) -> None:
    named_on = [_name(page) for page, text in TEXTS.items() if f"`{failpoint}`" in text]
    assert len(named_on) == 1, f"{failpoint} is named on {named_on}"


def test_failpoints_that_pages_name_exist() -> None:
    groups = "|".join(sorted({name.partition(".")[0] for name in FAILPOINTS}))
    named = {name for text in TEXTS.values() for name in re.findall(rf"`((?:{groups})\.[a-z_]+)`", text)}
    assert {name for name in named if not name.endswith((".md", ".py"))} == set(FAILPOINTS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_explained(setting: str) -> None:
    assert f"`{setting}`" in TEXTS[DOCS / "reference" / "commands.md"]
    assert any(f"`{setting}`" in TEXTS[page] for page in (DOCS / "steps").glob("*.md"))


# ---------------------------------------------------------------- errors, SQLSTATEs, tables


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_errors_that_a_page_names_exist(page: Path) -> None:
    kinds = {cls.code: cls.kind for cls in error_classes()}
    assert set(re.findall(r"\bSW\d{3}\b", TEXTS[page])) <= set(kinds)
    for code, kind in re.findall(r"\b(SW\d{3}) `([a-z-]+)`", TEXTS[page]):
        assert kinds[code] == kind


def test_every_sqlstate_is_explained() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "python").rglob("*.py"))
    used = set(re.findall(r"\bSH\d{3}\b", source + _sql("catalog") + _sql("shard")))
    explained = re.findall(r"^## (SH\d{3})\b", TEXTS[DOCS / "reference" / "sqlstates.md"], re.MULTILINE)
    assert sorted(explained) == sorted(used)


@pytest.mark.parametrize("kind", ["catalog", "shard"])
def test_every_table_is_explained(kind: str) -> None:
    page = TEXTS[DOCS / "reference" / "catalog.md"]
    _, _, rest = page.partition(f"\n## The {kind}")
    section = rest.partition("\n##")[0]
    made = set(re.findall(r"CREATE TABLE shardwright\.(\w+)", _sql(kind)))
    assert made
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == made


def _sql(kind: str) -> str:
    return "".join(sql for _, _, sql in core.migrations(kind))


# ---------------------------------------------------------------- commands


def _commands(text: str) -> Iterator[tuple[str, bool]]:
    """Command lines of a page, and whether they are whole: those of code blocks are, inline mentions need not be."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        prompt = r"\$ " if re.search(r"^\$ ", block, re.MULTILINE) else ""  # other lines are what was answered
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(rf"{prompt}(?:[A-Z][A-Z0-9_]*=\S+ )*(shardwright\b.*)", line):
                yield found[1], True
    outside = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(shardwright [^`]+)`", outside):
        yield " ".join(span.split()), False


def _words(command: str) -> list[str]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word[0] in "|;&<>":
            break
        words.append(word)
    return words[1:]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_that_a_page_names_exist(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("SHARDWRIGHT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # no file with options is found from here
    for command, whole in _commands(TEXTS[page]):
        try:
            app.parse_args(_words(command), exit_on_error=False, print_error=False)
        except cyclopts.CycloptsError as error:
            if whole or not isinstance(error, cyclopts.MissingArgumentError):
                pytest.fail(f"{_name(page)}: {command}: {' '.join(str(error).split())}")


def test_every_command_and_option_is_in_the_reference() -> None:
    page = TEXTS[DOCS / "reference" / "commands.md"]
    for words, command in _leaves(app, ()):
        assert f"`shardwright {' '.join(words)}`" in page, words
        for argument in command.assemble_argument_collection():
            for name in argument.names:
                if name.startswith("--"):
                    assert f"`{name}" in page, f"{' '.join(words)} {name}"


def _leaves(group: cyclopts.App, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], cyclopts.App]]:
    for name in group:
        if name.startswith("-"):
            continue
        below = group[name]
        if below.default_command is not None:
            yield (*above, name), below
        yield from _leaves(below, (*above, name))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}, link
