"""What planning knows of segmentation, and what it says about bad data before anything is built."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from harness.errors import DataError, NormbenchError, UsageError
from harness.identity import run_id
from harness.plan import impossible
from harness.registry import task_info
from harness.rng import numpy_rng
from harness.schedule import lr_factor
from tasks.segmentation import voc
from tasks.segmentation.task import SegmentationTask
from tests.segmentation.conftest import segmentation_spec

INFO = task_info("segmentation")


def test_planning_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from harness.spec import build; from harness.plan import impossible;"
        "from harness.identity import run_id;"
        "spec = build('segmentation', []); impossible(spec); run_id(spec);"
        "print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "torchvision", "numpy", "pandas", "PIL"}
    assert heavy.isdisjoint(found.stdout.split())


class TestPublishedRecipe:
    def test_steps_and_epochs(self) -> None:
        spec = segmentation_spec("preset=paper")
        assert spec.steps == 33_100 == 50 * 662
        assert -(-voc.OFFICIAL_COUNTS["train_aug"] // spec.batch.size) == 662
        assert spec.batch.tail == "keep"

    def test_learning_rate_is_the_closed_form(self) -> None:
        spec = segmentation_spec("preset=paper")

        def lr(step: int) -> float:
            return spec.optim.lr * lr_factor(spec.schedule, step, spec.steps)

        assert lr(0) == 0.007
        assert 0 < lr(33_099) < 1e-6
        for step in (1, 10_000, 33_099):
            assert lr(step) == pytest.approx(0.007 * (1 - step / 33_100) ** 0.9, rel=1e-12)

    def test_everything_decays_alike(self) -> None:
        optim = segmentation_spec("preset=paper").optim
        assert (optim.name, optim.momentum, optim.lr_factor_bias) == ("sgd", 0.9, 1.0)
        decays = {optim.weight_decay, optim.weight_decay_norm, optim.weight_decay_bias}
        assert decays == {1e-4}

    def test_variant_differs_in_the_head_alone(self) -> None:
        paper, variant = (segmentation_spec(f"preset={p}") for p in ("paper", "torchvision"))
        model = variant.model.model_copy(update={"head": "published"})
        assert variant.model_copy(update={"preset": "paper", "model": model}) == paper


class TestRefusals:
    def test_published_run_without_its_weights(self) -> None:
        assert "ImageNet weights" in (impossible(segmentation_spec("preset=paper")) or "")
        for word in ("init=scratch", "init=weights.pth"):
            assert impossible(segmentation_spec("preset=paper", word)) is None

    @pytest.mark.parametrize("preset", ["mini", "paper"])
    def test_bn_on_single_values_of_the_pooled_branch(self, preset: str) -> None:
        words = [f"preset={preset}", "init=scratch", "norm=bn"]
        reason = impossible(segmentation_spec(*words, "batch.micro=1"))
        assert reason is not None
        assert "1 value per channel at the ASPP's pooled branch" in reason
        assert "batch.micro=2" in reason
        assert impossible(segmentation_spec(*words, "batch.micro=2")) is None

    def test_instance_norm_whatever_the_batch(self) -> None:
        reason = impossible(segmentation_spec("norm=in", "batch.micro=16"))
        assert reason is not None
        assert "batch.micro" not in reason

    @pytest.mark.parametrize(
        ("num", "micro", "steps", "refused"),
        [
            (33, 2, 800, True),  # 33 = 2 x 16 + 1: a micro-batch of one
            (33, 2, 2, False),  # the run ends before
            (35, 2, 800, True),  # a tail of 3 is 2 + 1
            (38, 4, 800, False),  # as VOC's: 6 = 4 + 2
            (37, 4, 800, True),  # 5 = 4 + 1
            (32, 2, 800, False),
        ],
    )
    def test_bn_on_a_ragged_last_micro_batch(
        self, num: int, micro: int, steps: int, refused: bool
    ) -> None:
        words = [f"data.num_train={num}", f"batch.micro={micro}", f"steps={steps}"]
        reason = impossible(segmentation_spec("norm=bn", *words))
        assert (reason is not None) == refused
        if reason:
            assert f"last micro-batch ({num} samples in batches of 16 leave {num % 16}" in reason
            assert "batch.tail=drop" in reason
        assert impossible(segmentation_spec("norm=bn", "batch.tail=drop", *words)) is None
        assert impossible(segmentation_spec("norm=gn", *words)) is None

    def test_the_list_of_real_data_counts(self, voc_copy: Path) -> None:
        words = ["preset=smoke", f"data={voc_copy}", "norm=bn", "steps=9"]
        assert INFO.num_train(segmentation_spec(*words)) == 10  # 10 = 2 x 4 + 2
        assert impossible(segmentation_spec(*words)) is None
        path = voc.list_files(voc_copy, "train")["train"]
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:9]) + "\n")
        assert "leave 1" in (impossible(segmentation_spec(*words)) or "")
        path.unlink()
        assert INFO.num_train(segmentation_spec(*words)) is None

    def test_values_that_make_no_sense(self) -> None:
        for word in (
            "model.rates=[0,2,4]",
            "data.scale=[2,0.5]",
            "data.scale=[0,1]",
            "data.std=[0,1,1]",
            "data.train_set=train_aug",
        ):
            reason = impossible(segmentation_spec(word))
            assert reason is not None
            assert word.partition("=")[0] in reason
        assert "ResNet-101" in (
            impossible(segmentation_spec("preset=paper", "init=scratch", "model.width=32")) or ""
        )

    def test_groups_that_do_not_divide(self) -> None:
        assert "norm.groups=32" in (impossible(segmentation_spec("norm.groups=32")) or "")

    @pytest.mark.parametrize("preset", ["mini", "smoke"])
    def test_presets_can_run_under_every_norm(self, preset: str) -> None:
        for norm in ("bn", "bn_ws", "gn", "gn_ws", "ln", "none_ws"):
            assert impossible(segmentation_spec(f"preset={preset}", f"norm={norm}")) is None


class TestWhereDataLie:
    @pytest.mark.parametrize(
        "inner", ["", "VOC2012", "VOCdevkit/VOC2012", "voc/VOC2012", "voc/VOCdevkit/VOC2012", "voc"]
    )
    def test_any_folder_around_the_data(self, tmp_path: Path, inner: str) -> None:
        (tmp_path / inner / "JPEGImages").mkdir(parents=True)
        assert INFO.data_root(segmentation_spec(f"data={tmp_path}")) == tmp_path / inner

    def test_the_environment_serves_only_presets_without_embedded_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NORMBENCH_DATA", str(tmp_path))
        assert INFO.data_root(segmentation_spec("preset=paper")) == tmp_path
        assert tmp_path not in INFO.data_root(segmentation_spec()).parents
        monkeypatch.delenv("NORMBENCH_DATA")
        with pytest.raises(DataError, match="data=DIR"):
            INFO.fingerprint(segmentation_spec("preset=paper"))

    def test_embedded_data_are_named_by_what_they_hold(self) -> None:
        spec = segmentation_spec("preset=smoke")
        assert INFO.data_root(spec).parent.name == INFO.fingerprint(spec)
        words = ("seed=0", "data.seed=1", "data.size=65", "data.num_val=5")
        names = {INFO.fingerprint(segmentation_spec("preset=smoke", word)) for word in words}
        assert len(names) == 4

    def test_names_of_the_data(self, voc_copy: Path) -> None:
        assert INFO.dataset(segmentation_spec()) == "VOC textures"
        spec = segmentation_spec(f"data={voc_copy}")
        assert INFO.dataset(spec) == "VOC2012 (VOC format)"
        (voc_copy / voc.LABELS).unlink()
        assert INFO.dataset(spec) == "VOC 2012"
        augmented = segmentation_spec(f"data={voc_copy}", "data.train_set=train_aug")
        assert INFO.dataset(augmented) == "VOC 2012 train_aug"


class TestIdentity:
    def test_keeping_predictions_makes_no_other_run(self) -> None:
        ids = {run_id(segmentation_spec(f"data.save_predictions={v}")) for v in ("true", "false")}
        assert len(ids) == 1
        assert run_id(segmentation_spec("data.flip=0")) not in ids

    def test_real_data_are_their_content_not_their_place(
        self, voc_copy: Path, smoke_root: Path
    ) -> None:
        ids = {run_id(segmentation_spec(f"data={root}")) for root in (voc_copy, smoke_root)}
        assert len(ids) == 1

    @pytest.mark.parametrize("what", ["list", "mask", "labels"])
    def test_fingerprint_changes_with(self, what: str, voc_copy: Path) -> None:
        before = voc.fingerprint(voc_copy, "train")
        if what == "list":
            path = voc.list_files(voc_copy, "train")["val"]
            path.write_text("\n".join(path.read_text().splitlines()[1:]))
        elif what == "mask":
            path = next((voc_copy / "SegmentationClass").iterdir())
            shutil.copy(path, voc_copy / "other.png")
            Image.new("L", (32, 32), 1).save(voc_copy / "other.png", compress_level=0)
            (voc_copy / "other.png").replace(path)
        else:
            (voc_copy / voc.LABELS).unlink()
        assert voc.fingerprint(voc_copy, "train") != before

    def test_fingerprint_is_remembered(
        self, voc_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = voc.fingerprint(voc_copy, "train")
        monkeypatch.setattr(voc, "read_split", pytest.fail)  # what looks at every mask
        assert voc.fingerprint(voc_copy, "train") == before

    def test_fingerprint_needs_no_writable_cache(
        self, voc_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "file"))
        assert voc.fingerprint(voc_copy, "train").startswith("voc-")


Damage = Callable[[Path], object]
FIRST, LIST = "train_000000", "ImageSets/Segmentation/train.txt"


def _remove(name: str) -> Damage:
    def damage(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def _empty(name: str) -> Damage:
    def damage(root: Path) -> None:
        _remove(name)(root)
        (root / name).mkdir()

    return damage


def _write(name: str, content: bytes) -> Damage:
    return lambda root: (root / name).write_bytes(content)


def _mask(image: Image.Image) -> Damage:
    return lambda root: image.save(root / "SegmentationClass" / f"{FIRST}.png")


def _truncate(name: str) -> Damage:
    def damage(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])

    return damage


IMAGE, MASK = f"JPEGImages/{FIRST}.jpg", f"SegmentationClass/{FIRST}.png"
BAD: dict[str, tuple[Damage, str]] = {
    "no folder": (_remove(""), "does not exist"),
    "empty folder": (_empty(""), "JPEGImages is missing"),
    "no images": (_remove("JPEGImages"), "JPEGImages is missing: get VOCtrainval_11-May-2012.tar"),
    "empty images": (_empty("JPEGImages"), "JPEGImages is empty"),
    "no masks": (_remove("SegmentationClass"), "SegmentationClass is missing"),
    "no list": (_remove(LIST), "train.txt is missing"),
    "empty list": (_write(LIST, b"\n\n"), "lists no images"),
    "binary list": (_write(LIST, b"\xff\xfe\x00"), "it is not text"),
    "foreign list": (_write(LIST, b"a b c\n"), "line 1: expected a name, or the paths"),
    "list of others": (_write(LIST, b"2007_000032\n"), "2007_000032.jpg"),
    "missing image": (_remove(IMAGE), f"{FIRST}.jpg missing, but"),
    "missing mask": (_remove(MASK), f"{FIRST}.png missing, but"),
    "no image": (_write(IMAGE, b"<html>"), f"{FIRST}.jpg cannot be read"),
    "empty image": (_write(IMAGE, b""), f"{FIRST}.jpg cannot be read"),
    "truncated image": (_truncate(IMAGE), f"{FIRST}.jpg cannot be read"),
    "no mask": (_write(MASK, b"\x89PNG"), f"{FIRST}.png cannot be read"),
    "truncated mask": (_truncate(MASK), f"{FIRST}.png cannot be read"),
    "coloured mask": (_mask(Image.new("RGB", (32, 32))), "of PIL mode RGB"),
    "other size": (_mask(Image.new("L", (31, 32))), "31 x 32 pixels, its image 32 x 32"),
    "foreign class": (_mask(Image.new("L", (32, 32), 6)), "holds class 6, but there are 6"),
    "one class": (_write(voc.LABELS, b"ground\n"), "names 1 classes"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_data_are_one_line_with_status_3(what: str, voc_copy: Path) -> None:
    """What a look at the folder can tell shows before training; the rest when a file is read."""
    damage, said = BAD[what]
    damage(voc_copy)
    spec = segmentation_spec("preset=smoke", f"data={voc_copy}")

    def start() -> None:
        INFO.fingerprint(spec)
        data = SegmentationTask(spec, INFO.prepare(spec, lambda *_: None)).train_data()
        data.sample(0, numpy_rng(0))

    with pytest.raises(NormbenchError) as caught:
        start()
    assert caught.value.exit_code == 3
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(voc_copy) in str(caught.value)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        INFO.fingerprint(segmentation_spec(f"data={tmp_path / 'data'}"))


class TestCheck:
    def test_counts_and_finds_nothing_wrong(self, voc_copy: Path) -> None:
        told: list[tuple[str, int, int]] = []
        spec = segmentation_spec(f"data={voc_copy}")
        report = INFO.check(spec, lambda *args: told.append(args))
        assert report.problems == []
        assert report.root == voc_copy
        assert report.facts["train"] == "10 pairs"
        assert report.facts["classes"] == "6 (ground, stripes, bars, checks, ...)"
        assert told[-1] == ("open val", 4, 4)

    def test_names_every_problem(self, voc_copy: Path) -> None:
        names = (voc_copy / LIST).read_text().split()
        (voc_copy / "JPEGImages" / f"{names[0]}.jpg").unlink()
        (voc_copy / "JPEGImages" / f"{names[1]}.jpg").write_bytes(b"no image")
        Image.new("L", (5, 6)).save(voc_copy / "SegmentationClass" / f"{names[2]}.png")
        val = voc.list_files(voc_copy, "train")["val"]
        val.write_text(val.read_text() + names[3] + "\n")
        report = INFO.check(segmentation_spec(f"data={voc_copy}"), lambda *_: None)
        text = "\n".join(report.problems)
        assert len(report.problems) == 4
        assert f"{names[0]}.jpg missing, but" in text
        assert f"{names[1]}.jpg cannot be read" in text
        assert "5 x 6 pixels, its image 32 x 32" in text
        assert f"1 images are in train and in val: {names[3]}" in text

    def test_says_what_to_get_and_where(self, voc_copy: Path) -> None:
        spec = segmentation_spec("preset=paper", f"data={voc_copy}")
        text = "\n".join(INFO.check(spec, lambda *_: None).problems)
        assert "SegmentationClassAug is missing: get SegmentationClassAug.zip" in text
        assert "train_aug.txt is missing: get list.zip" in text
        assert "val.txt is missing" in text


def test_show_draws_a_picture(tmp_path: Path) -> None:
    INFO.show(segmentation_spec("preset=smoke"), tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert min(image.size) > 500
    with pytest.raises(UsageError, match="cannot write"):
        INFO.show(segmentation_spec("preset=smoke"), tmp_path / "absent" / "out.png")
