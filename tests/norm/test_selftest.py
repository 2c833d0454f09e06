"""``normbench selftest``: what is true passes, what is not is named."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from harness.errors import AuditError, UsageError
from harness.norm.catalogue import NORMS, NormInfo
from harness.selftest import examine, parse_words, selftest

CONSOLE = Console(quiet=True)


class Careless(nn.GroupNorm):
    """A group norm with an undeclared parameter, whose gradient is not finite at 0."""

    def __init__(self, num_features: int) -> None:
        super().__init__(1, num_features)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x / x.square().sum(dim=(1, 2, 3), keepdim=True).sqrt())


def careless(bn: nn.Module, *, dims: int, groups: int) -> nn.Module:
    return Careless(bn.num_features)


class Forgetful(nn.GroupNorm):
    """A group norm whose behaviour depends on something that is not saved."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = getattr(self, "seen", 0) + 1
        return super().forward(x) + self.seen


def forgetful(bn: nn.Module, *, dims: int, groups: int) -> nn.Module:
    return Forgetful(1, bn.num_features)


def test_every_own_norm_is_what_it_declares():
    for name in NORMS:
        report = examine(name)
        assert report.failures == []
        assert len(report.cells) == 10


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("bn", {"batch_independent": True}),
        ("gn", {"batch_independent": False}),
        ("bn", {"train_is_eval": True}),
        ("frn", {"shift_invariant": True}),
        ("dyt", {"scale_invariant": True}),
        ("ln", {"shift_invariant": False}),
    ],
)
def test_untrue_claims_are_refuted(name: str, claim: dict[str, bool], monkeypatch):
    monkeypatch.setitem(NORMS._own, name, replace(NORMS[name], **claim))
    (what, value), *_ = claim.items()
    with pytest.raises(AuditError, match=f"^{name} declares {what}={value}, but the difference is"):
        selftest([name], CONSOLE)


def test_claims_left_out_are_measured_only(monkeypatch):
    bare = replace(NORMS["gn"], train_is_eval=None, shift_invariant=None, scale_invariant=None)
    monkeypatch.setitem(NORMS._own, "gn", bare)
    report = examine("gn")
    assert report.failures == []
    assert report.cells["train = eval"] == "0"


def declared(function: str, **more: object) -> NormInfo:
    return NormInfo(function, "", "", True, "", factory=f"{__name__}:{function}", **more)


def test_broken_norms_are_named(monkeypatch):
    monkeypatch.setitem(NORMS._own, "careless", declared("careless"))
    (failure,) = examine("careless").failures
    assert failure.startswith("careless: AuditError: the parameter 1.gain is new")
    monkeypatch.setitem(NORMS._own, "careless", declared("careless", own_parameters=("gain",)))
    failures = " ".join(examine("careless").failures)
    assert "a gradient on degenerate inputs is not finite" in failures
    monkeypatch.setitem(NORMS._own, "forgetful", declared("forgetful"))
    failures = " ".join(examine("forgetful").failures)
    assert "a loaded state dict gives other outputs" in failures


def test_words():
    assert parse_words([]) == []
    assert parse_words(["norm=gn_ws,gn,bn", "norm=in"]) == ["gn", "bn", "in"]
    with pytest.raises(UsageError, match="takes norm=NAME only"):
        parse_words(["seed=1"])
    with pytest.raises(UsageError, match="Did you mean 'gn'"):
        parse_words(["norm=gm"])
