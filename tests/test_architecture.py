"""docs/architecture.md is true to the code: its picture's arrows are the imports between rooms."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
ROOMS = {
    "harness.errors": "base",
    "harness.paths": "base",
    "harness.compiled": "base",
    "harness.norm": "norm",
    "harness.report": "report",
    "harness": "harness",
    "tasks": "tasks",
    "normbench": "public",
}
"""Modules by prefix, the more special first."""


def room(module: str) -> str | None:
    found = (r for m, r in ROOMS.items() if module == m or module.startswith(m + "."))
    return next(found, None)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows_of_the_code() -> set[tuple[str, str]]:
    arrows = set()
    for package in ("harness", "tasks", "normbench"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for name in imports(path):
                # The command line imports `tasks` itself, to see that it is ours.
                if name != "tasks" and (target := room(name)):
                    arrows.add((room(module), target))
    return {(a, b) for a, b in arrows if a != b}


def test_the_picture_shows_the_imports():
    picture = re.search(
        r"^```mermaid\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert picture
    drawn = set(re.findall(r"^ *(\w+) --> (\w+)$", picture[1], re.MULTILINE))
    assert drawn == arrows_of_the_code()


def test_files_that_the_page_names_exist():
    text = PAGE.read_text("utf-8")
    for name in set(
        re.findall(r"(?:harness|tasks|tests|configs|normbench)/[\w/.]+\.(?:py|yaml)", text)
    ):
        assert (ROOT / name).is_file(), name
    known = {
        path.name for part in ("harness", "tasks", "tests") for path in (ROOT / part).rglob("*.py")
    }
    assert set(re.findall(r"\b(\w+\.py)\b", text)) <= known
