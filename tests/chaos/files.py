"""What is no run and is killed: collecting, reporting, generating and unpacking data."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from harness import registry
from harness.archives import Layout, unpack
from harness.collect import collecting, read_csv, read_records, write_csv
from harness.errors import NormbenchError
from harness.paths import PARTIAL
from harness.spec import build, parse_words
from tests.chaos.killing import Tally, fork
from tests.harness.test_collect import record_of, store

Whole = Callable[[bool], bool]
"""Tells whether everything that has a name is whole; all of it must be there after a free attempt
(False), and need not be after a kill (True)."""


def killed_often(work: Callable[[], None], whole: Whole, kills: int, seed: int) -> Tally:
    """Kill ``work`` at random lines; after each, and after a free attempt, ``whole`` must hold."""
    draw, tally = random.Random(seed), Tally()
    lines = fork(work, traced=True).lines
    assert lines > 10
    assert whole(False)
    while tally.kills < kills:
        tally.chains += 1
        for _ in range(draw.randint(1, 4)):
            one = fork(work, at=draw.randint(1, lines), traced=True)
            tally.add(one)
            if one.status > 0 or not whole(True):
                tally.different.append(f"kill {tally.kills} at {one.place}: {one.status}")
        last = fork(work)
        if last.status or not whole(False):
            tally.different.append(f"chain {tally.chains}: not whole ({last.status})")
    return tally


def unfinished(folder: Path) -> list[str]:
    """Return what is left of files and folders that were never whole."""
    return [path.name for path in folder.rglob(f".*{PARTIAL}")]


def content(root: Path) -> dict[str, bytes]:
    """Return the files of a folder by path, but for what is hidden."""
    paths = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    return {
        str(inner): path.read_bytes()
        for inner, path in sorted(paths.items())
        if not any(part.startswith(".") for part in inner.parts)
    }


@contextmanager
def cached(folder: Path) -> Iterator[None]:
    """Let generated data lie under ``folder``."""
    before = os.environ.get("NORMBENCH_CACHE")
    os.environ["NORMBENCH_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is not None:
            os.environ["NORMBENCH_CACHE"] = before


def collected(folder: Path, kills: int, seed: int) -> Tally:
    for number in range(3):
        store(folder, record_of(number))
    write_csv(folder, read_records(folder)[0])
    names = ("runs.csv", "metrics.csv")
    expected = {name: (folder / name).read_bytes() for name in names}

    def work() -> None:
        for name in names:
            if os.getpid() % 2:  # what is replaced, and what is new
                (folder / name).unlink(missing_ok=True)
        with collecting(folder):
            write_csv(folder, read_records(folder)[0])

    def whole(after_a_kill: bool) -> bool:
        found = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
        if not after_a_kill and unfinished(folder):
            return False
        read = all(len(read_csv(folder / name)) == 3 for name in found)
        return read and (found == expected or (after_a_kill and found.items() <= expected.items()))

    return killed_often(work, whole, kills, seed)


def reported(folder: Path, kills: int, seed: int) -> Tally:
    from harness.report.command import rebuild

    for number in range(2):
        store(folder, record_of(number))
    tables = folder / "tables.yaml"
    table = {"task": "toy", "title": "t", "metrics": ["m0"], "reference": "gn", "seeds": "0..1"}
    tables.write_text(json.dumps({"mini": {"tiny": table | {"rows": {"norm": ["gn", "gn_ws"]}}}}))

    def work() -> None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
            try:
                console = Console(file=nowhere)
                rebuild(["tiny"], [], folder, console, every=False, path=tables)
            except NormbenchError as error:  # the table is incomplete, as it should be
                assert "incomplete" in str(error)  # noqa: PT017

    assert fork(work).status == 0
    expected = content(folder)
    assert any(name.startswith("tables/tiny") for name in expected)

    def whole(after_a_kill: bool) -> bool:
        return content(folder) == expected and (after_a_kill or not unfinished(folder))

    return killed_often(work, whole, kills, seed)


def generated(folder: Path, kills: int, seed: int, *, task: str) -> Tally:
    """Generate the smoke data of a task, under ``folder`` instead of the cache."""
    folder = folder / "generated"  # apart from what the test keeps beside it
    made = build(task, parse_words(["preset=smoke"]))
    info = registry.task_info(task)

    def work() -> None:
        with cached(folder):
            info.prepare(made, lambda *_: None)

    assert fork(work).status == 0
    expected = content(folder)
    shutil.rmtree(folder)

    def whole(after_a_kill: bool) -> bool:
        found = content(folder)
        for root in folder.glob(f"{task}/[!.]*"):
            shutil.rmtree(root)  # begin anew, but for what is hidden
        if after_a_kill:
            return found in ({}, expected)
        return found == expected and not unfinished(folder)

    return killed_often(work, whole, kills, seed)


def unpacked(folder: Path, kills: int, seed: int) -> Tally:
    archive, root = folder / "a.zip", folder / "data"
    expected = {f"pictures/{i}.jpg": os.urandom(3000) for i in range(10)}
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in expected.items():
            file.writestr(name, data)
    layout = Layout(place=lambda path: path, archives=("a.zip",), downloads="pictures")

    def work() -> None:
        unpack([archive], root, layout, lambda *_: None)

    def whole(after_a_kill: bool) -> bool:
        found = content(root) if root.exists() else {}
        if found == expected:
            good = after_a_kill or not unfinished(root)
            shutil.rmtree(root)  # begin anew
            return good
        return after_a_kill and found.items() <= expected.items()  # what is there is whole

    return killed_often(work, whole, kills, seed)


FILES = {
    "collecting": collected,
    "reporting": reported,
    **{
        f"generating {task}": partial(generated, task=task)
        for task in ("classification", "segmentation", "pointcloud", "detection")
    },
    "unpacking": unpacked,
}
