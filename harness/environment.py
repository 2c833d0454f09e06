"""Where and with what a run was made: the provenance that travels with every number."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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


def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a number."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
        "argv": sys.argv[1:],
        **git_state(),
    }
