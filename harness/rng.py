"""Random draws keyed by what they are for, so that no draw depends on what ran before it.

Data order is a function of (seed, epoch), augmentation of (seed, epoch, sample) and every draw
inside a step (dropout, RoI sampling) of (seed, step, sample, site). Hence the same numbers come
out however a step is split into micro-batches, and a resumed run needs no random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from numpy.random import RandomState
    from numpy.typing import NDArray
    from torch import Tensor


def derive(*key: int | str) -> int:
    """Hash a key to a seed of 63 bits."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def numpy_rng(*key: int | str) -> RandomState:
    """Return a generator for ``key``; RandomState, because its stream is frozen for good."""
    return np.random.RandomState(_words(*key))


class Reseeded:
    """``numpy_rng`` for draws that end before the next begin: one generator, seeded again.

    Making one takes ten times as long as seeding it, and a small sample is soon read.
    """

    def __init__(self) -> None:
        self._rng = np.random.RandomState(0)

    def __call__(self, *key: int | str) -> RandomState:
        """Return the generator for ``key``; that of the key before it is gone."""
        self._rng.seed(_words(*key))
        return self._rng


def _words(*key: int | str) -> list[int]:
    seed = derive(*key)
    return [seed & 0xFFFFFFFF, seed >> 32]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """Return the order of the samples in an epoch, shape ``(num_samples,)``."""
    return numpy_rng("order", seed, epoch).permutation(num_samples)


@dataclass(frozen=True)
class Draws:
    """Whose draws are being made: the step and the samples of the running micro-batch."""

    seed: int
    step: int
    samples: Sequence[int]

    def generator(
        self, site: str, position: int, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """Return the generator of one sample (by its position in the micro-batch) at a site."""
        key = ("step", self.seed, self.step, self.samples[position], site)
        return torch.Generator(device).manual_seed(derive(*key))


_current: ContextVar[Draws | None] = ContextVar("draws", default=None)


class drawing:  # noqa: N801  # a context manager; contextlib's generator costs three times as much
    """Key all draws inside the block by ``(seed, step, samples)``."""

    __slots__ = ("_draws", "_token")

    def __init__(self, seed: int, step: int, samples: Sequence[int]) -> None:
        self._draws = Draws(seed, step, samples)

    def __enter__(self) -> None:
        self._token = _current.set(self._draws)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def current_draws() -> Draws | None:
    """Return the running micro-batch's draws, or None outside a training step."""
    return _current.get()


class KeyedDropout(nn.Dropout):
    """Dropout whose mask for a sample depends on (seed, step, sample, site) alone.

    Args as ``torch.nn.Dropout``; ``site`` is the module's path, set by ``key_dropout``. The first
    axis of the input must be the samples of the micro-batch. Outside a training step (no
    ``drawing`` block) it is the stock dropout.
    """

    site = ""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of ``input`` (N, ...) sample by sample."""
        draws = current_draws()
        if not self.training or draws is None or self.p == 0:
            return super().forward(input)
        if len(input) != len(draws.samples):
            raise ValueError(
                f"dropout at {self.site!r} sees {len(input)} rows for {len(draws.samples)} samples"
            )
        keep = torch.stack(
            [
                self._mask(input[i], draws.generator(self.site, i, input.device))
                for i in range(len(input))
            ]
        )
        return input * keep / (1 - self.p)

    def _mask(self, like: Tensor, generator: torch.Generator) -> Tensor:
        # Drawn in float32 whatever the precision, so that fp64 and bf16 drop the same units.
        drawn = torch.rand(like.shape, generator=generator, device=like.device)
        return (drawn >= self.p).to(like.dtype)


class KeyedDropout2d(KeyedDropout):
    """The same for whole channels, as ``torch.nn.Dropout2d``; input (N, C, ...)."""

    def _mask(self, like: Tensor, generator: torch.Generator) -> Tensor:
        shape = (like.shape[0], *[1] * (like.ndim - 1))
        drawn = torch.rand(shape, generator=generator, device=like.device)
        return (drawn >= self.p).to(like.dtype)


_KEYED: dict[type[nn.Module], type[KeyedDropout]] = {
    nn.Dropout: KeyedDropout,
    nn.Dropout1d: KeyedDropout2d,
    nn.Dropout2d: KeyedDropout2d,
    nn.Dropout3d: KeyedDropout2d,
}


def key_dropout(model: nn.Module) -> None:
    """Retype every dropout of ``model`` in place to its keyed twin."""
    for path, module in model.named_modules():
        if twin := _KEYED.get(type(module)):
            module.__class__ = twin
            module.site = path
