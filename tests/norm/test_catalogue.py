import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import normbench
from harness.errors import UsageError
from harness.norm import catalogue
from harness.norm.catalogue import NORMS, WS_VARIANTS, load_factory, parse_norm


@pytest.mark.parametrize(
    ("name", "layer", "ws"),
    [
        ("bn", "bn", None),
        ("gn_ws", "gn", "authors"),
        ("frozen_bn", "frozen_bn", None),
        ("frozen_bn_ws", "frozen_bn", "authors"),
        ("none_ws", "none", "scaled"),
        ("none", "none", None),
        ("evonorm_s0_ws", "evonorm_s0", "authors"),
        ("bcn_ws", "bcn", "bcn"),
    ],
)
def test_grammar(name: str, layer: str, ws: str | None):
    assert parse_norm(name) == {"layer": layer, "ws": ws}


@pytest.mark.parametrize(
    ("name", "hint"), [("gnws", "gn_ws"), ("gn-ws", "gn_ws"), ("frozenbn", "frozen_bn")]
)
def test_unknown_names_get_a_hint(name: str, hint: str):
    with pytest.raises(UsageError, match=f"unknown norm '{name}'. Did you mean '{hint}'"):
        parse_norm(name)
    for hopeless in ("_ws", "", "gn_ws_ws", "x"):
        with pytest.raises(UsageError, match="Norms: bn, bn_ws, gn"):
            parse_norm(hopeless)


def test_every_entry_is_complete():
    for name, info in NORMS.items():
        assert name == info.name
        assert info.title
        assert info.paper
        assert info.statistics
        assert info.default_ws in WS_VARIANTS
        assert callable(load_factory(info))
        claims = (info.train_is_eval, info.shift_invariant, info.scale_invariant)
        assert all(claim is not None for claim in claims)
        assert info.short_for in ("", "sync", "ghost")
        assert info.batch_independent is not info.uses_batch_norm or name in ("brn", "est_bcn")
    assert all(name == variant.name for name, variant in WS_VARIANTS.items())


def test_other_packages_add_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mynorms.py").write_text(
        "from torch import nn\n"
        "from harness.norm.catalogue import NormInfo\n"
        "INFO = NormInfo('two', 'GN(2)', 'none', True, 'halves', 'mynorms:build')\n"
        "def build(bn, *, dims, groups):\n"
        "    return nn.GroupNorm(2, bn.num_features)\n"
    )
    info = tmp_path / "mynorms-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mynorms\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[normbench.norms]\ntwo = mynorms:INFO\nodd = mynorms:build\nbn = mynorms:INFO\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    catalogue._foreign_norms.cache_clear()
    try:
        assert "two" in NORMS
        assert list(NORMS).count("bn") == 1
        assert len(NORMS) == len(NORMS._own) + 2
        assert "mynorms" not in sys.modules
        assert parse_norm("two_ws") == {"layer": "two", "ws": "authors"}
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        assert normbench.convert(model, "two_ws").num_standardised == 1
        assert model[1].num_groups == 2
        assert NORMS["bn"].title == "batch normalisation"
        with pytest.raises(UsageError, match=r"'odd' of normbench.norms \(mynorms:build\)"):
            parse_norm("odd_ws")
    finally:
        catalogue._foreign_norms.cache_clear()
        sys.modules.pop("mynorms", None)


def test_catalogue_audit_and_facade_import_no_torch():
    code = (
        "import sys, normbench, harness.norm.audit, harness.norm.catalogue as c\n"
        "dir(normbench), list(c.NORMS), c.parse_norm('gn_ws')\n"
        "heavy = {'torch', 'numpy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_facade():
    assert set(normbench.__all__) <= set(dir(normbench))
    for name in normbench.__all__:
        assert getattr(normbench, name).__name__ == name
    layer = normbench.WSConv2d(3, 4, 1)
    torch.testing.assert_close(
        layer.standardized_weight(), normbench.standardize_weight(layer.weight)
    )
    with pytest.raises(AttributeError, match="no attribute 'flod'"):
        _ = normbench.flod
