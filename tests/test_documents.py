"""Commands in README and docs/ are commands: targets, options, keys, tables and modules exist.

Each goes through the real command line. What would train, unpack or measure is replaced by a check
that it could begin: its spec or its tables are built.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli import app, main
from harness.report.definition import choose
from harness.spec import build, sweep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = r"normbench|make|python -m"
LINE = re.compile(rf"^(?: {{4}}|\$ )?(?:\.venv/bin/)?((?:{PROGRAMS}) [^`]+)$")
INLINE = re.compile(rf"`(?:\.venv/bin/)?((?:{PROGRAMS}) [^`]+)`")
VARIABLES = {"NORM": "norm", "SEED": "seed", "PRESET": "preset", "DATA": "data", "GPUS": "devices"}
PLACEHOLDERS = {"TASK": "detection", "TABLE": "detection_micro"}
ELSEWHERE = {"serve", "retry", "cancel", "export"}
"""Commands that need runs or a port: only their words are parsed; tests of their own call them."""
WITHOUT_OPTIONS = {"harness.jobrun", "tests.detection.residual"}
"""Modules that take positions alone, and would begin at once."""
INSTALLS = "--install-completion"
"""Would write into the reader's shell; tests/harness/test_completion.py does it elsewhere."""
EXAMPLES = {"norm=mad", "norm=mad_ws"}
"""What docs/adding-a-norm.md adds; its own test runs that page."""


def found(text: str) -> list[str]:
    """Return the commands of a page, in blocks and in sentences, without their comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```|^((?: {4}.*\n)+)", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in "".join(block).splitlines()]
    commands = [match[1] for line in lines if (match := LINE.match(line))]
    commands += INLINE.findall(text.replace("\n", " "))
    commands = [re.sub(r"\s+#.*$", "", command).strip() for command in commands]
    # `normbench audit ... --vs` names an option, and is no command.
    return sorted({command for command in commands if " ... --" not in command})


COMMANDS = [(page.name, command) for page in PAGES for command in found(page.read_text("utf-8"))]


def test_commands_are_found():
    """Else the others prove nothing."""
    names = {page for page, _ in COMMANDS}
    assert {"README.md", "tables.md", "detection.md", "performance.md"} <= names
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command(page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program, *words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    words = [word for word in words if word not in ("...", "&&")]
    if program == "python":
        module(words[1], words[2:], monkeypatch)
    elif program == "make":
        made(words, tmp_path, monkeypatch)
    elif not EXAMPLES.isdisjoint(re.split("[ ,]", command)):
        assert page == "adding-a-norm.md"
    elif words == [INSTALLS]:
        pass
    elif words[0] in ELSEWHERE or "--launcher" in words:
        command_line = typer.main.get_command(app)
        assert isinstance(command_line, typer.core.TyperGroup)
        command_line.commands[words[0]].make_context(words[0], words[1:])
    else:
        called(words, tmp_path, monkeypatch)


class Parsed(Exception):
    """A module's own parser took its arguments."""


def module(name: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a module up to where its parser has accepted the words."""
    assert importlib.util.find_spec(name), f"there is no module {name}"
    if name in WITHOUT_OPTIONS:
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*given: Any, **named: Any) -> None:
        parse(*given, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [name, *words])
    with warnings.catch_warnings():
        # Another test may have imported it.
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        with pytest.raises(Parsed):
            runpy.run_module(name, run_name="__main__")


def made(words: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a target of the Makefile and what it would hand over."""
    targets, tasks = makefile()
    target, settings = words[0], dict(word.split("=", 1) for word in words[1:])
    assert target in targets | tasks, f"there is no target {target}"
    arguments = shlex.split(settings.pop("ARGS", ""))
    jobs = settings.pop("JOBS", None)
    given = [f"{VARIABLES[name]}={value}" for name, value in settings.items()]
    if target in tasks:
        called(["run", target, *given, *arguments], folder, monkeypatch)
    elif target == "reproduce-all-tables":
        options = ["--jobs", jobs] if jobs else []
        called(["reproduce", "--all", *given, *options, *arguments], folder, monkeypatch)


def makefile() -> tuple[set[str], set[str]]:
    text = (ROOT / "Makefile").read_text("utf-8")
    tasks = re.search(r"^TASKS := (.+)$", text, re.MULTILINE)
    assert tasks
    return set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE)), set(tasks[1].split())


def called(words: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the real command line up to the function that would do the work."""
    # Folders of the documents' reader.
    words = [word.replace("=DIR", f"={folder}") for word in words]
    stand_ins(monkeypatch)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["normbench", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code in (0, None)


def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put checks that it could begin in the place of long work."""

    def specs(task: str, words: Sequence[str], *_: Any, **__: Any) -> None:
        for pairs in sweep([word for word in words if not word.startswith("--")]):
            build(task, pairs)

    def audit(task: str, words: Sequence[str], vs: Sequence[str], *_: Any) -> None:
        specs(task, words)
        specs(task, [*words, *vs])

    def tables(names: Sequence[str], words: Sequence[str], *_: Any, every: bool, **__: Any) -> None:
        choose(names, words, every=every or not names, path=None)

    for name, stand_in in {
        "harness.run.run": specs,
        "harness.inspect.audit": audit,
        "harness.inspect.check_data": specs,
        "harness.inspect.show_data": specs,
        "harness.inspect.generate_data": specs,
        "harness.prepare.prepare_data": specs,
        "harness.reproduce.plan_tables": tables,
        "harness.reproduce.reproduce": tables,
        "harness.report.command.rebuild": tables,
        "harness.report.verify.verify": tables,
        "harness.selftest.selftest": lambda *_: None,
    }.items():
        monkeypatch.setattr(name, stand_in)
