"""Meshes become clouds by their name alone, once, in the layout of the HDF5 files."""

from pathlib import Path

import numpy as np
import pytest

from harness.errors import DataError
from harness.registry import task_info
from tasks.pointcloud import clouds, meshes, modelnet
from tasks.pointcloud.task import PointcloudTask
from tests.pointcloud.conftest import cloud_spec

pytest.importorskip("torch_geometric")
INFO = task_info("pointcloud")

CORNERS = "0 0 0\n4 0 0\n4 2 0\n0 2 0\n"
SQUARE = "4 0 1 2 3\n"
TRIANGLES = "3 0 1 2\n3 0 2 3\n"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Return a folder as torch-geometric's ModelNet unpacks it."""
    root = tmp_path / "raw"
    for name, split, number in (
        ("plate", "train", 1),
        ("plate", "train", 2),
        ("plate", "test", 3),
        ("slab", "train", 1),
    ):
        folder = root / name / split
        folder.mkdir(parents=True, exist_ok=True)
        faces = SQUARE if name == "plate" else TRIANGLES
        # Some of ModelNet40's meshes lack the line break after OFF.
        head = "OFF\n" if number == 1 else "OFF"
        text = f"{head}4 {len(faces.splitlines())} 0\n{CORNERS}{faces}"
        (folder / f"{name}_{number:04d}.off").write_text(text)
    return tmp_path


def spec_of(given: Path):
    return cloud_spec("preset=smoke", f"data={given}", "data.format=meshes")


def test_meshes_are_listed_and_sampled_once(given, monkeypatch, tmp_path):
    monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "cache"))
    spec, told = spec_of(given), []
    assert INFO.num_train(spec) == 3
    root = INFO.prepare(spec, lambda *at: told.append(at))
    assert told == [("sample train", i, 3) for i in (1, 2, 3)] + [("sample test", 1, 1)]
    assert INFO.fingerprint(spec) == root.name
    assert modelnet.shape_names(root) == ("plate", "slab")
    train = clouds.read(root, "train", meshes.NUM_POINTS)
    assert train.labels.tolist() == [0, 0, 1]
    assert clouds.read(root, "test", 32).labels.tolist() == [0]
    monkeypatch.setattr(meshes, "sample", lambda path: pytest.fail("sampled again"))
    assert INFO.prepare(spec, lambda *_: None) == root
    assert len(PointcloudTask(spec, root).train_data()) == 3
    assert INFO.dataset(spec) == "ModelNet40 meshes, sampled"
    assert list(INFO.check(spec, lambda *_: None).problems) == []


def test_a_cloud_is_in_the_unit_sphere_and_on_the_mesh(given):
    points = meshes.sample(given / "raw" / "plate" / "train" / "plate_0001.off")
    assert points.shape == (meshes.NUM_POINTS, 3)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    np.testing.assert_allclose(points[:, 2], 0, atol=1e-6)
    extent = np.ptp(points, axis=0)
    assert extent[0] / extent[1] == pytest.approx(2, rel=0.02)
    half = (points[:, 0] > 0).mean()
    assert half == pytest.approx(0.5, abs=0.05), "uniform over the surface"


def test_sampling_depends_on_the_name_alone(given):
    import torch

    folder = given / "raw" / "plate" / "train"
    first = meshes.sample(folder / "plate_0001.off")
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert np.array_equal(meshes.sample(folder / "plate_0001.off"), first)
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    assert not np.array_equal(meshes.sample(folder / "plate_0002.off"), first)


def test_another_mesh_is_another_data_set(given):
    before = INFO.fingerprint(spec_of(given))
    path = given / "raw" / "slab" / "train" / "slab_0001.off"
    path.write_text(path.read_text() + "\n")
    assert INFO.fingerprint(spec_of(given)) != before


@pytest.mark.parametrize(
    "text", ["", "OFF\n", "solid cube\n", "OFF\n4 1 0\n" + CORNERS, "\x00" * 9]
)
def test_a_broken_mesh_is_told_in_one_line_and_leaves_nothing(text, given, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "cache"))
    (given / "raw" / "slab" / "train" / "slab_0001.off").write_text(text)
    with pytest.raises(DataError, match=r"slab_0001\.off") as caught:
        INFO.prepare(spec_of(given), lambda *_: None)
    assert len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "cache" / "pointcloud").iterdir()) == []


def test_a_folder_without_meshes(tmp_path):
    with pytest.raises(DataError, match="holds no meshes"):
        INFO.fingerprint(spec_of(tmp_path))
    (tmp_path / "a" / "train").mkdir(parents=True)
    (tmp_path / "a" / "train" / "a_1.off").write_text("OFF\n")
    with pytest.raises(DataError, match="holds no test meshes"):
        INFO.fingerprint(spec_of(tmp_path))
