"""Results, archives and words of strangers: text to judge, never code, never obeyed."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from rich.console import Console

from harness.archives import Layout, unpack
from harness.checkpoint import load
from harness.collect import read_records, write_csv
from harness.errors import DataError, UsageError, visible
from harness.foreign import is_plain
from harness.inspect import status_table
from harness.record import RunDir
from harness.report.command import rebuild
from harness.report.curves import read_curve
from harness.report.definition import definitions
from harness.spec import build, load_spec
from harness.terminal import result_table
from harness.weights.read import read
from tests.harness.test_collect import record_of, store
from tests.toycli import ROOT, installed

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
SOURCES = [
    path for part in ("harness", "tasks", "normbench") for path in ROOT.glob(f"{part}/**/*.py")
]


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def calls(name: str) -> list[tuple[Path, ast.Call]]:
    """Return all calls in our code whose function is written as ``name``."""
    return [
        (path, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def test_our_code_has_no_way_to_run_text():
    for name in ("eval", "exec", "compile", "os.system", "os.popen", "__import__"):
        assert not calls(name), name
    for name in ("pickle.load", "yaml.load", "yaml.unsafe_load", "marshal.loads"):
        assert not calls(name), name
    # What the same object pickled before, in memory.
    assert [path.name for path, _ in calls("pickle.loads")] == ["dataset.py"]
    for name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "Popen"):
        for path, call in calls(name):
            assert "shell" not in {word.arg for word in call.keywords}, path
    loads = calls("torch.load")
    assert loads
    for path, call in loads:
        assert any(
            w.arg == "weights_only" and ast.unparse(w.value) == "True" for w in call.keywords
        ), path
    for path, call in calls("np.load") + calls("numpy.load"):
        assert "allow_pickle" not in {word.arg for word in call.keywords}, path


def test_files_of_weights_run_nothing(tmp_path):
    trap, file = tmp_path / "trap", tmp_path / "checkpoint.pt"
    torch.save({"model": Bomb(trap)}, file)
    with pytest.raises(DataError, match="not a file of tensors"):
        read(file)
    content, remarks = load(file, "x")
    assert content is None
    assert remarks
    file.write_bytes(pickle.dumps(Bomb(trap), protocol=2))
    with pytest.raises(DataError):
        read(file)
    assert load(file, "x")[0] is None
    assert not trap.exists()


def test_yaml_is_data(tmp_path, toy):
    trap = tmp_path / "trap"
    code = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{trap}]]"
    with pytest.raises(UsageError, match="not valid YAML"):
        build("toy", [("optim.lr", code)])
    file = tmp_path / "spec.yaml"
    file.write_text(f"task: toy\nsteps: {code}\n")
    with pytest.raises(UsageError):
        load_spec(file)
    with pytest.raises(UsageError):
        definitions(file)
    assert not trap.exists()


def change(text: str, **values) -> str:
    return json.dumps(json.loads(text) | values)


def metric(text: str, **values) -> str:
    content = json.loads(text)
    content["metrics"][0] |= values
    return json.dumps(content)


HOSTILE = {
    "huge": lambda text: text[:-1] + " " * 2**24 + "}",
    "deep": lambda text: (
        change(text, spec={})[:-1] + ', "best": ' + "[" * 10**5 + "]" * 10**5 + "}"
    ),
    "nan": lambda text: metric(text, value=float("nan")),
    "infinite": lambda text: metric(text, value=1).replace('"value": 1', '"value": 1e999'),
    "wrong types": lambda text: change(text, spec={"task": ["toy"]}),
    "a list for the environment": lambda text: change(text, environment={"packages": []}),
    "a number for a word": lambda text: change(text, spec=json.loads(text)["spec"] | {"task": 5}),
    "too large a number": lambda text: change(
        text, spec=json.loads(text)["spec"] | {"seed": 10**30}
    ),
    "escape sequence": lambda text: metric(text, unit=ESCAPE),
    "escape sequence in a key": lambda text: change(text, science={"init": "x", ESCAPE: 1}),
    "another run's name": lambda text: change(text, run_id="../../other"),
    "writes backwards": lambda text: metric(text, name="m\u202e0"),
    "half a character": lambda text: metric(text, unit="\\ud800").replace("\\\\ud800", "\\ud800"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_records_are_passed_over_in_one_plain_line(tmp_path, toy, capsys, kind):
    store(tmp_path, record_of(0))
    bad = store(tmp_path, record_of(1))
    bad.record.write_text(HOSTILE[kind](bad.record.read_text()))
    records, warnings = read_records(tmp_path)
    assert [record.run_id for record in records] == [record_of(0).run_id]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"skipped {bad.record}")
    assert len(warnings[0]) < 1000
    assert warnings[0].isprintable()
    write_csv(tmp_path, records)


def test_what_is_no_file_is_not_opened(tmp_path):
    store(tmp_path, record_of(0))
    for number, make in enumerate(
        (
            os.mkfifo,
            lambda path: path.symlink_to("/dev/zero"),
            lambda path: path.symlink_to("/etc/passwd"),
            lambda path: path.symlink_to(path),
            lambda path: path.mkdir(),
        )
    ):
        folder = tmp_path / "runs" / f"x{number}"
        folder.mkdir()
        make(folder / "record.json")
        os.mkfifo(folder / "metrics.jsonl")
        os.mkfifo(folder / "spec.yaml")
    records, warnings = read_records(tmp_path)
    assert len(records) == 1
    assert len(warnings) == 4  # glob does not see the loop
    assert not any("root:" in warning for warning in warnings)
    assert not len(read_curve(folder / "metrics.jsonl").loss)
    status_table(tmp_path)


def test_markup_is_shown_not_obeyed(tmp_path, toy, capsys):
    name = "[bold]x[/nothing] $\\input{y}$ |<script>&"
    record = record_of(0)
    row = record.metrics[0].model_copy(update={"name": name, "unit": name, "protocol": name})
    record = record.model_copy(update={"metrics": (row,)})
    store(tmp_path, record)
    (found,) = read_records(tmp_path)[0]
    console = Console(width=400)
    console.print(result_table([found]))
    console.print(result_table([found, found]))
    shown = capsys.readouterr().out
    assert shown.count(name) >= 4
    share = f"{100 * record.data_wait_share:.0f} %"
    assert f"{share} waiting for data" in shown
    assert "data wait" in shown
    run = RunDir(tmp_path, "[red]r[bold]")
    run.path.mkdir()
    run.spec.write_text("steps: 3")
    run.failure.write_text(json.dumps({"exit_code": 1, "message": f"[/b]{ESCAPE}"}))
    run.metrics.write_text('[1]\n{"event": "train"}\n' + "[" * 10**5 + "\n")
    console.print(status_table(tmp_path))
    shown = capsys.readouterr().out
    assert run.id in shown
    assert "\x1b" not in shown
    assert "0/3" in shown


def test_journals_of_strangers_draw_no_curve(tmp_path):
    journal = tmp_path / "metrics.jsonl"
    journal.write_text(
        '{"event": "train", "step": 1, "loss": 2.0}\n'
        '{"event": "train", "step": "x", "loss": 2.0}\n'
        '{"event": "train", "loss": 2.0}\n'
        '{"event": "train", "step": 2, "loss": []}\n'
        '{"event": "train", "step": 2, "loss": NaN}\n'
        '{"event": "train", "step": 1e999, "loss": 1}\n'
        '{"event": "evaluation", "step": 2, "metrics": [1]}\n'
        '{"event": "train"' + "[" * 10**5 + "\n"
    )
    curve = read_curve(journal)
    assert curve.loss.tolist() == [[1.0, 2.0]]
    assert not curve.evaluations


def test_names_of_tables_stay_in_their_folder(tmp_path):
    file = tmp_path / "tables.yaml"
    for name in ("../evil", "/tmp/evil", "a b", "x}\\input{y"):
        file = tmp_path / f"{abs(hash(name))}.yaml"
        table = {"task": "toy", "title": "t", "metrics": ["m"], "rows": {"norm": ["gn"]}}
        file.write_text(json.dumps({"mini": {name: table | {"reference": "gn"}}}))
        with pytest.raises(UsageError, match="name"):
            definitions(file)


def test_a_strangers_folder_is_reported_on(tmp_path, toy, capsys):
    """Nothing of it is imported, run or written to beyond our own files."""
    results = tmp_path / "results"
    store(results, record_of(0))
    for name in ("conftest.py", "sitecustomize.py", "tasks.py"):
        (results / name).write_text("raise SystemExit('ran')")
    run = RunDir(results, record_of(0).run_id)
    torch.save({"model": Bomb(tmp_path / "trap")}, run.checkpoint)
    tables = tmp_path / "tables.yaml"
    content = {
        "task": "toy",
        "title": "[bold]<script>alert(1)</script> $x$ & |",
        "metrics": ["m0"],
        "rows": {"norm": ["gn"]},
        "reference": "gn",
    }
    tables.write_text(json.dumps({"mini": {"tiny": content}}))
    with pytest.raises(Exception, match="incomplete"):
        rebuild(["tiny"], [], results, Console(width=200), every=False, path=tables)
    assert "<script>" not in (results / "tables" / "tiny.md").read_text().replace("\\<script", "")
    assert r"\textless{}script" in (results / "tables" / "tiny.tex").read_text()
    assert not (tmp_path / "trap").exists()


def test_a_name_that_wants_all_memory_is_refused(tmp_path):
    """A tar file's long names are read whole before any check of ours sees a member."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**33
    archive = tmp_path / "a.tar"
    archive.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    layout = Layout(place=lambda path: path, archives=("a.tar",), downloads="x")
    with pytest.raises(DataError, match="is not safe to unpack"):
        unpack([archive], tmp_path / "data", layout, lambda *_: None)


@pytest.mark.parametrize("text", [ESCAPE, "a\u202eb", "tab\t", "\x9b"])
def test_visible(text):
    assert visible(text).isprintable()
    assert visible("plain ü 字") == "plain ü 字"


def test_is_plain(tmp_path):
    (tmp_path / "a").write_text("1234")
    assert is_plain(tmp_path / "a", 4)
    assert not is_plain(tmp_path / "a", 3)
    assert not is_plain(tmp_path)
    assert not is_plain(tmp_path / "none")


ODD = "a b'\"ü;$(touch evil)`touch evil`"


@pytest.mark.slow
def test_odd_paths_work_from_the_command_line(tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    results = folder / "results"
    command = [sys.executable, "-m", "tests.toycli"]
    words = ["--results", str(results)]
    environment = installed(folder)
    environment["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), str(ROOT)])
    for verb in (["run", "toy"], ["status"], ["plan", "toy"]):
        done = subprocess.run(
            [*command, *verb, *words], capture_output=True, text=True, env=environment, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
    (run,) = plan_of(results)
    assert run.record.is_file()
    assert not list(Path.cwd().glob("evil"))
    assert not list(tmp_path.rglob("evil"))


def plan_of(results: Path) -> list[RunDir]:
    return [RunDir(results, path.name) for path in (results / "runs").iterdir()]


def test_make_hands_words_over_unread(tmp_path):
    """The recipe of a task, with a stand-in for the program that writes down what it got."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program = tmp_path / ".venv" / "bin" / "normbench"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > got\n')
    program.chmod(0o755)
    (tmp_path / "packaging").mkdir()
    setup = tmp_path / "packaging" / "setup.sh"
    setup.write_text("#!/bin/sh\n")
    setup.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    args = f"--results {shlex.quote(ODD)}".replace("$", "$$")
    done = subprocess.run(
        ["make", "detection", f"DATA={ODD}", f"NORM={ODD}", f"ARGS={args}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    got = (tmp_path / "got").read_text().splitlines()
    assert got == ["run", "detection", f"norm={ODD}", f"data={ODD}", "--results", ODD]
    assert not (tmp_path / "evil").exists()
