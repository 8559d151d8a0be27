"""Rewards distorted in a stated way, and annotators of stated bias and noise whose best possible imitator is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from luthier.core.errors import ConfigError, DataError, sentence

Rows = Sequence[Mapping[str, Any]]
Utility = Callable[[Rows, Any], Tensor]
"""(rows, images or texts) -> (N,), higher is better."""


@dataclass(frozen=True)
class Distorted:
    """min(true, ceiling) + weight * liking: a reward that goes wrong in a known way when it is pushed.

    `true` and `liking` are utilities; below the ceiling and at weight 0 it is the true one.
    """

    true: Utility
    liking: Utility
    weight: float = 1.0
    ceiling: float = math.inf

    def __call__(self, rows: Rows, things: Any) -> Tensor:
        return self.true(rows, things).clamp(max=self.ceiling) + self.weight * self.liking(rows, things)


class Verdicts(NamedTuple):
    """first (N,): whether the first of each pair was preferred. probability (N,): of that verdict, exactly."""

    first: Tensor
    probability: Tensor


@dataclass(frozen=True)
class Annotator:
    """Prefers the first of a pair with probability sigmoid(sharpness * (u1 - u2 + bias * (f1 - f2))).

    u are utilities, f a feature that should not count; with probability `noise` the verdict is turned round.
    """

    sharpness: float = 4.0
    noise: float = 0.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not self.sharpness > 0:
            do = "Give a positive number, inf for no doubt"
            raise ConfigError(sentence("annotator", "sharpness > 0", str(self.sharpness), do))
        if not 0 <= self.noise <= 0.5:
            do = "Give the share of verdicts turned round"
            raise ConfigError(sentence("annotator", "noise from 0 to 0.5", str(self.noise), do))

    def probability(self, utility: tuple[Tensor, Tensor], feature: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Exact probability (N,), float64, that the first is preferred."""
        felt = utility[0].double() - utility[1].double()
        if feature is not None:
            felt = felt + self.bias * (feature[0].double() - feature[1].double())
        sure = torch.where(felt == 0, 0.5, torch.sigmoid(self.sharpness * felt))
        return self.noise + (1 - 2 * self.noise) * sure

    def __call__(
        self, utility: tuple[Tensor, Tensor], feature: tuple[Tensor, Tensor] | None, generator: Generator
    ) -> Verdicts:
        """Verdicts on N pairs."""
        p = self.probability(utility, feature)
        first = torch.rand(len(p), generator=generator, dtype=p.dtype) < p
        return Verdicts(first, torch.where(first, p, 1 - p))


def best_log_loss(probability: Tensor) -> float:
    """Mean entropy (nats) of verdicts of these probabilities (N,): no reward model can have a lower expected loss."""
    p = probability.double()
    return float((torch.special.entr(p) + torch.special.entr(1 - p)).mean())


def best_accuracy(probability: Tensor) -> float:
    """Expected share of these verdicts (N,) that the best possible judge foretells."""
    return float(torch.maximum(probability, 1 - probability).mean())


def pairs(rows: Rows, things: tuple[Any, Any], utility: Utility, annotator: Annotator, generator: Generator,
          liking: Utility | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """Preference rows: two images or texts for each row, judged by the annotator.

    `chosen`, `rejected`, `utility_chosen`, `utility_rejected`; `probability` of the verdict given; `flipped`: the chosen
    has the lower utility. Other columns are those of the row.
    """
    if not len(rows) == len(things[0]) == len(things[1]):
        came = f"{len(rows)} rows, {len(things[0])} and {len(things[1])} candidates"
        raise DataError(sentence("pairs", "two candidates for each row", came, "Make them equally many"))
    worth = (utility(rows, things[0]), utility(rows, things[1]))
    feature = None if liking is None else (liking(rows, things[0]), liking(rows, things[1]))
    verdicts, out = annotator(worth, feature, generator), []
    for i, row in enumerate(rows):
        best = 0 if verdicts.first[i] else 1
        u = (float(worth[best][i]), float(worth[1 - best][i]))
        out.append({**{k: v for k, v in row.items() if k not in ("image", "response", "answer", "messages")},
                    "chosen": things[best][i], "rejected": things[1 - best][i], "utility_chosen": u[0],
                    "utility_rejected": u[1], "probability": float(verdicts.probability[i]), "flipped": u[0] < u[1]})  # fmt: skip
    return out
