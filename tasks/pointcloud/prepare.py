"""What point clouds take of ModelNet40's official archives: the HDF5 files, or the meshes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from harness import archives
from harness.task import Progress
from tasks.pointcloud import modelnet

_MESHES = "ModelNet40"
DOWNLOADS = (
    f"ModelNet40: {modelnet.FOLDER}.zip from shapenet.cs.stanford.edu/media, or for "
    f"data.format=meshes {_MESHES}.zip from modelnet.cs.princeton.edu"
)
_HDF5 = re.compile(r"ply_data_(train|test)\d+\.h5|(train|test)_files\.txt|shape_names\.txt")


def place(name: PurePosixPath) -> PurePosixPath | None:
    """Keep the HDF5 files with their lists, and meshes by class and split."""
    if _HDF5.fullmatch(name.name):
        return PurePosixPath(modelnet.FOLDER, name.name)
    if name.suffix == ".off" and name.parent.name in modelnet.SPLITS and len(name.parts) > 2:
        return PurePosixPath(_MESHES, *name.parts[-3:])
    return None


LAYOUT = archives.Layout(place, (f"{modelnet.FOLDER}.zip", f"{_MESHES}.zip"), DOWNLOADS)


def unpack(given: Path, sources: Sequence[Path], progress: Progress) -> None:
    """Fill the folder that ``given`` is or will hold.

    Raises:
        DataError: as ``harness.archives.unpack``.
    """
    root = given.parent if given.name in (modelnet.FOLDER, _MESHES) else given
    archives.unpack(sources, root, LAYOUT, progress)


def download(folder: Path) -> None:
    """Let torch-geometric fetch the meshes into ``folder``."""
    from torch_geometric.datasets import ModelNet

    class Meshes(ModelNet):  # type: ignore[misc]
        """Without reading every mesh into one file, which takes minutes and is never used."""

        def process(self) -> None:
            pass

        def load(self, path: str) -> None:
            pass

    # torch-geometric takes half a download for a whole one.
    (folder / f"{_MESHES}.zip").unlink(missing_ok=True)
    Meshes(str(folder), name="40")
