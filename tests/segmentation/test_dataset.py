"""Samples are the authors': same transforms, order and rounding, drawn from the generator alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import normalize, to_tensor

from harness.rng import numpy_rng
from tasks.segmentation import voc
from tasks.segmentation.dataset import Sample, VocImages
from tasks.segmentation.info import SegmentationData

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def one_pair(root: Path, width: int, height: int, mode: str = "P") -> voc.Pair:
    """Write a noisy image and a mask of random classes with some pixels to ignore."""
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (height, width, 3)).astype(np.uint8)
    labels = rng.randint(0, 22, (height, width)).astype(np.uint8)
    labels[labels == 21] = 255
    Image.fromarray(pixels).save(root / "a.png")
    mask = Image.frombytes(mode, (width, height), labels.tobytes())
    if mode == "P":
        mask.putpalette(voc.palette())
    mask.save(root / "mask.png")
    return voc.Pair("a", root / "a.png", root / "mask.png")


def images(pair: voc.Pair, **options: object) -> VocImages:
    data = {"mean": MEAN, "std": STD, "scale": (0.5, 2.0)} | options
    return VocImages([pair], SegmentationData.model_validate(data), 21)


def reference(pair: voc.Pair, crop: int, rng: np.random.RandomState) -> Sample:
    """Do what the authors' ``utils.py`` does, step by step, on whole images."""
    image, mask = Image.open(pair.image).convert("RGB"), Image.open(pair.mask)
    if rng.random_sample() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factor = 2 ** rng.uniform(-1, 1)
    size = (round(image.width * factor), round(image.height * factor))
    image = image.resize(size, Image.Resampling.LANCZOS)
    mask = mask.resize(size, Image.Resampling.NEAREST)
    tensor = normalize(to_tensor(image), list(MEAN), list(STD))
    labels = torch.from_numpy(np.asarray(mask).copy())
    right, below = max(0, crop - size[0]), max(0, crop - size[1])
    tensor = F.pad(tensor, (0, right, 0, below), value=0.0)
    labels = F.pad(labels, (0, right, 0, below), value=255)
    top = rng.randint(0, tensor.shape[1] - crop + 1)
    left = rng.randint(0, tensor.shape[2] - crop + 1)
    inside = slice(top, top + crop), slice(left, left + crop)
    return tensor[:, *inside], labels[inside]


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (20, 20), (90, 33)])
def test_samples_are_the_authors(tmp_path: Path, size: tuple[int, int]) -> None:
    pair = one_pair(tmp_path, *size)
    ours = images(pair, crop=41)
    for seed in range(8):
        image, mask = ours.sample(0, numpy_rng(seed))
        expected, labels = reference(pair, 41, numpy_rng(seed))
        assert image.shape == (3, 41, 41)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
        assert torch.equal(mask, labels)


def test_a_sample_depends_on_its_generator_alone(tmp_path: Path) -> None:
    data = images(one_pair(tmp_path, 50, 37), crop=33)
    first = data.sample(0, numpy_rng("x"))
    np.random.seed(1)
    torch.manual_seed(1)
    again = data.sample(0, numpy_rng("x"))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = data.sample(0, numpy_rng("y"))
    assert not torch.equal(first[0], other[0])


def test_scales_are_log_uniform(tmp_path: Path) -> None:
    data = images(one_pair(tmp_path, 16, 16), crop=64)
    covered = [float((data.sample(0, numpy_rng(i))[1] != 255).any(1).sum()) for i in range(400)]
    logs = np.log2(np.asarray(covered) / 16)
    assert -1.1 < logs.min() < -0.8
    assert 0.8 < logs.max() < 1.1
    assert abs(float(logs.mean())) < 0.1
    assert float(logs.std()) == pytest.approx(2 / math.sqrt(12), rel=0.1)


def test_evaluation_is_whole_and_padded(tmp_path: Path) -> None:
    data = images(one_pair(tmp_path, 50, 37), crop=45)
    image, mask = data.evaluation_sample(0)
    assert image.shape == (3, 45, 50)
    assert mask.shape == (37, 50)
    assert not image[:, 37:].any()
    with Image.open(tmp_path / "a.png") as opened:
        expected = normalize(to_tensor(opened), list(MEAN), list(STD))
    torch.testing.assert_close(image[:, :37], expected, rtol=0, atol=1e-6)


def test_greyscale_masks_are_the_palette_ones(tmp_path: Path) -> None:
    samples = []
    for mode in ("P", "L"):
        (tmp_path / mode).mkdir()
        data = images(one_pair(tmp_path / mode, 30, 30, mode), crop=33)
        samples.append(data.sample(0, numpy_rng(3)))
    assert all(torch.equal(a, b) for a, b in zip(*samples, strict=True))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_images_of_any_colour_mode(tmp_path: Path, mode: str) -> None:
    pair = one_pair(tmp_path, 20, 20)
    suffix = "tif" if mode == "CMYK" else "png"
    with Image.open(pair.image) as image:
        image.convert(mode).save(tmp_path / f"b.{suffix}")
    data = images(pair._replace(image=tmp_path / f"b.{suffix}"), crop=21)
    assert data.sample(0, numpy_rng(0))[0].shape == (3, 21, 21)


class TestLists:
    def test_both_formats_name_the_same_files(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("2007_000032\n\n2007_000039 \n")
        lines = [
            f"/JPEGImages/{n}.jpg /SegmentationClass/{n}.png"
            for n in ("2007_000032", "2007_000039")
        ]
        (tmp_path / "paths").write_text("\r\n".join(lines))
        found = [voc.read_list(tmp_path, tmp_path / name) for name in ("plain", "paths")]
        assert found[0] == found[1]
        assert found[0][1].mask == tmp_path / "SegmentationClass" / "2007_000039.png"

    def test_classes_are_vocs_unless_named(self, tmp_path: Path) -> None:
        assert len(voc.class_names(tmp_path)) == 21
        (tmp_path / voc.LABELS).write_text("sky\nroad\n")
        assert voc.class_names(tmp_path) == ("sky", "road")

    def test_palette_is_vocs(self) -> None:
        flat = voc.palette()
        colours = [tuple(flat[3 * k : 3 * k + 3]) for k in (0, 1, 15, 20, 255)]
        assert colours == [(0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192)]
