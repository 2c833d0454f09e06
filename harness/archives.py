"""Unpacks downloads file by file, so that neither a kill nor a hostile archive does harm.

Every file is written beside its place and takes its name when whole; a file that is there with the
right size is not written again. Only regular files with a path inside the archive are unpacked: an
archive with a link, a device, an absolute path or ``..`` is refused before anything of it is
written, which is stricter than tarfile's ``data`` filter and the same for zip files.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Self, cast

from filelock import FileLock, Timeout

from harness.errors import DataError
from harness.task import Progress

_MAX_RATIO = 200
"""Content per byte of archive from which it is a bomb; COCO's annotations reach about 5."""
_MAX_NAME = 2**20
_NAMES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_CHUNK = 2**20
# RuntimeError: an encrypted zip file; NotImplementedError: a compression that Python lacks.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Layout:
    """What a task reads of its official downloads, and where that lies."""

    place: Callable[[PurePosixPath], PurePosixPath | None]
    """Maps a file's path in an archive to that within the data folder; None leaves it out."""
    archives: tuple[str, ...]
    """Names of the official archives: looked for in a folder of downloads."""
    downloads: str
    """The official downloads in words."""
    md5: Mapping[str, str] = field(default_factory=dict)
    """Known checksums by archive name; needed for tar files, a zip file has its own."""
    inner: re.Pattern[str] | None = None
    """Names of the tar files within an archive that are unpacked too."""


@dataclass(frozen=True)
class _Item:
    """A regular file within an archive or folder."""

    name: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


def unpack(given: Sequence[Path], root: Path, layout: Layout, progress: Progress) -> None:
    """Unpack archives and folders into ``root``; what is there already is left as it is.

    Args:
        given: archives, folders of archives, or folders with the content of archives.
        root: the data folder; created if absent.
        layout: what to take, and where to put it.
        progress: told of the bytes of each archive that are done.

    Raises:
        DataError: if an archive is missing, damaged, not safe, or holds nothing of the layout, or
            the disk is full; what was unpacked before stays.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            for source, required in _sources(given, layout).items():
                _verify(source, layout, progress)
                if not _unpack_one(source, root, layout, progress) and required:
                    raise DataError(f"{source} holds nothing of {layout.downloads}")
    except OSError as error:
        where = error.filename or root
        raise DataError(f"cannot unpack to {root}: {where}: {error.strerror or error}") from None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    path = root / ".prepare.lock"
    try:
        with FileLock(path, timeout=0):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except Timeout:
        raise DataError(f"another `data prepare` is filling {root}: wait for it") from None


def _sources(given: Sequence[Path], layout: Layout) -> dict[Path, bool]:
    """Return what to unpack: whether it must hold something of the layout."""
    sources: dict[Path, bool] = {}
    for path in given:
        if not path.exists():
            raise DataError(f"{path} does not exist: give --from an archive or a folder")
        if path.is_dir():
            archives = [path / name for name in layout.archives if (path / name).is_file()]
            sources |= dict.fromkeys(archives, True)
            sources[path] = not archives
        else:
            sources[path] = True
    return sources


def _verify(path: Path, layout: Layout, progress: Progress) -> None:
    """Compare the checksum of an official archive, where one is known.

    Raises:
        DataError: if it differs.
    """
    expected = layout.md5.get(path.name)
    if expected is None or not path.is_file():
        return
    digest, done, total = hashlib.md5(usedforsecurity=False), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(f"verify {path.name}", done, total)
    if digest.hexdigest() != expected:
        raise DataError(
            f"{path} has MD5 {digest.hexdigest()}, the official file {expected}: download it again"
        )


def _unpack_one(source: Path, root: Path, layout: Layout, progress: Progress) -> int:
    """Unpack one archive or folder; return how many of its files belong to the layout."""
    with _blame(source), _opened(source, root) as items:
        total = sum(item.size for item in items)
        found = done = 0

        def report(size: int) -> None:
            nonlocal done
            done += size
            progress(f"unpack {source.name}", done, total)

        plain = [item for item in items if not _is_inner(item, layout)]
        found += _write_all(source, plain, root, layout, report)
        for item in items:
            if not _is_inner(item, layout):
                continue
            with (
                item.open() as stream,
                tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as tar,
            ):
                inner = _tar_items(tar, source)
                found += _write_all(source, inner, root, layout, lambda _: None)
            report(item.size)
    return found


def _is_inner(item: _Item, layout: Layout) -> bool:
    return layout.inner is not None and layout.inner.fullmatch(item.name.name) is not None


def _write_all(
    source: Path, items: Sequence[_Item], root: Path, layout: Layout, report: Callable[[int], None]
) -> int:
    """Write the files of the layout that are not there yet; return the number of all of them."""
    placed = [(item, where) for item in items if (where := layout.place(item.name)) is not None]
    absent = {where for item, where in placed if not _is_whole(root / where, item.size)}
    need = sum(item.size for item, where in placed if where in absent)
    free = shutil.disk_usage(root).free
    if need > free:
        raise DataError(
            f"{source} needs {need / 1e9:.1f} GB in {root}, where {free / 1e9:.1f} GB are free"
        )
    for item, where in placed:
        if where in absent:
            _write(source, item, root / where)
        report(item.size)
    return len(placed)


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _write(source: Path, item: _Item, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # The same name each time: what a kill leaves behind is overwritten by the next attempt.
    unfinished = target.with_name(f".{target.name}.partial")
    try:
        with item.open() as stream, unfinished.open("wb") as file:
            shutil.copyfileobj(stream, file, _CHUNK)
            size = file.tell()
        if size != item.size:
            raise DataError(f"{source} is damaged ({item.name} is cut short): download it again")
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def _blame(source: Path) -> Iterator[None]:
    """Turn what the libraries say of a damaged archive into one line."""
    try:
        yield
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise DataError(f"{source} is damaged ({reason}): download it again") from None


@contextmanager
def _opened(source: Path, root: Path) -> Iterator[list[_Item]]:
    """List the files of a tar file, zip file or folder; they can be read until the context ends.

    Raises:
        DataError: if it is none of the three, or not safe to unpack.
    """
    if source.is_dir():
        yield list(_walk(source, root))
    elif _is_tar(source):  # first: a zip file may be the last file within a tar file
        with tarfile.open(source, tarinfo=_Header) as tar:
            yield _bounded(source, _tar_items(tar, source))
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            yield _bounded(source, _zip_items(archive, source))
    else:
        raise DataError(f"{source} is not a whole tar or zip file: download it again")


class _Header(tarfile.TarInfo):
    """A header that may not announce a name of any size: tarfile reads names whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header.

        Raises:
            DataError: if what it announces is no file, and too large for a name.
        """
        header = super().frombuf(buf, encoding, errors)
        if header.size > _MAX_NAME and header.type in _NAMES:
            raise DataError(f"a name of {header.size:,} bytes")
        return header


def _is_tar(source: Path) -> bool:
    try:
        tarfile.open(source, tarinfo=_Header).close()
    except DataError as error:
        raise DataError(f"{source} is not safe to unpack: it holds {error}") from None
    except tarfile.TarError:
        return False
    return True


def _walk(folder: Path, root: Path) -> Iterator[_Item]:
    """List a folder's files, named from the folder on; the data folder may lie within it."""
    base, own = folder.resolve(), root.resolve()
    for where, folders, names in os.walk(folder, followlinks=True):
        if Path(where).resolve() == own:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        for name in sorted(names):
            path = Path(where, name)
            if not _is_junk(name) and path.is_file():
                inside = PurePosixPath(base.name, *path.relative_to(folder).parts)
                opened = cast("Callable[[], IO[bytes]]", partial(path.open, "rb"))
                yield _Item(inside, path.stat().st_size, opened)


def _tar_items(tar: tarfile.TarFile, source: Path) -> list[_Item]:
    items = []
    for member in tar.getmembers():
        name = _safe_name(member.name, source)
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise _unsafe(source, member.name, "is a link or a device")

        if not any(map(_is_junk, name.parts)):
            # extractfile returns None only for what is not a file.
            opened = cast("Callable[[], IO[bytes]]", partial(tar.extractfile, member))
            items.append(_Item(name, member.size, opened))
    return items


def _zip_items(archive: zipfile.ZipFile, source: Path) -> list[_Item]:
    items = []
    for info in archive.infolist():
        name = _safe_name(info.filename, source)
        if info.is_dir():
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):  # 0: packed where files have no Unix mode
            raise _unsafe(source, info.filename, "is a link or a device")
        if not any(map(_is_junk, name.parts)):
            items.append(_Item(name, info.file_size, partial(archive.open, info)))
    return items


def _is_junk(part: str) -> bool:
    """Tell what macOS and file managers add to folders and archives."""
    return part.startswith(".") or part == "__MACOSX"


def _safe_name(raw: str, source: Path) -> PurePosixPath:
    name = PurePosixPath(raw)
    if name.is_absolute() or ".." in name.parts or "\\" in raw:
        raise _unsafe(source, raw, "leads out of the folder")
    return name


def _unsafe(source: Path, entry: str, why: str) -> DataError:
    return DataError(f"{source} is not safe to unpack: its entry {entry[:200]!r} {why}")


def _bounded(source: Path, items: list[_Item]) -> list[_Item]:
    """Refuse a bomb: no file is ever read beyond the size that the archive declares."""
    size, content = source.stat().st_size, sum(item.size for item in items)
    if content > _MAX_RATIO * size:
        raise DataError(f"{source} is not safe to unpack: {size:,} bytes claim to hold {content:,}")
    return items
