"""Reward-ranked fine-tuning (RAFT): imitate the best of the model's own samples, round after round.

Paper: arXiv 2304.06767, algorithm 1.   Formula: per prompt keep argmax over K samples of the reward; minimise -log p on them.
Takes: prompts and a reward.   Gives: text batches for any supervised objective (nll, dft, ...).
Choose it when: answers can be scored and a policy gradient is too fragile.   Rather not when: the first samples score alike.
Relatives: grpo (uses all samples, weighted by advantage).

>>> best_of_k(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), 2)
tensor([0.2500, 0.7500])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Procedure, component
from luthier.core.signals import Signals
from luthier.loops._parts import FeedParts
from luthier.models.collate import pad
from luthier.train.feed import Feed, order
from luthier.train.rollout import Groups, Sampled, sample_groups

CARD = Card(
    name="RAFT",
    source="arXiv 2304.06767",
    papers=(62,),
    needs=Needs(batch=("prompts", "text"), handles=("reward",)),
    cost="K samples of each prompt a round, then supervised steps on 1/K of them",
    limits=(
        "categorical policy: what is kept follows the analytic best-of-K distribution",
        "K = 1 keeps every sample: supervised tuning on one's own samples",
    ),
    differs=(
        "ties are broken by order of sampling",
        "the KL penalty is taken against the policy before training, per sequence",
    ),
    use_when="answers can be scored and simple, stable training matters more than speed of learning",
    avoid_when="all samples of a prompt score alike, or the reward can be gamed",
    relatives=("objectives.policy.grpo",),
    mechanism="rejection sampling",
    tags=("stateful",),
)


def best_per_group(reward: Tensor, group: Tensor) -> Tensor:
    """Index of the best sample of each group, groups ascending; the first of equals. reward, group (n,) -> (groups,)."""
    order = reward.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = group.unique(return_counts=True)[1]
    return order[sizes.cumsum(0) - sizes]


def best_overall(reward: Tensor, share: float) -> Tensor:
    """Indices of the best share of all samples, at least one, ascending; the first of equals. (n,) -> (k,)."""
    k = max(1, int(share * len(reward) + 1e-9))
    return reward.argsort(descending=True, stable=True)[:k].sort().values


def best_of_k(p: Tensor, reward: Tensor, k: int) -> Tensor:
    """Exact distribution of the best of k draws from p (V,) by a reward (V,) without ties."""
    rank = reward.argsort()
    below = torch.cat([p.new_zeros(1), p[rank].cumsum(0)])
    out = torch.empty_like(p)
    out[rank] = below[1:] ** k - below[:-1] ** k
    return out


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class RAFT(Procedure):
    """samples: K per prompt; prompts: how many prompts a round samples; steps: optimiser steps on what a round kept.

    keep: the best sample of each prompt, or the best 1/K of the whole round. kl: weight of the penalty that is taken off the
    reward, log p - log p_ref of the sample.
    """

    samples: Annotated[int, Gt(0)] = 8
    prompts: Annotated[int, Gt(0)] = 64
    steps: Annotated[int, Gt(0)] = 10
    keep: Literal["per_prompt", "global"] = "per_prompt"
    kl: float = 0.0

    def choose(self, reward: Tensor, group: Tensor) -> Tensor:
        """Indices (k,) of the samples that are imitated."""
        return best_per_group(reward, group) if self.keep == "per_prompt" else best_overall(reward, 1 / self.samples)

    def feed(self, parts: FeedParts) -> RaftFeed:
        """Batches of kept samples, drawn anew every `steps` steps."""
        return RaftFeed(self, parts)


@dataclass
class RaftFeed(Feed):
    """Text batches; a round's kept samples are its data set. figures: of the last round, for the log."""

    raft: RAFT
    parts: FeedParts
    figures: dict[str, float] = field(default_factory=dict)
    kept: list[Sampled] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    turn: int = -1

    def __len__(self) -> int:
        return len(self.parts.prompts)

    def micros(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """Micro-batches of this step; a new round begins every `steps` steps."""
        turn, inside = divmod(step, self.raft.steps)
        if turn != self.turn:
            self._round(turn, rank, world)
        p = self.parts
        size = -(-p.batch // world)
        rows = order(p.seed, turn * 100_003 + inside, min(size, len(self.kept)), len(self.kept))
        cut = p.micro or len(rows)
        return [self._collate(rows[at : at + cut]) for at in range(0, len(rows), cut)]

    def _round(self, turn: int, rank: int, world: int) -> None:
        p = self.parts
        chosen = order(p.seed, turn, min(self.raft.prompts, len(p.prompts)), len(p.prompts))[rank::world]
        made = sample_groups(p.policy, p.prompts, p.rows, chosen, self.raft.samples, p.reward, p.sampling, p.seed, turn,
                             rank if world > 1 else None)  # fmt: skip
        reward = made.reward - self.raft.kl * self._kl(made) if self.raft.kl else made.reward
        index = self.raft.choose(reward, made.group).tolist()
        self.kept, self.owners = [made.sequences[i] for i in index], [made.owners[i] for i in index]
        self.figures = {**made.figures, "reward_kept": float(made.reward[index].mean())}
        self.turn = turn

    @torch.no_grad()
    def _kl(self, made: Groups) -> Tensor:
        p = self.parts
        batch = Batch("text", pad(made.sequences, p.pad_id))
        s: Signals = p.policy.signals(batch, ("logp", "ref_logp"), "old")
        return (s["logp"] - s["ref_logp"]).float().cpu()

    def _collate(self, rows: list[int]) -> Batch:
        owners = [self.owners[i] for i in rows]
        meta = [self.parts.rows[o] for o in owners]
        return Batch("text", pad([self.kept[i] for i in rows], self.parts.pad_id), rows=tuple(owners), meta=meta)

    def state(self) -> dict[str, Any]:
        """The round in use, so that a resumed run goes on with it."""
        return {"turn": self.turn, "ids": [list(s.ids) for s in self.kept], "mask": [list(s.mask) for s in self.kept],
                "owners": list(self.owners), "figures": dict(self.figures)}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from `state`."""
        self.turn, self.owners, self.figures = int(state["turn"]), list(state["owners"]), dict(state["figures"])
        self.kept = [Sampled(tuple(i), tuple(m)) for i, m in zip(state["ids"], state["mask"], strict=True)]
