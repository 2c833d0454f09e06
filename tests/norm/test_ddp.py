"""Every norm under DistributedDataParallel: two gloo processes against one with both shares."""

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

from tests.norm.nets import net_2d, randomise_norms
from tests.norm.switching import OWN, switched

NAMES = [f"{name}_ws" for name in OWN]
WORLD = 2


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return switched(randomise_norms(net_2d()).double(), name)


def share(rank: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(rank)
    return torch.randn(2, 3, 5, 5, generator=draws, dtype=torch.float64) * (1 + rank)


def gradients(model: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    model(share(rank)).tanh().sum().backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(minutes=3),
    )
    results: dict[str, Any] = {}
    for name in NAMES:
        try:
            wrapped = nn.parallel.DistributedDataParallel(model_of(name))
            found = gradients(wrapped, rank)
        except ValueError as error:
            results[name] = str(error)
            continue
        results[name] = {key.removeprefix("module."): value for key, value in found.items()}
        with torch.no_grad():
            for parameter in wrapped.parameters():
                parameter -= 0.1 * parameter.grad
        results[f"{name} again"] = gradients(wrapped, rank)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ddp")
    # This process is rank 0: importing torch once less saves seconds.
    other = multiprocessing.get_context("spawn").Process(target=work, args=(1, str(folder)))
    other.start()
    try:
        work(0, str(folder))
    finally:
        other.join(60)
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sync_bn_ws"])
def test_gradients_are_the_mean_over_the_shares(name: str, results: list[dict[str, Any]]):
    model = model_of(name)
    alone = [gradients(copy.deepcopy(model), rank) for rank in range(WORLD)]
    for found in (result[name] for result in results):
        assert found.keys() == alone[0].keys()
        for key, value in found.items():
            expected = (alone[0][key] + alone[1][key]) / WORLD
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12, msg=key)
    for key, value in results[0][f"{name} again"].items():
        assert torch.equal(value, results[1][f"{name} again"][key])
        assert value.isfinite().all()


def test_sync_bn_of_several_devices_needs_gpus(results: list[dict[str, Any]]):
    for result in results:
        assert "GPU" in result["sync_bn_ws"]
