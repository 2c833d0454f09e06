"""What ``init=`` names, and its part in a run's identity, without torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import DataError
from harness.schema import InitSection

PRETRAIN = "pretrain"
"""``init=pretrain``: the run that pretrains the backbone, found by ``harness.pretrain``."""

Kind = Literal["scratch", "file", "run", "torchvision", "timm"]


@dataclass(frozen=True)
class Source:
    """Where initial weights come from."""

    kind: Kind
    name: str
    """The path, the run's id, or the library's name of a network."""


def parse(text: str | None) -> Source:
    """Read ``scratch | FILE | run:ID | torchvision:NAME | timm:NAME``; None is scratch.

    A file whose name starts like one of the others is given as ``./run:...``.
    """
    if text in (None, "scratch"):
        return Source("scratch", "")
    kinds: tuple[Kind, ...] = ("run", "torchvision", "timm")
    for kind in kinds:
        if str(text).startswith(f"{kind}:"):
            return Source(kind, str(text).partition(":")[2])
    return Source("file", str(text))


def identity(init: InitSection) -> str:
    """Return what a run's identity hashes of its initial weights.

    Of a file the checksum, so that it may lie anywhere; of a run its id, which is a checksum of all
    that made it and is known before it is made; of a library's weights their name there, whose
    checksum is part of it or is looked up once they are loaded.

    Raises:
        DataError: if a file is missing.
        UsageError: if the library has no such weights.
        EnvironmentProblem: if the library is not installed.
    """
    source = parse(init.source)
    match source.kind:
        case "scratch":
            return "scratch"
        case "file":
            found = file_checksum(Path(source.name))
        case "run":
            found = f"run:{source.name}"
        case _:
            from harness.weights import library

            found = f"{source.kind}:{library.full_name(source)}"
    return f"{found}+{init.colours}" if init.colours else found


def file_checksum(path: Path) -> str:
    """Return 16 hex digits of BLAKE2b over a file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
    except OSError as error:
        raise DataError(f"init={path}: {error.strerror}") from None
