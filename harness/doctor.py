"""What this machine has and lacks, in words, with the command that mends it."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec

from rich.console import Console

from harness.environment import cpu_name, versions
from harness.paths import cache_dir, default_results_dir
from harness.registry import task_info, task_names
from harness.spec import build
from harness.terminal import new_table


def doctor(console: Console) -> None:
    """Print packages, devices, data sets and disk."""
    table = new_table("", "what", "found")
    table.add_row("processor", f"{cpu_name()}, {os.cpu_count()} cores")
    table.add_row("GPU", _gpu())
    table.add_row("packages", ", ".join(f"{name} {v}" for name, v in versions().items()))
    table.add_row("fast forms", _compiled())
    if find_spec("detectron2") is None:
        table.add_row("detectron2", "MISSING: detection cannot run. `make setup` installs it")
    for name in task_names():
        try:
            table.add_row(f"{name} data", _data(name))
        except ImportError as error:
            table.add_row(name, f"cannot be imported: {error}")
    table.add_row("cache", f"{cache_dir()} ({_free_gb(cache_dir())} GB free)")
    results = default_results_dir()
    table.add_row("results", f"{results} ({_free_gb(results)} GB free)")
    console.print(table)


def _compiled() -> str:
    if find_spec("numba") is None:
        return "in stock torch (numba, which compiles them for the processor, is not installed)"
    return f"compiled by numba {version('numba')} on the processor, in stock torch on GPUs"


def _gpu() -> str:
    try:
        import torch
    except ImportError as error:
        return f"torch is MISSING ({error}): `make setup` installs it"
    if not torch.cuda.is_available():
        return "none (runs use the processor)"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)


def _data(task: str) -> str:
    spec = build(task, [])
    root = task_info(task).data_root(spec)
    state = "generated" if root.is_dir() else "generated on first use"
    given = os.environ.get("NORMBENCH_DATA")
    real = f"real data under {given} (NORMBENCH_DATA)" if given else "real data: give data=DIR"
    return f"embedded: {root} ({state}); {real}"


def _free_gb(path: os.PathLike[str]) -> str:
    folder = os.path.abspath(path)  # noqa: PTH100  # resolve() would follow a dangling link
    while not os.path.isdir(folder):  # noqa: PTH112
        folder = os.path.dirname(folder)  # noqa: PTH120
    return f"{shutil.disk_usage(folder).free / 1e9:.0f}"
