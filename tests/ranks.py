"""Several gloo processes for a test: forks of this one, so that nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def in_ranks(world: int, work: Callable[[], Any], folder: Path) -> list[Any]:
    """Call ``work`` in each of ``world`` processes and return what it gives, by rank.

    The processes find each other as those of torchrun do, by their environment.
    """
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forks = multiprocessing.get_context("fork")
    processes = [
        forks.Process(target=_rank, args=(r, world, port, work, folder)) for r in range(world)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: torch has one here
        for process in processes:
            process.start()
    try:
        for process in processes:
            process.join(120)
    finally:
        for process in processes:
            process.kill()
    assert [process.exitcode for process in processes] == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, port: int, work: Callable[[], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    place = {"WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    code = 1
    try:
        torch.save(work(), folder / f"{rank}.pt")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # no clean-up of what belongs to the parent
