"""A published number stands beside a run only where the run followed its protocol."""

from __future__ import annotations

import pytest

from harness.identity import stat_batch
from harness.record import InitFacts, MetricRow, Record
from harness.report.published import match
from harness.spec import build, parse_words
from tests.harness.test_collect import record_of

DATASETS = {"classification": "ImageNet-1k", "pointcloud": "ModelNet40", "detection": "COCO"}


def run(
    task: str, *words: str, dataset: str = "", init: str = "scratch", **values: float
) -> Record:
    """Return the record of a run with these measured values in %."""
    spec = build(task, parse_words(["preset=paper", *words]))
    template = record_of()
    metric = template.metrics[0]
    metrics = tuple(
        MetricRow(**metric.model_dump() | {"name": name, "value": value})
        for name, value in values.items()
    )
    return template.model_copy(
        update={
            "run_id": f"{task}-{spec.norm.name}",
            "spec": spec.model_dump(mode="json"),
            "science": template.science | {"init": init},
            "dataset": dataset or DATASETS[task],
            "metrics": metrics,
            "stat_batch": stat_batch(spec),
        }
    )


def only(record: Record):
    frame = match([record])
    assert len(frame) == 1
    return frame.iloc[0]


def test_a_run_by_the_protocol_gets_its_number_and_delta():
    record = run("classification", "data=/somewhere", "seed=3", top1_acc=76.0, top5_acc=92.9, x=1)
    frame = match([record]).set_index("metric")
    assert list(frame.index) == ["top1_acc", "top5_acc"]
    assert frame["comparable"].tolist() == ["yes", "yes"]
    assert frame["published"].tolist() == [76.28, 93.01]
    assert frame["delta"].tolist() == pytest.approx([-0.28, -0.11])
    assert frame["verified"].all()
    assert frame.loc["top1_acc", "published_source"].startswith("github.com/joe-siyuan-qiao/")


def test_a_verified_number_is_preferred_and_an_unverified_one_is_shown_as_such():
    gn = only(run("classification", "norm=gn", top1_acc=75.0))
    assert (gn["published_shown"], gn["comparable"]) == ("75.19 +- 0.02", "yes")
    bn_ws = only(run("classification", "norm=bn_ws", top1_acc=75.0))
    assert (bn_ws["published_shown"], bn_ws["comparable"]) == ("76.24 (unverified)", "partly")
    assert not bn_ws["verified"]


def test_the_variant_of_weight_standardisation_is_said():
    same = only(run("pointcloud", overall_acc=91.0))
    assert (same["comparable"], same["delta"]) == ("yes", pytest.approx(-0.2))
    other = only(run("pointcloud", "norm=gn_ws", overall_acc=91.0))
    assert other["comparable"] == "partly"
    assert other["why"].startswith("norm.ws=authors, published tf; ")
    assert other["delta"] == pytest.approx(-0.2)


def test_micro_batches_matter_to_batch_norm_and_to_detection():
    gn = only(run("classification", "batch.micro=1", top1_acc=76.0))
    assert gn["comparable"] == "yes"
    bn = only(run("classification", "norm=bn", "batch.micro=1", top1_acc=70.0))
    assert bn["comparable"] == "no"
    assert bn["delta"] is None or bn.isna()["delta"]
    assert bn["why"].startswith("a batch statistic saw 1 images instead of 64")
    full = only(
        run(
            "classification",
            "norm=bn",
            "batch.micro=16",
            "batch.stat=sync",
            "devices=4",
            top1_acc=75.6,
        )
    )
    assert full["comparable"] == "yes"
    ones = only(run("detection", "batch.micro=1", init="f00d", mask_AP=36.0))
    assert (ones["comparable"], ones["published"]) == ("partly", 36.51)
    assert ones["why"].startswith("batch.micro=1 instead of 2")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["steps=10"], "steps=10 instead of 450360"),
        (["optim.lr=0.2"], "optim.lr=0.2 instead of 0.1"),
        (["norm.groups=16"], "norm.groups=16 instead of 32"),
        (["norm.scope=backbone"], "norm.scope=backbone instead of followed_by_norm"),
        (["batch.size=512"], "batch.size=512 instead of 256"),
        (["data.size=160"], "data.size=160 instead of 224"),
    ],
)
def test_any_other_change_of_the_preset_forbids_a_delta(words, reason):
    found = only(run("classification", *words, top1_acc=76.0))
    assert found["comparable"] == "no"
    assert found.isna()["delta"]
    assert found["why"].startswith(reason)


def test_precision_and_initial_weights_are_said():
    bf16 = only(run("classification", "precision=bf16", top1_acc=76.0))
    assert (bf16["comparable"], bf16["delta"]) == ("partly", pytest.approx(-0.28))
    tuned = only(run("classification", init="f00d", top1_acc=76.0))
    assert tuned["comparable"] == "no"
    assert tuned["why"].startswith("init=FILE, published from scratch")
    scratch = only(run("detection", "init=scratch", "model.freeze_at=0", mask_AP=30.0))
    assert scratch["comparable"] == "no"
    assert "init=scratch, published from imagenet" in scratch["why"]


def test_mini_runs_other_data_and_mechanics_have_no_counterpart():
    record = run("classification", top1_acc=76.0)
    assert match([record.model_copy(update={"is_result": False})]).empty
    assert match([run("classification", dataset="my pictures", top1_acc=76.0)]).empty
    mini = record.model_copy(update={"spec": record.spec | {"preset": "mini"}})
    assert match([mini, record_of()]).empty
    frame = match([])
    assert list(frame.columns)[:3] == ["run_id", "metric", "published"]


def test_weights_that_the_protocol_does_not_have_are_said():
    """What was loaded despite its norm, and pictures shown as the weights expect them."""
    ours = run("detection", "init.allow_mismatch=true", init="f00d", mask_AP=36.0)
    assert only(ours)["comparable"] == "no"
    assert "init.allow_mismatch" in only(ours)["why"]
    shown = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2)}
    counts = dict.fromkeys(("num_loaded", "num_adapted", "num_skipped", "num_missing"), 1)
    facts = InitFacts(source="f", checksum="0", norm="gn_ws", told_by="x", pictures=shown, **counts)
    plain = run("detection", init="f00d", mask_AP=36.0)
    assert "pictures are shown" not in only(plain)["why"]
    other = only(plain.model_copy(update={"init": facts}))
    assert other["comparable"] == "partly"
    assert "pictures are shown as the initial weights expect" in other["why"]
