"""ModelNet40's meshes as clouds: points sampled on their faces once, kept in the HDF5 layout.

The meshes lie as Wu et al. publish them (ModelNet40.zip, modelnet.cs.princeton.edu) and as
torch-geometric's ``ModelNet`` unpacks them::

    root/CLASS/train/CLASS_0001.off ...    root/CLASS/test/CLASS_0107.off ...

torch-geometric reads a mesh and samples it (``read_off``, ``SamplePoints``), from a random state
that depends on the name of the mesh alone. Each cloud is then centred and scaled into the unit
sphere, as those of ``modelnet40_ply_hdf5_2048`` are. The points still differ from theirs, and so
does the data set's fingerprint.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.embedded import make_folder
from harness.errors import DataError
from harness.rng import derive
from harness.task import Progress
from tasks.pointcloud.modelnet import SHAPE_NAMES, SPLITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 1
"""Of the sampling: raised whenever the same meshes give other points."""
NUM_POINTS = 2048
"""Points kept of a mesh, as in the HDF5 files; training uses the first ``data.points``."""
EXPECTED = "ModelNet40 as meshes holds CLASS/train/*.off and CLASS/test/*.off"


def find(given: Path) -> Path:
    """Return the folder with the classes: the one given, or the one that it holds."""
    inner = ("ModelNet40", "raw", "modelnet40/ModelNet40", "modelnet40/raw", "modelnet40")
    for folder in (given, *(given / name for name in inner)):
        if any(folder.glob(f"*/{SPLITS[0]}/*.off")):
            return folder
    raise DataError(f"{given} holds no meshes: {EXPECTED}")


def listing(root: Path, split: str) -> list[tuple[str, Path, int]]:
    """Return class, path and bytes of every mesh of a split, sorted by name.

    Raises:
        DataError: if the split has none.
    """
    found = []
    for name in classes(root):
        try:
            with os.scandir(root / name / split) as entries:
                meshes = [(e.name, e.stat().st_size) for e in entries if e.name.endswith(".off")]
        except (FileNotFoundError, NotADirectoryError):
            continue  # a class may lack a split
        found += [(name, root / name / split / file, size) for file, size in sorted(meshes)]
    if not found:
        raise DataError(f"{root} holds no {split} meshes: {EXPECTED}")
    return found


def classes(root: Path) -> list[str]:
    """Return the names of the classes, sorted; the index in it is the label."""
    return sorted(path.parent.name for path in root.glob(f"*/{SPLITS[0]}") if path.is_dir())


def fingerprint(root: Path) -> str:
    """Return a short hash over name and size of every mesh; fit for a folder name.

    Raises:
        DataError: if there are no meshes.
    """
    digest = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        for name, path, size in listing(root, split):
            digest.update(os.fsencode(f"{split}/{name}/{path.name}\x1f{size}\n"))
    return f"modelnet-meshes-v{VERSION}-{NUM_POINTS}pt-{digest.hexdigest()}"


def sample_all(root: Path, out: Path, progress: Progress) -> Path:
    """Sample every mesh under ``root`` into ``out``, unless that is there already.

    Raises:
        DataError: naming the first mesh that cannot be read, or if ``out`` cannot be written.
    """
    if out.is_dir():
        return out
    from tasks.pointcloud import clouds

    def write(folder: Path) -> None:
        names = "\n".join(classes(root)) + "\n"
        (folder / SHAPE_NAMES).write_text(names, encoding="utf-8")
        for split in SPLITS:
            points, labels = _sample_split(root, split, progress)
            clouds.write(folder, split, points, labels)

    try:
        make_folder(out, write, out.is_dir)
    except OSError as error:
        raise DataError(f"cannot write the sampled meshes to {out}: {error}") from error
    return out


def _sample_split(
    root: Path, split: str, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import numpy as np

    meshes, names = listing(root, split), classes(root)
    points = np.empty((len(meshes), NUM_POINTS, 3), dtype=np.float32)
    for index, (_, path, _) in enumerate(meshes):
        points[index] = sample(path)
        progress(f"sample {split}", index + 1, len(meshes))
    return points, np.array([names.index(name) for name, _, _ in meshes], dtype=np.int64)


def sample(path: Path) -> NDArray[np.float32]:
    """Sample one mesh, shape ``(NUM_POINTS, 3)``, by its name alone.

    Raises:
        DataError: if it is not a mesh, or has no surface.
    """
    import numpy as np
    import torch
    from torch_geometric.io import read_off
    from torch_geometric.transforms import SamplePoints

    try:
        mesh = read_off(str(path))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("mesh", VERSION, path.name))
            points = SamplePoints(NUM_POINTS)(mesh).pos.numpy()
    # torch-geometric asserts where a mesh has no faces.
    except (OSError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a mesh in OFF format ({reason}): fetch it again") from None
    points = points - points.mean(0)
    farthest = np.linalg.norm(points, axis=1).max()
    if not np.isfinite(farthest) or farthest == 0:
        raise DataError(f"{path}: the mesh has no surface to sample: fetch it again")
    return np.asarray(points / farthest, dtype=np.float32)
