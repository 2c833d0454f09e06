"""Reads pickles of arrays without running anything that is in them.

A pickle is a program: it may name any function and call it. This reader knows a few names, those
that NumPy's arrays are made of, and refuses every other one before anything is called.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import IO, Any

import numpy as np


class _Encode:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes into old protocols."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it holds bytes encoded as {encoding!r}")
        return text.encode("latin1")


class _Empty:
    """Stands for NumPy's ``_reconstruct``: an empty array, which its state then fills."""

    __slots__ = ()

    def __call__(self, kind: type, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
        if kind is not np.ndarray or shape != (0,):
            raise pickle.UnpicklingError("it holds an array of an unknown kind")
        return np.ndarray((0,), np.int8)


class _Scalar:
    """Stands for NumPy's ``scalar``: one number, from its bytes."""

    __slots__ = ()

    def __call__(self, kind: np.dtype[Any], data: bytes | str = b"") -> Any:
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(kind, np.dtype) or kind.hasobject or len(raw) != kind.itemsize:
            raise pickle.UnpicklingError("it holds a number of an unknown kind")
        return np.frombuffer(raw, kind)[0]


class _FromBuffer:
    """Stands for NumPy's ``_frombuffer``: a whole array, as protocol 5 writes it."""

    __slots__ = ()

    def __call__(
        self, data: bytes | bytearray, kind: np.dtype[Any], shape: tuple[int, ...], order: str
    ) -> np.ndarray:
        if not isinstance(kind, np.dtype) or kind.hasobject or order not in ("C", "F"):
            raise pickle.UnpicklingError("it holds an array of an unknown kind")
        return np.frombuffer(data, kind).reshape(shape, order="C" if order == "C" else "F").copy()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Encode(),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
} | {
    (f"numpy.{core}.multiarray", name): stand_in
    for core in ("core", "_core")
    for name, stand_in in (("_reconstruct", _Empty()), ("scalar", _Scalar()))
}
_ADMITTED |= {(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer() for core in ("core", "_core")}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only arrays are read"
            ) from None


def load_arrays(file: IO[bytes]) -> Any:
    """Read a pickle of NumPy arrays, numbers, texts and plain containers.

    Pickles of Python 2 are read too, their texts as Latin-1.

    Raises:
        pickle.UnpicklingError: if anything else is in it; other errors of ``pickle`` if it is
            damaged.
    """
    return _Arrays(file, encoding="latin1").load()
