"""Small stock models for the surgery tests."""

import torch
from torch import nn


class FusedAct(nn.BatchNorm2d):
    """A batch norm that calls its children afterwards, as timm's does."""

    __module__ = "timm.layers.norm_act"

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.drop = nn.Identity()
        self.act = nn.PReLU(num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


class Small(nn.Module):
    """Two normed convolutions, one of them depthwise, a bare one and a bare head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.mix = nn.Conv2d(8, 8, 1)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mix(self.relu(self.bn1(self.conv1(x))))
        return self.head(self.branch(x).mean((2, 3)))


SMALL_BARE = ("mix", "head")


class SharedNorm(nn.Module):
    """Norms registered before the layers, then again inside them, as the PyTorch DGCNN has it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(8)
        self.bn2 = nn.BatchNorm1d(4)
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), self.bn1, nn.LeakyReLU(0.2))
        self.conv2 = nn.Sequential(nn.Conv1d(8, 4, 1, bias=False), self.bn2, nn.LeakyReLU(0.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x).amax(3))


def net_1d() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 1, groups=2),
        nn.BatchNorm1d(8),
    )  # fmt: skip


def net_2d() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2),
        nn.BatchNorm2d(4),
    )  # fmt: skip


def net_3d() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(2, 8, 2), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 1), nn.BatchNorm3d(4)
    )


def net_flat() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4)
    )


# name: (builder, shape of an input with a batch of 3)
NETS = {
    "1d": (net_1d, (3, 3, 5)),
    "2d": (net_2d, (3, 3, 5, 6)),
    "3d": (net_3d, (3, 2, 4, 3, 4)),
    "flat": (net_flat, (3, 6)),
}


def randomise_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm a gamma, beta and running averages that cannot be mistaken."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked.fill_(7)
    return model
