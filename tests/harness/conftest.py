"""What the tests of several faults compare with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.record import Record, read_record
from tests.harness.sittings import prepared, sit


@pytest.fixture
def whole(toy, tmp_path_factory) -> Callable[..., Record]:
    def make(*words: str) -> Record:
        run = prepared(tmp_path_factory.mktemp("whole"), *words)
        assert sit(run) == (0, None)
        return read_record(run.record)

    return make
