"""A micro world of pairs for claims on embeddings: queries and passages of hidden topics, and a residual encoder on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core import Batch, Objective, Signals, stream
from luthier.core.terms import as_terms

PARTS = ("query", "positive")


@dataclass(frozen=True)
class Pairs:
    """query, positive (n, inputs) as observed; topic (n,) tells which belong together; core (n, 2, hidden) is behind them."""

    query: Tensor
    positive: Tensor
    topic: Tensor
    core: Tensor


@dataclass(frozen=True)
class Topics:
    """Topics in a hidden space of few dimensions; a text is its topic's centre and a detail that both of its sides share.

    Observed are a mixture of that and of nuisance of larger size, other noise on each side.
    """

    inputs: int = 64
    hidden: int = 16
    detail: float = 0.3
    nuisance: float = 2.0
    noise: float = 1.0
    seed: int = 0

    def pairs(self, n: int, topics: int, split: str) -> Pairs:
        """n pairs over so many topics, drawn anew for each split; the mixing is one for all splits."""
        g, fixed = stream(self.seed, f"claim.embedding.{split}"), stream(self.seed, "claim.embedding.mixing")
        mix = torch.randn(self.hidden, self.inputs, generator=fixed) / math.sqrt(self.hidden)
        spoil = torch.randn(self.hidden, self.inputs, generator=fixed) / math.sqrt(self.hidden)
        centres = torch.randn(topics, self.hidden, generator=g)
        topic = torch.arange(n) % topics
        core = centres[topic][:, None] + self.detail * torch.randn(n, 1, self.hidden, generator=g)
        core = core + 0.1 * torch.randn(n, 2, self.hidden, generator=g)
        seen = core @ mix + self.nuisance * torch.randn(n, 2, self.hidden, generator=g) @ spoil
        seen = seen + self.noise * torch.randn(seen.shape, generator=g)
        return Pairs(seen[:, 0], seen[:, 1], topic, core)


class Encoder(nn.Module):
    """Residual blocks on a linear first layer: x (n, inputs) -> (n, layers + 1, width), the last of which is the embedding."""

    def __init__(self, inputs: int, width: int, layers: int, seed: int) -> None:
        """Weights are drawn from the seed's own stream."""
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(layers)
        )
        g = stream(seed, "claim.embedding.encoder")
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(
                    torch.randn(p.shape, generator=g) / math.sqrt(p.shape[-1]) if p.ndim == 2 else torch.zeros_like(p)
                )

    def forward(self, x: Tensor) -> Tensor:
        """The state after the first layer and after every block."""
        states = [self.first(x)]
        for block in self.blocks:
            states.append(states[-1] + block(nn.functional.layer_norm(states[-1], states[-1].shape[-1:])))
        return torch.stack(states, 1)


def train(model: Encoder, data: Pairs, objective_at: Callable[[int], Objective], steps: int, batch: int, lr: float, seed: int,
          guide: Mapping[str, Tensor] | None = None) -> Encoder:  # fmt: skip
    """Adam on batches of the pairs; objective_at: the objective of each step; guide: columns of all rows."""
    g, search = stream(seed, "claim.embedding.batches"), torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        at = torch.randperm(len(data.topic), generator=g)[:batch]
        deep = model(data.query[at]), model(data.positive[at])
        signals = {
            "embedding": tuple(d[:, -1] for d in deep),
            "layer_embedding": deep,
            **{k: (v[at],) for k, v in (guide or {}).items()},
        }
        made = as_terms(objective_at(step)(Batch("pairs", {}, PARTS), Signals(signals, PARTS)))
        search.zero_grad()
        torch.stack([t.scale * t.sums()[0] / t.sums()[1] for t in made]).sum().backward()
        search.step()
    return model


@torch.no_grad()
def ndcg(query: Tensor, passage: Tensor, topic: Tensor, at: int = 10) -> float:
    """Mean nDCG@`at` of the passages found for each query, those of its topic being right; vectors (n, d)."""
    scores = nn.functional.normalize(query, dim=-1) @ nn.functional.normalize(passage, dim=-1).T
    right = (topic[:, None] == topic[None]).double()
    worth = 1 / torch.log2(torch.arange(at).double() + 2)
    found = (right.gather(1, scores.topk(at, 1).indices) * worth).sum(1)
    ideal = (right.sort(1, descending=True).values[:, :at] * worth).sum(1)
    return float((found / ideal).mean())
