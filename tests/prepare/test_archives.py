"""Archives are unpacked whole or not at all, resumably, and never outside their folder."""

from __future__ import annotations

import shutil
import stat
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from harness import archives
from tests.prepare.downloads import (
    JPG,
    coco_downloads,
    prepare,
    tar,
    tree,
    voc_files,
    zipped,
)


def test_a_damaged_official_tar_is_refused(voc, tmp_path, monkeypatch, capsys):
    content = bytearray(voc[0].read_bytes())
    content[len(content) // 2] ^= 1
    voc[0].write_bytes(content)
    root = tmp_path / "data"
    assert prepare(monkeypatch, "segmentation", f"data={root}", "--from", voc[0]) == 3
    assert "download it again" in capsys.readouterr().err
    assert not tree(root)


def test_a_damaged_zip_is_refused(tmp_path, monkeypatch, capsys):
    downloads, root = coco_downloads(tmp_path / "zips"), tmp_path / "coco"
    path = downloads / "val2017.zip"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(20) + content[80:])
    assert prepare(monkeypatch, "detection", f"data={root}", "--from", path) == 3
    assert "is damaged" in capsys.readouterr().err
    assert not tree(root)
    path.write_bytes(content[:-40])
    assert prepare(monkeypatch, "detection", f"data={root}", "--from", path) == 3
    assert "not a whole tar or zip file" in capsys.readouterr().err


def test_an_interrupt_leaves_no_half_file_and_the_same_command_goes_on(
    voc, tmp_path, monkeypatch, capsys
):
    words = ("segmentation", f"data={tmp_path / 'data'}", "--from", voc[0])
    copy, written = shutil.copyfileobj, []

    def stopped(source, target, length):
        written.append(target.name)
        if len(written) == 5:
            target.write(source.read(3))
            raise KeyboardInterrupt
        copy(source, target, length)

    monkeypatch.setattr(archives.shutil, "copyfileobj", stopped)
    assert prepare(monkeypatch, *words) == 130
    root = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    whole = {name.removeprefix("VOCdevkit/VOC2012/"): data for name, data in voc_files().items()}
    assert len(tree(root).items() & whole.items()) == 4
    # A hard kill leaves the unfinished file, and a file cut short by hand has another size.
    (root / "JPEGImages").mkdir(exist_ok=True)
    (root / "JPEGImages" / ".2007_b.jpg.partial").write_bytes(b"half")
    capsys.readouterr()

    written.clear()
    monkeypatch.setattr(archives.shutil, "copyfileobj", lambda *a: (written.append(1), copy(*a)))
    assert prepare(monkeypatch, *words) == 0, capsys.readouterr().err
    assert len(written) == len(whole) - 1 - 4  # less the annotation, and what was there
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(root.rglob("*.partial"))
    assert whole.items() - tree(root).items() == {("Annotations/2007_a.xml", b"<not read/>")}


def hostile(path: Path, kind: str) -> Path:
    """Write a zip or tar file with a good picture and one hostile entry."""
    good = {"train2017/1.jpg": JPG}
    names = {"parent": "train2017/../../../evil.jpg", "absolute": "/tmp/evil/train2017/evil.jpg"}
    names["windows"] = "train2017\\..\\evil.jpg"
    if kind in names:
        files = good | {names[kind]: JPG}
        return zipped(path, files) if path.suffix == ".zip" else tar(path, files)
    if path.suffix == ".zip":
        zipped(path, good | ({"train2017/2.jpg": bytes(10**7)} if kind == "bomb" else {}))
        if kind == "symlink":
            info = zipfile.ZipInfo("train2017/2.jpg")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(info, "/etc/passwd")
        return path
    if kind == "bomb":
        tar(path, good | {"train2017/2.jpg": bytes(10**7)}, "w:gz")
        return path
    tar(path, good)
    member = tarfile.TarInfo("train2017/2.jpg")
    member.type = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE}.get(
        kind, tarfile.FIFOTYPE
    )
    member.linkname = "train2017/1.jpg" if kind == "hardlink" else "/etc/passwd"
    with tarfile.open(path, "a") as archive:
        archive.addfile(member)
    return path


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        *((s, k) for s in ("zip", "tar") for k in ("parent", "absolute", "windows", "symlink")),
        *(("tar", kind) for kind in ("hardlink", "fifo")),
        *((suffix, "bomb") for suffix in ("zip", "tar.gz")),
    ],
)
def test_hostile_archives_are_refused_whole(tmp_path, monkeypatch, capsys, suffix, kind):
    archive = hostile(tmp_path / f"train2017.{suffix}", kind)
    root = tmp_path / "deep" / "data"
    root.mkdir(parents=True)
    assert prepare(monkeypatch, "detection", f"data={root}", "--from", archive) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is not safe to unpack" in error
    assert set(tree(tmp_path)) == {archive.name}
    assert not Path("/tmp/evil").exists()


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch, capsys):
    downloads = coco_downloads(tmp_path / "zips")
    usage = types.SimpleNamespace(free=100)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    words = ("detection", f"data={tmp_path / 'a'}", "--from", downloads / "train2017.zip")
    assert prepare(monkeypatch, *words) == 3
    assert "are free" in capsys.readouterr().err
    assert not (tmp_path / "a" / "train2017").exists()


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification", "pointcloud"])
def test_the_wrong_archive_is_named_in_one_line(tmp_path, monkeypatch, capsys, task):
    archive = zipped(tmp_path / "holiday.zip", {"beach/1.jpg": JPG})
    assert prepare(monkeypatch, task, f"data={tmp_path / 'a'}", "--from", archive) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {archive} holds nothing of")
    assert error.count("\n") == 1
    (tmp_path / "text").write_text("nothing packed")
    assert prepare(monkeypatch, task, f"data={tmp_path / 'a'}", "--from", tmp_path / "text") == 3
    assert prepare(monkeypatch, task, f"data={tmp_path / 'a'}", "--from", tmp_path / "no") == 3
    assert "does not exist" in capsys.readouterr().err


def test_two_at_once_do_not_mix(tmp_path, monkeypatch, capsys):
    downloads, root = coco_downloads(tmp_path / "zips"), tmp_path / "a"
    root.mkdir()
    with archives.FileLock(root / ".prepare.lock"):
        assert prepare(monkeypatch, "detection", f"data={root}", "--from", downloads) == 3
    assert "another `data prepare`" in capsys.readouterr().err
