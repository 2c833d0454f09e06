"""The embedded data: the same for ever, learnable, whole or not there."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from harness.errors import DataError, UsageError
from tasks.classification import pictures
from tasks.classification.embedded import NUM_CLASSES, fingerprint, generate
from tasks.classification.show import show

REPOSITORY = Path(__file__).resolve().parents[2]
# Seed 0, 24 + 12 pictures of 32 px: change it only together with `embedded.VERSION`.
GOLDEN = "6ff54dcb2697b3f284cdba3806f911af11a97253ad423723cb9e9f27c2b5ee87"


def picture(path: Path) -> NDArray[np.uint8]:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def content_hash(root: Path) -> str:
    """Hash names and decoded pixels: what a network sees, not how it is packed."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.png")):
        pixels = picture(path)
        assert pixels.shape == (32, 32, 3)
        digest.update(str(path.relative_to(root)).encode() + pixels.tobytes())
    return digest.hexdigest()


def make(root: Path, seed: int = 0, **more: object) -> Path:
    return generate(root, seed=seed, num_train=24, num_val=12, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("small") / "data")


def test_pixels_are_the_golden_ones(small: Path) -> None:
    assert content_hash(small) == GOLDEN


def test_same_arguments_give_the_same_files(small: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "deep" / "data")
    files = sorted(path.relative_to(small) for path in small.rglob("*") if path.is_file())
    assert len(files) == 37
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((small / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_another_seed_gives_other_pictures(small: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "data", seed=1)
    path = Path("train", "stripes_disc", "0000.png")
    assert not np.array_equal(picture(small / path), picture(other / path))


def test_a_picture_does_not_depend_on_how_many_there_are(small: Path, tmp_path: Path) -> None:
    more = generate(tmp_path / "data", seed=0, num_train=30, num_val=24)
    for path in small.rglob("*.png"):
        assert np.array_equal(picture(path), picture(more / path.relative_to(small)))


def test_no_two_pictures_are_equal(tmp_path: Path) -> None:
    root = generate(tmp_path / "data", seed=1, num_train=120, num_val=120)
    pixels = {picture(path).tobytes() for path in root.rglob("*.png")}
    assert len(pixels) == 240  # so the splits are disjoint, too


def test_classes_are_even_and_the_same_in_both_splits(small: Path) -> None:
    assert len(pictures.CLASSES) == len(set(pictures.CLASSES)) == NUM_CLASSES == 12
    for split, each in (("train", 2), ("val", 1)):
        counts = {f.name: len(list(f.iterdir())) for f in (small / split).iterdir()}
        assert counts == dict.fromkeys(pictures.CLASSES, each)


def test_contrast_and_brightness_differ_between_pictures() -> None:
    drawn = [pictures.draw(np.random.RandomState(i), 32, i % 12) for i in range(300)]
    low, high = np.percentile([image.std() for image in drawn], [10, 90])
    assert high > 2.0 * low
    assert np.std([image.mean() for image in drawn]) > 10.0


def test_a_mirrored_picture_is_still_of_its_class() -> None:
    """So that `data.flip` is no lie: directions of the textures are even to either side."""
    for texture in pictures.TEXTURES:
        assert texture.angle in (0.0, pytest.approx(np.pi / 2))


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert (done, total) == (100, 124)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "data", seed=0, num_train=100, num_val=24, progress=stop)
    assert not list(tmp_path.iterdir())


def start_generation(root: Path, then: str) -> subprocess.Popen[str]:
    """Generate 124 pictures in another process, which runs `then` after 100."""
    program = (
        "import pathlib, sys; from tasks.classification.embedded import generate\n"
        f"def progress(done, total):\n    if done == 100:\n        {then}\n"
        "generate(pathlib.Path(sys.argv[1]), seed=0, num_train=100, num_val=24, progress=progress)"
    )
    command = [sys.executable, "-c", program, str(root)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_kill_half_way_leaves_no_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    process = start_generation(root, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert not root.exists()
    make(root)
    assert content_hash(root) == GOLDEN


def test_two_at_once_leave_one_whole_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    # Each waits at picture 100 until both are there.
    wait = (
        "import os, time, pathlib; here = pathlib.Path(sys.argv[1]).parent; "
        "(here / f'{os.getpid()}.half').touch(); "
        "[time.sleep(0.01) for _ in range(3000) if len(list(here.glob('*.half'))) < 2]"
    )
    processes = [start_generation(root, wait) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0, 0]
    assert len(list(root.rglob("*.png"))) == 124
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".half"] == ["data"]


def test_an_existing_data_set_is_kept_and_a_foreign_folder_refused(
    small: Path, tmp_path: Path
) -> None:
    before = (small / "generator.txt").stat().st_mtime_ns
    make(small)
    assert (small / "generator.txt").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"holds embedded-classification-v1-s0-.*, not .*-s9-"):
        make(small, seed=9)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="something else"):
        make(tmp_path)
    assert (tmp_path / "mine.txt").exists()
    with pytest.raises(DataError, match="cannot write"):
        make(tmp_path / "mine.txt" / "data")


@pytest.mark.parametrize(
    "arguments", [(-1, 32, 12, 12), (0, 15, 12, 12), (0, 32, 11, 12), (0, 32, 12, 0)]
)
def test_arguments_out_of_range_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        fingerprint(*arguments)


def test_show_draws_a_row_a_class(small: Path, tmp_path: Path) -> None:
    show(small, "train", tmp_path / "out.png")
    drawn = picture(tmp_path / "out.png")
    assert drawn.shape[0] > 12 * 96
    assert drawn.shape[1] > 8 * 96
    assert drawn.std() > 30.0


def test_show_refuses_in_one_line(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder test/"):
        show(small, "test", tmp_path / "out.png")
    with pytest.raises(UsageError, match="cannot write"):
        show(small, "val", tmp_path / "absent" / "out.png")
    with pytest.raises(UsageError, match="cannot write"):
        show(small, "val", tmp_path / "out.nosuchformat")
