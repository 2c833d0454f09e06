"""The embedded clouds: reproducible to the bit, learnable, in the real layout, written whole."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.random import RandomState

from harness.errors import DataError, UsageError
from harness.registry import task_info
from tasks.pointcloud import clouds, embedded, modelnet, solids
from tests.pointcloud.conftest import cloud_spec

SMALL = {"points": 32, "num_train": 32, "num_test": 16}
GOLDEN = {"train": "bfaec1a4ead31ff9", "test": "d8d6acf077d1e4c0"}


def digest(root: Path, split: str) -> str:
    """Hash labels and points, these to four digits: exp and sin differ in the last bit."""
    held = clouds.read(root, split, 32)
    whole = (
        np.round(held.points * 1e4).astype("<i4").tobytes() + held.labels.astype("<i8").tobytes()
    )
    return hashlib.sha256(whole).hexdigest()[:16]


def test_the_clouds_are_those_of_version_1(tmp_path):
    root = embedded.generate(tmp_path / "data", seed=7, **SMALL)
    assert embedded.VERSION == 1
    assert {split: digest(root, split) for split in GOLDEN} == GOLDEN


def test_a_cloud_depends_on_seed_split_and_index_alone(tmp_path):
    first = embedded.generate(tmp_path / "a", seed=7, **SMALL)
    longer = embedded.generate(tmp_path / "b", seed=7, points=32, num_train=48, num_test=20)
    other = embedded.generate(tmp_path / "c", seed=8, **SMALL)
    a, b, c = (clouds.read(root, "train", 32).points for root in (first, longer, other))
    assert np.array_equal(a, b[:32])
    assert not np.array_equal(a, c)


def test_no_test_cloud_is_a_training_cloud(smoke_root):
    train, test = (clouds.read(smoke_root, split, 32).points for split in modelnet.SPLITS)
    assert not {cloud.tobytes() for cloud in train} & {cloud.tobytes() for cloud in test}
    assert len({cloud.tobytes() for cloud in train}) == len(train)


def test_the_layout_is_modelnets(smoke_root):
    import h5py

    assert modelnet.shape_names(smoke_root) == solids.CLASSES
    assert len(solids.CLASSES) == embedded.NUM_CLASSES == 16
    with h5py.File(smoke_root / "ply_data_train0.h5") as file:
        assert file["data"].shape == (32, 32, 3)
        assert file["data"].dtype == np.float32
        assert file["label"].shape == (32, 1)
    held = clouds.read(smoke_root, "train", 32)
    assert np.bincount(held.labels).tolist() == [2] * 16


@pytest.mark.parametrize("label", range(16), ids=solids.CLASSES)
def test_solids_are_finite_upright_and_about_as_large_as_they_say(label):
    drawn = np.stack([solids.draw(RandomState([1, label, i]), label, 128) for i in range(20)])
    assert drawn.shape == (20, 128, 3)
    assert np.isfinite(drawn).all()
    extent = np.quantile(drawn, 0.95, axis=1) - np.quantile(drawn, 0.05, axis=1)
    assert extent.min() > 0.1
    assert 0.3 < np.median(extent) < 4
    sizes = extent.max(axis=1)
    assert sizes.max() > 1.3 * sizes.min(), "every cloud has its own size"


def test_generating_twice_or_after_a_kill_is_safe(tmp_path, monkeypatch):
    root = tmp_path / "data"

    def killed(*_args, **_keys):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clouds, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            embedded.generate(root, seed=7, **SMALL)
    assert list(tmp_path.iterdir()) == []
    told = []
    embedded.generate(root, seed=7, **SMALL, progress=lambda *at: told.append(at))
    assert told[-1] == (48, 48)
    before = (root / "ply_data_train0.h5").stat().st_mtime_ns
    embedded.generate(root, seed=7, **SMALL)
    assert (root / "ply_data_train0.h5").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_slower_of_two_generations_discards_its_own(tmp_path, monkeypatch):
    root, rename = tmp_path / "data", Path.rename

    def late(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        embedded.generate(root, seed=7, **SMALL)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    embedded.generate(root, seed=7, **SMALL)
    assert os.listdir(tmp_path) == ["data"]  # noqa: PTH208


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="holds something else"):
        embedded.generate(tmp_path, seed=7, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.seed=4294967296", "must lie between 0 and"),
        ("data.points=16", "data.points=32 or more"),
        ("data.num_test=15", "a cloud of each of the 16 classes"),
    ],
)
def test_arguments_out_of_range(word, message):
    with pytest.raises(UsageError, match=message):
        task_info("pointcloud").fingerprint(cloud_spec(word))


def test_the_picture_has_a_row_a_class(smoke_root, tmp_path):
    from PIL import Image

    from tasks.pointcloud.show import show

    show(smoke_root, 32, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 1200
        assert picture.height > 1000
    with pytest.raises(UsageError, match="cannot write the picture"):
        show(smoke_root, 32, tmp_path / "out.unknown")
