"""Checkpoints that are damaged, of others or of older formats: never loaded wrong, never lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import checkpoint
from harness.checkpoint import FORMAT, Progress
from harness.record import read_record
from tests import toy as toy_task
from tests.harness.sittings import prepared, sit, sit_until


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


def saved(path: Path, run: str = "run", step: int = 3) -> dict[str, Any]:
    state = {"model": {"w": torch.arange(100.0)}, "optimizer": {}, "scaler": {}}
    checkpoint.save(path, run, Progress(step=step), state)
    return state


def test_torch_alone_would_load_flipped_bits(tmp_path):
    """Why there is a checksum; and the file stays one that torch reads."""
    path = tmp_path / "checkpoint.pt"
    state = saved(path)
    assert torch.equal(torch.load(path, weights_only=True)["model"]["w"], state["model"]["w"])
    data = path.read_bytes()
    place = data.index(state["model"]["w"].numpy().tobytes()) + 6
    path.write_bytes(flipped(data, place))
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["w"], state["model"]["w"])
    assert checkpoint.load(path, "run") == (
        None,
        [
            "checkpoint.pt is truncated or damaged: passed over",
            "no good checkpoint is left: starting at step 0",
        ],
    )


def test_every_byte_of_the_end_counts(tmp_path):
    """Where the checksum lies, with the length of the comment that holds it."""
    path = tmp_path / "checkpoint.pt"
    saved(path)
    data = path.read_bytes()
    for place in range(len(data) - 64, len(data)):
        path.write_bytes(flipped(data, place))
        assert checkpoint.load(path, "run")[0] is None, place - len(data)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_no_flipped_bit_and_no_cut_is_ever_loaded(tmp_path, place, bit, cut):
    path = tmp_path / "checkpoint.pt"
    checkpoint.previous(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    saved(path)
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    path.write_bytes(bytes(data))
    content, remarks = checkpoint.load(path, "run")
    assert content is None
    assert remarks


def test_a_damaged_checkpoint_falls_back_and_never_ousts_the_good_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        saved(path, step=step)
    path.write_bytes(flipped(path.read_bytes(), 300))
    content, remarks = checkpoint.load(path, "run")
    assert content["progress"]["step"] == 1
    assert remarks == ["checkpoint.pt is truncated or damaged: passed over"]
    saved(path, step=3)
    assert checkpoint.load(path, "run")[0]["progress"]["step"] == 3
    assert checkpoint.load(checkpoint.previous(path), "run")[0]["progress"]["step"] == 1


def test_checkpoints_of_others_are_passed_over_in_words(tmp_path):
    path = tmp_path / "checkpoint.pt"
    saved(path, run="another")
    assert checkpoint.load(path, "run")[1][0] == "checkpoint.pt belongs to another: passed over"
    torch.save({"format": FORMAT + 1, "run_id": "run"}, path)
    assert "was written by a newer version" in checkpoint.load(path, "run")[1][0]
    for foreign in ([1], {"format": "x"}, {"weights": torch.ones(1)}):
        torch.save(foreign, path)
        assert "is no checkpoint" in checkpoint.load(path, "run")[1][0]
    torch.save({"format": FORMAT, "run_id": "run", "progress": {}}, path)
    assert "truncated or damaged" in checkpoint.load(path, "run")[1][0]  # its checksum is gone


def test_a_checkpoint_of_the_first_format_goes_on(toy, tmp_path, whole):
    """It had no checksum, and its progress fewer entries."""
    run = prepared(tmp_path)
    sit_until(run, 2)
    content = torch.load(run.checkpoint, weights_only=True)
    for later in ("evaluated", "best", "replaced"):
        del content["progress"][later]
    torch.save(content | {"format": 1}, run.checkpoint)
    run.checkpoint.with_suffix(".previous.pt").unlink(missing_ok=True)
    assert sit(run) == (0, None)
    assert "resumed at step 3 of 6" in run.metrics.read_text()
    assert read_record(run.record).metrics == whole().metrics


def test_a_model_built_otherwise_is_not_trained_on(toy, tmp_path, monkeypatch):
    run = prepared(tmp_path)
    sit_until(run, 2)
    stock = toy_task.Toy.build_model

    def wider(self):
        model = stock(self)
        model.add_module("head", torch.nn.Conv2d(8, 3, 3))
        return model

    monkeypatch.setattr(toy_task.Toy, "build_model", wider)
    code, failure = sit(run)
    assert code == 1
    assert failure.message.startswith("the checkpoint does not fit this model")
