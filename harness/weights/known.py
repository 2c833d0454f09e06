"""Files that others published, known by their checksums: what they are, and whether they are whole.

The authors' ResNet-101 is pinned by two public repositories, by MD5 (RECIPES: ``R-101-GN-WS``); the
mirrors of OpenMMLab carry the head of their SHA-256 in their names (open-mmlab/mmengine,
``mmengine/hub/openmmlab.json``), as do torchvision's files (``torch.hub.HASH_REGEX``).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from harness.errors import DataError
from harness.weights.trained import Trained

_MIRRORED = {  # head of the SHA-256: weight standardisation, as the name in the mirror says
    **dict.fromkeys(("15beedd8", "3e3c308c", "0d87ac85", "34ac1a9e"), True),
    **dict.fromkeys(("c7e8b754", "ac3bb84e"), False),
}
_AUTHORS_MD5 = {"R-101-GN-WS.pth.tar": "aa48cc3d3ba3b7ac357c1489b169eb32"}
_HASH_IN_NAME = re.compile(r"-((?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,64})\.")
"""Digits alone may be a date or a step; a hash without a letter is one in forty."""


def check(path: Path) -> Trained | None:
    """Compare a file with the checksum that its name promises, and with those known here.

    Returns:
        Under which norm it was trained, where the file is known.

    Raises:
        DataError: if its name promises another content.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    promised = _HASH_IN_NAME.search(path.name)
    if promised and not sha256.startswith(promised[1]):
        raise DataError(_damaged(path, f"SHA-256 begins with {sha256[:8]}, not {promised[1]}"))
    if path.name in _AUTHORS_MD5:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, _md5).hexdigest()
        if md5 != _AUTHORS_MD5[path.name]:
            raise DataError(_damaged(path, f"MD5 is {md5}, not {_AUTHORS_MD5[path.name]}"))
        return Trained("gn", True, 32, "authors", "its MD5: the authors' release")
    standardised = _MIRRORED.get(sha256[:8])
    if standardised is None:
        return None
    variant = "authors" if standardised else None
    return Trained("gn", standardised, 32, variant, "its SHA-256: OpenMMLab's mirror")


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def _damaged(path: Path, what: str) -> str:
    return (
        f"init={path} is not the file that its name says ({what}): it is damaged or not all there; "
        "fetch it again, or rename it if it is another one"
    )
