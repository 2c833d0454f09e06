"""What EdgeConvs cost with and without the tensor of edges, and what a whole training step does.

    python -m benchmarks.edge_conv [--rounds 9] [--only layers growth memory knn step]

Each table compares forms interleaved in one process, on one thread and the same graphs: the dense
form (all edges as a tensor), the same with ``amax`` as its maximum, torch-geometric's EdgeConv,
ours with torch's own operations, and ours compiled by numba. Prints medians, quartiles and medians
of paired ratios, in seconds of the process (other processes then matter less).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median, quantiles
from unittest import mock

import torch
from torch import Tensor, nn
from torch_geometric.nn import EdgeConv

from harness import compiled
from harness.environment import cpu_name
from tasks.pointcloud import model
from tasks.pointcloud.edge_conv import edge_conv, edges
from tasks.pointcloud.graph import nearest
from tasks.pointcloud.model import DGCNN, normed

CLOUDS = 4
LAYERS = ((3, 64), (64, 64), (64, 128), (128, 256))
"""Channels of the EdgeConvs of preset=paper_dgcnn."""
FORMS = ("dense", "dense, amax", "torch-geometric", "torch", "numba")

Work = Callable[[], object]


@contextmanager
def form(name: str) -> Iterator[None]:
    """Choose between torch's own operations and numba's."""
    with mock.patch.object(compiled, "available", return_value=name == "numba"):
        yield


class Layers:
    """The four EdgeConvs, forward and backward, on one graph of random points."""

    def __init__(self, name: str, num: int, k: int, layers: tuple[tuple[int, int], ...]) -> None:
        torch.manual_seed(0)
        self.name = name
        self.neighbours = nearest(torch.randn(CLOUDS, 3, num), k)
        offsets = torch.arange(CLOUDS).view(-1, 1, 1) * num
        targets = torch.arange(CLOUDS * num).repeat_interleave(k)
        self.flat = torch.stack([(self.neighbours + offsets).flatten(), targets])
        self.parts = [self._part(c, o, num) for c, o in layers]

    def _part(self, inputs: int, out: int, num: int) -> tuple[nn.Module, Tensor, Tensor]:
        flat = self.name == "torch-geometric"
        layer = nn.Linear if flat else partial(nn.Conv2d, kernel_size=1)
        block: nn.Module = normed(layer(2 * inputs, out, bias=False), 0.2)
        shape, grad = (CLOUDS, inputs, num), (CLOUDS, out, num)
        if flat:
            block, shape, grad = EdgeConv(block), (CLOUDS * num, inputs), (CLOUDS * num, out)
        return block, torch.randn(shape, requires_grad=True), torch.randn(grad)

    def __call__(self) -> None:
        with form(self.name):
            for block, x, grad in self.parts:
                if self.name == "torch-geometric":
                    out = block(x, self.flat)
                elif self.name == "dense, amax":
                    out = block(edges(x, self.neighbours)).amax(3)
                else:
                    out = edge_conv(block, x, self.neighbours, fused=self.name != "dense")
                out.backward(grad)
                del out


def plain_nearest(x: Tensor, k: int) -> Tensor:
    """Find neighbours as the published networks do: all distances, then topk."""
    squares = x.square().sum(1, keepdim=True)
    return (2 * x.transpose(1, 2) @ x - squares - squares.transpose(1, 2)).topk(k, dim=2).indices


class Step:
    """Forward and backward of the whole network of preset=paper_dgcnn."""

    def __init__(self, name: str, num: int, k: int) -> None:
        torch.manual_seed(0)
        self.name = name
        sizes = {"edge": [out for _, out in LAYERS], "embedding": 1024, "head": (512, 256)}
        fused = name != "dense"
        self.net = DGCNN("dgcnn", k=k, dropout=0.5, num_classes=40, fused=fused, **sizes).train()
        self.points, self.labels = torch.randn(CLOUDS, num, 3), torch.arange(CLOUDS)

    def __call__(self) -> None:
        search = plain_nearest if self.name == "dense" else nearest
        with form(self.name), mock.patch.object(model, "nearest", search):
            nn.functional.cross_entropy(self.net(self.points), self.labels).backward()


class Search:
    """Nearest neighbours among features."""

    def __init__(self, name: str, num: int, k: int, channels: int) -> None:
        self.name, self.k, self.x = name, k, torch.randn(CLOUDS, channels, num)

    def __call__(self) -> None:
        with form(self.name):
            (plain_nearest if self.name == "dense" else nearest)(self.x, self.k)


def measure(cases: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of each round, the cases in turn."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            began = time.process_time()
            case()
            if turn:
                times[name].append(1000 * (time.process_time() - began))
    return times


def peak(case: Work) -> float:
    """Return the largest memory of tensors during ``case``, in MiB above what was there."""
    case()
    with torch.profiler.profile(profile_memory=True) as profile:
        case()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        largest = max(largest, held)
    return largest / 2**20


def table(title: str, times: dict[str, list[float]]) -> None:
    """Print one row a case; ratios are against the first."""
    print(f"\n{title}\n{'':18} {'median ms':>10} {'quartiles':>17} {'times as fast':>22}")
    reference = next(iter(times.values()))
    for name, own in times.items():
        low, _, high = quantiles(own, n=4)
        ratios = [a / b for a, b in zip(reference, own, strict=True)]
        least, _, most = quantiles(ratios, n=4)
        spread = f"{low:.1f} to {high:.1f}"
        ratio = f"{median(ratios):.1f} ({least:.1f} to {most:.1f})"
        print(f"{name:18} {median(own):10.1f} {spread:>17} {ratio:>22}", flush=True)


def layers(rounds: int) -> None:
    for num, k in ((1024, 20), (1024, 10), (1024, 40), (512, 20), (2048, 20), (4096, 20)):
        names = FORMS if (num, k) == (1024, 20) else ("dense", *FORMS[3:])
        cases = {name: Layers(name, num, k, LAYERS) for name in names}
        title = f"four EdgeConvs, forward and backward, {CLOUDS} clouds, N={num}, k={k}"
        table(title, measure(cases, rounds if num < 4096 else min(rounds, 3)))


def growth(rounds: int) -> None:
    for name in FORMS[3:]:
        cases = {f"{name}, k={k}": Layers(name, 1024, k, LAYERS) for k in (10, 20, 40)}
        table("growth with k, N=1024", measure(cases, rounds))


def memory(rounds: int) -> None:
    print("\npeak memory of tensors, MiB, forward and backward, N=1024")
    print(f"{'':18} {'128->256 k=20':>14} {'k=40':>8} {'whole step k=20':>16}")
    for name in FORMS:
        first, second = (peak(Layers(name, 1024, k, LAYERS[3:])) for k in (20, 40))
        whole = f"{peak(Step(name, 1024, 20)):.0f}" if name in ("dense", *FORMS[3:]) else ""
        print(f"{name:18} {first:14.0f} {second:8.0f} {whole:>16}", flush=True)


def knn(rounds: int) -> None:
    for num, k, channels in ((1024, 20, 3), (1024, 20, 128), (1024, 40, 128), (2048, 20, 64)):
        cases = {name: Search(name, num, k, channels) for name in ("dense", "torch", "numba")}
        table(f"neighbours, N={num}, k={k}, C={channels}", measure(cases, rounds))


def step(rounds: int) -> None:
    for num, k in ((1024, 20), (1024, 40), (2048, 20)):
        cases = {name: Step(name, num, k) for name in ("dense", "torch", "numba")}
        table(f"whole network, forward and backward, N={num}, k={k}", measure(cases, rounds))


PARTS = {part.__name__: part for part in (layers, growth, memory, knn, step)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, {arguments.rounds} rounds")
    for part in arguments.only:
        PARTS[part](arguments.rounds)


if __name__ == "__main__":
    main()
