"""Initial weights from a file, with every key of both sides accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.errors import DataError, first_line


def load_init(model: nn.Module, source: str) -> str:
    """Load a file of weights that carries this model's parameter names.

    Args:
        model: the model after surgery.
        source: a file that holds a ``state_dict``, bare or under ``model`` or ``state_dict``.

    Returns:
        One sentence for the log: what was loaded and what was not.

    Raises:
        DataError: if the file cannot be read safely, or none of the model's weights is in it, or
            a shape differs.
    """
    weights = _read(Path(source))
    own = model.state_dict()
    wrong = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if wrong:
        key = wrong[0]
        raise DataError(
            f"init={source}: {key} has shape {tuple(weights[key].shape)}, the model needs "
            f"{tuple(own[key].shape)}"
        )
    loaded = {key: weights[key] for key in own if key in weights}
    if not loaded:
        raise DataError(
            f"init={source} holds none of this model's {len(own)} weights (its first key is "
            f"{next(iter(weights), 'absent')!r}, the model's {next(iter(own))!r})"
        )
    model.load_state_dict(loaded, strict=False)
    missing = [key for key in own if key not in weights]
    unused = [key for key in weights if key not in own]
    return (
        f"init: {len(loaded)} tensors loaded from {source}; "
        f"{len(missing)} of the model not in it{_some(missing)}; "
        f"{len(unused)} of the file not used{_some(unused)}"
    )


def _some(keys: list[str]) -> str:
    return f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a few wrong bytes can make of an archive and a pickle
        raise DataError(f"init={path} is not a file of tensors: {first_line(error)}") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(torch.is_tensor(v) for v in content.values()):
        raise DataError(f"init={path} holds no state_dict")
    return content
