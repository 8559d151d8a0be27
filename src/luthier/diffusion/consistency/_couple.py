"""Couplings of images and noise: a learned encoder of the noise that suits an image, and the cheapest pairing of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNIT = math.log(math.e - 1)
"""softplus of this is 1."""


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), channels and size kept."""

    def __init__(self, width: int, side: int, dilation: int) -> None:
        """side: of the kernels; dilation: of the first of them."""
        super().__init__()
        self.first = nn.Conv2d(width, width, side, padding="same", dilation=dilation)
        self.second = nn.Conv2d(width, width, side, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same shape."""
        return x + self.second(F.silu(self.first(F.silu(x))))


class NoiseEncoder(nn.Module):
    """Images (B, C, H, W) -> mean and deviation of the noise that goes with each, both (B, C, H, W).

    At the start the mean is 0 and the deviation 1, whatever the image: independent noise.
    """

    def __init__(self, shape: tuple[int, ...], width: int, depth: int, seed: int) -> None:
        """shape: (C, H, W) of one image; width: channels inside; depth: residual blocks, dilated 1, 2, 4, 1, ..."""
        super().__init__()
        channels, side = shape[0], 1 if max(shape[1:]) == 1 else 3
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            blocks = [Residual(width, side, 2 ** (i % 3)) for i in range(depth)]
            self.body = nn.Sequential(nn.Conv2d(channels, width, side, padding="same"), *blocks, nn.SiLU())
            self.head = nn.Conv2d(width, 2 * channels, side, padding="same")
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            assert self.head.bias is not None
            self.head.bias.copy_(torch.tensor([0.0] * channels + [UNIT] * channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, deviation)."""
        mean, raw = self.head(self.body(x)).chunk(2, 1)
        return mean, F.softplus(raw)


def kl_to_normal(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(0, 1)) in nats, summed over the numbers of a row: (B, ...) twice -> (B,).

    >>> kl_to_normal(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2))
    tensor([0.5000])
    """
    return ((mean.square() + deviation.square() - 1) / 2 - deviation.log()).flatten(1).sum(1)


def transported(image: Tensor, noise: Tensor) -> Tensor:
    """The rows of noise (B, ...) in the order that makes the summed squared distance to the images (B, ...) least.

    The order is the same for any scale of the noise.
    """
    from scipy.optimize import linear_sum_assignment

    gain = image.flatten(1).double() @ noise.flatten(1).double().T
    _, order = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
    return noise[torch.as_tensor(order, device=noise.device)]
