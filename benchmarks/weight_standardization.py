"""What weight standardisation costs, beside the layers that people use for it.

    python -m benchmarks.weight_standardization [alone] [step] [small] [memory] [evaluation]

On the 53 convolutions of ResNet-50, interleaved in one process. `alone` is
forward and backward of the standardisation, of all weights after each other (`held`, as in a
training step, where the results wait for the backward pass) and layer by layer. `step` is a
training step on images of 224 x 224 without optimiser, relative to the same network with plain
convolutions; `window K` accumulates K micro-batches of one image, and in the longest the authors'
layer stands for the peers, which do the same work in each of its forwards. `small` is an optimiser
step of classification's mini preset, where calls cost more than bytes.

The peers: the authors' layer and MMCV's ConvWS2d written anew from their formulas, timm's two
layers themselves. `plain again` is a second copy of the reference: what it differs by is noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import paired
from benchmarks.classifier import trainer_of
from benchmarks.paired import Bench
from harness import compiled
from harness.norm.window import standardised_again, standardised_once
from normbench import WSConv2d, convert, fold, standardize_weight
from tasks.classification.model import build_classifier

WARM_UP = 2
WINDOWS = {1: (1.15, 1.10), 4: (1.03, 1.03), 8: (1.02, 1.02)}
"""Micro-batches of a step, and the goals of ours on a CPU: in stock torch and compiled."""


def authors(weight: Tensor) -> Tensor:
    """Mean by mean, unbiased deviation, epsilon outside (joe-siyuan-qiao/WeightStandardization)."""
    mean = weight
    for dim in (1, 2, 3):
        mean = mean.mean(dim=dim, keepdim=True)
    centred = weight - mean
    deviation = centred.view(len(weight), -1).std(dim=1) + 1e-5
    return centred / deviation.view(-1, 1, 1, 1).expand_as(weight)


def mmcv(weight: Tensor) -> Tensor:
    """The same of the flat filters (open-mmlab/mmcv, ConvWS2d)."""
    flat = weight.view(len(weight), -1)
    mean, deviation = flat.mean(1, keepdim=True), flat.std(1, keepdim=True)
    shape = (-1, 1, 1, 1)
    return (weight - mean.view(shape)) / (deviation.view(shape) + 1e-5)


def timm_std(weight: Tensor) -> Tensor:
    """What timm's StdConv2d does to its weight; not the same formula."""
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).view_as(weight)


def stock(weight: Tensor) -> Tensor:
    """Ours without numba."""
    return with_numba(False, standardize_weight, weight)


def with_numba(wanted: bool, function: Callable[..., Tensor], *arguments: object) -> Tensor:
    before = compiled.applies
    compiled.applies = before if wanted else lambda rows: False
    try:
        return function(*arguments)
    finally:
        compiled.applies = before


class PeerConv2d(WSConv2d):
    """Our layer with somebody else's function."""

    function: Callable[[Tensor], Tensor]

    def standardized_weight(self) -> Tensor:
        return type(self).function(self.weight)


def peer(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Conv2d], None]:
    cls = type(function.__name__, (PeerConv2d,), {"function": staticmethod(function)})

    def retype(conv: nn.Conv2d) -> None:
        conv.__class__ = cls

    return retype


def timms(name: str) -> Callable[[nn.Conv2d], None]:
    import timm.layers

    cls = getattr(timm.layers, name)

    def retype(conv: nn.Conv2d) -> None:
        stock_layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size)
        conv.__class__ = cls
        for name in ("eps", "scale", "gain"):
            if hasattr(stock_layer, name):
                setattr(conv, name, getattr(stock_layer, name))

    return retype


class Network:
    """ResNet-50 with group norm and one kind of convolution, and its next step."""

    def __init__(
        self,
        bench: Bench,
        retype: Callable[[nn.Conv2d], None] | None = None,
        *,
        ws: bool = True,
        numba: bool = False,
        once: bool = False,
        again: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.model = resnet(bench)
        convert(self.model, "gn_ws" if ws else "gn", groups=8 if bench.quick else 32)
        for module in self.model.modules() if retype else ():
            if isinstance(module, WSConv2d):
                retype(module)
        self.model.to(bench.device)
        self.numba, self.once, self.again = numba, once, again

    def step(self, images: Tensor, window: int) -> None:
        def work() -> None:
            with standardised_once(self.model, self.once, forwards=window):
                for _ in range(window):
                    with standardised_again(self.again):
                        loss = self.model(images).square().mean()
                    loss.backward()

        with_numba(self.numba, work)

    def zero(self) -> None:
        self.model.zero_grad(set_to_none=True)


def resnet(bench: Bench) -> nn.Module:
    if bench.quick:
        return build_classifier("resnet_mini", num_classes=10)[0]
    return torchvision.models.resnet50()


def pictures(bench: Bench) -> Tensor:
    side = 32 if bench.quick else 224
    return torch.randn(1, 3, side, side, device=bench.device)


def networks(bench: Bench, window: int) -> dict[str, Network]:
    cases = {
        "plain": Network(bench, ws=False),
        "plain again": Network(bench, ws=False),
        "authors": Network(bench, peer(authors)),
    }
    if window < max(WINDOWS):
        cases["mmcv ConvWS2d"] = Network(bench, peer(mmcv))
    if window < max(WINDOWS) and bench.has("timm", "StdConv2d and ScaledStdConv2d"):
        for name in ("StdConv2d", "ScaledStdConv2d"):
            cases[f"timm {name}"] = Network(bench, timms(name))
    for name, numba in {"stock torch": False, "compiled": True}.items():
        if not numba or bench.numba():
            cases[f"ours, {name}"] = Network(bench, numba=numba, once=True)
            if window == 1:
                cases[f"ours, {name}, recompute"] = Network(bench, numba=numba, again=True)
    return cases


def goals_of(bench: Bench, stock: float, compiled: float) -> dict[str, float]:
    """Return goals, which are of the CPU."""
    on_cpu = bench.device.type == "cpu"
    return {"ours, stock torch": stock, "ours, compiled": compiled} if on_cpu else {}


def alone(bench: Bench) -> None:
    """Compare the standardisation of all weights, forward and backward."""
    weights = [
        module.weight.detach().to(bench.device).requires_grad_()
        for module in resnet(bench).modules()
        if isinstance(module, nn.Conv2d)
    ]
    upstream = [torch.randn_like(weight) for weight in weights]
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "authors": authors,
        "mmcv ConvWS2d": mmcv,
        "timm StdConv2d": timm_std,
        "ours, the formula": partial(standardize_weight, fused=False),
        "ours, stock torch": stock,
    }
    if bench.numba():
        functions["ours, compiled"] = standardize_weight
    functions["one multiplication: the floor"] = lambda weight: weight * 1.5

    def held(function: Callable[[Tensor], Tensor]) -> None:
        results = [function(weight) for weight in weights]
        torch.autograd.grad(results, weights, upstream)

    def by_layer(function: Callable[[Tensor], Tensor]) -> None:
        for weight, gradient in zip(weights, upstream, strict=True):
            torch.autograd.grad(function(weight), weight, gradient)

    goals = goals_of(bench, 0.15, 0.10)
    for size, run in (("held", held), ("layer by layer", by_layer)):
        cases = {name: partial(run, function) for name, function in functions.items()}
        bench.compare("alone", size, cases, warm_up=WARM_UP, goals=goals)


def step(bench: Bench) -> None:
    """Compare training steps, windows of several micro-batches among them."""
    images = pictures(bench)
    for window, goals in list(WINDOWS.items())[: 1 if bench.quick else None]:
        if not bench.wants("step", f"window {window}"):
            continue

        def work(network: Network, window: int = window) -> None:
            network.step(images, window)
            network.zero()

        cases = {n: partial(work, network) for n, network in networks(bench, window).items()}
        bench.compare("step", f"window {window}", cases, warm_up=1, goals=goals_of(bench, *goals))


def small(bench: Bench) -> None:
    """Compare optimiser steps of a small network, of whose layers several are done at once."""
    ours = {
        "plain": ["norm=gn"],
        "plain again": ["norm=gn"],
        "ours": ["norm=gn_ws"],
        "ours, layer by layer": ["norm=gn_ws", "exec.ws_once=false"],
        "ours, the formula": ["norm=gn_ws", "exec.ws_once=false", "exec.fused=false"],
    }
    cases = {}
    for name, words in ours.items():
        trainer, steps = trainer_of(["batch.size=16", *words], bench.device)
        cases[name] = partial(trainer.step, steps[0], 0)
    rounds = 3 * bench.rounds
    bench.compare("small", "mini, 1 forward of 16", cases, rounds=rounds, warm_up=3)


def memory(bench: Bench) -> None:
    """Compare the memory of tensors: the most in a step, and what a forward saves."""
    images = pictures(bench)
    peaks, saved = {}, {}
    sizes = "peak of a step, window 1", "saved after the forward"
    if not any(bench.wants("memory", size) for size in sizes):
        return
    for name, network in networks(bench, 1).items():
        network.step(images, 1)
        network.zero()
        peaks[name] = [paired.peak_mib(partial(network.step, images, 1), bench.device)]
        network.zero()
        KEPT.clear()
        with standardised_again(network.again):
            work = partial(forward, network, images)
            saved[name] = [paired.peak_mib(work, bench.device, at_end=True)]
        KEPT.clear()
    goals = {name: 1.03 if "recompute" in name else 1.24 for name in peaks if "ours" in name}
    bench.record("memory", sizes[0], "MiB", peaks, goals=goals)
    bench.record("memory", sizes[1], "MiB", saved)


KEPT: list[Tensor] = []


def forward(network: Network, images: Tensor) -> None:
    """Run a forward pass and keep what it saves."""
    KEPT[:] = [with_numba(network.numba, network.model, images)]


def evaluation(bench: Bench) -> None:
    """Compare forwards without gradients, of a folded network too."""
    if not bench.wants("evaluation", "one image"):
        return
    images = pictures(bench)
    cases = {n: network for n, network in networks(bench, 1).items() if "recompute" not in n}
    folded = copy.deepcopy(cases["ours, stock torch"])
    fold(folded.model)
    cases["ours, folded"] = folded

    @torch.no_grad()
    def forward_only(network: Network) -> None:
        with_numba(network.numba, network.model.eval(), images)

    work = {name: partial(forward_only, network) for name, network in cases.items()}
    rounds, goals = 2 * bench.rounds, {"ours, folded": 1.03}
    bench.compare("evaluation", "one image", work, rounds=rounds, warm_up=WARM_UP, goals=goals)


PARTS = {part.__name__: part for part in (alone, step, small, memory, evaluation)}
ROUNDS = 15

if __name__ == "__main__":
    paired.main("weight_standardization", __doc__, PARTS, rounds=ROUNDS)
