"""Which layer feeds which batch norm, found by following tensors through a forward pass.

Shares nothing with ``harness.norm.pairing``: it never looks at the tree of modules, but watches
torch's functions while the stock model runs, and recognises layers by their weights.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WEIGHTED = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
    nn.functional.linear,
}


class _Trace(TorchFunctionMode):
    """Remembers the outputs of weighted functions and where they reach a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        # The tensors are kept alive, or their ids would be given to others. An output that was
        # changed in place since (ReLU) is no longer the output: its version tells.
        self.outputs: dict[int, tuple[Tensor, int, Tensor]] = {}
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.orphans: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.batch_norm:
            names = ("input", "running_mean", "running_var", "weight")
            bound = dict(zip(names, args, strict=False)) | kwargs
            known = self.outputs.get(id(bound["input"]))
            if known is not None and known[0]._version == known[1]:
                self.pairs.append((known[2], bound["weight"]))
            else:
                self.orphans.append(bound["weight"])
        result = func(*args, **kwargs)
        if func in WEIGHTED:
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            self.outputs[id(result)] = (result, result._version, weight)
        return result


def traced_pairs(model: nn.Module, *inputs: Any) -> tuple[set[tuple[str, str]], set[str]]:
    """Run ``model`` in eval mode and return (layer, norm) pairs of paths, and the orphan norms."""
    paths: dict[Tensor, str] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            paths.setdefault(weight, path)
    with torch.no_grad(), _Trace() as trace:
        model.eval()(*inputs)
    pairs = {(paths[layer], paths[norm]) for layer, norm in trace.pairs}
    return pairs, {paths[norm] for norm in trace.orphans}
