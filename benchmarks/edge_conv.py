"""What EdgeConvs cost with and without the tensor of edges, and what a whole training step does.

    python -m benchmarks.edge_conv [layers] [growth] [memory] [knn] [step] [--rounds 9]

Each table compares forms interleaved in one process, on the same graphs: the dense form (all edges
as a tensor, the original DGCNN formulation), the same with ``amax`` as its maximum,
torch-geometric's EdgeConv, ours with torch's own operations, and ours compiled by numba. The floor
is the products of points with the weights, which no form can do without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import paired
from benchmarks.paired import Bench
from harness import compiled
from tasks.pointcloud import model
from tasks.pointcloud.edge_conv import edge_conv, edges
from tasks.pointcloud.graph import nearest
from tasks.pointcloud.model import DGCNN, normed

CLOUDS = 4
LAYERS = ((3, 64), (64, 64), (64, 128), (128, 256))
"""Channels of the EdgeConvs of preset=paper_dgcnn."""
FORMS = ("dense", "dense, amax", "torch-geometric", "torch", "numba")
OURS = FORMS[3:]
FLOOR = "products of points: the floor"


def forms(bench: Bench, wanted: Sequence[str]) -> list[str]:
    """Return those of the forms that there are here."""
    absent = set()
    if "numba" in wanted and not bench.numba():
        absent.add("numba")
    if "torch-geometric" in wanted and not bench.has("torch_geometric", "its EdgeConv"):
        absent.add("torch-geometric")
    return [name for name in wanted if name not in absent]


@contextmanager
def form(name: str) -> Iterator[None]:
    """Choose between torch's own operations and numba's."""
    with mock.patch.object(compiled, "available", return_value=name == "numba"):
        yield


class Layers:
    """The four EdgeConvs, forward and backward, on one graph of random points."""

    def __init__(
        self,
        name: str,
        num: int,
        k: int,
        device: torch.device,
        layers: tuple[tuple[int, int], ...] = LAYERS,
    ) -> None:
        torch.manual_seed(0)
        self.name, self.device = name, device
        self.neighbours = nearest(torch.randn(CLOUDS, 3, num, device=device), k)
        offsets = torch.arange(CLOUDS, device=device).view(-1, 1, 1) * num
        targets = torch.arange(CLOUDS * num, device=device).repeat_interleave(k)
        self.flat = torch.stack([(self.neighbours + offsets).flatten(), targets])
        self.parts = [self._part(c, o, num) for c, o in layers]

    def _part(self, inputs: int, out: int, num: int) -> tuple[nn.Module, Tensor, Tensor]:
        flat = self.name == "torch-geometric"
        layer = nn.Linear if flat else partial(nn.Conv2d, kernel_size=1)
        block: nn.Module = normed(layer(2 * inputs, out, bias=False), 0.2)
        shape, grad = (CLOUDS, inputs, num), (CLOUDS, out, num)
        if flat:
            from torch_geometric.nn import EdgeConv

            block, shape, grad = EdgeConv(block), (CLOUDS * num, inputs), (CLOUDS * num, out)
        block, x = block.to(self.device), torch.randn(shape, device=self.device)
        return block, x.requires_grad_(), torch.randn(grad, device=self.device)

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


class Products:
    """What the four EdgeConvs multiply, forward and backward, with no edge in sight."""

    def __init__(self, num: int, device: torch.device) -> None:
        self.parts = []
        for inputs, out in LAYERS:
            weight = torch.randn(2 * out, inputs, device=device, requires_grad=True)
            points = torch.randn(inputs, CLOUDS * num, device=device, requires_grad=True)
            grad = torch.randn(2 * out, CLOUDS * num, device=device)
            self.parts.append((weight, points, grad))

    def __call__(self) -> None:
        for weight, points, grad in self.parts:
            torch.autograd.grad(weight @ points, (weight, points), grad)


def plain_nearest(x: Tensor, k: int) -> Tensor:
    """Find neighbours as the published networks do: all distances, then topk."""
    squares = x.square().sum(1, keepdim=True)
    return (2 * x.transpose(1, 2) @ x - squares - squares.transpose(1, 2)).topk(k, dim=2).indices


class Step:
    """Forward and backward of the whole network of preset=paper_dgcnn."""

    def __init__(self, name: str, num: int, k: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.name = name
        sizes = {"edge": [out for _, out in LAYERS], "embedding": 1024, "head": (512, 256)}
        fused = name != "dense"
        net = DGCNN("dgcnn", k=k, dropout=0.5, num_classes=40, fused=fused, **sizes)
        self.net = net.to(device).train()
        self.points = torch.randn(CLOUDS, num, 3, device=device)
        self.labels = torch.arange(CLOUDS, device=device)

    def __call__(self) -> None:
        search = plain_nearest if self.name == "dense" else nearest
        with form(self.name), mock.patch.object(model, "nearest", search):
            nn.functional.cross_entropy(self.net(self.points), self.labels).backward()


class Search:
    """Nearest neighbours among features."""

    def __init__(self, name: str, num: int, k: int, channels: int, device: torch.device) -> None:
        self.name, self.k = name, k
        self.x = torch.randn(CLOUDS, channels, num, device=device)

    def __call__(self) -> None:
        with form(self.name):
            (plain_nearest if self.name == "dense" else nearest)(self.x, self.k)


def goals_at(bench: Bench, goals: dict[str, float]) -> dict[str, float]:
    """Return goals of the CPU as ratios from how many times as fast a form should be."""
    return {name: 1 / times for name, times in goals.items()} if bench.device.type == "cpu" else {}


def layers(bench: Bench) -> None:
    """Compare all forms at N=1024 and k=20, and ours at other sizes."""
    sizes = [(1024, 20), (1024, 10), (1024, 40), (512, 20), (2048, 20), (4096, 20)]
    for num, k in [(64, 5)] if bench.quick else sizes:
        if not bench.wants("layers", f"N={num}, k={k}"):
            continue
        first = bench.quick or (num, k) == (1024, 20)
        names = forms(bench, FORMS if first else ("dense", *OURS))
        cases: dict[str, paired.Work] = {name: Layers(name, num, k, bench.device) for name in names}
        cases[FLOOR] = Products(num, bench.device)
        bench.compare(
            "layers",
            f"N={num}, k={k}",
            cases,
            goals=goals_at(bench, {"torch": 12, "numba": 20} if (num, k) == (1024, 20) else {}),
            faster=True,
        )


def growth(bench: Bench) -> None:
    """Compare k of 10, 20 and 40 of the same form."""
    num, ks = (64, (4, 8)) if bench.quick else (1024, (10, 20, 40))
    for name in forms(bench, OURS):
        cases = {f"{name}, k={k}": Layers(name, num, k, bench.device) for k in ks}
        bench.compare("growth", f"{name}, N={num}", cases, goals={"numba, k=40": 1.3})


def memory(bench: Bench) -> None:
    """Compare the largest memory of tensors."""
    num, ks = (64, (5,)) if bench.quick else (1024, (20, 40))

    def peak(work: paired.Work) -> list[float]:
        work()
        return [paired.peak_mib(work, bench.device)]

    for k in ks:
        if not bench.wants("memory", f"EdgeConv 128-256, N={num}, k={k}"):
            continue
        names = forms(bench, FORMS)
        found = {n: peak(Layers(n, num, k, bench.device, LAYERS[3:])) for n in names}
        goals = dict.fromkeys(OURS, 1 / 6) if k == 20 else {}
        bench.record("memory", f"EdgeConv 128-256, N={num}, k={k}", "MiB", found, goals=goals)
    if not bench.wants("memory", f"whole network, N={num}, k={ks[0]}"):
        return
    names = forms(bench, ("dense", *OURS))
    found = {name: peak(Step(name, num, ks[0], bench.device)) for name in names}
    goals = dict.fromkeys(OURS, 1 / 4)
    bench.record("memory", f"whole network, N={num}, k={ks[0]}", "MiB", found, goals=goals)


def knn(bench: Bench) -> None:
    """Compare searches."""
    sizes = [(1024, 20, 3), (1024, 20, 128), (1024, 40, 128), (2048, 20, 64)]
    for num, k, channels in [(64, 5, 3)] if bench.quick else sizes:
        names = forms(bench, ("dense", *OURS))
        cases = {name: Search(name, num, k, channels, bench.device) for name in names}
        bench.compare("knn", f"N={num}, k={k}, C={channels}", cases, faster=True)


def step(bench: Bench) -> None:
    """Compare whole networks with their searches."""
    goals = {(1024, 20): {"torch": 4, "numba": 6}, (1024, 40): {"numba": 10}}
    for num, k in [(64, 5)] if bench.quick else [(1024, 20), (1024, 40), (2048, 20)]:
        names = forms(bench, ("dense", *OURS))
        bench.compare(
            "step",
            f"N={num}, k={k}",
            {name: Step(name, num, k, bench.device) for name in names},
            goals=goals_at(bench, goals.get((num, k), {})),
            faster=True,
        )


PARTS = {part.__name__: part for part in (layers, growth, memory, knn, step)}
ROUNDS = 9

if __name__ == "__main__":
    paired.main("edge_conv", __doc__, PARTS, rounds=ROUNDS)
