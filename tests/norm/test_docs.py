"""docs/norms.md names every norm and every variant, and nothing that is not there."""

import re
from pathlib import Path

from harness.norm.catalogue import NORMS, WS_VARIANTS

PAGE = Path(__file__).parents[2] / "docs" / "norms.md"


def test_the_catalogue_is_documented():
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert rows - {"channels_last"} == {*NORMS._own, *WS_VARIANTS}
