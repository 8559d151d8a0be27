"""Gaussian data N(m, c^2): the best denoiser, the exact ODE map and slow formulas of every sampler, in plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import NoisePath
from luthier.diffusion.schedules._kinds import Kind, from_x0
from luthier.diffusion.schedules._path import Predictor, level
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.ve import VE
from luthier.diffusion.schedules.vp import VP
from luthier.diffusion.schedules.vp_table import VPTable

F64 = torch.float64
PATHS: dict[str, NoisePath] = {
    "flow": Flow(),
    "ve": VE(),
    "vp": VP(),
    "cosine": VP(schedule="cosine"),
    "table": VPTable(steps=20_000, beta_start=5e-6, beta_end=1e-3),
}
SPAN = {"flow": (0.9, 0.1), "ve": (5.0, 0.2), "vp": (0.8, 0.1), "cosine": (0.9, 0.1), "table": (0.8, 0.1)}
KINDS: tuple[Kind, ...] = ("x0", "eps", "v", "velocity")


@dataclass(frozen=True)
class Gaussian:
    """Data of mean m and deviation c."""

    m: float = 0.7
    c: float = 0.6

    def clean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x]."""
        return self.m + self.c**2 * alpha * (x - alpha * self.m) / (alpha**2 * self.c**2 + sigma**2)

    def denoiser(self, path: NoisePath, kind: Kind) -> Predictor:
        """The best denoiser of this kind."""

        def predict(x: Tensor, t: Tensor, condition: object) -> Tensor:
            at = level(path, t, x)
            return from_x0(x, self.clean(x, at.alpha, at.sigma), at, kind)

        return Predictor(predict, path, kind)

    def consistency(self, path: NoisePath, kind: Kind) -> Predictor:
        """The exact map to t = 0, as a clean estimate."""

        def predict(x: Tensor, t: Tensor, condition: object) -> Tensor:
            at = level(path, t, x)
            spread = (at.alpha**2 * self.c**2 + at.sigma**2).sqrt()
            return from_x0(x, self.m + self.c / spread * (x - at.alpha * self.m), at, kind)

        return Predictor(predict, path, kind)

    def flow(self, path: NoisePath, x: Tensor, t: float, s: float) -> Tensor:
        """The exact ODE map from t to s."""
        (a, b), (p, q) = numbers(path, t)[:2], numbers(path, s)[:2]
        ratio = math.sqrt((p**2 * self.c**2 + q**2) / (a**2 * self.c**2 + b**2))
        return p * self.m + ratio * (x - a * self.m)


def numbers(path: NoisePath, t: float) -> tuple[float, float, float, float]:
    """alpha, sigma and their derivatives by automatic differentiation of the first two."""
    time = torch.tensor(t, dtype=F64, requires_grad=True)
    at = path.level(time)
    out = []
    for part in (at.alpha, at.sigma):
        (slope,) = torch.autograd.grad(part, time, retain_graph=True) if part.requires_grad else (torch.zeros(()),)
        out.append((float(part.detach()), float(slope)))
    return out[0][0], out[1][0], out[0][1], out[1][1]


def posterior(path: NoisePath, t: float, s: float, x: float, x0: float) -> tuple[float, float]:
    """Mean and variance of x_s given x_t and x0, by adding precisions."""
    (a, b), (p, q) = numbers(path, t)[:2], numbers(path, s)[:2]
    step = a / p
    noise = b**2 - step**2 * q**2
    precision = 1 / q**2 + step**2 / noise
    return (p * x0 / q**2 + step * x / noise) / precision, 1 / precision


def velocity(path: NoisePath, data: Gaussian, x: float, t: float) -> float:
    """The ODE's slope at x."""
    a, b, da, db = numbers(path, t)
    x0 = float(data.clean(torch.tensor(x, dtype=F64), torch.tensor(a, dtype=F64), torch.tensor(b, dtype=F64)))
    return da * x0 + db * (x - a * x0) / b


def expected(name: str, path: NoisePath, data: Gaussian, x: float, z: float, t: float, s: float) -> float:
    """One step of a sampler, written out: `x` at t with noise `z`."""
    (a, b, da, db), (p, q, _, _) = numbers(path, t), numbers(path, s)
    x0 = float(data.clean(torch.tensor(x, dtype=F64), torch.tensor(a, dtype=F64), torch.tensor(b, dtype=F64)))
    eps = (x - a * x0) / b
    mean, variance = posterior(path, t, s, x, x0)
    gain = math.log(p / q) - math.log(a / b)
    g2 = 2 * b * db - 2 * da / a * b * b
    match name:
        case "ddim" | "euler_ratio" | "dpmpp_2m":
            return p * x0 + q * eps
        case "ddim_half":
            n = 0.5 * math.sqrt(variance)
            return p * x0 + math.sqrt(q * q - n * n) * eps + n * z
        case "ddpm" | "ddim_one":
            return mean + math.sqrt(variance) * z
        case "ddpm_large":
            return mean + math.sqrt(b * b - (a / p * q) ** 2) * z
        case "euler":
            return x + (s - t) * (da * x0 + db * eps)
        case "heun":
            k1 = velocity(path, data, x, t)
            return x + (s - t) * (k1 + velocity(path, data, x + (s - t) * k1, s)) / 2
        case "heun_ratio":
            length = q / p - b / a
            ahead = p * (x / a + length * eps)
            second = float(
                data.clean(torch.tensor(ahead, dtype=F64), torch.tensor(p, dtype=F64), torch.tensor(q, dtype=F64))
            )
            return p * (x / a + length * (eps + (ahead - p * second) / q) / 2)
        case "consistency":
            return p * x0 + q * z
        case "tcd":
            c, d = numbers(path, 0.7 * s)[:2]
            return p / c * (c * x0 + d * eps) + math.sqrt(q * q - (p / c * d) ** 2) * z
        case "flow_sde":
            keep = math.exp(-0.25 * gain)
            return p * x0 + q * (keep * eps + math.sqrt(1 - keep**2) * z)
        case "flow_sde_euler":
            drift = da * x0 + db * eps + 0.25 * g2 / (2 * b) * eps
            return x + (s - t) * drift + math.sqrt(0.25 * g2 * (t - s)) * z
    raise KeyError(name)
