"""Holds what commands and loaders make of any input against one rule.

A command ends with a documented status, one line an error on stderr, nothing that a terminal would
obey in it, and nothing half-written; a loader gives what it promises or raises one of our errors.
Each kind of input is tried in a process of its own: a library that crashes is a finding too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import traceback
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from harness.errors import NormbenchError
from harness.paths import PARTIAL

DOCUMENTED = {0, 1, 2, 3, 4, 5, 6, 75, 130}
_LONGEST = 4000
"""Characters of a line; a message quotes a little of what is wrong."""
_HANGS_S = 300
_MEMORY = 6 * 2**30
"""Bytes beyond those of the start; an input that asks for more has won."""


@dataclass
class Kind:
    """A kind of input: how it is drawn, and what is done with it."""

    inputs: SearchStrategy[Any]
    attempt: Callable[[Any], int]
    """Returns the exit status; raises AssertionError, or whatever a user must not see."""


@dataclass
class Tried:
    """What came of many inputs."""

    inputs: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)


def command(*words: str) -> int:
    """Run the command line in this process and judge what a user would see; return its status."""
    from harness.cli import main

    out, err = io.StringIO(), io.StringIO()
    before, status = sys.argv, 0
    sys.argv = ["normbench", *words]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")  # on stderr, beside the error
            main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
    judge(status, out.getvalue(), err.getvalue())
    return status


def judge(status: int, out: str, err: str) -> None:
    """Assert the rule for what a command said."""
    assert status in DOCUMENTED, f"status {status}"
    assert "Traceback" not in out + err, err
    assert "\x1b" not in out, "an escape sequence on stdout"
    lines = err.split("\n")
    assert lines.pop() == "", "stderr does not end with a line"
    if status == 0:
        assert not lines, f"status 0, but {lines[0]}"
        return
    if err.startswith("Usage: "):  # of the command line's own parser
        assert status == 2
        return
    assert lines, f"status {status} without a word"
    for line in lines:
        assert line.startswith("error: "), line
        assert len(line) < _LONGEST, f"{len(line)} characters: {line[:200]}"
        assert not any(map(_is_obeyed, line)), repr(line)


def _is_obeyed(character: str) -> bool:
    """Tell whether a terminal does something at a character, rather than to show it."""
    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return (
        unicodedata.category(character) in {"Cc", "Zl", "Zp", "Cs"}
        or unicodedata.bidirectional(character) in turns
    )


def refused(work: Callable[[], Any]) -> int:
    """Do ``work`` and return 0, or the status of the error of ours that it raised, in one line."""
    try:
        work()
    except NormbenchError as error:
        judge(error.exit_code, "", "".join(f"error: {x}\n" for x in str(error).split("\n")))
        return error.exit_code
    return 0


def nothing_left(folder: Path) -> None:
    """Assert that nothing half-written is left."""
    left = [path.name for path in folder.rglob("*") if path.name.endswith(PARTIAL)]
    assert not left, f"left behind: {left}"


def fuzz(make: Callable[[Path], Kind], inputs: int, start: int, folder: Path) -> Tried:
    """Try so many inputs of a kind in a child, and collect what breaks the rule.

    Args:
        make: makes the kind, in a folder of its own.
        inputs: how many to draw; each finding stops the search and is made as small as can be.
        start: seed of the draws.
        folder: for the kind, and the outcome beside it.
    """
    told, last, inner = folder / "tried.json", folder / "last", folder / "kind"
    child = os.fork()
    if not child:
        status = 70
        try:
            os.setsid()
            with (folder / "noise").open("wb") as noise:  # of libraries in C
                os.dup2(noise.fileno(), 1)
                os.dup2(noise.fileno(), 2)
            inner.mkdir()
            told.write_text(json.dumps(vars(_search(make(inner), inputs, start, last))))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, how = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(how)
    if code:
        noise = (folder / "noise").read_text(errors="replace")[-2000:]
        shown = last.read_text(errors="replace")[:2000] if last.exists() else ""
        return Tried(found=[f"the process ended with {code} at {shown}\n{noise}"])
    content = json.loads(told.read_text())
    statuses = Counter({int(status): n for status, n in content["statuses"].items()})
    return Tried(content["inputs"], statuses, content["found"])


def _search(kind: Kind, inputs: int, start: int, last: Path) -> Tried:
    tried = Tried()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, hard))

    def hangs(_number: int, _frame: Any) -> None:
        raise AssertionError(f"no end after {_HANGS_S} s")

    signal.signal(signal.SIGALRM, hangs)
    warnings.simplefilter("ignore")

    @seed(start)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(kind.inputs)
    def attempt(drawn: Any) -> None:
        last.write_text(repr(drawn), errors="backslashreplace")
        tried.inputs += 1
        signal.alarm(_HANGS_S)
        try:
            tried.statuses[kind.attempt(drawn)] += 1
        finally:
            signal.alarm(0)

    try:
        attempt()
    except BaseException as error:
        problems = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
        for problem in problems:
            tried.found.append("".join(traceback.format_exception(problem))[-4000:])
    return tried
