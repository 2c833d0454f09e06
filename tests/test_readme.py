"""What README.md shows as Python runs as it stands."""

from pathlib import Path

import pytest
import torch

from tests.markdown import code_blocks

README = Path(__file__).parents[1] / "README.md"


def test_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]):
    (code,) = code_blocks(README, "python")
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(code, str(README), "exec"), names)
    assert capsys.readouterr().out.startswith(
        "53 norm sites (gn, groups=32); 53 layers standardised"
    )
    program, model = names["program"], names["model"]
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(program.module()(x), model(x))
    assert not any("vector_norm" in str(node.target) for node in program.graph.nodes)
    assert type(names["layer"]).__name__ == "WSConv2d"


def test_pages_that_the_readme_names_exist():
    text = README.read_text(encoding="utf-8")
    for page in ("docs/norms.md", "docs/adding-a-norm.md"):
        assert f"]({page})" in text
        assert (README.parent / page).is_file()
