"""Reading ModelNet40's layout: stale lists, identity, and one line for whatever is wrong."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from harness.errors import DataError, NormbenchError
from harness.registry import task_info
from tasks.pointcloud import clouds, inspection, modelnet
from tests.pointcloud.conftest import cloud_spec

INFO = task_info("pointcloud")


def rewrite(path: Path, **arrays: object) -> None:
    """Replace arrays of an HDF5 file; None removes one."""
    with h5py.File(path, "a") as file:
        for name, value in arrays.items():
            del file[name]
            if value is not None:
                file[name] = value


def test_only_the_name_of_a_listed_file_counts(data_copy):
    stale = "data\\modelnet40_ply_hdf5_2048/ply_data_train0.h5\r\n\n"
    (data_copy / "train_files.txt").write_text(stale)
    assert modelnet.files(data_copy, "train") == [data_copy / "ply_data_train0.h5"]
    assert len(clouds.read(data_copy, "train", 32)) == 32


def test_files_are_joined_in_the_order_of_the_list(data_copy):
    held = clouds.read(data_copy, "train", 32)
    for number, part in enumerate((slice(0, 20), slice(20, 32)), start=1):
        with h5py.File(data_copy / f"part{number}.h5", "w") as file:
            file["data"] = held.points[part]
            file["label"] = held.labels[part]  # (N,) is read as (N, 1) is
    (data_copy / "train_files.txt").write_text("x/part2.h5\nx/part1.h5\n")
    again = clouds.read(data_copy, "train", 32)
    order = [*range(20, 32), *range(20)]
    assert np.array_equal(again.points, held.points[order])
    assert np.array_equal(again.labels, held.labels[order])


def test_the_first_points_of_a_cloud_are_taken(data_copy):
    whole = clouds.read(data_copy, "test", 32).points
    assert np.array_equal(clouds.read(data_copy, "test", 10).points, whole[:, :10])


@pytest.mark.parametrize(
    "inner",
    [
        ".",
        "modelnet40_ply_hdf5_2048",
        "modelnet40/modelnet40_ply_hdf5_2048",
        "modelnet40",
        "data/modelnet40_ply_hdf5_2048",
    ],
)
def test_the_folder_is_found_within_the_one_given(inner, data_copy, tmp_path):
    root = tmp_path / "given" / inner
    root.parent.mkdir(parents=True, exist_ok=True)
    data_copy.rename(root.resolve())
    spec = cloud_spec(f"data={tmp_path / 'given'}")
    assert INFO.data_root(spec).resolve() == root.resolve()
    assert INFO.num_train(spec) == 32


def nan_cloud(root: Path) -> None:
    with h5py.File(root / "ply_data_test0.h5", "a") as file:
        file["data"][3, 5, 1] = np.nan


DAMAGE = {
    "no names": (lambda r: (r / "shape_names.txt").unlink(), "has no shape_names.txt"),
    "one name": (lambda r: (r / "shape_names.txt").write_text("box\n"), "two or more different"),
    "no list": (lambda r: (r / "test_files.txt").unlink(), "has no test_files.txt"),
    "empty list": (lambda r: (r / "test_files.txt").write_text("\n"), "lists no file"),
    "binary list": (
        lambda r: (r / "test_files.txt").write_bytes(b"\xff\xfe\x00"),
        "cannot be read",
    ),
    "missing file": (lambda r: (r / "ply_data_test0.h5").unlink(), "is missing, but .*lists it"),
    "listed twice": (
        lambda r: (r / "test_files.txt").write_text("a/ply_data_test0.h5\nply_data_test0.h5\n"),
        "lists a file twice",
    ),
    "shared": (
        lambda r: (r / "test_files.txt").write_text("ply_data_train0.h5\n"),
        "listed for training and for the test",
    ),
}
"""What a quick look at the layout finds."""

DEEP_DAMAGE = {
    "not HDF5": (lambda r: (r / "ply_data_test0.h5").write_text("<html>"), "is no HDF5 file"),
    "cut short": (
        lambda r: os.truncate(r / "ply_data_test0.h5", 4000),
        "is no HDF5 file|is damaged",
    ),
    "no label": (lambda r: rewrite(r / "ply_data_test0.h5", label=None), "has no array 'label'"),
    "flat": (
        lambda r: rewrite(r / "ply_data_test0.h5", data=np.zeros((16, 96), "f4")),
        r"data have shape \(16, 96\)",
    ),
    "few labels": (
        lambda r: rewrite(r / "ply_data_test0.h5", label=np.zeros((15, 1), "u1")),
        "16 clouds, but labels of shape",
    ),
    "few points": (
        lambda r: rewrite(r / "ply_data_test0.h5", data=np.zeros((16, 31, 3), "f4")),
        "have 31 points, fewer than data.points=32: give data.points=31",
    ),
    "no clouds": (
        lambda r: rewrite(
            r / "ply_data_test0.h5", data=np.zeros((0, 32, 3), "f4"), label=np.zeros((0, 1), "u1")
        ),
        "holds no clouds",
    ),
    "label": (
        lambda r: rewrite(r / "ply_data_test0.h5", label=np.full((16, 1), 16, "u1")),
        "holds label 16, but shape_names.txt names 16 classes",
    ),
    "below": (
        lambda r: rewrite(r / "ply_data_test0.h5", label=np.full((16, 1), -1, "i8")),
        "holds label -1",
    ),
    "type": (
        lambda r: rewrite(r / "ply_data_test0.h5", label=np.zeros((16, 1), "f4")),
        "labels of type float32",
    ),
    "nan": (nan_cloud, "cloud 3 has coordinates that are no numbers"),
}
"""What only reading the files finds."""


def is_one_line(error: NormbenchError) -> bool:
    return error.exit_code == 3 and len(str(error).splitlines()) == 1


@pytest.mark.parametrize("name", DAMAGE)
def test_a_wrong_layout_is_told_in_one_line(name, data_copy):
    damage, message = DAMAGE[name]
    damage(data_copy)
    spec = cloud_spec("preset=smoke", f"data={data_copy}")
    for look in (lambda: INFO.prepare(spec, lambda *_: None), lambda: INFO.fingerprint(spec)):
        with pytest.raises(DataError, match=message) as caught:
            look()
        assert is_one_line(caught.value)


@pytest.mark.parametrize("name", DEEP_DAMAGE)
def test_a_wrong_file_is_told_in_one_line_before_training(name, data_copy):
    from tasks.pointcloud.task import PointcloudTask

    damage, message = DEEP_DAMAGE[name]
    damage(data_copy)
    with pytest.raises(DataError, match=message) as caught:
        PointcloudTask(cloud_spec("preset=smoke", f"data={data_copy}"), data_copy)
    assert is_one_line(caught.value)
    problems = inspection.inspect(data_copy, lambda *_: None, official=False, hdf5=True).problems
    # Clouds of fewer points than this preset asks for are no problem of the data themselves.
    assert len(problems) == (0 if name == "few points" else 1)


def test_missing_folders_and_variables(tmp_path, monkeypatch):
    monkeypatch.delenv("NORMBENCH_DATA", raising=False)
    with pytest.raises(DataError, match="does not exist"):
        INFO.prepare(cloud_spec(f"data={tmp_path / 'none'}"), lambda *_: None)
    with pytest.raises(DataError, match="this preset needs ModelNet40"):
        INFO.fingerprint(cloud_spec("preset=paper"))
    assert INFO.num_train(cloud_spec("preset=paper")) is None
    monkeypatch.setenv("NORMBENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"has no shape_names.txt"):
        INFO.fingerprint(cloud_spec("preset=paper"))


def test_the_fingerprint_is_of_the_content(data_copy, monkeypatch):
    spec = cloud_spec("preset=smoke", f"data={data_copy}")
    first = INFO.fingerprint(spec)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
        assert INFO.fingerprint(spec) == first
    moved = data_copy.rename(data_copy.with_name("elsewhere"))
    assert INFO.fingerprint(cloud_spec("preset=smoke", f"data={moved}")) == first
    with h5py.File(moved / "ply_data_train0.h5", "a") as file:
        file["data"][0, 0, 0] += 1
    assert INFO.fingerprint(cloud_spec("preset=smoke", f"data={moved}")) != first


def test_checksums_of_large_files_are_remembered_across_processes(data_copy, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(modelnet, "_LARGE", 1)
    path = data_copy / "ply_data_train0.h5"
    digest = modelnet.md5(path)
    modelnet._md5.cache_clear()
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
    assert modelnet.md5(path) == digest


def test_the_check_holds_40_classes_against_the_published_numbers(data_copy, monkeypatch):
    report = inspection.inspect(data_copy, lambda *_: None, official=False, hdf5=True)
    assert list(report.problems) == []
    assert report.facts["train shapes"] == "32"
    names = "".join(f"class{i}\n" for i in range(40))
    (data_copy / "shape_names.txt").write_text(names)
    report = inspection.inspect(data_copy, lambda *_: None, official=False, hdf5=True)
    assert report.facts["train shapes"] == "32 (ModelNet40: 9,840)"
    assert report.facts["classes without a train shape"].startswith("24: class16, class17")
    problems = "\n".join(report.problems)
    assert "32 train shapes, ModelNet40 has 9,840" in problems
    assert "16 test shapes, ModelNet40 has 2,468" in problems
    assert "lists no ply_data_train1.h5, ply_data_train2.h5" in problems
    assert problems.count("the published file") == 2
    paths = [data_copy / name for name in ("ply_data_train0.h5", "ply_data_test0.h5")]
    monkeypatch.setattr(modelnet, "MODELNET40_MD5", {p.name: modelnet.md5(p) for p in paths})
    monkeypatch.setattr(modelnet, "MODELNET40", {"train": 32, "test": 16})
    report = inspection.inspect(data_copy, lambda *_: None, official=True, hdf5=True)
    assert list(report.problems) == []
    assert report.facts["MD5"] == "2 of 2 files as published"
    assert INFO.dataset(cloud_spec(f"data={data_copy}")) == "ModelNet40"


def test_the_published_files():
    assert list(modelnet.MODELNET40.values()) == [4 * 2048 + 1648, 2048 + 420]
    assert len(modelnet.MODELNET40_MD5) == 7
    assert all(len(digest) == 32 for digest in modelnet.MODELNET40_MD5.values())
