"""Batch renormalisation, batch-channel, ghost and synchronised batch norm, forward by forward."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import UsageError
from harness.norm.batch_renorm import BatchRenorm
from harness.norm.surgery import convert
from harness.norm.virtual import VirtualBatchNorm2d
from tests.norm.nets import net_2d, randomise_norms
from tests.norm.references import group_norm
from tests.norm.switching import norm_of

Array = np.ndarray
WIDTH, GROUPS = 8, 4


def inputs(num: int, shape: tuple[int, ...] = (4, WIDTH, 3, 2)) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64) * (1 + i) + i for i in range(num)]


def as_column(values: Array) -> Array:
    return values.reshape(-1, 1, 1)


class RenormByHand:
    """Algorithm 1 of the paper in NumPy, with the variance as the running average."""

    def __init__(self, bn: nn.BatchNorm2d, forwards: int) -> None:
        self.mean, self.var = (b.clone().numpy() for b in (bn.running_mean, bn.running_var))
        self.gamma, self.beta = (p.detach().numpy() for p in (bn.weight, bn.bias))
        self.eps, self.alpha, self.forwards = bn.eps, bn.momentum, forwards

    def __call__(self, x: Array) -> Array:
        r_max = np.interp(self.forwards, [5_000, 40_000], [1, 3])
        d_max = np.interp(self.forwards, [5_000, 25_000], [0, 5])
        out = np.empty_like(x)
        for c in range(x.shape[1]):
            part, sigma = x[:, c], math.sqrt(self.var[c] + self.eps)
            mean_b, sigma_b = part.mean(), math.sqrt(part.var() + self.eps)
            r = np.clip(sigma_b / sigma, 1 / r_max, r_max)
            d = np.clip((mean_b - self.mean[c]) / sigma, -d_max, d_max)
            out[:, c] = self.gamma[c] * ((part - mean_b) / sigma_b * r + d) + self.beta[c]
            self.mean[c] += self.alpha * (mean_b - self.mean[c])
            self.var[c] += self.alpha * (part.var(ddof=1) - self.var[c])
        self.forwards += 1
        return out


@pytest.mark.parametrize("forwards", [0, 4_999, 5_001, 15_000, 24_998, 32_000, 90_000])
def test_batch_renorm_follows_the_papers_algorithm(forwards: int):
    bn = randomise_norms(nn.BatchNorm2d(WIDTH, eps=1e-3, momentum=0.05, dtype=torch.float64))
    bn.num_batches_tracked.fill_(forwards)
    expected, norm = RenormByHand(bn, forwards), norm_of(copy.deepcopy(bn), "brn")
    for x in inputs(4):
        np.testing.assert_allclose(norm(x).detach(), expected(x.numpy()), rtol=0, atol=1e-10)
    np.testing.assert_allclose(norm.running_mean, expected.mean)
    np.testing.assert_allclose(norm.running_var, expected.var)
    assert norm.num_batches_tracked == expected.forwards


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_renorm_begins_as_batch_norm(momentum: float | None):
    bn = randomise_norms(nn.BatchNorm2d(WIDTH, momentum=momentum, dtype=torch.float64))
    norm = norm_of(copy.deepcopy(bn), "brn")
    for x in inputs(3):
        mine, theirs = (x.clone().requires_grad_() for _ in range(2))
        for module, leaf in ((norm, mine), (bn, theirs)):
            module(leaf).sin().sum().backward()
        torch.testing.assert_close(norm(x), bn(x))
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert norm.state_dict().keys() == bn.state_dict().keys()
    for key, value in bn.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key], value)
    torch.testing.assert_close(norm.eval()(x), bn.eval()(x))


def test_corrections_of_batch_renorm_are_constants_for_the_gradient():
    norm = BatchRenorm(1).double()
    norm.num_batches_tracked.fill_(10**6)
    norm.running_mean.fill_(0.3)
    x = torch.randn(16, 1, 2, dtype=torch.float64, requires_grad=True)
    r, d = copy.deepcopy(norm)._corrections(x.detach())
    by_hand = (x - x.mean()) / (x.var(correction=0) + norm.eps).sqrt() * r + d
    (expected,) = torch.autograd.grad(by_hand.sin().sum(), x)
    (found,) = torch.autograd.grad(norm(x).sin().sum(), x)
    torch.testing.assert_close(found, expected)


def test_batch_renorm_cannot_train_on_single_values():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_of(nn.BatchNorm2d(WIDTH), "brn")(torch.randn(1, WIDTH, 1, 1))


def with_group_affine(norm: nn.Module) -> tuple[Array, Array]:
    nn.init.normal_(norm.channel.weight, 1, 0.3)
    nn.init.normal_(norm.channel.bias, 0, 0.3)
    affine = (norm.channel.weight, norm.channel.bias)
    weight, bias = (np.repeat(p.detach().numpy(), WIDTH // GROUPS) for p in affine)
    return weight, bias


def test_batch_channel_norm_is_batch_norm_then_group_norm():
    bn = randomise_norms(nn.BatchNorm2d(WIDTH, eps=1e-3, dtype=torch.float64))
    norm = norm_of(copy.deepcopy(bn), "bcn", GROUPS)
    affine = with_group_affine(norm)
    for x in (*inputs(3), None):
        if x is None:
            norm.eval(), bn.eval()
            x = inputs(1)[0]
        expected = group_norm(bn(x).detach().numpy(), GROUPS, *affine)
        np.testing.assert_allclose(norm(x).detach(), expected, rtol=0, atol=1e-10)
    assert norm.channel.weight.shape == (GROUPS,)
    assert norm.num_groups == GROUPS


def test_estimated_statistics_move_before_they_are_used():
    """The variance is taken around the old mean; both estimates are constants for the gradient."""
    bn = randomise_norms(nn.BatchNorm2d(WIDTH, eps=1e-3, momentum=0.2, dtype=torch.float64))
    norm = norm_of(copy.deepcopy(bn), "est_bcn", GROUPS)
    affine = with_group_affine(norm)
    mean, var = bn.running_mean.numpy().copy(), bn.running_var.numpy().copy()
    gamma, beta = (as_column(p.detach().numpy()) for p in (bn.weight, bn.bias))
    for training in (True, True, True, False):
        norm.train(training)
        x = inputs(3)[2]
        if training:
            over = (0, 2, 3)
            old = mean
            mean = 0.8 * old + 0.2 * x.numpy().mean(over)
            var = 0.8 * var + 0.2 * ((x.numpy() - as_column(old)) ** 2).mean(over)
        first = (x.numpy() - as_column(mean)) / np.sqrt(as_column(var) + 1e-3) * gamma + beta
        expected = group_norm(first, GROUPS, *affine)
        np.testing.assert_allclose(norm(x).detach(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(norm.batch.running_mean, mean)
    np.testing.assert_allclose(norm.batch.running_var, var)
    leaf = x.clone().requires_grad_()
    norm.train().batch(leaf).sum().backward()
    slope = 1 / np.sqrt(norm.batch.running_var.numpy() + 1e-3)
    np.testing.assert_allclose(leaf.grad, np.broadcast_to(as_column(slope), x.shape))


def test_estimates_allow_several_forwards_before_the_backward():
    norm = norm_of(nn.BatchNorm2d(WIDTH), "est_bcn", GROUPS)
    x = torch.randn(2, WIDTH, 3, 3, requires_grad=True)
    (norm(x) + norm(2 * x) + norm(x - 1)).square().sum().backward()
    assert x.grad.isfinite().all()


def test_ghost_bn_normalises_each_ghost_batch_by_itself():
    bn = randomise_norms(nn.BatchNorm2d(WIDTH, dtype=torch.float64))
    model = nn.Sequential(nn.Conv2d(2, WIDTH, 1), copy.deepcopy(bn))
    audit = convert(model, "ghost_bn_ws", stat_batch=2)
    ghost = model[1]
    assert isinstance(ghost, VirtualBatchNorm2d)
    assert (audit.rows[1].norm_before, audit.rows[1].norm_after) == ("bn", "ghost_bn")
    x = inputs(1, (5, WIDTH, 3, 2))[0]
    expected = torch.cat([bn(part) for part in x.split(2)])
    torch.testing.assert_close(ghost(x), expected)
    for key, value in bn.state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[key], value)
    torch.testing.assert_close(ghost.eval()(x), bn.eval()(x))


def test_ghost_bn_must_know_its_size():
    for kwargs in ({}, {"stat_batch": 0}):
        with pytest.raises(UsageError, match="ghost_bn"):
            convert(net_2d(), "ghost_bn", **kwargs)
    with pytest.raises(UsageError, match="stat_batch=2: needs ghost_bn"):
        convert(net_2d(), "bn", stat_batch=2)


def test_sync_bn_is_bn_on_one_device():
    model = randomise_norms(net_2d())
    stock = copy.deepcopy(model)
    convert(model, "sync_bn")
    assert isinstance(model[1], nn.SyncBatchNorm)
    x = torch.randn(3, 3, 5, 5)
    torch.testing.assert_close(model(x), stock(x))
    for key, value in stock.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)
