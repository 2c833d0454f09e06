"""What planning knows of classification, its recipes, and what it says about bad data."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from harness.errors import DataError, NormbenchError
from harness.feed import steps_per_epoch
from harness.identity import run_id, science
from harness.plan import impossible
from harness.registry import task_info
from harness.schedule import lr_factor
from tasks.classification import imagefolder
from tasks.classification.inspection import inspect
from tasks.classification.task import ClassificationTask
from tests.classification.conftest import classification_spec

INFO = task_info("classification")


class TestRecipes:
    @pytest.mark.parametrize(
        ("preset", "model", "size", "epochs", "drops"),
        [
            ("paper", "resnet50", 256, 90, (30, 60)),
            ("paper_r101", "resnet101", 128, 100, (30, 60, 90)),
            ("paper_x50", "resnext50_32x4d", 128, 100, (30, 60, 90)),
            ("paper_x101", "resnext101_32x4d", 128, 100, (30, 60, 90)),
        ],
    )
    def test_paper_follows_the_authors(
        self, preset: str, model: str, size: int, epochs: int, drops: tuple[int, ...]
    ) -> None:
        spec = classification_spec(f"preset={preset}")
        assert (spec.model.name, spec.batch.size) == (model, size)
        per_epoch = steps_per_epoch(1_281_167, size, spec.batch.tail)
        assert per_epoch == {256: 5_004, 128: 10_009}[size]
        assert spec.steps == epochs * per_epoch
        for epoch in range(epochs):
            rate = 0.1 * 0.1 ** sum(epoch >= drop for drop in drops)
            for step in (epoch * per_epoch, (epoch + 1) * per_epoch - 1):
                ours = spec.optim.lr * lr_factor(spec.schedule, step, spec.steps)
                assert ours == pytest.approx(rate, rel=1e-12), (epoch, step)
        assert spec.optim.name == "sgd"
        assert spec.optim.momentum == 0.9
        decays = {
            spec.optim.weight_decay,
            spec.optim.weight_decay_norm,
            spec.optim.weight_decay_bias,
        }
        assert decays == {1e-4}
        assert spec.norm.groups == 32

    def test_every_preset_can_run_under_every_norm(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for preset in ("mini", "smoke", "paper", "paper_r101", "paper_x50", "paper_x101"):
            for norm in ("bn", "bn_ws", "gn", "gn_ws", "ln", "in", "none_ws"):
                spec = classification_spec(f"preset={preset}", f"norm={norm}")
                assert impossible(spec) is None, (preset, norm)

    def test_a_batch_independent_norm_runs_once_for_all_micro_batches(self) -> None:
        def hashed(*words: str) -> str:
            return run_id(classification_spec(*words)).rpartition("-")[2]

        assert hashed("norm=gn", "batch.micro=1") == hashed("norm=gn", "batch.micro=16")
        assert hashed("norm=bn", "batch.micro=1") != hashed("norm=bn", "batch.micro=16")


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["data.resize=16"], "data.resize=16 leaves too little"),
            (["data.scale=[0,1]"], "data.scale=[0,1] must ascend from above 0 up to 1"),
            (["data.scale=[0.5,1.5]"], "data.scale=[0.5,1.5]"),
            (["data.ratio=[2,1]"], "data.ratio=[2,1] must ascend"),
            (["norm.groups=32"], "norm.groups=32 does not divide"),
        ],
    )
    def test_in_the_plan(self, words: list[str], said: str) -> None:
        assert said in str(impossible(classification_spec(*words)))

    def test_a_single_picture_at_the_end_of_an_epoch(self, copy: Path) -> None:
        """25 pictures in batches of 24 leave one, whose last maps are a single pixel."""
        first = next((copy / "train" / "bars_disc").iterdir())
        shutil.copy(first, first.with_name("more.png"))
        words = (f"data={copy}", "data.size=8", "norm=bn", "batch.size=24", "batch.micro=24")
        assert "last micro-batch" in str(impossible(classification_spec(*words)))
        assert impossible(classification_spec(*words, "batch.tail=drop")) is None


class TestWhereDataLie:
    def test_a_given_folder(self, tmp_path: Path) -> None:
        spec = classification_spec(f"data={tmp_path}")
        assert INFO.data_root(spec) == tmp_path
        (tmp_path / "imagenet").mkdir()
        assert INFO.data_root(spec) == tmp_path / "imagenet"

    def test_the_environment_serves_only_presets_without_embedded_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NORMBENCH_DATA", str(tmp_path))
        assert INFO.data_root(classification_spec("preset=paper")) == tmp_path
        assert tmp_path not in INFO.data_root(classification_spec()).parents
        monkeypatch.delenv("NORMBENCH_DATA")
        with pytest.raises(DataError, match=r"needs ImageNet .* give data=DIR"):
            INFO.fingerprint(classification_spec("preset=paper"))

    def test_embedded_data_are_named_by_what_they_hold(self) -> None:
        spec = classification_spec("preset=smoke")
        assert INFO.data_root(spec).name == INFO.fingerprint(spec)
        assert INFO.dataset(spec) == "textured shapes"
        words = ("seed=0", "data.seed=1", "data.size=33", "data.num_val=25")
        assert len({INFO.fingerprint(classification_spec("preset=smoke", w)) for w in words}) == 4


class TestFingerprint:
    def test_is_the_content_not_the_place(self, copy: Path, smoke_root: Path) -> None:
        specs = [classification_spec(f"data={root}") for root in (copy, smoke_root)]
        assert INFO.fingerprint(specs[0]).startswith("imagefolder-")
        assert len({run_id(spec) for spec in specs}) == 1
        assert INFO.dataset(specs[0]) == "pictures"
        assert INFO.num_train(specs[0]) == 24

    @pytest.mark.parametrize("change", ["add", "rename", "remove class", "resize"])
    def test_changes_with_the_listing(self, copy: Path, change: str) -> None:
        before = imagefolder.summarise(copy)
        folder = copy / "val" / "ring"
        file = next((copy / "val" / "dots_ring").iterdir())
        if change == "add":
            shutil.copy(file, file.with_name("more.png"))
        elif change == "rename":
            file.rename(file.with_name("other.png"))
        elif change == "remove class":
            for split in imagefolder.SPLITS:
                shutil.rmtree(copy / split / "dots_ring")
        else:
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content + b"\0")
        assert not folder.exists()
        assert imagefolder.summarise(copy).digest != before.digest

    def test_a_large_one_is_remembered_until_a_folder_changes(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(imagefolder, "_LARGE", 1)
        before = imagefolder.summarise(copy)
        imagefolder._summary.cache_clear()
        listed: list[Path] = []
        list_split = imagefolder.list_split

        def watch(root: Path, split: str) -> imagefolder.Listing:
            listed.append(root)
            return list_split(root, split)

        monkeypatch.setattr(imagefolder, "list_split", watch)
        assert imagefolder.summarise(copy) == before
        assert not listed
        file = next((copy / "train" / "bars_disc").iterdir())
        shutil.copy(file, file.with_name("more.png"))
        assert imagefolder.summarise(copy).num_train == 25
        assert listed

    def test_needs_no_writable_cache(
        self, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(imagefolder, "_LARGE", 1)
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "file"))
        assert imagefolder.summarise(copy).num_val == 24

    def test_imagenet_is_known_by_its_numbers(self) -> None:
        assert imagefolder.Summary("", 1000, 1_281_167, 50_000).is_imagenet
        assert not imagefolder.Summary("", 1000, 1_281_166, 50_000).is_imagenet


def _remove(*parts: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def _empty(*parts: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for path in root.joinpath(*parts).iterdir():
            _remove(path.name)(path.parent)

    return damage


def _flat(root: Path) -> None:
    for folder in list((root / "val").iterdir()):
        for file in folder.iterdir():
            file.rename(root / "val" / f"{folder.name}_{file.name}")
        folder.rmdir()


def _single(root: Path) -> None:
    for split in imagefolder.SPLITS:
        for folder in sorted((root / split).iterdir())[1:]:
            shutil.rmtree(folder)


def _truncate(split: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for path in (root / split).rglob("*.png"):
            path.write_bytes(path.read_bytes()[:200])

    return damage


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (_remove(), "does not exist"),
    "empty folder": (_empty(), "is empty"),
    "no train": (_remove("train"), "has no folder train/"),
    "no val": (_remove("val"), "has no folder val/"),
    "empty train": (_empty("train"), "train holds no class folders"),
    "flat val": (_flat, "are its pictures not sorted into classes?"),
    "empty class": (_empty("train", "dots_star"), "dots_star holds no picture"),
    "empty val class": (_empty("val", "dots_star"), "dots_star holds no picture"),
    "missing val class": (_remove("val", "dots_star"), "has no class 'dots_star'"),
    "missing train class": (_remove("train", "dots_star"), "has no class 'dots_star'"),
    "one class": (_single, "a single class"),
    "truncated": (_truncate("train"), "0000.png cannot be read"),
    "truncated val": (_truncate("val"), "0000.png cannot be read"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_data_are_one_line_with_status_3(what: str, copy: Path) -> None:
    damage, said = BAD[what]
    damage(copy)
    spec = classification_spec("preset=smoke", f"data={copy}")

    def start() -> None:
        import numpy as np
        import torch

        INFO.fingerprint(spec)
        task = ClassificationTask(spec, INFO.prepare(spec, lambda *_: None))
        task.train_data().sample(0, np.random.RandomState(0))
        task.evaluate(task.build_model(), torch.device("cpu"), lambda *_: None)

    with pytest.raises(NormbenchError) as caught:
        start()
    assert caught.value.exit_code == 3
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        INFO.fingerprint(classification_spec(f"data={tmp_path / 'data'}"))


def test_hidden_files_and_other_files_are_passed_over(copy: Path) -> None:
    before = imagefolder.summarise(copy)
    (copy / "train" / ".DS_Store").write_text("")
    (copy / "train" / ".thumbnails").mkdir()
    (copy / "train" / "bars_disc" / "._0000.png").write_text("")
    (copy / "train" / "bars_disc" / "notes.txt").write_text("")
    assert imagefolder.summarise(copy) == before


def test_folders_within_a_class_belong_to_it(copy: Path) -> None:
    inner = copy / "train" / "bars_disc" / "deep" / "deeper"
    inner.mkdir(parents=True)
    shutil.copy(next((copy / "train" / "bars_disc").glob("*.png")), inner / "A.PNG")
    assert imagefolder.list_split(copy, "train").files["bars_disc"][-1][0] == "deep/deeper/A.PNG"
    assert imagefolder.summarise(copy).num_train == 25


class TestCheck:
    def test_counts_and_finds_nothing_wrong(self, copy: Path) -> None:
        told: list[tuple[str, int, int]] = []
        spec = classification_spec(f"data={copy}")
        report = INFO.check(spec, lambda *args: told.append(args))
        assert list(report.problems) == []
        assert report.root == copy
        assert report.facts["classes"] == "12 (ImageNet: 1,000)"
        assert report.facts["train pictures"] == "24 (ImageNet: 1,281,167)"
        assert report.facts["train pictures of a class"] == "2 to 2"
        assert told[-1] == ("open val", 24, 24)

    def test_paper_needs_imagenet_itself(self, copy: Path) -> None:
        spec = classification_spec("preset=paper", f"data={copy}")
        problems = "\n".join(INFO.check(spec, lambda *_: None).problems)
        assert "holds 12 classes, ImageNet (ILSVRC 2012) has 1,000" in problems
        assert "24 pictures, ImageNet (ILSVRC 2012) has 1,281,167" in problems
        assert "ILSVRC2012_img_val.tar (image-net.org)" in problems

    def test_what_looks_like_imagenet_must_be_whole(self, tmp_path: Path) -> None:
        picture = tmp_path / "a.png"
        Image.new("RGB", (2, 2)).save(picture)
        for split in imagefolder.SPLITS:
            for number in range(1000):
                folder = tmp_path / "data" / split / f"n{number:08d}"
                folder.mkdir(parents=True)
                (folder / "a.png").hardlink_to(picture)
        report = inspect(tmp_path / "data", lambda *_: None, must_be_imagenet=False)
        assert len(report.problems) == 2
        assert "1,000 pictures, ImageNet (ILSVRC 2012) has 50,000" in report.problems[1]

    def test_names_every_broken_picture(self, copy: Path) -> None:
        broken = [copy / "train" / "bars_disc" / "0000.png", copy / "val" / "dots_ring/0001.png"]
        for path in broken:
            path.write_bytes(b"no picture")
        report = inspect(copy, lambda *_: None, must_be_imagenet=False)
        assert len(report.problems) == 2
        for path, problem in zip(broken, report.problems, strict=True):
            assert f"{path} cannot be read" in problem


def test_the_tail_is_part_of_the_identity() -> None:
    dropped = science(classification_spec("batch.tail=drop"))
    assert dropped["batch"] == science(classification_spec())["batch"] | {"tail": "drop"}


def test_a_smoke_run_through_the_command_line(tmp_path: Path, smoke_root: Path) -> None:
    command = [sys.executable, "-m", "harness", "run", "classification", "preset=smoke"]
    done = subprocess.run(
        [*command, "norm=bn", "exec.threads=1", "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "top1_acc" in done.stdout
    assert "mechanics only" in done.stdout
    assert (tmp_path / "metrics.csv").is_file()
