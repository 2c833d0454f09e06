"""Where and with what a run was made: the provenance that travels with every number."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import visible
from harness.foreign import is_plain

_PACKAGES = (
    "normbench",
    "torch",
    "torchvision",
    "pb1-detectron2",
    "detectron2",
    "numba",
    "numpy",
    "pandas",
    "pycocotools",
    "pillow",
)
_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "MKL_CBWR",
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "CUDA_VISIBLE_DEVICES",
)
_SHA = 40
"""Digits of a git commit."""
_CHANGES_NUMBERS = ("device", "cpu", "threads", "world", "python")
"""Beside packages, flags and code: what sums may be ordered by."""


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a number."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> dict[str, Any]:
    """Return the commit of the checkout this code runs from, and whether it was edited."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"git_sha": None, "dirty": None}

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "git_sha": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"git_sha": None, "dirty": None}


@cache
def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_title(where: Mapping[str, Any]) -> str:
    """Return what a run was made on, in words: ``NVIDIA H100`` or ``AMD EPYC (AVX512)``.

    Processors of one name may have other vectors (a virtual machine tells no model), and vectors
    decide the order of sums.

    Args:
        where: a run's ``environment``.
    """
    if where["device"] != "cpu":
        return str(where["device"])
    vectors = where.get("flags", {}).get("cpu_capability")
    return f"{where['cpu']} ({vectors})" if vectors else str(where["cpu"])


def flags() -> dict[str, Any]:
    """Return the switches of torch, and variables of the environment, that can change a number."""
    import torch

    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    # Asking for its version loads it, which takes 64 MB that a CPU has no use for.
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "variables": variables,
    }


def read_environment(path: Path) -> dict[str, Any]:
    """Read an ``environment.json``; empty if it is missing or none."""
    if not is_plain(path):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what two environments differ in that can change a number, e.g. ``torch 2.4 -> 2.5``.

    What only one of them tells is passed over, so that files of other versions can be read; and
    anybody may have written them.
    """
    pairs = [(name, before.get(name), now.get(name)) for name in _CHANGES_NUMBERS]
    for group in ("packages", "flags"):
        old, new = before.get(group), now.get(group)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            pairs += [(name, old[name], new[name]) for name in old if name in new]
    pairs.append(("code", before.get("git_sha"), now.get("git_sha")))
    return [
        visible(f"{name} {_short(old)} -> {_short(new)}")
        for name, old, new in pairs
        if old is not None and new is not None and old != new
    ]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={one}" for name, one in value.items()) or "none"
    text = str(value)
    return text[:12] if len(text) == _SHA else text


def continues_elsewhere(path: Path, asked: str) -> list[str]:
    """Say how a run that is resumed here would continue in another environment than it began.

    Args:
        path: its ``environment.json``.
        asked: its ``exec.device``.
    """
    before = read_environment(path)
    if not before:
        return []
    now = {
        "device": _device(asked, str(before.get("device"))),
        "cpu": cpu_name(),
        "packages": versions(),
        "git_sha": git_state()["git_sha"],
    }
    return differences(before, now)


def _device(asked: str, before: str) -> str | None:
    """Return what a run would compute on, importing torch only where a GPU may be meant."""
    if asked == "cpu" or (before == "cpu" and not Path("/dev/nvidiactl").exists()):
        return "cpu"
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def environment(device: str, threads: int, world: int) -> dict[str, Any]:
    """Describe this process: device, packages, host and code."""
    return {
        "device": device,
        "threads": threads,
        "world": world,
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "host": platform.node(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": versions(),
        "flags": flags(),
        "argv": [visible(word) for word in sys.argv[1:]],
        **git_state(),
    }
