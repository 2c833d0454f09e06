"""Lets `uv sync` install detectron2 on a machine that has no compiler.

detectron2's source distribution on PyPI declares a C++ and CUDA extension but does not carry its
sources, so building it fails. Nothing normbench uses needs that extension. setuptools calls every
entry point in the group `setuptools.finalize_distribution_options` for each distribution it
builds; ours empties the list of extensions. uv puts this package into the build environment of
pb1-detectron2 alone: see `[tool.uv.extra-build-dependencies]` in pyproject.toml.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setuptools import Distribution


def drop_extensions(distribution: Distribution) -> None:
    """Make setuptools treat `distribution` as pure Python."""
    distribution.ext_modules = None
