"""What weight standardisation costs, beside the layers that people use for it.

    python -m benchmarks.weight_standardization [alone] [step] [memory] [evaluation] [--rounds 15]

On the 53 convolutions of ResNet-50, interleaved in one process and on one thread: medians,
quartiles and paired ratios of processor time, so that others on the machine count less. `alone` is
forward and backward of the standardisation, of all weights after each other (`held`, as in a
training step, where the results wait for the backward pass) and layer by layer. `step` is a
training step on images of 224 x 224 without optimiser, relative to the same network with plain
convolutions; `window K` accumulates K micro-batches of one image.

The peers: the authors' layer and MMCV's ConvWS2d written anew from their formulas, timm's two
layers themselves. `plain again` is a second copy of the reference: what it differs by is noise.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median, quantiles

import timm.layers
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from harness import compiled
from harness.environment import cpu_name
from harness.norm.window import standardised_again, standardised_once
from normbench import WSConv2d, convert, fold, standardize_weight

WARM_UP = 2
WINDOWS = (1, 4, 8)


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


def timms(cls: type[nn.Module]) -> Callable[[nn.Conv2d], None]:
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
        self, retype: Callable[[nn.Conv2d], None] | None = None, *, ws: bool = True
    ) -> None:
        torch.manual_seed(0)
        self.model = torchvision.models.resnet50()
        convert(self.model, "gn_ws" if ws else "gn")
        for module in self.model.modules() if retype else ():
            if isinstance(module, WSConv2d):
                retype(module)
        self.numba = self.once = self.again = False

    def step(self, images: Tensor, window: int) -> None:
        def work() -> None:
            with standardised_once(self.model, self.once):
                for _ in range(window):
                    with standardised_again(self.again):
                        loss = self.model(images).square().mean()
                    loss.backward()

        with_numba(self.numba, work)

    def zero(self) -> None:
        self.model.zero_grad(set_to_none=True)


def ours(*, numba: bool = False, once: bool = False, again: bool = False) -> Network:
    network = Network()
    network.numba, network.once, network.again = numba, once, again
    return network


def networks(window: int) -> dict[str, Network]:
    once = window > 1
    cases = {
        "plain": Network(ws=False),
        "plain again": Network(ws=False),
        "authors": Network(peer(authors)),
        "mmcv ConvWS2d": Network(peer(mmcv)),
        "timm StdConv2d": Network(timms(timm.layers.StdConv2d)),
        "timm ScaledStdConv2d": Network(timms(timm.layers.ScaledStdConv2d)),
        "ours, stock torch": ours(once=once),
        "ours, stock torch, recompute": ours(again=True),
    }
    if compiled.available():
        cases["ours, compiled"] = ours(numba=True, once=once)
        cases["ours, compiled, recompute"] = ours(numba=True, again=True)
    return {k: v for k, v in cases.items() if not (once and v.again)}


def measure(cases: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Time the cases in turn; milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + WARM_UP):
        for name, case in cases.items():
            began = time.process_time()
            case()
            if turn >= WARM_UP:
                times[name].append(1000 * (time.process_time() - began))
    return times


def show(title: str, times: dict[str, list[float]]) -> None:
    reference = next(iter(times.values()))
    print(f"\n{title}\n{'case':30} {'median ms':>9} {'quartiles':>15} {'ratio':>6} {'of best':>7}")
    for name, own in times.items():
        low, _, high = quantiles(own, n=4)
        ratio = median(a / b for a, b in zip(own, reference, strict=True))
        best = min(own) / min(reference)
        print(
            f"{name:30} {median(own):9.1f} {f'{low:.1f}-{high:.1f}':>15} {ratio:6.3f} {best:7.3f}"
        )


def alone(rounds: int) -> None:
    weights = [
        module.weight.detach().requires_grad_()
        for module in torchvision.models.resnet50().modules()
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
    if compiled.available():
        functions["ours, compiled"] = standardize_weight
    functions["one multiplication: the floor"] = lambda weight: weight * 1.5

    def held(function: Callable[[Tensor], Tensor]) -> None:
        results = [function(weight) for weight in weights]
        torch.autograd.grad(results, weights, upstream)

    def by_layer(function: Callable[[Tensor], Tensor]) -> None:
        for weight, gradient in zip(weights, upstream, strict=True):
            torch.autograd.grad(function(weight), weight, gradient)

    for title, run in (("alone, held", held), ("alone, layer by layer", by_layer)):
        show(title, measure({n: partial(run, f) for n, f in functions.items()}, rounds))


def steps(rounds: int) -> None:
    images = torch.randn(1, 3, 224, 224)
    for window in WINDOWS:
        cases = networks(window)

        def step(network: Network, window: int = window) -> None:
            network.step(images, window)
            network.zero()

        work = {name: partial(step, network) for name, network in cases.items()}
        show(f"step, window {window}", measure(work, max(3, rounds // window)))


def memory() -> None:
    images = torch.randn(1, 3, 224, 224)
    print(f"\nmemory, window 1\n{'case':30} {'saved MiB':>9} {'peak MiB':>9} {'ratio':>6}")
    reference = 0.0
    for name, network in networks(1).items():
        network.step(images, 1)
        network.zero()
        peak = peak_mib(partial(network.step, images, 1))
        network.zero()
        KEPT.clear()
        with standardised_again(network.again):
            after = peak_mib(partial(forward, network, images), at_end=True)
        reference = reference or peak
        print(f"{name:30} {after:9.1f} {peak:9.1f} {peak / reference:6.3f}")


KEPT: list[Tensor] = []


def forward(network: Network, images: Tensor) -> None:
    """Run a forward pass and keep what it saves."""
    KEPT[:] = [with_numba(network.numba, network.model, images)]


def peak_mib(work: Callable[[], None], *, at_end: bool = False) -> float:
    """Return what ``work`` allocates at most, or holds at its end, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = top = 0
    for _, change in changes:
        held += change
        top = max(top, held)
    return (held if at_end else top) / 2**20


def evaluation(rounds: int) -> None:
    images = torch.randn(1, 3, 224, 224)
    cases = {name: network for name, network in networks(1).items() if "recompute" not in name}
    folded = copy.deepcopy(cases["ours, stock torch"])
    fold(folded.model)
    cases["ours, folded"] = folded

    @torch.no_grad()
    def forward_only(network: Network) -> None:
        with_numba(network.numba, network.model.eval(), images)

    work = {name: partial(forward_only, network) for name, network in cases.items()}
    show("evaluation", measure(work, 2 * rounds))


def main() -> None:
    """Measure and print."""
    parts = {"alone": alone, "step": steps, "memory": lambda _: memory(), "evaluation": evaluation}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; parts: {', '.join(parts)}")
    torch.set_num_threads(1)
    numba = "with numba" if compiled.available() else "without numba"
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, {numba}, {arguments.rounds} rounds")
    for name in arguments.parts or parts:
        parts[name](arguments.rounds)


if __name__ == "__main__":
    main()
