"""What will run, what cannot, and under which identity."""

from __future__ import annotations

import pytest

from harness.errors import NormbenchError, UsageError
from harness.identity import run_id, science, stat_batch
from harness.plan import plan
from harness.record import RunDir
from harness.spec import build, parse_words


def id_of(*words: str) -> str:
    return run_id(build("toy", parse_words(words)))


def test_identity_ignores_how_a_run_is_executed(toy):
    assert id_of() == id_of("exec.workers=2", "exec.threads=1", "exec.device=cpu", "exec.log_s=1")
    assert id_of("data.seed=1") != id_of()
    assert id_of("steps=7") != id_of()
    assert id_of("batch.tail=drop") != id_of()
    assert id_of("batch.tail=keep") == id_of()


def test_identity_ignores_options_that_the_choice_does_not_read(toy):
    assert id_of("norm=bn", "norm.groups=2") == id_of("norm=bn", "norm.groups=4")
    assert id_of("norm=gn", "norm.groups=2") != id_of("norm=gn", "norm.groups=4")
    assert id_of("optim.betas=[0.8,0.9]") == id_of()
    assert id_of("schedule.drops=[1]") == id_of()
    assert id_of("init=scratch") == id_of()


def test_micro_batch_is_science_only_where_a_statistic_sees_it(toy):
    """A batch-independent norm on a separable task runs once, whatever the micro-batch."""

    assert id_of("norm=gn", "batch.micro=1") == id_of("norm=gn", "batch.micro=8")
    assert id_of("norm=gn").startswith("toy-gn-s0-")
    assert id_of("norm=bn", "batch.micro=2") != id_of("norm=bn", "batch.micro=8")
    assert id_of("norm=bn", "batch.micro=2").startswith("toy-bn-mb2-s0-")


def test_sync_statistics_see_all_devices(toy):
    spec = build("toy", parse_words(["norm=bn", "batch.micro=2", "devices=4", "batch.stat=sync"]))
    assert stat_batch(spec) == 8
    single = build("toy", parse_words(["norm=bn", "batch.micro=8"]))
    assert science(spec) == science(single)


def test_plan_is_ordered_and_each_run_once(toy, tmp_path):
    cells = plan("toy", ["norm=bn,gn,bn", "seed=0..1"], tmp_path)
    assert [cell.spec.norm.name for cell in cells] == ["bn", "bn", "gn", "gn"]
    assert {cell.state for cell in cells} == {"todo"}
    assert not list(tmp_path.glob("runs"))


def test_states(toy, tmp_path):
    def state() -> str:
        return plan("toy", [], tmp_path)[0].state

    run = RunDir(tmp_path, id_of())
    assert state() == "todo"
    run.path.mkdir(parents=True)
    run.checkpoint.touch()
    assert state() == "resumable"
    with run.lock().acquire():
        assert state() == "running"
    run.write_failure(NormbenchError("no luck"))
    assert state() == "failed"
    assert plan("toy", [], tmp_path)[0].reason == "no luck"
    run.record.touch()
    assert state() == "done"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["norm.groups=3"], "norm.groups=3 does not divide the 8 channels"),
        (["norm=frozen_bn"], "give init=FILE, or choose bn"),
    ],
)
def test_impossible_cells_have_a_reason(toy, tmp_path, words, reason):
    cell = plan("toy", words, tmp_path)[0]
    assert cell.state == "impossible"
    assert reason in cell.reason


def test_bn_on_single_values_is_refused(toy, tmp_path, monkeypatch):
    from harness.task import NormFacts
    from tests.toy import ToyInfo

    facts = NormFacts((8,), 1, "the pooled branch")
    monkeypatch.setattr(ToyInfo, "norm_facts", lambda self, spec: facts)
    cell = plan("toy", ["norm=bn", "batch.micro=1"], tmp_path)[0]
    assert "bn sees 1 value per channel at the pooled branch" in cell.reason
    assert "batch.micro=2" in cell.reason
    assert plan("toy", ["norm=bn", "batch.micro=2"], tmp_path)[0].state == "todo"
    assert plan("toy", ["norm=gn", "batch.micro=1"], tmp_path)[0].state == "todo"
    assert plan("toy", ["norm=in", "batch.micro=8"], tmp_path)[0].state == "impossible"


def test_errors_of_a_sweep_are_told_once(toy, tmp_path):
    with pytest.raises(UsageError) as caught:
        plan("toy", ["norm=gn,bn", "batch.mirco=1"], tmp_path)
    assert str(caught.value).count("batch.mirco") == 1
