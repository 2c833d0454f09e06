"""What ``python -m tests.chaos``, and people who tried to break it, found: each once as a test."""

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
from tasks.detection import coco
from tasks.segmentation import voc
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


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 1, 5, 5],
            "area": 25,
            "iscrowd": 0,
            "segmentation": [[1, 1, 6, 1, 6, 6]],
        }
    ],
    "categories": [{"id": 1, "name": "x"}],
}


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("images", {"id": "1"}, "images.0..id is '1', not an integer"),
        ("images", {"id": True}, "not an integer"),
        ("images", {"width": 0}, "1 to 65,536 pixels"),
        ("images", {"height": 2.5}, "1 to 65,536 pixels"),
        ("images", {"file_name": ".."}, "not a file's name"),
        ("images", {"file_name": 5}, "not a file's name"),
        ("annotations", {"bbox": [1, 1, 5]}, "not four numbers"),
        ("annotations", {"bbox": [1, 1, 5, float("nan")]}, "not four numbers"),
        ("annotations", {"bbox": [1, 1, 5, 10**400]}, "not four numbers"),
        ("annotations", {"bbox": [1, 1, 5, "5"]}, "not four numbers"),
        ("annotations", {"bbox": [1, 1, 5, 1e12]}, "not four numbers"),
        ("images", {"width": 10**12}, "1 to 65,536 pixels"),
        ("annotations", {"area": float("nan")}, "not a number"),
        ("annotations", {"segmentation": [[1, 1, 6, 1, 1e9, 6]]}, "neither polygons"),
        ("annotations", {"segmentation": [[1, 1, float("nan"), 1, 9, 6]]}, "neither polygons"),
        ("annotations", {"area": None}, "not a number"),
        ("annotations", {"iscrowd": 7}, "not 0 or 1"),
        ("annotations", {"category_id": [1]}, "not an integer"),
        ("annotations", {"segmentation": [[1, 1, 6, 1, None, 6]]}, "neither polygons"),
        ("annotations", {"segmentation": [5]}, "neither polygons"),
        ("annotations", {"segmentation": {"size": [9, 8], "counts": [81]}}, "neither polygons"),
        ("annotations", {"segmentation": {"size": [9, 9], "counts": [80]}}, "neither polygons"),
        ("annotations", {"segmentation": {"size": [9, 9], "counts": [90, -9]}}, "neither polyg"),
        ("annotations", {"segmentation": {"size": [9, 9]}}, "neither polygons"),
    ],
)
def test_coco_values_that_libraries_would_choke_on(tmp_path, part, change, words):
    """Some of these made pycocotools read past the end of its memory, and end the process."""
    path, content = tmp_path / "a.json", json.loads(json.dumps(COCO))
    path.write_text(json.dumps(content))
    coco.check_evaluated(coco.read_annotations(path))
    content[part][0].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        coco.read_annotations(path)
    assert "\n" not in str(caught.value)


def test_coco_twins_and_depths(tmp_path):
    path = tmp_path / "a.json"
    for part in ("images", "categories"):
        path.write_text(json.dumps(COCO | {part: COCO[part] * 2}))
        with pytest.raises(DataError, match=f"two of its {part} have one id"):
            coco.read_annotations(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="is not JSON"):
        coco.read_annotations(path)


@pytest.mark.parametrize("lacks", ["area", "iscrowd", "segmentation"])
def test_coco_is_looked_through_for_the_evaluation_before_training(tmp_path, lacks):
    path, content = tmp_path / "a.json", json.loads(json.dumps(COCO))
    del content["annotations"][0][lacks]
    path.write_text(json.dumps(content))
    annotations = coco.read_annotations(path)
    with pytest.raises(DataError, match="annotation 1 lacks"):
        coco.check_evaluated(annotations)
    if lacks == "segmentation":
        coco.check_evaluated(annotations, masks=False)


@pytest.mark.parametrize("name", ["a" * 300, "~nobody_at_all"])
@pytest.mark.parametrize("task", ["detection", "segmentation", "classification", "pointcloud"])
def test_folders_that_cannot_be(tmp_path, task, name):
    from harness.plan import plan

    (cell,) = plan(task, [f"data={name}"], tmp_path)
    assert (cell.state, cell.exit_code) == ("impossible", 3)
    assert "cannot be a folder" in cell.reason


def test_a_picture_that_claims_to_be_enormous(tmp_path):
    from tasks.detection.dataset import read_bgr
    from tasks.detection.inspection import open_image

    path = tmp_path / "x.gif"
    path.write_bytes(
        b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + b"\0" * 6 + b",\0\0\0\0\xff\xff\xff\xff\0\x02"
    )
    for opened in (
        lambda: read_bgr({"file_name": str(path), "height": 1, "width": 1}),
        lambda: open_image(path, 1, 1),
    ):
        with pytest.raises(DataError, match="cannot be read"):
            opened()


def test_a_mask_that_is_a_dead_link(tmp_path):
    from harness.registry import task_info
    from harness.spec import parse_words

    words = ["preset=smoke", "data.num_train=2", "data.num_val=1"]
    made = build("segmentation", parse_words(words))
    source = task_info("segmentation").prepare(made, lambda *_: None)
    import shutil

    root = shutil.copytree(source, tmp_path / "VOC2012")
    mask = next((root / "SegmentationClass").glob("train*"))
    mask.unlink()
    mask.symlink_to(mask.name)
    with pytest.raises(DataError, match="cannot be read"):
        voc.fingerprint(root, "train")


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
