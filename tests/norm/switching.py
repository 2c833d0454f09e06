"""The switch as the tests use it: every norm of this package under one call."""

from torch import nn

from harness.norm.audit import NormAudit
from harness.norm.catalogue import NORMS
from harness.norm.surgery import convert

OWN = tuple(NORMS._own)
NAMES = [name + suffix for name in OWN for suffix in ("", "_ws")]
GHOST = 2


def switch(model: nn.Module, name: str, groups: int = 4) -> NormAudit:
    """Convert strictly; ghost_bn to ghost batches of two."""
    ghost = GHOST if name.removesuffix("_ws") == "ghost_bn" else None
    return convert(model, name, groups=groups, stat_batch=ghost, strict=True)


def switched(model: nn.Module, name: str, groups: int = 4) -> nn.Module:
    switch(model, name, groups)
    return model


def norm_of(bn: nn.Module, name: str, groups: int = 4) -> nn.Module:
    """Return what ``name`` puts in place of ``bn``."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[int(type(bn).__name__[-2])]
    net = nn.Sequential(conv(2, bn.num_features, 1), bn)
    return switched(net, name, groups)[1]
