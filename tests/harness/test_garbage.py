"""The search for cycles is left out inside the block, and goes on as before after it."""

from __future__ import annotations

import gc

import pytest

from harness.garbage import only_growing


@only_growing()
def fail() -> None:
    raise KeyError(gc.isenabled())


@pytest.mark.parametrize("enabled", [True, False])
def test_the_search_is_as_before_even_after_an_error(enabled: bool):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(KeyError, match="False"):
            fail()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
