"""Questions with several answers, and a linear policy that is partly right about them, for claims about self-training.

An answer can be reached by several paths. A path's features are those of its answer and those of its own; the worth is
features . truth and depends on the answer only, and the right answer is the best one. The policy's logits are features .
weights. Its first weights are the truth with noise, scaled, and noise for what is the path's own: it likes some paths without
reason. What is learned on some questions holds for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from luthier.core import Objective, Row, stream
from luthier.reproduce.claims._bandit import descend, total

ANSWERS, PATHS, WIDTH = 6, 4, 12
F64 = torch.float64
PARTS = ("chosen", "rejected")


@dataclass(frozen=True)
class Questions:
    """features (n, ANSWERS * PATHS, 2 WIDTH) for training, held (m, ...) for measuring; truth, start (2 WIDTH,)."""

    features: Tensor
    held: Tensor
    truth: Tensor
    start: Tensor

    @classmethod
    def random(cls, seed: int, n: int = 100, held: int = 500, error: float = 0.7) -> Questions:
        """error: noise of the first weights in units of the truth's, of which they have half the size."""
        g = stream(seed, "claim.questions")
        answers = torch.randn(n + held, ANSWERS, WIDTH, generator=g, dtype=F64).repeat_interleave(PATHS, 1)
        own = torch.randn(n + held, ANSWERS * PATHS, WIDTH, generator=g, dtype=F64)
        truth = torch.cat([torch.randn(WIDTH, generator=g, dtype=F64), torch.zeros(WIDTH, dtype=F64)])
        start = 0.5 * (truth + error * torch.randn(2 * WIDTH, generator=g, dtype=F64))
        features = torch.cat([answers, own], -1)
        return cls(features[:n], features[n:], truth, start)

    def worth(self) -> Tensor:
        """True worth (n, ANSWERS * PATHS) of what can be said to the training questions."""
        return self.features @ self.truth

    def samples(self, weights: Tensor, k: int, g: Generator) -> list[list[int]]:
        """k paths for each training question by the policy."""
        return torch.multinomial((self.features @ weights).softmax(-1), k, replacement=True, generator=g).tolist()

    def figures(self, weights: Tensor) -> dict[str, float]:
        """On held-out questions: share where the likeliest path ends right, probability of a right end, mean true worth."""
        logits, worth = self.held @ weights, self.held @ self.truth
        right = worth.argmax(-1) // PATHS
        ends = torch.arange(ANSWERS * PATHS) // PATHS == right[:, None]
        return {
            "greedy": float((logits.argmax(-1) // PATHS == right).double().mean()),
            "sampled": float((logits.softmax(-1) * ends).sum(-1).mean()),
            "reward": float((logits.softmax(-1) * worth).sum(-1).mean()),
        }


def said(path: int) -> str:
    """A path as text: its number, and its final answer behind #."""
    return f"{path} #{path // PATHS}"


def round_of(world: Questions, weights: Tensor, rows: Sequence[Row], at: Sequence[int], objective: Objective, lr: float,
             steps: int) -> Tensor:  # fmt: skip
    """The weights after a round of full-batch Adam steps on pairs of paths, as `said`, of the questions `at`.

    The policy before the round is the reference; numbers that all rows bring are columns.
    """
    asked = world.features[list(at)]
    spoken = [torch.tensor([[int(r[p].split()[0])] for r in rows]) for p in PARTS]
    given: dict[str, tuple[Tensor, ...]] = {"token_mask": (torch.ones(len(rows), 1, dtype=F64),) * 2}
    for name in ("weight", "consistency", "gap"):
        if all(name in r for r in rows):
            given[name] = (torch.tensor([r[name] for r in rows], dtype=F64),)

    def logp(w: Tensor) -> tuple[Tensor, ...]:
        every = (asked @ w).log_softmax(-1)
        return tuple(every.gather(1, one) for one in spoken)

    given["ref_token_logp"] = logp(weights)

    def loss(now: Tensor, _: int) -> Tensor:
        return total(objective, "preference", PARTS, {**given, "token_logp": logp(now)})

    return descend(weights, loss, lr, (steps,))[steps]
