"""The root of the command line: usage errors, exit codes, JSON, configuration, and nothing secret anywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fix_cli import Ran
from shardwright import errors
from shardwright.cli import app as root
from shardwright.cli import explain
from shardwright.servers import free_port

Cli = Callable[..., Ran]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shrd", "add"], "did you mean shard?"),
        (["frobnicate"], "no verb is called frobnicate"),
        (["explain", "--nope"], "--nope"),
        (["explain", "SW101", "SW102"], "SW102"),
        (["dev", "up", "--shards", "two"], "two"),
        (["dev", "up", "--shards", "0"], "0 shards"),
        (["explain", "SW999"], "SW999"),
        (["status"], "no catalog was given"),
    ],
)
def test_bad_usage_exits_2_with_one_cause_and_one_fix(cli: Cli, words: list[str], said: str) -> None:
    ran = cli(*words)
    assert ran.code == 2
    assert ran.out == ""
    cause, fix = ran.err.splitlines()
    assert cause.startswith("error[SW109] ")
    assert said in cause
    assert fix.startswith("fix: ")

    as_json = cli(*words, "--json")
    assert as_json.code == 2
    assert as_json.json["error"]["code"] == "SW109"
    assert said in as_json.json["error"]["message"]
    assert isinstance(as_json.json["next_steps"], list)


def test_every_verb_is_there_and_explains_itself(cli: Cli) -> None:
    shown = cli("--help").ok().out
    for verb in root.VERBS:
        assert verb in shown
        assert "Usage: shardwright" in cli(verb, "--help").ok().out


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize(
    "form",
    [
        "postgresql://bob:tops3cret@127.0.0.1:{port}/app",
        "postgresql://127.0.0.1:{port}/app?user=bob&password=tops3cret",
        "host=127.0.0.1 port={port} dbname=app user=bob password=tops3cret",
        "host=127.0.0.1 port={port} dbname=app user=bob password='tops3cret with blanks'",
        "host=127.0.0.1 port={port} passwort=tops3cret password=tops3cret",
        "postgresql://bob:tops3cret@127.0.0.1:{port}/app?nonsense=1",
    ],
)
def test_no_secret_is_shown(cli: Cli, form: str, more: list[str]) -> None:
    dsn = form.format(port=free_port())
    for given in (["status", "--catalog", dsn, *more], ["shard", "list", "--catalog", dsn, *more]):
        ran = cli(*given)
        assert ran.code in (2, 3)
        assert "tops3cret" not in ran.out + ran.err
        assert "with blanks" not in ran.out + ran.err


def test_a_catalog_that_does_not_answer_exits_3(cli: Cli) -> None:
    ran = cli("status", "--json", env={"SHARDWRIGHT_CATALOG": f"postgresql://postgres@127.0.0.1:{free_port()}/app"})
    assert ran.code == 3
    assert ran.json["error"]["code"] == "SW206"
    assert ran.json["error"]["retriable"] is True


def test_options_come_from_the_environment_and_from_files_nearest_first(cli: Cli, workdir: Path) -> None:
    def place() -> str:
        return str(cli("dev", "status", "--json", cwd=workdir).json["error"]["message"])

    (workdir / "pyproject.toml").write_text('[tool.shardwright]\ndir = "from-pyproject"\ncatalog = "unused here"\n')
    assert "from-pyproject" in place()
    (workdir / "shardwright.toml").write_text('dir = "from-file"\n')
    assert "from-file" in place()
    (workdir / "shardwright.toml").write_text('dir = "from-file"\n[dev.status]\ndir = "from-verb"\n')
    assert "from-verb" in place()
    ran = cli("dev", "status", "--json", cwd=workdir, env={"SHARDWRIGHT_DIR": "from-environment"})
    assert "from-environment" in ran.json["error"]["message"]
    ran = cli("dev", "status", "--dir", "from-option", cwd=workdir, env={"SHARDWRIGHT_JSON": "1"})
    assert "from-option" in ran.json["error"]["message"]


def test_a_broken_file_of_options_is_a_usage_error(cli: Cli, workdir: Path) -> None:
    (workdir / "shardwright.toml").write_text("catalog = [unclosed\n")
    ran = cli("status", cwd=workdir)
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_version_is_quick(cli: Cli) -> None:
    program = (
        "import sys; from shardwright.cli import main; code = main(['--version']);"
        "print(sorted({'cyclopts', 'rich', 'sqlalchemy', 'psycopg'} & set(sys.modules))); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[1] == "[]"
    assert cli("--version").ok().out == ran.stdout.splitlines()[0] + "\n"


@pytest.mark.parametrize("package", ["cyclopts", "rich"])
def test_without_the_extra_one_clear_line(package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\nfrom shardwright.cli import main; sys.exit(main(['status']))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert ran.stderr.splitlines() == [
        f"error[SW212] the command line needs the package {package}",
        "fix: pip install 'shardwright[cli]'",
    ]


def test_commands_that_need_no_models_do_not_wait_for_sqlalchemy() -> None:
    """It takes as long to import as all the rest."""
    program = (
        "import sys; from shardwright.cli import main; code = main(['shard', 'list', '--catalog', 'host=127.0.0.1 port=1'])\n"
        "assert code == 3; assert 'psycopg' in sys.modules; sys.exit('sqlalchemy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_reader_that_goes_is_no_traceback() -> None:
    command = f"{sys.executable} -m shardwright explain --json | true; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() in ("141", "0")  # 0 where all of it fitted into the pipe before its reader went
    assert ran.stderr == ""


class TestSignals:
    """What ends a command from outside."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
    def test_a_signal_interrupts_and_the_handlers_are_put_back(
        self, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = signal.getsignal(number)
        monkeypatch.setattr(explain, "error_classes", lambda: signal.raise_signal(number))
        assert root.run(["explain"]) == 4
        assert capsys.readouterr().err.startswith("error[SW306] interrupted\n")
        assert signal.getsignal(number) is before

    def test_nohup_is_respected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def hang_up() -> list[type[errors.ShardwrightError]]:
            signal.raise_signal(signal.SIGHUP)
            return []

        monkeypatch.setattr(explain, "error_classes", hang_up)
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            assert root.run(["explain"]) == 0
        finally:
            signal.signal(signal.SIGHUP, before)


class TestUnexpected:
    """Errors that are none of ours."""

    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise RuntimeError("no luck with\npassword=hunter2")

        monkeypatch.setattr(explain, "error_classes", fail)

    def test_people_get_a_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert root.run(["explain"]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.splitlines()[0] == "error[unexpected] unexpected RuntimeError: no luck with password=***"
        assert "SHARDWRIGHT_DEBUG=1" in shown.err

    def test_programs_get_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert root.run(["explain", "--json"]) == 1
        assert "hunter2" not in json.loads(capsys.readouterr().out)["error"]["message"]

    def test_developers_get_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHARDWRIGHT_DEBUG", "1")
        with pytest.raises(RuntimeError):
            root.run(["explain"])


@pytest.mark.parametrize("cls", list(errors.error_classes()), ids=lambda cls: cls.code)
def test_the_exit_code_is_the_groups(
    cls: type[errors.ShardwrightError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise cls("found this", fix="do that", shard="s1")

    monkeypatch.setattr(explain, "error_classes", fail)
    group = {"1": 2, "2": 3, "3": 4, "4": 5, "5": 6, "6": 1, "7": 1}[cls.code[2]]
    assert root.run(["explain", "--json"]) == group
    shown = capsys.readouterr()
    assert shown.err == f"error[{cls.code}] found this\nfix: do that\n"
    assert json.loads(shown.out)["error"]["facts"] == {"shard": "s1"}
