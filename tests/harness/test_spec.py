"""The grammar of a run: recipes, overrides, sweeps, and every error in words."""

from __future__ import annotations

import pytest
import yaml

from harness.errors import UsageError
from harness.spec import _scalar, build, dump_spec, load_spec, parse_words, sweep


def spec_of(task: str, *words: str):
    return build(task, parse_words(words))


def error_of(task: str, *words: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        spec_of(task, *words)
    return str(caught.value).splitlines()


def test_recipe_alone(toy):
    spec = spec_of(toy)
    assert spec.norm.name == "gn"
    assert spec.preset == "mini"
    assert spec.batch.size == 8


def test_shorthand_keeps_the_rest_of_its_section(toy):
    spec = spec_of(toy, "norm=gn_ws", "optim=adamw", "data=/some where/é")
    assert spec.norm.ws == "authors"
    assert spec.norm.groups == 4
    assert spec.optim.lr == 0.05
    assert spec.data.root == "/some where/é"
    assert spec.data.num_train == 20


def test_parts_override_the_shorthand_in_any_order(toy):
    assert spec_of(toy, "norm=gn_ws", "norm.ws=tf").norm.ws == "tf"
    assert spec_of(toy, "norm=bn").norm.ws is None
    assert spec_of(toy, "norm=none_ws").norm.ws == "scaled"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nrom=gn"], ["unknown key 'nrom'", "Did you mean 'norm'"]),
        (["lr=1"], ["unknown key 'lr'", "'optim.lr'"]),
        (["batch.mirco=1"], ["'batch.mirco'", "'batch.micro'"]),
        (["norm=gnws"], ["'gnws'", "gn_ws"]),
        (["norm.layer=gm"], ["norm.layer", "'gm'", "'gn'"]),
        (["norm.ws=author"], ["norm.ws", "'authors'"]),
        (["batch.size=7"], ["batch.size=7 is not divisible", "batch.size=4 or 8"]),
        (["batch.micro=3"], ["not divisible by batch.micro=3", "batch.micro="]),
        (["batch.micro=0"], ["batch.micro=0", "greater than or equal to 1"]),
        (["optim.lr=-1"], ["optim.lr=-1", "greater than 0"]),
        (["optim.lr=fast"], ["optim.lr='fast'", "valid number"]),
        (["precision=fp23"], ["precision='fp23'", "Did you mean 'fp32'"]),
        (["schedule=cosin"], ["schedule.name='cosin'", "'cosine'"]),
        (["seed=3..1"], ["the range 3..1 is empty"]),
        (["preset=minni"], ["unknown preset 'minni'", "'mini'"]),
        (["preset=../mini"], ["unknown preset"]),
        (["steps"], ["'steps' is not of the form key=value"]),
        (["optim.betas=["], ["not valid YAML"]),
    ],
)
def test_bad_words_get_one_clear_line(toy, words, expected):
    with pytest.raises(UsageError) as caught:
        [build(toy, pairs) for pairs in sweep(words)]
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_all_errors_at_once(toy):
    assert len(error_of(toy, "nrom=gn", "btach.size=2", "stepz=1")) == 3
    lines = error_of(toy, "optim.lr=-1", "steps=0", "precision=x")
    assert len(lines) == 3


def test_unknown_task_is_named():
    with pytest.raises(UsageError, match=r"unknown task 'detecton'\. Did you mean 'detection'"):
        spec_of("detecton")


def test_sweep_expands_lists_and_ranges_first_key_slowest():
    cells = sweep(["norm=bn,gn", "seed=0..2"])
    assert len(cells) == 6
    assert cells[0] == [("norm", "bn"), ("seed", "0")]
    assert cells[3] == [("norm", "gn"), ("seed", "0")]


def test_paths_and_yaml_lists_are_not_swept():
    assert sweep(["data=/a,b", "schedule.drops=[1,2]"]) == [
        [("data", "/a,b"), ("schedule.drops", "[1,2]")]
    ]


def test_scientific_notation_is_a_number(toy):
    assert spec_of(toy, "optim.lr=1e-3").optim.lr == 0.001


def test_stored_spec_reads_back_equal(toy, tmp_path):
    spec = spec_of(toy, "norm=bn_ws", "schedule.drops=[1,2]", "data=/x 'y'")
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec))
    assert load_spec(path) == spec


def test_damaged_stored_spec_is_one_line(toy, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("task: toy\nsteps: [")
    with pytest.raises(UsageError, match="not a spec that this version can read"):
        load_spec(path)


@pytest.mark.parametrize("text", ["0", "-0", "7", "-12", "007", "1_000", "1:30", "+3", "9" * 15])
def test_whole_numbers_are_what_yaml_says(text):
    value = _scalar(text)
    assert (value, type(value)) == (yaml.safe_load(text), type(yaml.safe_load(text)))
