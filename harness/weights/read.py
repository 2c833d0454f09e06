"""Files of weights read by what is in them, never by their name, and never run."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness import checkpoint
from harness.errors import DataError
from harness.weights.unpickle import load_arrays

_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number that begins a file of torch before 1.6 (``torch.serialization.MAGIC_NUMBER``)."""
_WRAPPERS = ("model", "state_dict", "model_state_dict", "state_dict_ema", "blobs")
"""Keys under which training code keeps the weights, the first found counting."""
_LARGEST_HEADER = 100_000_000  # bytes, of the safetensors format


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    tensors: Mapping[str, Tensor]
    others: tuple[str, ...]
    """Keys beside the tensors that hold something else."""
    run_id: str | None = None
    """Of which of our runs it is a checkpoint, if of any."""


def read(path: Path) -> Content:
    """Read a file of torch, safetensors, NumPy (``.npz``) or pickled arrays.

    Raises:
        DataError: in one line, if the file is absent, damaged, unsafe or holds no weights.
    """
    try:
        content = _parsed(path)
    except (MemoryError, DataError):
        raise
    except OSError as error:
        raise DataError(f"init={path}: {error.strerror or error}") from None
    except Exception as error:  # whatever wrong bytes can make of an archive and a pickle
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"init={path} is not a file of tensors ({reason}): give one of the layouts in "
            "docs/weights.md"
        ) from None
    run_id = content.get("run_id") if isinstance(content, Mapping) else None
    weights = _unwrapped(content)
    tensors = {str(k): t for k, v in weights.items() if (t := _tensor(v)) is not None}
    if not tensors:
        raise DataError(f"init={path} holds no state_dict")
    others = tuple(str(key) for key in weights if str(key) not in tensors)
    return Content(tensors, others, run_id if isinstance(run_id, str) else None)


def _parsed(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(64)
    if _is_safetensors(path, head):
        return load_file(path)
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            arrays = all(name.endswith(".npy") for name in archive.namelist())
        if arrays:
            with np.load(path) as content:
                return dict(content)
        if checkpoint.intact(path) is False:
            raise DataError(f"init={path} is truncated or damaged")
        return _torch(path)
    if _LEGACY_TORCH in head:
        return _torch(path)
    with path.open("rb") as file:
        return load_arrays(file)


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Tell by the format: eight bytes of length, then a header of JSON."""
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size - 8) or head[8:9] != b"{":
        return False
    with path.open("rb") as file:
        file.seek(8)
        try:
            return isinstance(json.loads(file.read(length)), dict)
        except ValueError:
            raise SafetensorError("its header is damaged") from None


def _torch(path: Path) -> Any:
    # What checkpoints of training code hold beside tensors, and what runs nothing either.
    scalar: Any = np.float64(0).__reduce__()[0]
    named = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(code)) for code in "?bBhHiIlLefd"]
    with torch.serialization.safe_globals([argparse.Namespace, np.dtype, *kinds, *named]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: Any) -> Mapping[Any, Any]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    return content if isinstance(content, Mapping) else {}


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    return value.detach() if torch.is_tensor(value) and not value.is_sparse else None
