"""What ``normbench data check`` does for VOC: counts both layouts, misses nothing, opens a few."""

from __future__ import annotations

from pathlib import Path

from harness.errors import DataError
from harness.task import DataReport, Progress
from tasks.segmentation import voc
from tasks.segmentation.dataset import read_pair

_OPENED = 200  # pairs of each list


def inspect(
    root: Path, train_set: str, progress: Progress, *, official: bool = False
) -> DataReport:
    """Check a VOC 2012 folder.

    Args:
        root: the folder.
        train_set: list of training images that a run would use; only its layout must be whole.
        progress: told of the pairs opened.
        official: whether the two lists of a run must have VOC 2012's counts.

    Returns:
        Counts of every list that is there, and every problem found in words.
    """
    problems = voc.lacking(root, train_set)
    names: tuple[str, ...] = voc.CLASSES
    try:
        names = voc.class_names(root)
    except DataError as error:
        problems.append(str(error))
    facts = {"classes": f"{len(names)} ({', '.join(names[:4])}, ...)"}
    for name, path in _lists(root).items():
        facts[name] = _counted(root, name, path)
    for name, path in voc.list_files(root, train_set).items():
        if path.is_file():
            problems += _look(root, name, path, len(names), progress)
            if official:
                problems += _miscounted(root, name, path)
    overlap = _overlap(root, train_set)
    if overlap:
        problems.append(f"{len(overlap):,} images are in {train_set} and in val: {overlap[0]}, ...")
    return DataReport(root, facts, problems)


def _lists(root: Path) -> dict[str, Path]:
    """Return the list files of both layouts that are there, by a name that tells them apart."""
    official, augmented = (voc.list_files(root, name) for name in ("train", voc.AUGMENTED))
    found = {"train": official["train"], "trainval": official["train"].with_name("trainval.txt")}
    found |= {"val": official["val"], voc.AUGMENTED: augmented[voc.AUGMENTED]}
    found |= {"val (augmented layout)": augmented["val"]}
    return {name: path for name, path in found.items() if path.is_file()}


def _counted(root: Path, name: str, path: Path) -> str:
    official = voc.OFFICIAL_COUNTS[name.partition(" ")[0]]
    theirs = "" if (root / voc.LABELS).is_file() else f" (VOC 2012: {official:,})"
    try:
        return f"{len(voc.read_list(root, path)):,} pairs{theirs}"
    except DataError:
        return "unreadable"


def _miscounted(root: Path, name: str, path: Path) -> list[str]:
    try:
        num_pairs = len(voc.read_list(root, path))
    except DataError:
        return []  # told by _look
    official = voc.OFFICIAL_COUNTS[name]
    if num_pairs == official:
        return []
    return [f"{path} lists {num_pairs:,} pairs, VOC 2012 has {official:,}: fetch the list again"]


def _look(root: Path, name: str, path: Path, num_classes: int, progress: Progress) -> list[str]:
    """Find every missing file of a list and open some of the others."""
    try:
        pairs = voc.read_list(root, path)
    except DataError as error:
        return [str(error)]
    missing = list(voc.absent([file for pair in pairs for file in (pair.image, pair.mask)]))
    problems = [voc.describe_absent(path, missing)] if missing else []
    gone = set(missing)
    there = [pair for pair in pairs if not gone.intersection((pair.image, pair.mask))]
    step = max(1, len(there) // _OPENED)
    chosen = there[::step][:_OPENED]
    for number, pair in enumerate(chosen, start=1):
        try:
            read_pair(pair, num_classes)
        except DataError as error:
            problems.append(str(error))
        progress(f"open {name}", number, len(chosen))
    return problems


def _overlap(root: Path, train_set: str) -> list[str]:
    """Return the images that are trained on and evaluated on."""
    try:
        train, val = (voc.read_list(root, p) for p in voc.list_files(root, train_set).values())
    except DataError:
        return []
    evaluated = {pair.name for pair in val}
    return [] if train_set == "trainval" else [p.name for p in train if p.name in evaluated]
