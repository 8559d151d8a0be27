"""Denoisers that are exactly right: a Gaussian mixture on a path, shared by claims on guidance."""

from __future__ import annotations

from torch import Tensor

from luthier.core import NoisePath
from luthier.diffusion.schedules._path import Condition, Predictor
from luthier.lab.micro.mixture import Mixture


def denoiser_of(world: Mixture, path: NoisePath) -> Predictor:
    """The best denoiser, of kind x0, of points (n, d) from the mixture."""

    def predict(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        at = path.level(t)
        return world.denoise(x, at.alpha, at.sigma)

    return Predictor(predict, path, "x0")
