"""Runs loops compiled by numba on tensors: fast where torch has no single operation for them.

numba is imported at the first use only (it takes most of a second). Where it is not installed,
callers have a form in stock torch.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from harness.paths import cache_dir

_PARTS = 4
"""Parts of a range for each thread."""
_C_TYPES = {torch.float32: ("float32", ctypes.c_float), torch.float64: ("float64", ctypes.c_double)}
_OWNERS: list[Any] = []
"""What owns the code behind addresses that were given away."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


@cache
def available() -> bool:
    """Return whether numba is installed."""
    return find_spec("numba") is not None


def applies(x: Tensor) -> bool:
    """Return whether a compiled loop can work on ``x``: on a CPU, in float32 or float64."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and available()


def jit(
    function: Callable[_P, _R], fastmath: set[str], *, inline: str = "never"
) -> Callable[_P, _R]:
    """Compile ``function`` at its first call for each type; later processes find it in a cache.

    Args:
        function: a loop over NumPy arrays that ends with the arguments ``first, last``.
        fastmath: LLVM's liberties with floating point, e.g. ``{"contract"}``.
        inline: ``always`` for what is called in innermost loops.
    """
    njit = import_module("numba").njit
    options = {"nogil": True, "error_model": "numpy", "fastmath": fastmath, "inline": inline}
    compiled: Callable[_P, _R] = _cached(njit, options, function)
    return compiled


def c_function(
    function: Callable[..., None], arguments: Sequence[str], dtype: torch.dtype, fastmath: set[str]
) -> Callable[..., None]:
    """Compile ``function`` for one type, as what C code would call; the cache is that of ``jit``.

    A call costs 2 microseconds, where making arrays of tensors for one of ``jit`` takes some 13:
    many times that in the middle of a training step, where little of Python is in the cache.

    Args:
        function: a loop that ends with the arguments ``first, last``.
        arguments: of each one ``int``, ``number`` (of ``dtype``) or ``array`` (of ``dtype``: an
            address, ``Tensor.data_ptr()``, of which the function makes an array by
            ``numba.carray``).
        dtype: float32 or float64.
        fastmath: as of ``jit``.
    """
    name, number = _C_TYPES[dtype]
    types = {"int": "int64", "number": name, "array": f"CPointer({name})"}
    in_c: dict[str, Any] = {"int": ctypes.c_int64, "number": number, "array": ctypes.c_void_p}
    signature = f"void({', '.join(types[one] for one in arguments)})"
    cfunc = partial(import_module("numba").cfunc, signature)
    owner = _cached(cfunc, {"error_model": "numpy", "fastmath": fastmath}, function)
    _OWNERS.append(owner)
    return ctypes.CFUNCTYPE(None, *(in_c[one] for one in arguments))(owner.address)


def _cached(decorator: Callable[..., Any], options: dict[str, Any], function: Any) -> Any:
    # An installed package is often in a folder that may not be written.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_dir() / "numba"))
    try:
        return decorator(cache=True, **options)(function)
    except RuntimeError:  # no folder at all may be written: compile in every process
        return decorator(**options)(function)


def run(kernel: Callable[..., None], tasks: int, *arguments: Any) -> None:
    """Call ``kernel(*arguments, first, last)`` over ``range(tasks)``, tensors as arrays.

    The range is shared by as many threads as torch uses; tasks must not influence each other, and
    then the result has the same bits for any number of them.
    """
    given = [one.detach().numpy() if isinstance(one, Tensor) else one for one in arguments]
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        kernel(*given, 0, tasks)
        return
    # Torch's own threads may still spin on the cores that these would have: who is slowed takes
    # fewer parts, and who has not begun by the end is not waited for.
    count = min(_PARTS * threads, tasks)
    parts = deque(pairwise(tasks * part // count for part in range(count + 1)))

    def work() -> None:
        while True:
            try:
                part = parts.popleft()
            except IndexError:
                return
            kernel(*given, *part)

    helpers = [_pool(threads).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="compiled")
