import hashlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from harness.errors import DataError, UsageError
from tasks.detection import scenes
from tasks.detection.embedded import fingerprint, generate
from tasks.detection.show import show

# pycocotools 2.0.11 under NumPy 2: `decode` warns, and its result is right.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

REPOSITORY = Path(__file__).resolve().parents[2]
SPLITS = ("train2017", "val2017")
# Seed 0, 6 + 6 pictures of 96 px: change it only together with `embedded.VERSION`.
GOLDEN = "0c48be515cd03cad851044aacca4aea76f16e997b2db90ed730d6b34371b8eb6"


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def picture(path: Path) -> NDArray[np.uint8]:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def content_hash(root: Path) -> str:
    """Hash decoded pixels and parsed annotations: what a model sees, not how it is packed."""
    digest = hashlib.sha256()
    for split in SPLITS:
        content = annotations(root, split)
        for image in content["images"]:
            pixels = picture(root / split / image["file_name"])
            digest.update(str((image, pixels.shape, pixels.dtype)).encode())
            digest.update(pixels.tobytes())
        digest.update(json.dumps(content["annotations"], sort_keys=True).encode())
        digest.update(json.dumps(content["categories"], sort_keys=True).encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("small") / "data", seed=0, num_train=6, num_val=6)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("large") / "data", seed=1, num_train=60, num_val=60)


def test_pixels_and_annotations_are_the_golden_ones(small: Path) -> None:
    assert content_hash(small) == GOLDEN


def test_same_arguments_give_the_same_files(small: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "deep" / "data", seed=0, num_train=6, num_val=6)
    files = sorted(path.relative_to(small) for path in small.rglob("*") if path.is_file())
    assert len(files) == 15
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((small / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_another_seed_gives_other_pictures(small: Path, large: Path) -> None:
    name = "000000000001.png"
    assert (small / "train2017" / name).read_bytes() != (large / "train2017" / name).read_bytes()


def test_a_picture_does_not_depend_on_how_many_there_are(small: Path, tmp_path: Path) -> None:
    fewer = generate(tmp_path / "data", seed=0, num_train=2, num_val=5)
    for split in SPLITS:
        few, more = annotations(fewer, split), annotations(small, split)
        ids = {image["id"] for image in few["images"]}
        assert few["images"] == [image for image in more["images"] if image["id"] in ids]
        assert few["annotations"] == [a for a in more["annotations"] if a["image_id"] in ids]
        for image in few["images"]:
            path = Path(split) / image["file_name"]
            assert np.array_equal(picture(fewer / path), picture(small / path))


def test_splits_are_disjoint(large: Path) -> None:
    seen = {}
    for split in SPLITS:
        content = annotations(large, split)
        pixels = {picture(large / split / i["file_name"]).tobytes() for i in content["images"]}
        assert len(pixels) == len(content["images"])
        ids = {image["id"] for image in content["images"]}
        seen[split] = pixels | ids | {str(a["id"]) for a in content["annotations"]}
    assert not seen["train2017"] & seen["val2017"]


@pytest.mark.parametrize("split", SPLITS)
def test_holds_what_real_coco_files_hold(large: Path, split: str) -> None:
    content = annotations(large, split)
    assert set(content) == {"info", "licenses", "images", "annotations", "categories"}
    ids = [category["id"] for category in content["categories"]]
    assert ids == sorted(ids)
    assert ids != list(range(1, len(ids) + 1)), "category ids have gaps"
    assert {a["category_id"] for a in content["annotations"]} == set(ids)
    # pycocotools takes a match with annotation 0 for no match at all.
    assert all(a["id"] > 0 for a in content["annotations"])
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert len({a["image_id"] for a in crowds}) >= 2
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    assert all(
        isinstance(a["segmentation"], list) for a in content["annotations"] if a not in crowds
    )
    with_objects = {a["image_id"] for a in content["annotations"]}
    assert sum(image["id"] not in with_objects for image in content["images"]) >= 2
    assert any(len(a["segmentation"]) > 1 for a in content["annotations"] if a not in crowds)
    for image in content["images"]:
        pixels = picture(large / split / image["file_name"])
        assert pixels.shape == (image["height"], image["width"], 3) == (96, 96, 3)


def test_written_outlines_agree_with_what_is_visible() -> None:
    checked = 0
    for index in range(150):
        rng = np.random.RandomState([5, 0, index])
        _, instances = scenes.draw(rng, 96, "crowd" if index % 10 == 0 else "ordinary")
        assert instances
        assert not np.any(np.sum([i.visible for i in instances], axis=0) > 1), "none share a pixel"
        for instance in instances:
            written = scenes.describe(instance)
            encoded = coco_mask.frPyObjects(written["segmentation"], 96, 96)
            if not instance.is_crowd:
                encoded = coco_mask.merge(encoded)
            mask = coco_mask.decode(encoded).astype(bool)
            if instance.is_crowd:
                assert np.array_equal(mask, instance.visible)
            assert instance.visible.sum() >= scenes.MIN_VISIBLE_AREA
            union = (mask | instance.visible).sum()
            assert (mask & instance.visible).sum() / union >= 0.9
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert written["bbox"] == box
            assert written["area"] == mask.sum()
            checked += 1
    assert checked > 250


def test_a_ring_keeps_its_hole() -> None:
    y, x = np.mgrid[:96, :96] + 0.5
    r = np.hypot(x - 48.0, y - 48.0)
    visible = (r < 30.0) & (r > 12.0)
    written = scenes.describe(scenes.Instance(scenes.CATEGORIES[-1], visible, 0, False))
    assert len(written["segmentation"]) == 1
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(written["segmentation"], 96, 96)))
    assert mask[48, 48] == 0
    assert np.mean(mask.astype(bool) != visible) < 0.001


def test_contrast_differs_between_pictures(large: Path) -> None:
    spread = [picture(path).std(axis=(0, 1)).mean() for path in (large / "train2017").iterdir()]
    low, high = np.percentile(spread, [10, 90])
    assert high > 2.0 * low
    means = np.array([picture(path).mean(axis=(0, 1)) for path in (large / "train2017").iterdir()])
    assert (means.std(axis=0) > 10.0).all(), "brightness and colour cast differ too"


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_truth_fed_back_scores_100(large: Path, kind: str) -> None:
    truth = COCO(large / "annotations" / "instances_val2017.json")
    found = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "segmentation": truth.annToRLE(a),
            "score": 0.9,
        }
        for a in truth.dataset["annotations"]
        if not a["iscrowd"]
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[:3].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.detectron2
def test_loads_with_detectron2(large: Path) -> None:
    if importlib.util.find_spec("detectron2") is None:
        pytest.skip("the dependency group `detection` is not installed")
    importlib.import_module("tasks.detection.d2")  # makes it importable
    datasets = importlib.import_module("detectron2.data.datasets")
    path = large / "annotations" / "instances_train2017.json"
    records = datasets.load_coco_json(str(path), str(large / "train2017"), "embedded_test")
    content = annotations(large, "train2017")
    assert len(records) == 60
    loaded = [a for record in records for a in record["annotations"]]
    assert len(loaded) == len(content["annotations"]), "no segmentation was found invalid"
    assert {a["category_id"] for a in loaded} == set(range(len(content["categories"])))
    assert sum(not record["annotations"] for record in records) >= 2
    assert all(Path(record["file_name"]).is_file() for record in records)


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "data", seed=0, num_train=6, num_val=6, progress=stop)
    assert not list(tmp_path.iterdir())


def start_generation(root: Path, then: str = "") -> subprocess.Popen[str]:
    """Generate in another process, which runs `then` after picture 7."""
    program = (
        "import pathlib, sys; from tasks.detection.embedded import generate\n"
        f"def progress(done, total):\n    if done == 7:\n        print('half'); {then or 'pass'}\n"
        "generate(pathlib.Path(sys.argv[1]), seed=0, num_train=6, num_val=6, progress=progress)"
    )
    command = [sys.executable, "-c", program, str(root)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_kill_half_way_leaves_no_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    then = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    process = start_generation(root, then)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert not root.exists()
    generate(root, seed=0, num_train=6, num_val=6)
    assert content_hash(root) == GOLDEN


def test_two_at_once_leave_one_whole_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    # Each waits at picture 7 until both are there.
    wait = (
        "import os, time, pathlib; here = pathlib.Path(sys.argv[1]).parent; "
        "(here / f'{os.getpid()}.half').touch(); "
        "[time.sleep(0.01) for _ in range(2000) if len(list(here.glob('*.half'))) < 2]"
    )
    processes = [start_generation(root, wait) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0, 0]
    assert content_hash(root) == GOLDEN
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".half"] == ["data"]


def test_an_existing_data_set_is_kept_and_a_foreign_folder_refused(
    small: Path, tmp_path: Path
) -> None:
    before = (small / "annotations" / "instances_train2017.json").stat().st_mtime_ns
    generate(small, seed=0, num_train=6, num_val=6)
    assert (small / "annotations" / "instances_train2017.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"holds embedded-detection-v1-s0-96px-6-6, not .*-s9-"):
        generate(small, seed=9, num_train=6, num_val=6)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="something else"):
        generate(tmp_path, seed=0, num_train=6, num_val=6)
    assert (tmp_path / "mine.txt").exists()
    with pytest.raises(DataError, match="cannot write"):
        generate(tmp_path / "mine.txt" / "data", seed=0, num_train=6, num_val=6)


def test_the_fingerprint_is_cheap_and_tells_everything_apart() -> None:
    program = (
        "import sys; from tasks.detection.embedded import fingerprint; fingerprint(0, 96, 8, 1)\n"
        "print(sorted({'numpy', 'PIL', 'contourpy', 'pycocotools', 'torch'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True, env=environment)
    assert loaded.strip() == "[]"
    arguments = [(0, 96, 8, 1), (1, 96, 8, 1), (0, 64, 8, 1), (0, 96, 9, 1), (0, 96, 8, 2)]
    assert len({fingerprint(*a) for a in arguments}) == len(arguments)


@pytest.mark.parametrize("arguments", [(-1, 96, 8, 1), (0, 32, 8, 1), (0, 96, 0, 1), (0, 96, 8, 0)])
def test_arguments_out_of_range_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        fingerprint(*arguments)


def test_show_draws_the_samples(large: Path, tmp_path: Path) -> None:
    show(large, "train2017", tmp_path / "out.png", num=7)
    drawn = picture(tmp_path / "out.png")
    assert drawn.shape[1] > 3 * 2 * 288
    assert drawn.shape[0] > 3 * 288
    assert drawn.std() > 30.0


def test_show_draws_real_coco(tmp_path: Path) -> None:
    root = REPOSITORY.parent / "shared" / "samples" / "coco"
    if not root.is_dir():
        pytest.skip(f"no samples of COCO in {root}")
    show(root, "val2017", tmp_path / "out.png", num=12)


def test_show_refuses_what_is_not_there_in_one_line(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instances_test2017\.json"):
        show(small, "test2017", tmp_path / "out.png")
    with pytest.raises(UsageError, match="cannot write"):
        show(small, "val2017", tmp_path / "absent" / "out.png")
    with pytest.raises(UsageError, match="cannot write"):
        show(small, "val2017", tmp_path / "out.nosuchformat")
    broken = tmp_path / "broken"
    (broken / "annotations").mkdir(parents=True)
    (broken / "annotations" / "instances_val2017.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="not a COCO instances file"):
        show(broken, "val2017", tmp_path / "out.png")
    content = annotations(small, "val2017")
    (broken / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    (broken / "val2017").mkdir()
    with pytest.raises(DataError, match=r"000001000001\.png"):
        show(broken, "val2017", tmp_path / "out.png")
    whole = (small / "val2017" / "000001000001.png").read_bytes()
    (broken / "val2017" / "000001000001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"000001000001\.png"):
        show(broken, "val2017", tmp_path / "out.png")
