"""Gaussian mixtures under noise: scores, best denoisers, tilts by a linear reward and distances, all in closed form.

For data x0 from sum_k w_k N(m_k, S_k) and x = alpha x0 + sigma eps, x is a mixture with means alpha m_k and covariances
alpha^2 S_k + sigma^2 I. Tilted by exp(strength a . x0) it is again a mixture: w_k exp(strength a . m_k + strength^2 a S_k a
/ 2), means m_k + strength S_k a, the same covariances. So the best answer of guidance and alignment is known.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.errors import ConfigError, sentence
from luthier.core.streams import stream


@dataclass(frozen=True)
class Mixture:
    """`weights` (k,) that sum to one, `means` (k, d), `covariances` (k, d, d), symmetric and positive definite."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        k, d = self.means.shape
        fits = self.weights.shape == (k,) and self.covariances.shape == (k, d, d)
        if not fits or bool((self.weights < 0).any()) or not math.isclose(float(self.weights.sum()), 1.0, abs_tol=1e-6):
            came = f"weights {tuple(self.weights.shape)} of sum {float(self.weights.sum()):g}, covariances {tuple(self.covariances.shape)}"
            required = f"weights ({k},) >= 0 of sum 1 and covariances ({k}, {d}, {d}) for means ({k}, {d})"
            raise ConfigError(sentence("mixture", required, came, "Make them fit"))
        if float(self._axes[0].min()) <= 0:
            least = f"a least eigenvalue of {float(self._axes[0].min()):.3g}"
            raise ConfigError(
                sentence("mixture", "positive definite covariances", least, "Add a little to the diagonal")
            )

    @classmethod
    def round(cls, means: Tensor, deviation: float, weights: Tensor | None = None) -> Mixture:
        """Round modes of one deviation, equally likely unless weights (k,) say otherwise."""
        k, d = means.shape
        even = torch.full((k,), 1 / k, dtype=means.dtype)
        return cls(
            even if weights is None else weights, means, deviation**2 * torch.eye(d, dtype=means.dtype).expand(k, d, d)
        )

    @classmethod
    def random(cls, modes: int, dimension: int, seed: int, *, spread: float = 3.0, deviation: float = 0.4,
               dtype: torch.dtype = torch.float64) -> Mixture:  # fmt: skip
        """Normal centres of this spread, random weights, random oval covariances around this deviation."""
        g = stream(seed, "lab.mixture")
        means = spread * torch.randn(modes, dimension, generator=g, dtype=dtype)
        weights = torch.rand(modes, generator=g, dtype=dtype) + 0.2
        turn = torch.linalg.qr(torch.randn(modes, dimension, dimension, generator=g, dtype=dtype)).Q
        scale = deviation * torch.exp(0.5 * torch.randn(modes, dimension, generator=g, dtype=dtype))
        return cls(weights / weights.sum(), means, turn * scale[:, None, :].square() @ turn.mT)

    @functools.cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Variances (k, d) and directions (k, d, d) of each mode."""
        value, vector = torch.linalg.eigh(self.covariances)
        return value, vector

    # ---------------------------------------------------------------- noised
    def _along(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """(x - alpha m) in each mode's axes and its variances there (n, k, d), and the log joint density (n, k)."""
        alpha, sigma = (torch.as_tensor(v, dtype=x.dtype).reshape(-1, 1, 1) for v in (alpha, sigma))
        value, vector = self._axes
        off = torch.einsum("nkd,kde->nke", x[:, None, :] - alpha * self.means, vector)
        variance = alpha.square() * value + sigma.square()
        log = -(off.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1) / 2
        return off, variance, self.weights.log() + log

    def log_density(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Natural log of the density of alpha x0 + sigma eps at x (n, d); alpha, sigma numbers or (n,) -> (n,)."""
        return self._along(x, alpha, sigma)[2].logsumexp(-1)

    def posterior(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Probability of each mode given x (n, d) -> (n, k)."""
        return self._along(x, alpha, sigma)[2].softmax(-1)

    def score(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Gradient of the log density at x (n, d) -> (n, d)."""
        off, variance, log = self._along(x, alpha, sigma)
        return -torch.einsum("nk,nke,kde->nd", log.softmax(-1), off / variance, self._axes[1])

    def denoise(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | x], the best denoiser of x0, at x (n, d) -> (n, d)."""
        off, variance, log = self._along(x, alpha, sigma)
        scale = torch.as_tensor(alpha, dtype=x.dtype).reshape(-1, 1, 1)
        moved = torch.einsum("nke,kde->nkd", scale * self._axes[0] * off / variance, self._axes[1])
        return (log.softmax(-1)[..., None] * (self.means + moved)).sum(1)

    # ----------------------------------------------------------------- truth
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points (n, d) and the mode of each (n,)."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        value, vector = self._axes
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[mode] + torch.einsum("nde,ne->nd", vector[mode], value[mode].sqrt() * z), mode

    def tilted(self, direction: Tensor, strength: float = 1.0) -> Mixture:
        """The mixture proportional to p(x0) exp(strength direction . x0); direction (d,)."""
        pull = self.covariances @ direction
        log = self.weights.log() + strength * self.means @ direction + strength**2 * pull @ direction / 2
        return Mixture(log.softmax(0), self.means + strength * pull, self.covariances)

    def only(self, modes: Tensor) -> Mixture:
        """The mixture of these modes (an index) alone: what a condition leaves."""
        return Mixture(self.weights[modes] / self.weights[modes].sum(), self.means[modes], self.covariances[modes])

    @property
    def mean(self) -> Tensor:
        """The mean (d,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance (d, d): within the modes and between them."""
        off = self.means - self.mean
        return torch.einsum("k,kde->de", self.weights, self.covariances + off[:, :, None] * off[:, None, :])

    def assign(self, x: Tensor, radius: float = 3.0) -> Tensor:
        """The likeliest mode of each point (n,), or -1 where its distance from that mode exceeds `radius` deviations."""
        off, variance, log = self._along(x, 1.0, 0.0)
        mode = log.argmax(-1)
        far = (off.square() / variance).sum(-1).sqrt().gather(1, mode[:, None])[:, 0]
        return mode.masked_fill(far > radius, -1)


def covered(mode: Tensor) -> int:
    """How many different modes have a point; -1 counts for none."""
    return len(set(mode.tolist()) - {-1})


def mmd(x: Tensor, y: Tensor, length: float = 1.0) -> float:
    """Unbiased squared maximum mean discrepancy of samples (n, d), (m, d) under exp(-|x - y|^2 / (2 length^2)).

    Around 0 for equal distributions, also a little below it.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * length**2))

    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ConfigError(sentence("mmd", "two points on either side", f"{n} and {m}", "Draw more"))
    within = (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def mmd_to(x: Tensor, truth: Mixture, length: float = 1.0) -> float:
    """Squared discrepancy between samples (n, d) and the mixture itself, whose expectations are exact; unbiased in x."""
    d, spread = x.shape[1], length**2 * torch.eye(x.shape[1], dtype=x.dtype)
    scale = d / 2 * math.log(2 * math.pi) + d * math.log(length)  # the kernel is a normal density times exp(scale)
    blurred = Mixture(truth.weights, truth.means, truth.covariances + spread)
    cross = (blurred.log_density(x) + scale).exp().mean()
    own = sum(truth.weights[k] * (Mixture(truth.weights, truth.means, truth.covariances + truth.covariances[k] + spread)
              .log_density(truth.means[k : k + 1]) + scale).exp()[0] for k in range(len(truth.weights)))  # fmt: skip
    n = len(x)
    pairs = torch.exp(-torch.cdist(x, x).square() / (2 * length**2))
    return float((pairs.sum() - n) / (n * (n - 1)) - 2 * cross + own)
