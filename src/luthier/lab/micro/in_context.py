"""Regression in context: tasks come from a few known ones or from a Gaussian, and the best prediction is known for every prefix.

A prompt is x_1, y_1, ..., x_k, y_k, x_q with y = w . x + noise, x ~ N(0, I). The task w is one of `tasks` with probability
`share`, else w ~ N(0, I). Best predictions (arXiv 2309.10105): of the few tasks, the mean under their posterior; of the
Gaussian, ridge regression with penalty noise^2; of the mixture, both weighted by the posterior odds of the two priors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from luthier.core.errors import ConfigError, sentence
from luthier.core.streams import stream


@dataclass(frozen=True)
class InContextWorld:
    """`tasks` (T, d); `noise` deviation of y, above 0; `share` of prompts from the few tasks."""

    tasks: Tensor
    noise: float = 0.5
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.tasks.ndim != 2 or self.noise <= 0 or not 0 <= self.share <= 1:
            came = f"tasks {tuple(self.tasks.shape)}, noise {self.noise}, share {self.share}"
            required = "tasks (T, d), noise > 0 and a share in [0, 1]"
            raise ConfigError(sentence("in-context world", required, came, "Correct them"))

    @classmethod
    def random(cls, count: int, inputs: int, seed: int, noise: float = 0.5, share: float = 0.5) -> InContextWorld:
        """`count` tasks drawn from the same Gaussian."""
        g = stream(seed, "lab.in_context")
        return cls(torch.randn(count, inputs, generator=g, dtype=torch.float64), noise, share)

    def sample(self, n: int, length: int, g: Generator, share: float | None = None) -> tuple[Tensor, Tensor]:
        """x (n, length, d) and y (n, length); share: of prompts from the few tasks, the world's own if None."""
        count, d = self.tasks.shape
        few = torch.rand(n, generator=g) < (self.share if share is None else share)
        fixed = self.tasks[torch.randint(count, (n,), generator=g)]
        w = torch.where(few[:, None], fixed, torch.randn(n, d, generator=g, dtype=torch.float64))
        x = torch.randn(n, length, d, generator=g, dtype=torch.float64)
        error = torch.randn(n, length, generator=g, dtype=torch.float64)
        return x, (x @ w[..., None])[..., 0] + self.noise * error

    def discrete(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Best prediction (n,) at query (n, d) if the task is one of the few: their posterior mean."""
        weight = self._few_log_likelihood(x, y).softmax(-1)
        return ((weight @ self.tasks) * query).sum(-1)

    def ridge(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Best prediction (n,) if w ~ N(0, I): ridge regression on x (n, k, d), y (n, k)."""
        gram = x.mT @ x + self.noise**2 * torch.eye(x.shape[-1], dtype=x.dtype)
        w = torch.linalg.solve(gram, (x.mT @ y[..., None])[..., 0])
        return (w * query).sum(-1)

    def best(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Best prediction (n,) under the mixture of both priors."""
        p = self.belief(x, y)
        return p * self.discrete(x, y, query) + (1 - p) * self.ridge(x, y, query)

    def belief(self, x: Tensor, y: Tensor) -> Tensor:
        """Posterior probability (n,) that the task is one of the few."""
        few = self._few_log_likelihood(x, y).logsumexp(-1) - math.log(len(self.tasks))
        gaussian = self._gaussian_log_likelihood(x, y)
        prior = torch.logit(torch.tensor(self.share, dtype=x.dtype))
        return torch.sigmoid(prior + few - gaussian)

    def _few_log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x, task) of each task, (n, T)."""
        miss = y[..., None] - x @ self.tasks.T
        constant = y.shape[-1] * math.log(self.noise * math.sqrt(2 * math.pi))
        return -miss.square().sum(-2) / (2 * self.noise**2) - constant

    def _gaussian_log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x) with w integrated out: y ~ N(0, x x^T + noise^2 I), (n,)."""
        k = y.shape[-1]
        covariance = x @ x.mT + self.noise**2 * torch.eye(k, dtype=x.dtype)
        lower = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(lower, y[..., None], upper=False)[..., 0]
        log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (white.square().sum(-1) + log_det + k * math.log(2 * math.pi))
