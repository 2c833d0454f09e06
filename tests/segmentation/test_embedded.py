"""The generated data: the same everywhere, whole or absent, and what they claim to be."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import VOCSegmentation

from harness.errors import DataError, UsageError
from tasks.segmentation import scenes, voc
from tasks.segmentation.embedded import fingerprint, generate

REPOSITORY = Path(__file__).resolve().parents[2]
SPLITS = ("train", "val")
# Seed 0, 6 + 6 pictures of 64 px: change it only together with `embedded.VERSION`.
GOLDEN = "2707c19f329623d8370bd2d8266af27d4c54a02cbcd4e650b4956bad59936900"


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def content_hash(root: Path) -> str:
    """Hash decoded pixels and masks: what a model sees, not how it is packed."""
    digest = hashlib.sha256()
    for path in voc.list_files(root, "train").values():
        for pair in voc.read_split(root, path):
            digest.update(pair.name.encode())
            digest.update(pixels(pair.image).tobytes())
            digest.update(pixels(pair.mask).tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("small") / "data", seed=0, num_train=6, num_val=6)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = generate(tmp_path_factory.mktemp("large") / "data", seed=1, num_train=60, num_val=60)
    return root / "VOC2012"


def test_pixels_and_labels_are_the_golden_ones(small: Path) -> None:
    assert content_hash(small / "VOC2012") == GOLDEN


def test_same_arguments_give_the_same_files(small: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "deep" / "data", seed=0, num_train=6, num_val=6)
    files = sorted(path.relative_to(small) for path in small.rglob("*") if path.is_file())
    assert len(files) == 2 * 12 + 4
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((small / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_a_picture_depends_neither_on_others_nor_on_the_other_seed(
    small: Path, large: Path, tmp_path: Path
) -> None:
    fewer = generate(tmp_path / "data", seed=0, num_train=2, num_val=5)
    name = "JPEGImages/val_000004.jpg"
    ours = [root / "VOC2012" / name for root in (small, fewer)]
    assert ours[0].read_bytes() == ours[1].read_bytes()
    assert ours[0].read_bytes() != (large / name).read_bytes()


def test_splits_are_disjoint(large: Path) -> None:
    seen = {}
    for split, path in voc.list_files(large, "train").items():
        pairs = voc.read_split(large, path)
        seen[split] = {pixels(pair.image).tobytes() for pair in pairs}
        assert len(seen[split]) == 60
    assert not seen["train"] & seen["val"]


def test_is_read_by_torchvisions_own_loader(small: Path, tmp_path: Path) -> None:
    """The oracle for the layout: a loader for the official devkit."""
    (tmp_path / "VOCdevkit").symlink_to(small)
    theirs = VOCSegmentation(str(tmp_path), image_set="val")
    ours = voc.read_split(small / "VOC2012", voc.list_files(small / "VOC2012", "train")["val"])
    assert len(theirs) == len(ours) == 6
    image, mask = theirs[3]
    assert np.array_equal(np.asarray(image), pixels(ours[3].image))
    assert np.array_equal(np.asarray(mask), pixels(ours[3].mask))


def test_masks_are_vocs(large: Path) -> None:
    pairs = voc.read_split(large, voc.list_files(large, "train")["train"])
    shares = np.zeros(256)
    for pair in pairs:
        with Image.open(pair.mask) as mask:
            assert mask.mode == "P"
            assert mask.getpalette() == voc.palette()
        with Image.open(pair.image) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
        shares += np.bincount(pixels(pair.mask).ravel(), minlength=256) / 64**2 / len(pairs)
    assert voc.class_names(large) == scenes.CLASSES
    assert set(np.flatnonzero(shares)) == {*range(6), 255}
    assert 0.4 < shares[0] < 0.7
    assert shares[1:6].min() > 0.03
    assert 0.05 < shares[255] < 0.2


def test_borders_lie_between_regions_alone() -> None:
    """No two regions touch: pixels to ignore lie between them, as in VOC."""
    for index in range(20):
        _, label = scenes.draw(np.random.RandomState([3, index]), 64)
        for a, b in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            assert not np.any((a != b) & (a != 255) & (b != 255))


def test_contrast_differs_between_pictures(large: Path) -> None:
    spread = [pixels(path).std(axis=(0, 1)).mean() for path in (large / "JPEGImages").iterdir()]
    low, high = np.percentile(spread, [10, 90])
    assert high > 1.8 * low
    means = np.array([pixels(p).mean(axis=(0, 1)) for p in (large / "JPEGImages").iterdir()])
    assert (means.std(axis=0) > 10.0).all(), "brightness and colour cast differ too"


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "data", seed=0, num_train=6, num_val=6, progress=stop)
    assert not list(tmp_path.iterdir())


def start_generation(root: Path, then: str) -> subprocess.Popen[str]:
    """Generate in another process, which runs `then` after picture 7."""
    program = (
        "import pathlib, sys; from tasks.segmentation.embedded import generate\n"
        f"def progress(done, total):\n    if done == 7:\n        {then}\n"
        "generate(pathlib.Path(sys.argv[1]), seed=0, num_train=6, num_val=6, progress=progress)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", program, str(root)], env=environment, text=True)


def test_a_kill_half_way_leaves_no_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    process = start_generation(root, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert process.wait(timeout=300) == -signal.SIGKILL
    assert not root.exists()
    generate(root, seed=0, num_train=6, num_val=6)
    assert content_hash(root / "VOC2012") == GOLDEN


def test_two_at_once_leave_one_whole_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    # Each waits at picture 7 until both are there.
    wait = (
        "import os, time, pathlib; here = pathlib.Path(sys.argv[1]).parent; "
        "(here / f'{os.getpid()}.half').touch(); "
        "[time.sleep(0.01) for _ in range(2000) if len(list(here.glob('*.half'))) < 2]"
    )
    processes = [start_generation(root, wait) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert content_hash(root / "VOC2012") == GOLDEN
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".half"] == ["data"]


def test_an_existing_data_set_is_kept_and_a_foreign_folder_refused(
    small: Path, tmp_path: Path
) -> None:
    before = (small / "generator.txt").stat().st_mtime_ns
    generate(small, seed=0, num_train=6, num_val=6)
    assert (small / "generator.txt").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"holds embedded-segmentation-v2-s0-64px-6-6, not .*-s9-"):
        generate(small, seed=9, num_train=6, num_val=6)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="something else"):
        generate(tmp_path, seed=0, num_train=6, num_val=6)
    assert (tmp_path / "mine.txt").exists()
    with pytest.raises(DataError, match="cannot write"):
        generate(tmp_path / "mine.txt" / "data", seed=0, num_train=6, num_val=6)


@pytest.mark.parametrize("arguments", [(-1, 64, 8, 1), (0, 16, 8, 1), (0, 64, 0, 1), (0, 64, 8, 0)])
def test_arguments_out_of_range_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        fingerprint(*arguments)
