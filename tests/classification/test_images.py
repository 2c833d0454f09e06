"""Pixels against torchvision's own transforms, and pictures of every kind."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from harness.errors import DataError
from tasks.classification.imagefolder import list_split
from tasks.classification.images import (
    FolderImages,
    centre,
    normalise,
    random_crop,
    read_rgb,
    to_tensor,
)
from tasks.classification.info import ClassificationData
from tests.classification.conftest import classification_spec, classification_task

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def noise(width: int, height: int) -> Image.Image:
    pixels = RandomState(width * height).randint(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
def test_evaluation_pixels_are_torchvisions(width: int, height: int, size: int) -> None:
    shorter = size + size // 7
    pipeline = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size)])
    image = noise(width, height)
    ours, theirs = centre(image, shorter, size), pipeline(image)
    assert ours.size == (size, size)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (97, 301)])
def test_the_papers_evaluation_pixels_are_torchvisions(size: tuple[int, int]) -> None:
    pipeline = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    image = noise(*size)
    ours = normalise(to_tensor(centre(image, 256, 224))[None], MEAN, STD, torch.float32)[0]
    assert torch.equal(ours, pipeline(image))


@pytest.mark.parametrize("size", [(500, 375), (64, 48), (30, 200), (200, 30)])
def test_random_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    """Means and deviations of left, top, width and height over 3000 draws of either."""
    torch.manual_seed(0)
    image = torch.empty(1, size[1], size[0])
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(3000)], float
    )[:, [1, 0, 3, 2]]
    rng = RandomState(0)
    ours = np.array([random_crop(size, SCALE, RATIO, rng) for _ in range(3000)], float)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 3000) + 1e-9
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * error).all()
    assert ours.std(0) == pytest.approx(theirs.std(0), rel=0.08, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 99))
def test_random_crops_lie_inside(width: int, height: int, seed: int) -> None:
    left, top, w, h = random_crop((width, height), SCALE, RATIO, RandomState(seed))
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height
    assert w > 0
    assert h > 0


def test_the_last_resort_is_torchvisions_centre() -> None:
    torch.manual_seed(0)
    for width, height in ((10, 300), (300, 10)):
        image = torch.empty(1, height, width)
        top, left, h, w = transforms.RandomResizedCrop.get_params(image, (1.0, 1.0), RATIO)
        ours = random_crop((width, height), (1.0, 1.0), RATIO, RandomState(0))
        assert ours == (left, top, w, h)


def test_training_pixels_are_torchvisions_on_the_same_crop(smoke_root: Path) -> None:
    data = ClassificationData(size=20, scale=SCALE, ratio=RATIO, flip=0.5)
    images = FolderImages(list_split(smoke_root, "train"), data)
    flipped = 0
    for index in range(len(images)):
        ours, _ = images.sample(index, RandomState(index))
        rng = RandomState(index)
        left, top, width, height = random_crop((32, 32), SCALE, RATIO, rng)
        image = functional.resized_crop(
            Image.open(images.path(index)), top, left, height, width, [20, 20]
        )
        if flip := rng.random_sample() < 0.5:
            image = functional.hflip(image)
        flipped += flip
        assert torch.equal(ours, functional.pil_to_tensor(image))
    assert 0 < flipped < len(images)


def test_minis_training_pixels_are_the_files_own(smoke_root: Path) -> None:
    images = FolderImages(list_split(smoke_root, "train"), ClassificationData(flip=0.0))
    whole = functional.pil_to_tensor(Image.open(images.path(5)))
    assert torch.equal(images.sample(5, RandomState(0))[0], whole)
    mirrored = FolderImages(list_split(smoke_root, "train"), ClassificationData(flip=1.0))
    assert torch.equal(mirrored.sample(5, RandomState(0))[0], whole.flip(-1))


def test_samples_are_a_function_of_their_generator_alone(smoke_root: Path) -> None:
    data = ClassificationData(size=20, scale=SCALE, ratio=RATIO)
    images = FolderImages(list_split(smoke_root, "train"), data)
    first = [images.sample(i, RandomState(7))[0] for i in range(6)]
    np.random.seed(5)
    torch.manual_seed(5)
    again = FolderImages(list_split(smoke_root, "train"), data)
    state = torch.get_rng_state()
    for i in (3, 0, 5, 1, 4, 2):
        assert torch.equal(again.sample(i, RandomState(7))[0], first[i])
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_follow_the_sorted_class_folders(smoke_root: Path) -> None:
    images = FolderImages(list_split(smoke_root, "val"), ClassificationData())
    names = sorted(path.name for path in (smoke_root / "val").iterdir())
    for index in range(len(images)):
        _, label = images.evaluation_sample(index)
        assert images.path(index).parent.name == names[label]


class TestEveryKindOfPicture:
    def read(self, tmp_path: Path, image: Image.Image, name: str, **options: object) -> np.ndarray:
        image.save(tmp_path / name, **options)
        read = read_rgb(tmp_path / name)
        assert read.mode == "RGB"
        return np.asarray(read)

    def test_greyscale(self, tmp_path: Path) -> None:
        grey = noise(9, 7).convert("L")
        pixels = self.read(tmp_path, grey, "a.png")
        assert all(np.array_equal(pixels[..., c], np.asarray(grey)) for c in range(3))

    def test_cmyk(self, tmp_path: Path) -> None:
        red = Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK")
        pixels = self.read(tmp_path, red, "a.jpg", quality=95)
        assert np.abs(pixels.astype(int) - (200, 30, 40)).max() < 12

    def test_palette_with_transparency(self, tmp_path: Path) -> None:
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 10, 200, 30])
        pixels = self.read(tmp_path, image, "a.png", transparency=b"\x00\x80")
        assert (pixels == (10, 200, 30)).all()

    def test_alpha_and_one_bit(self, tmp_path: Path) -> None:
        image = Image.new("RGBA", (8, 8), (1, 2, 3, 100))
        assert (self.read(tmp_path, image, "a.png") == (1, 2, 3)).all()
        assert (self.read(tmp_path, Image.new("1", (8, 8), 1), "b.png") == 255).all()

    def test_exif_turns_the_picture_upright(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (40, 20), (0, 0, 0))
        image.paste((255, 255, 255), (0, 0, 20, 20))
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees clockwise
        pixels = self.read(tmp_path, image, "a.jpg", exif=exif, quality=95)
        assert pixels.shape == (40, 20, 3)
        assert pixels[:18].min() > 240
        assert pixels[22:].max() < 15


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_a_truncated_picture_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"broken{suffix} cannot be read") as caught:
        read_rgb(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(20)]
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        read_rgb(tmp_path / "a.png")


def test_an_absurdly_large_picture_is_named(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    import zlib

    chunk = b"IHDR" + header
    body = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(DataError, match=r"bomb\.png cannot be read"):
        read_rgb(tmp_path / "bomb.png")


def test_a_missing_file_is_named(copy: Path) -> None:
    images = FolderImages(list_split(copy, "train"), ClassificationData())
    images.path(0).unlink()
    with pytest.raises(DataError, match=r"0000\.png cannot be read"):
        images.sample(0, RandomState(0))


def test_counts_and_losses_are_sums_over_pictures() -> None:
    spec = classification_spec("preset=smoke", "precision=fp64")
    task = classification_task(spec)
    model = task.build_model().double().eval()
    data = task.train_data()
    samples = [data.sample(i, RandomState(i)) for i in range(5)]
    with torch.no_grad():
        total, count = task.loss(model, task.collate(samples))["loss_ce"]
        single = [task.loss(model, task.collate([sample]))["loss_ce"] for sample in samples]
    assert count == 5 == sum(one for _, one in single)
    assert float(total) == pytest.approx(sum(float(one) for one, _ in single), rel=1e-12)
