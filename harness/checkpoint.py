"""Saving and loading a run between two optimiser steps, so that no kill can corrupt it."""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


@dataclass
class Progress:
    """How far a run is, and what its sittings cost so far."""

    step: int = 0
    train_s: float = 0.0
    wait_s: float = 0.0
    eval_s: float = 0.0
    peak_mem_mib: float = 0.0
    num_resumed: int = 0
    threads: int = 0
    """CPU threads of the first sitting; kept, since float sums depend on them."""
    chunk: int = 0
    """Images that one forward executes; kept for the same reason."""
    evaluated: int = 0
    """The step of the newest evaluation on the way."""
    best: dict[str, tuple[float, int]] = field(default_factory=dict)
    """The best value of each metric so far, and its step."""
    torch_version: str = field(default_factory=lambda: str(torch.__version__))


def save(path: Path, run_id: str, progress: Progress, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically and keep the one before it as ``*.previous``."""
    content = {"format": FORMAT, "run_id": run_id, "progress": vars(progress), **state}
    temporary = path.with_suffix(".writing")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        path.replace(previous(path))
    temporary.replace(path)


def previous(path: Path) -> Path:
    """Return where the checkpoint before ``path`` is kept."""
    return path.with_suffix(".previous.pt")


def load(path: Path, run_id: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Load the newest good checkpoint of a run.

    Returns:
        The content (None if there is none) and a sentence for each file passed over.
    """
    remarks = []
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            continue
        try:
            content = torch.load(candidate, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile):
            remarks.append(f"{candidate.name} is truncated or damaged: passed over")
            continue
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            remarks.append(f"{candidate.name} is of another version: passed over")
        elif content.get("run_id") != run_id:
            remarks.append(f"{candidate.name} belongs to {content.get('run_id')}: passed over")
        else:
            return content, remarks
    return None, remarks
