"""The kinds of inputs that are tried: what is damaged, and the command or loader that meets it.

Those of data are in ``data_kinds``.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from harness import spec
from harness.journal import Journal
from harness.record import RunDir
from harness.spec import build, dump_spec, keys, parse_words
from tests.chaos.data_kinds import archives, clouds, coco, pictures, voc_folders
from tests.chaos.fuzz import Kind, command, judge, nothing_left, refused
from tests.chaos.inputs import (
    TEXTS,
    VALUES,
    as_json,
    as_lines,
    as_yaml,
    byte_edits,
    damaged,
    document_or_bytes,
    edits,
    spoiled,
)
from tests.harness.test_collect import record_of, store

TASKS = ("detection", "segmentation", "classification", "pointcloud")
TABLE = {
    "task": "toy",
    "title": "Tiny",
    "caption": "c",
    "metrics": ["m0"],
    "seeds": "0..1",
    "base": {"steps": 4},
    "rows": {"norm": ["gn", "gn_ws"]},
    "columns": [{"label": "one", "batch.micro": 1}, {"label": "two", "batch.micro": 2}],
    "reference": "gn",
}


def overrides(folder: Path) -> Kind:
    """Draw ``key=value`` words for ``plan``; most keys are known."""
    values = st.one_of(TEXTS, VALUES.map(lambda value: yaml.safe_dump(value).strip()))

    def words_for(task: str) -> st.SearchStrategy[tuple[str, list[tuple[str, str]]]]:
        own = st.sampled_from(sorted(keys(task)))
        pairs = st.lists(st.tuples(own, values), min_size=1, max_size=2)
        foreign = st.lists(st.tuples(TEXTS, values), max_size=2)
        return st.tuples(st.just(task), st.one_of(pairs, pairs, pairs, foreign))

    def attempt(drawn: tuple[str, list[tuple[str, str]]]) -> int:
        task, pairs = drawn
        words = [f"{key}={value}".replace("\0", "") for key, value in pairs]
        status = command("plan", "--results", str(folder / "results"), "--", task, *words)
        assert not (folder / "results").exists()
        return status

    return Kind(st.sampled_from(TASKS).flatmap(words_for), attempt)


def recipes(folder: Path) -> Kind:
    """Damage a recipe, and plan a run of it."""
    configs, numbers = folder / "configs", itertools.count()
    shutil.copytree(spec.configs_dir(), configs)
    spec.configs_dir = lambda: configs
    merged = {task: spec.recipe(task, "smoke") for task in TASKS}
    drawn = st.sampled_from(TASKS).flatmap(
        lambda task: st.tuples(st.just(task), document_or_bytes(merged[task], as_yaml))
    )

    def attempt(given: tuple[str, bytes]) -> int:
        task, content = given
        path = configs / task / f"p{next(numbers)}.yaml"
        path.write_bytes(content)
        try:
            return command("plan", task, f"preset={path.stem}", "--results", str(folder / "none"))
        finally:
            path.unlink()

    return Kind(drawn, attempt)


def tables(folder: Path) -> Kind:
    """Damage a file of tables, and plan all of them."""
    numbers = itertools.count()

    def attempt(content: bytes) -> int:
        path = folder / f"{next(numbers)}.yaml"
        path.write_bytes(content)
        try:
            return command(
                "plan", "--all", "--tables", str(path), "--results", str(folder / "none")
            )
        finally:
            path.unlink()

    return Kind(document_or_bytes({"mini": {"tiny": TABLE}}, as_yaml), attempt)


def records(folder: Path) -> Kind:
    """Damage a record among good ones, and report."""
    results, path = folder / "results", folder / "tables.yaml"
    path.write_bytes(as_yaml({"mini": {"tiny": TABLE | {"columns": [{"label": "c"}]}}}))
    store(results, record_of(0))
    bad = store(results, record_of(1))
    whole = json.loads(bad.record.read_text())

    def attempt(content: bytes) -> int:
        bad.record.write_bytes(content)
        status = command("report", "--results", str(results), "--tables", str(path))
        nothing_left(results)
        return status

    return Kind(document_or_bytes(whole, as_json), attempt)


def run_folders(folder: Path) -> Kind:
    """Damage what a run that is not done left behind, then look at it and plan to resume it."""
    words = ("plan", "toy", "--results", str(folder))
    run = RunDir(folder, spec_id := _toy_run(folder))
    environment = {"device": "cpu", "packages": {"torch": "2"}, "flags": {"a": 1}, "changed": []}
    rows: list[Any] = [{"event": "start", "step": 0}]
    rows += [
        {"event": "train", "step": 1, "loss": 2.0, "eta_s": 1.0, "images_per_s": 3.0},
        {"event": "evaluation", "step": 1, "metrics": {"m0": 3.0}},
        {"event": "stage", "stage": "evaluating", "done": 1, "total": 2},
    ]
    files = {
        run.spec: (yaml.safe_load(run.spec.read_text()), as_yaml),
        run.failure: ({"exit_code": 6, "message": "no", "step": 2}, as_json),
        run.environment: (environment, as_json),
        run.metrics: (rows, as_lines),
    }
    drawn = st.sampled_from(sorted(files)).flatmap(
        lambda path: st.tuples(st.just(path), document_or_bytes(*files[path]), st.booleans())
    )
    assert spec_id

    def attempt(given: tuple[Path, bytes, bool]) -> int:
        path, content, failed = given
        for other, (document, write) in files.items():
            other.write_bytes(write(document))
        if not failed:
            run.failure.unlink()
        run.checkpoint.touch()
        path.write_bytes(content)
        command("status", "--results", str(folder))
        status = command(*words)
        with Journal(run.metrics, 1, enabled=True):
            pass
        from harness.report.curves import read_curve

        read_curve(run.metrics)
        nothing_left(folder)
        return status

    return Kind(drawn, attempt)


def _toy_run(folder: Path, *words: str) -> str:
    """Make the folder of a run of the toy task; return its id."""
    from harness.identity import run_id

    made = build("toy", parse_words(words))
    run = RunDir(folder, run_id(made))
    run.path.mkdir(parents=True)
    run.spec.write_text(dump_spec(made))
    return run.id


def checkpoints(folder: Path) -> Kind:
    """Damage a checkpoint, sealed again or not, and let a worker go on from it."""
    import torch

    from harness import checkpoint, worker
    from tests.harness.sittings import sit, sit_until

    words = ("exec.checkpoint_s=0", "norm=bn", "optim.momentum=0.9")
    run = RunDir(folder, _toy_run(folder, *words))
    sit_until(run, 2)
    whole = run.checkpoint.read_bytes()
    content = torch.load(run.checkpoint, weights_only=True)
    spec_text = run.spec.read_text()
    assert worker

    def attempt(given: tuple[str, Any]) -> int:
        how, changes = given
        shutil.rmtree(run.path)
        run.path.mkdir()
        run.spec.write_text(spec_text)
        if how == "bytes":
            run.checkpoint.write_bytes(spoiled(whole, changes))
        else:
            with run.checkpoint.open("wb") as file:
                checkpoint._write(file, _with_tensors(damaged(content, changes)))
        code, failure = sit(run)
        if code:
            assert failure
            judge(failure.exit_code, "", f"error: {failure.message}\n")
        else:
            assert run.record.is_file()
        nothing_left(folder)
        return code

    return Kind(
        st.one_of(st.tuples(st.just("bytes"), byte_edits), st.tuples(st.just("sealed"), edits)),
        attempt,
    )


def _with_tensors(document: Any) -> Any:
    """Return what torch can save; text becomes plain."""
    if isinstance(document, dict):
        return {key: _with_tensors(value) for key, value in document.items()}
    return document


def weights(folder: Path) -> Kind:
    """Damage a file of initial weights, and load it."""
    import torch

    from harness.weights.read import read

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = folder / "weights.pt"
    content = {"model": dict(model.state_dict()), "epoch": 3}
    torch.save(content, path)
    whole = path.read_bytes()

    def attempt(given: tuple[str, Any]) -> int:
        how, changes = given
        if how == "bytes":
            path.write_bytes(spoiled(whole, changes))
        else:
            torch.save(damaged(content, changes), path)
        return refused(lambda: read(path))

    return Kind(
        st.one_of(st.tuples(st.just("bytes"), byte_edits), st.tuples(st.just("tree"), edits)),
        attempt,
    )


KINDS: dict[str, tuple[int, Callable[[Path], Kind]]] = {
    "overrides": (18, overrides),
    "recipes": (14, recipes),
    "tables.yaml": (12, tables),
    "records": (4, records),
    "run folders": (6, run_folders),
    "checkpoints": (4, checkpoints),
    "weights": (10, weights),
    "COCO json": (6, coco),
    "VOC folders": (6, voc_folders),
    "pictures": (8, pictures),
    "HDF5": (6, clouds),
    "archives": (6, archives),
}
"""Share of the inputs, in per cent, and what makes a kind; each gets a folder of its own."""
