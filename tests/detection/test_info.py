"""What planning knows of detection, and what it says about bad data before anything is built."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.errors import DataError, NormbenchError
from harness.identity import run_id
from harness.plan import impossible
from harness.registry import task_info
from harness.spec import dump_spec, load_spec
from tasks.detection import coco, inspection
from tasks.detection.task import DetectionTask
from tests.detection.conftest import detection_spec

INFO = task_info("detection")


def test_planning_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from harness.spec import build; from harness.plan import impossible;"
        "from harness.identity import run_id;"
        "spec = build('detection', []); impossible(spec); run_id(spec);"
        "print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "numpy", "pandas", "detectron2", "PIL", "pycocotools"}
    assert heavy.isdisjoint(found.stdout.split())


class TestRefusals:
    def test_frozen_random_weights(self) -> None:
        for words in (["preset=paper"], ["preset=paper", "init=scratch"]):
            reason = impossible(detection_spec(*words))
            assert reason is not None
            assert "model.freeze_at=2" in reason
            assert "init=FILE" in reason
        assert impossible(detection_spec("preset=paper", "init=weights.pth")) is None
        scratch = ["preset=paper", "model.freeze_at=0", "init=scratch"]
        assert impossible(detection_spec(*scratch)) is None

    def test_published_runs_whose_initial_weights_nobody_named(self) -> None:
        for preset in ("paper", "paper_faster_x101"):
            reason = impossible(detection_spec(f"preset={preset}", "model.freeze_at=0"))
            assert "init=FILE or init=scratch" in (reason or "")
        assert impossible(detection_spec("preset=mini")) is None

    def test_widths_that_groups_do_not_divide(self) -> None:
        words = ["preset=paper_mask_x50", "init=scratch", "model.freeze_at=0", "model.width=24"]
        words.append("norm.groups=8")
        assert "multiple of 16" in (impossible(detection_spec(*words)) or "")

    def test_overlapping_thresholds(self) -> None:
        assert "descend" in (impossible(detection_spec("model.rpn.iou=[0.7,0.3]")) or "")

    def test_groups_that_do_not_divide(self) -> None:
        assert "norm.groups=32" in (impossible(detection_spec("norm.groups=32")) or "")

    @pytest.mark.parametrize("preset", ["mini", "smoke"])
    def test_presets_can_run_under_every_norm(self, preset: str) -> None:
        for norm in ("bn", "gn", "gn_ws", "ln", "in", "none_ws"):
            assert impossible(detection_spec(f"preset={preset}", f"norm={norm}")) is None


class TestIdentity:
    """Keys that came later are part of it only where they are used."""

    NEW = ("boxes", "weight_init", "anchors", "proposals_per", "group_by_aspect")

    def test_mini_is_what_it_was(self) -> None:
        written = dump_spec(detection_spec("preset=mini"))
        assert not any(re.search(rf"\b{key}:", written) for key in self.NEW)

    def test_used_keys_are_written_hashed_and_read_back(self, tmp_path: Path) -> None:
        words = [
            "model.boxes=pixels",
            "model.weight_init=maskrcnn_benchmark",
            "model.rpn.anchors=rounded",
            "model.rpn.proposals_per=batch",
            "data.group_by_aspect=true",
        ]
        ids = {run_id(detection_spec("preset=smoke", word)) for word in ("seed=0", *words)}
        assert len(ids) == 6
        spec = detection_spec("preset=smoke", *words)
        written = dump_spec(spec)
        assert all(re.search(rf"\b{key}:", written) for key in self.NEW)
        (tmp_path / "spec.yaml").write_text(written)
        assert load_spec(tmp_path / "spec.yaml") == spec


class TestWhereDataLie:
    def test_a_given_folder(self, tmp_path: Path) -> None:
        spec = detection_spec(f"data={tmp_path}")
        assert INFO.data_root(spec) == tmp_path
        (tmp_path / "coco").mkdir()
        assert INFO.data_root(spec) == tmp_path / "coco"

    def test_the_environment_serves_only_presets_without_embedded_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NORMBENCH_DATA", str(tmp_path))
        assert INFO.data_root(detection_spec("preset=paper")) == tmp_path
        assert tmp_path not in INFO.data_root(detection_spec("preset=mini")).parents
        monkeypatch.delenv("NORMBENCH_DATA")
        with pytest.raises(DataError, match="data=DIR"):
            INFO.fingerprint(detection_spec("preset=paper"))

    def test_embedded_data_are_named_by_what_they_hold(self) -> None:
        spec = detection_spec("preset=smoke")
        assert INFO.data_root(spec).name == INFO.fingerprint(spec)
        names = {
            INFO.fingerprint(detection_spec("preset=smoke", word))
            for word in ("seed=0", "data.seed=1", "data.size=65", "data.num_val=5")
        }
        assert len(names) == 4
        assert INFO.fingerprint(detection_spec("preset=smoke", "seed=9")) in names


class TestFingerprintOfRealData:
    def test_is_the_content_not_the_place(self, coco_copy: Path, smoke_root: Path) -> None:
        first = INFO.fingerprint(detection_spec(f"data={coco_copy}"))
        assert first == coco.fingerprint(smoke_root)
        assert first.startswith("coco-")
        same_run = {run_id(detection_spec(f"data={root}")) for root in (coco_copy, smoke_root)}
        assert len(same_run) == 1

    def test_changes_with_the_annotations(self, coco_copy: Path) -> None:
        before = coco.fingerprint(coco_copy)
        path = coco.annotation_file(coco_copy, coco.VAL)
        path.write_text(path.read_text() + " ")
        assert coco.fingerprint(coco_copy) != before

    def test_is_remembered(self, coco_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = coco.fingerprint(coco_copy)
        monkeypatch.setattr(coco, "read_annotations", pytest.fail)
        monkeypatch.setattr(coco.hashlib, "file_digest", pytest.fail)
        assert coco.fingerprint(coco_copy) == before

    def test_needs_no_writable_cache(
        self, coco_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "file"))
        assert coco.fingerprint(coco_copy).startswith("coco-")


def _rewrite(split: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = coco.annotation_file(root, split)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def _write(split: str, text: str) -> Callable[[Path], None]:
    return lambda root: coco.annotation_file(root, split).write_text(text)  # type: ignore[return-value]


def _remove(*parts: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        import shutil

        path = root.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def _empty(*parts: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for path in root.joinpath(*parts).iterdir():
            _remove(path.name)(path.parent)

    return damage


BAD = {
    "no folder": (_remove(), "does not exist"),
    "empty folder": (_empty(), "is empty"),
    "no annotations": (_remove("annotations"), "no folder annotations/"),
    "no file": (_remove("annotations", "instances_val2017.json"), "instances_val2017.json is miss"),
    "no images": (_remove("train2017"), "train2017 is missing"),
    "empty images": (_empty("val2017"), "val2017 is empty"),
    "not json": (_write(coco.TRAIN, "<html>404 not found"), "is not JSON"),
    "truncated json": (_write(coco.TRAIN, '{"images": ['), "is not JSON"),
    "not text": (lambda r: coco.annotation_file(r, coco.VAL).write_bytes(b"\xff\xfe"), "not JSON"),
    "a list": (_write(coco.TRAIN, "[]"), "it holds a list"),
    "other json": (_write(coco.TRAIN, '{"a": 1}'), "no list 'images'"),
    "captions": (_rewrite(coco.TRAIN, lambda c: c.pop("categories")), "no list 'categories'"),
    "keypoints only": (
        _rewrite(coco.TRAIN, lambda c: [a.pop("bbox") for a in c["annotations"]]),
        "annotations[0] lacks one of",
    ),
    "no file names": (
        _rewrite(coco.VAL, lambda c: c["images"][2].pop("file_name")),
        "images[2] lacks one of",
    ),
    "foreign category": (
        _rewrite(coco.TRAIN, lambda c: c["annotations"][1].update(category_id=99)),
        "category_id 99",
    ),
    "nothing listed": (_rewrite(coco.TRAIN, lambda c: c.update(images=[])), "lists no images"),
    "missing image": (
        _rewrite(coco.VAL, lambda c: c["images"][0].update(file_name="gone.jpg")),
        "gone.jpg is missing",
    ),
    "other categories": (
        _rewrite(coco.VAL, lambda c: c["categories"].append({"id": 77, "name": "x"})),
        "different categories",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_data_are_one_line_with_status_3(what: str, coco_copy: Path) -> None:
    """Whatever is wrong shows before training: in the fingerprint, or when the task is built."""
    damage, said = BAD[what]
    damage(coco_copy)
    spec = detection_spec("preset=smoke", f"data={coco_copy}")

    def start() -> None:
        INFO.fingerprint(spec)
        DetectionTask(spec, INFO.prepare(spec, lambda *_: None))

    with pytest.raises(NormbenchError) as caught:
        start()
    assert caught.value.exit_code == 3
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(coco_copy) in str(caught.value)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        INFO.fingerprint(detection_spec(f"data={tmp_path / 'data'}"))


class TestCheck:
    def test_counts_and_finds_nothing_wrong(self, coco_copy: Path) -> None:
        told: list[tuple[str, int, int]] = []
        report = INFO.check(detection_spec(f"data={coco_copy}"), lambda *args: told.append(args))
        assert report.problems == []
        assert report.root == coco_copy
        assert report.facts["train2017 images"] == "8 (COCO 2017: 118,287)"
        assert int(report.facts["train2017 images with usable objects"]) < 8
        assert int(report.facts["train2017 crowds"]) >= 1
        assert told[-1] == ("open val2017", 4, 4)

    def test_names_every_problem(self, coco_copy: Path) -> None:
        names = sorted(path.name for path in (coco_copy / coco.TRAIN).iterdir())
        (coco_copy / coco.TRAIN / names[0]).unlink()
        (coco_copy / coco.TRAIN / names[1]).write_bytes(b"no image")
        Image.new("RGB", (5, 6)).save(coco_copy / coco.TRAIN / names[2])
        _rewrite(coco.VAL, lambda c: c["categories"].append({"id": 77, "name": "x"}))(coco_copy)
        report = inspection.inspect(coco_copy, lambda *_: None)
        text = "\n".join(report.problems)
        assert len(report.problems) == 4
        assert f"1 of 8 images of {coco_copy}" in text
        assert f"{names[1]} cannot be read" in text
        assert f"{names[2]} has 5 x 6 pixels, annotated as 64 x 64" in text
        assert "different categories" in text


def test_show_draws_a_picture(tmp_path: Path) -> None:
    INFO.show(detection_spec("preset=smoke"), tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert min(image.size) > 200


def test_spread_takes_both_ends() -> None:
    items = [{"id": i} for i in range(100)]
    chosen = [item["id"] for item in coco.spread(items, 5)]
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 99, 5)
    assert coco.spread(items[:3], 5) == items[:3]


def test_annotations_are_hashed_once(coco_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = detection_spec("preset=smoke", f"data={coco_copy}")
    first = INFO.fingerprint(spec)
    monkeypatch.setattr(coco, "read_annotations", pytest.fail)
    monkeypatch.setattr(coco.hashlib, "file_digest", pytest.fail)
    assert INFO.fingerprint(spec) == first
