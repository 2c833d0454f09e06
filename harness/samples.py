"""What a run leaves for people to look at: a few evaluated samples and what it said of them.

``samples/index.json`` lists them and is written last; pictures lie beside it. They are made after
the record's numbers, change none of them, and a run that cannot make them says so and goes on.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.errors import visible
from harness.foreign import is_plain
from harness.paths import write_atomic
from harness.record import RunDir

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

NUM_SAMPLES = 6
"""Enough to see what a model confuses, few enough to cost next to nothing."""
_GOLDEN = (5**0.5 - 1) / 2
"""Its multiples fall in step with no period."""
_LARGEST = 2**18
"""Bytes of a picture; ours have some ten thousand."""
_WORDS = 80
"""Letters of a sample's texts that are read."""
_PICTURE = re.compile(r"\d{1,3}_(?:truth|found)\.png")


@dataclass(frozen=True)
class Sample:
    """One sample of the evaluation split, drawn."""

    name: str
    truth: str
    """What it is, in words."""
    found: str
    """What the model says, in words."""
    right: bool | None
    """Whether that is right; None where it is not one or the other."""
    truth_picture: Image
    found_picture: Image | None = None
    """None where the model's answer is words only."""


@runtime_checkable
class ShowsSamples(Protocol):
    """A task that can draw what a model says."""

    def samples(self, model: nn.Module, device: torch.device, num: int) -> Sequence[Sample]:
        """Return ``num`` samples, spread evenly over the evaluation split.

        Args:
            model: in evaluation mode.
            device: where it is.
            num: how many, or all if there are fewer.
        """
        ...


def spread(total: int, num: int) -> list[int]:
    """Return ``num`` indices, one in each of as many equal parts of ``range(total)``.

    Not at equal distances: data whose classes take turns would show one class only.
    """
    num = min(num, total)
    parts = ((k * total // num, (k + 1) * total // num) for k in range(num))
    return [
        start + int((k + 1) * _GOLDEN % 1 * (end - start)) for k, (start, end) in enumerate(parts)
    ]


def keep_samples(task: object, model: nn.Module, device: torch.device, run: RunDir) -> str | None:
    """Draw samples and write them beside the run; never raises for a failure of the drawing.

    Returns:
        Why there are none, in words; None if there are, or the task draws none.
    """
    if not isinstance(task, ShowsSamples):
        return None
    try:
        write_samples(run.samples, task.samples(model, device, NUM_SAMPLES))
    except Exception as error:  # a picture is never worth a run
        return f"no sample predictions were drawn ({type(error).__name__}: {error})"
    return None


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Write samples into a folder, which is created; the list last."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        row = {"name": sample.name, "truth": sample.truth, "found": sample.found}
        pictures = {"truth": sample.truth_picture, "found": sample.found_picture}
        named = {}
        for kind, picture in pictures.items():
            if picture is not None:
                named[f"{kind}_picture"] = f"{number}_{kind}.png"
                with io.BytesIO() as file:
                    picture.save(file, format="png", optimize=True)
                    write_atomic(folder / f"{number}_{kind}.png", file.getvalue())
        rows.append({**row, "right": sample.right, **named})
    write_atomic(folder / "index.json", json.dumps(rows, indent=1))


def read_samples(folder: Path) -> list[Sample]:
    """Read what anybody may have written; what is not a sample is passed over."""
    index = folder / "index.json"
    if not is_plain(index, _LARGEST):
        return []
    try:
        rows = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    found = []
    for row in rows[: 4 * NUM_SAMPLES] if isinstance(rows, list) else ():
        with suppress(LookupError, TypeError, ValueError, AttributeError, OSError):
            found.append(_sample(folder, row))
    return found


def _sample(folder: Path, row: dict[str, Any]) -> Sample:
    name, truth, words = (visible(str(row[key])[:_WORDS]) for key in ("name", "truth", "found"))
    right = row.get("right")
    theirs = row.get("found_picture")
    return Sample(
        name=name,
        truth=truth,
        found=words,
        right=right if isinstance(right, bool) else None,
        truth_picture=_picture(folder, row["truth_picture"]),
        found_picture=None if theirs is None else _picture(folder, theirs),
    )


def _picture(folder: Path, name: str) -> Image:
    """Read a picture by its name in the folder.

    Raises:
        ValueError: if it is not one of ours.
    """
    from PIL import Image

    path = folder / name
    # A link could show, on a page for everybody, a picture of whoever makes that page.
    if not _PICTURE.fullmatch(name) or path.is_symlink() or not is_plain(path, _LARGEST):
        raise ValueError(f"{name!r} is no picture of a sample")
    with Image.open(path, formats=["PNG"]) as picture:
        if max(picture.size) > 1024:
            raise ValueError(f"{name} has {picture.width} x {picture.height} pixels")
        return picture.convert("RGB")
