"""What ``python -m tests.chaos``, and people who tried to break it, found: each once as a test.

Findings in data are in ``test_data_findings``.
"""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from harness.cli import main as normbench
from harness.collect import read_records
from harness.diagnose import diverged
from harness.documents import parse_yaml, quoted
from harness.environment import continues_elsewhere, environment
from harness.errors import DataError, UsageError
from harness.inspect import status_table
from harness.migrate import SCHEMA_VERSION
from harness.record import RunDir
from harness.report.definition import definitions
from harness.spec import build, load_spec, parse_words, sweep
from harness.weights.read import read
from tests.harness.sittings import prepared, sit, sit_until

WRONG_YAML = {
    "no text": b"\x80",
    "a control character": b"a: \x01",
    "two documents": b"a: 1\n---\nb: 2\n",
    "no end": b'a: "x\n',
    "no date": b"a: 2020-99-99\n",
    "too many digits": b"a: " + b"9" * 5000,
    "too deep": b"[" * 2_000,
    "empty": b"",
    "a word": b"' '\n",
    "a number as key": b"5: 1\n",
    "a bomb": b"a: &a ["
    + b"x," * 100
    + b"]\nb: &b ["
    + b"*a," * 100
    + b"]\nc: ["
    + b"*b," * 200
    + b"]",
    "a list that holds itself": b"a: &a [*a]",
}


@pytest.mark.parametrize("what", WRONG_YAML)
def test_recipes_and_tables_that_are_none(toy, tmp_path, what):
    content = WRONG_YAML[what]
    (tmp_path / "configs" / "toy" / "bad.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=r"recipe .*bad\.yaml") as recipe:
        build(toy, [("preset", "bad")])
    path = tmp_path / "tables.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"tables\.yaml") as tables:
        definitions(path)
    with pytest.raises(UsageError, match="is not a spec") as spec:
        load_spec(path)
    for caught in (recipe, tables, spec):
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 5}, "rows"),
        ({"rows": ["gn"]}, "'gn' is no row or column"),
        ({"rows": {"norm": "gn"}}, "a list of values for each key"),
        ({"columns": {"norm": None}}, "a list of values for each key"),
        ({"base": [1]}, "base"),
        ({"seeds": "many"}, "'many' is not like 0..2"),
        ({"seeds": "3..1"}, "the range 3..1 is empty"),
        ({"seeds": "0..10000000000"}, "more than 100,000 runs"),
        (None, "tiny"),
        ([], "tiny"),
    ],
)
def test_tables_of_other_shapes(tmp_path, change, words):
    table = {"task": "detection", "title": "t", "metrics": ["m"], "rows": {"norm": ["gn"]}}
    table |= {"reference": "gn"}
    path = tmp_path / "tables.yaml"
    changed = table | change if isinstance(change, dict) else change
    path.write_text(json.dumps({"mini": {"tiny": changed}}))
    with pytest.raises(UsageError, match=words) as caught:
        definitions(path)
    assert "\n" not in str(caught.value)


def test_a_group_of_tables_that_is_none(tmp_path):
    path = tmp_path / "tables.yaml"
    path.write_text("mini: [1]\n")
    with pytest.raises(UsageError, match="mini is not a mapping"):
        definitions(path)
    path.write_text("mini: {}\n")
    with pytest.raises(UsageError, match="defines no table"):
        definitions(path.rename(tmp_path / "empty.yaml"))


def test_recipes_with_values_for_groups_or_that_extend_themselves(toy, tmp_path):
    recipe = tmp_path / "configs" / "toy" / "bad.yaml"
    for text, words in (
        ("extends: mini\nnorm: true\n", "norm=True"),
        ("extends: mini\noptim: true\n", "True"),
        ("exec: 5\nextends: mini\n", "5"),
        ("extends: mini\nbatch: {stat: 5}\nnorm: ghost_bn\n", "ghost"),
        ("extends: bad\n", "extends itself"),
        ("extends: [mini]\n", "unknown preset"),
        ("norm:\nbatch:\n", "norm"),
    ):
        recipe.write_text(text)
        with pytest.raises(UsageError, match=words):
            build(toy, [("preset", "bad")])
    with pytest.raises(UsageError, match="not divisible"):
        build(toy, [("batch.size", "9" * 30), ("batch.micro", "2")])


def test_what_strangers_wrote_is_quoted_without_what_a_terminal_obeys(tmp_path):
    assert str(DataError("a\x1b[2J\u202eb\nc")) == "a\\x1b[2J\\u202eb\nc"
    run = RunDir(tmp_path, "x")
    run.path.mkdir(parents=True)
    run.failure.write_text(json.dumps({"exit_code": 6, "message": "a\x1b[2J"}))
    assert run.read_failure().message == "a\\x1b[2J"


@pytest.mark.parametrize("words", [["seed=0..10000000000"], ["seed=0..999", "data.seed=0..999"]])
def test_a_sweep_that_would_fill_the_memory(words):
    with pytest.raises(UsageError, match="more than 100,000 runs at once"):
        sweep(words)


def test_errors_show_control_characters_and_cut_long_values(toy, monkeypatch, capsys):
    for word in ("optim.lr=\x1b[2J", "\x1b[2J=1", f"optim.lr={'a' * 10_000}"):
        monkeypatch.setattr(sys, "argv", ["normbench", "plan", "toy", word])
        with pytest.raises(SystemExit) as caught:
            normbench()
        assert caught.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert "\x1b" not in told
        assert len(told) < 1000


def test_quoted():
    assert quoted("a") == "'a'"
    assert len(quoted("a" * 500)) == 83
    assert quoted(10**5000) == "a very large int"
    assert parse_yaml("a: [1]") == {"a": [1]}


def test_a_failure_that_is_no_text(tmp_path):
    run = RunDir(tmp_path, "x")
    run.path.mkdir(parents=True)
    run.spec.write_text("steps: 3")
    run.failure.write_bytes(b'{"exit_code": 6, "message": "\x80"}')
    assert run.read_failure() is None
    assert status_table(tmp_path).row_count == 1


def test_weights_with_a_flipped_bit(tmp_path):
    model, path = torch.nn.Linear(2, 2), tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    told = []
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            read(path)
        except DataError as error:
            told.append(str(error))
    assert told
    assert not any("\n" in line for line in told)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("optim.lr=.inf", "optim.lr=inf: input should be a finite number"),
        ("optim.lr=1e999", "finite"),
        (f"seed={2**63}", "less than or equal to"),
        (f"seed=1{'0' * 300}", "less than or equal to"),
        ("task=detection", "unknown key 'task'"),
        ("norm=", "norm has no value: give norm=..."),
        ("norm=[gn]", "norm=['gn'] is not a group of keys"),
        ("exec.chunk=0", "exec.chunk: '0' is not known. Allowed: auto, micro, a positive number"),
        ("data=a\nb", "holds control characters"),
        ("data=a\udcff", "is no text in UTF-8"),
    ],
)
def test_words_that_no_record_could_tell_or_no_run_survive(toy, word, told):
    with pytest.raises(UsageError) as caught:
        build(toy, parse_words([word]))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["k" * 100_000, "norm"])
def test_no_line_of_an_error_fills_the_screen(toy, monkeypatch, capsys, key):
    monkeypatch.setattr(sys, "argv", ["normbench", "plan", "toy", f"{key}={'n' * 100_000}"])
    with pytest.raises(SystemExit):
        normbench()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert len(told) < 5000


@pytest.mark.parametrize("verb", [["plan", "toy"], ["status"], ["run", "toy"], ["report"]])
@pytest.mark.parametrize("place", ["file", "file/below", "holds", "n" * 300])
def test_results_folders_that_cannot_be(toy, tmp_path, monkeypatch, capsys, verb, place):
    (tmp_path / "file").touch()
    (tmp_path / "holds").mkdir()
    (tmp_path / "holds" / "runs").touch()
    monkeypatch.setattr(sys, "argv", ["normbench", *verb, "--results", str(tmp_path / place)])
    with pytest.raises(SystemExit) as caught:
        normbench()
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: results folder ")
    assert told.count("\n") == 1


def test_a_recipe_does_not_name_its_task(toy, tmp_path):
    (tmp_path / "configs" / "toy" / "bad.yaml").write_text("extends: mini\ntask: detection\n")
    with pytest.raises(UsageError, match=r"bad\.yaml: task is told by the place of its file"):
        build(toy, [("preset", "bad")])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:200],
        lambda text: text.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'),
    ],
)
def test_a_finished_run_whose_record_cannot_be_read_is_said(
    toy, tmp_path, monkeypatch, capsys, damage
):
    run = prepared(tmp_path)
    assert sit(run) == (0, None)
    run.record.write_text(damage(run.record.read_text()))
    monkeypatch.setattr(sys, "argv", ["normbench", "run", "toy", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        normbench()
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert "warning: skipped" in out
    assert err.startswith(f"error: {run.id}: its record was passed over")
    assert err.count("\n") == 1


@pytest.mark.timeout(60)
def test_environments_of_strangers_neither_hang_nor_spoil_the_record(toy, tmp_path):
    run = prepared(tmp_path, "exec.checkpoint_s=0")
    sit_until(run, 2)
    run.environment.unlink()
    os.mkfifo(run.environment)
    assert continues_elsewhere(run.environment, "cpu") == []
    run.environment.unlink()
    run.environment.write_text("[" * 100_000)
    assert continues_elsewhere(run.environment, "cpu") == []
    strange = {"changed": ["a\x1b[2J"], "packages": {"torch": "1\x1b[2J"}}
    run.environment.write_text(json.dumps(strange))
    (told,) = continues_elsewhere(run.environment, "cpu")
    assert told.startswith("torch 1\\x1b[2J -> ")
    assert sit(run) == (0, None)
    records, warnings = read_records(tmp_path)
    assert [record.run_id for record in records] == [run.id]
    assert warnings == []
    assert records[0].environment["changed"][0] == "a\\x1b[2J"


def test_the_command_line_in_a_record_holds_no_control_characters(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["normbench", "a\nb", "c\udcff"])
    assert environment("cpu", 1, 1)["argv"] == ["a\\nb", "c\\udcff"]


def test_a_learning_rate_that_is_not_finite_still_leaves_its_reason(toy):
    model = torch.nn.Linear(1, 1)
    found = diverged(
        model, lambda _: {}, (), 3, parts={"loss": 1.0}, optim=build(toy, []).optim, lr=float("nan")
    )
    assert json.loads(json.dumps(found.details, allow_nan=False))["lr"] == "nan"
