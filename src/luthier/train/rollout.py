"""On-policy batches: sample groups of completions from the policy, score them, turn scores into advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.protocols import Decode, Reward
from luthier.core.streams import stream
from luthier.models.collate import pad
from luthier.models.generation import Sampling, generate
from luthier.train.feed import Feed, order
from luthier.train.mixture import Mixture
from luthier.train.policy import Policy

Advantage = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sampled:
    """Token ids with the mask of sampled ones."""

    ids: Sequence[int]
    mask: Sequence[int]


Held = tuple[int, list[Sampled], dict[str, Tensor], list[int]]


@dataclass(frozen=True)
class Groups:
    """Scored samples: sequences with their prompts' rows (owners), reward and group (n,), and figures for the log."""

    sequences: list[Sampled]
    owners: list[int]
    reward: Tensor
    group: Tensor
    figures: dict[str, float]


def sample_groups(policy: Policy, prompts: Sequence[Sequence[int]], rows: Sequence[Mapping[str, Any]], chosen: Sequence[int],
                  size: int, reward: Reward, how: Sampling, seed: int, turn: int, rank: int | None = None) -> Groups:  # fmt: skip
    """`size` completions of each chosen prompt from the policy as it is, scored by the reward.

    The random numbers depend on (seed, turn) and on the rank where there are several.
    """
    owners = [r for r in chosen for _ in range(size)]
    model = policy.view.module.model
    role = "rollout" if rank is None else f"rollout.{rank}"
    made = generate(model, [prompts[r] for r in owners], how, stream(seed, role, turn))
    texts = [policy.tokenizer.decode(_before(t, how.stop), skip_special_tokens=True) for t in made.tokens]
    scores = reward([rows[r] for r in owners], texts).float()
    sequences = [
        Sampled((*prompts[r], *t), (0,) * len(prompts[r]) + (1,) * len(t))
        for r, t in zip(owners, made.tokens, strict=True)
    ]
    spread = scores.view(-1, size).std(-1, unbiased=False) if size > 1 else scores.new_zeros(1)
    figures = {"reward": float(scores.mean()), "reward_std": float(spread.mean()),
               "length": sum(map(len, made.tokens)) / len(made.tokens), "ended": sum(made.ended) / len(made.ended),
               "flat_groups": float((spread == 0).float().mean())}  # fmt: skip
    return Groups(sequences, owners, scores, torch.arange(len(chosen)).repeat_interleave(size), figures)


@dataclass
class RolloutFeed(Feed):
    """Batches of sampled completions: kind "group", columns advantage, reward and group.

    prompts: token ids per row; rows: the data rows that rewards read. group: completions per prompt; batch: completions
    per step (a multiple of group). reuse: optimiser steps per set of samples; above 1 the sampling policy's log-probs are
    kept as `old_token_logp`. stop: end tokens. whole: no micro-batch splits a group, for objectives that compare completions;
    a micro-batch then holds as many groups as fit, one at least. mixture: which prompts a pass has; None: every one once.
    """

    policy: Policy
    prompts: Sequence[Sequence[int]]
    rows: Sequence[Mapping[str, Any]]
    reward: Reward
    advantage: Advantage
    group: int
    batch: int
    seed: int
    max_new: int
    temperature: float = 1.0
    micro: int | None = None
    reuse: int = 1
    stop: tuple[int, ...] = ()
    pad_id: int = 0
    decode: tuple[Decode, ...] = ()
    whole: bool = False
    mixture: Mixture | None = None
    figures: dict[str, float] = field(default_factory=dict)
    _held: Held | None = None

    def __len__(self) -> int:
        return len(self.prompts) if self.mixture is None else len(self.mixture)

    def micros(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """Micro-batches of this step; samples are drawn anew every `reuse` steps."""
        turn = step // self.reuse
        if self._held is None or self._held[0] != turn:
            self._held = self._sample(turn, rank, world)
        _, sequences, columns, owners = self._held
        size = self.micro or len(sequences)
        if self.whole and size < len(sequences):
            return [self._collate(rows, sequences, columns, owners) for rows in self._by_group(sequences, size)]
        by_length = (
            sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids)) if size < len(sequences) else None
        )
        index = by_length or list(range(len(sequences)))
        return [self._collate(index[at : at + size], sequences, columns, owners) for at in range(0, len(index), size)]

    def _by_group(self, sequences: Sequence[Sampled], size: int) -> list[list[int]]:
        """Rows of each micro-batch, whole groups of nearly the same longest sequence together."""
        n = self.group
        groups = [range(at, at + n) for at in range(0, len(sequences), n)]
        groups.sort(key=lambda rows: max(len(sequences[i].ids) for i in rows))
        take = max(1, size // n)
        return [[i for rows in groups[at : at + take] for i in rows] for at in range(0, len(groups), take)]

    def _sample(self, turn: int, rank: int, world: int) -> Held:
        count = max(1, self.batch // self.group)
        if self.mixture is None:
            chosen = order(self.seed, turn, count, len(self.prompts))[rank::world]
        else:
            chosen = self.mixture.rows(self.seed, turn, count)[rank::world]
        how = Sampling(self.max_new, self.temperature, self.stop, self.decode)
        made = sample_groups(self.policy, self.prompts, self.rows, chosen, self.group, self.reward, how, self.seed, turn,
                             rank if world > 1 else None)  # fmt: skip
        columns = {"reward": made.reward, "group": made.group, "advantage": self.advantage(made.reward, made.group)}
        self.figures = made.figures
        held = (turn, made.sequences, columns, made.owners)
        if self.reuse > 1:
            columns["old_token_logp"] = self._old(held)
        return held

    @torch.no_grad()
    def _old(self, held: Held) -> Tensor:
        _, sequences, columns, owners = held
        width = max(len(s.ids) for s in sequences)
        out = torch.zeros(len(sequences), width)
        size = self.micro or len(sequences)
        for at in range(0, len(sequences), size):
            rows = list(range(at, min(at + size, len(sequences))))
            batch = self._collate(rows, sequences, columns, owners)
            device = next(self.policy.view.module.parameters()).device
            got = self.policy.signals(batch.to(device), ("token_logp",), "old")["token_logp"]
            out[rows, : got.shape[1]] = got.float().cpu()
        return out

    def _collate(self, index: Sequence[int], sequences: Sequence[Sampled], columns: Mapping[str, Tensor],
                 owners: Sequence[int]) -> Batch:  # fmt: skip
        inputs = pad([sequences[i] for i in index], self.pad_id)
        width = inputs["input_ids"].shape[1]
        at = torch.tensor(list(index))
        cut = {k: v[at][:, :width] if k == "old_token_logp" else v[at] for k, v in columns.items()}
        return Batch(
            "group", inputs, ("text",), cut, tuple(owners[i] for i in index), [self.rows[owners[i]] for i in index]
        )

    def state(self) -> dict[str, Any]:
        """The samples in use, so that a resumed run goes on with them."""
        if self._held is None or self.reuse == 1:
            return {}
        turn, sequences, columns, owners = self._held
        return {"turn": turn, "ids": [list(s.ids) for s in sequences], "mask": [list(s.mask) for s in sequences],
                "columns": dict(columns), "owners": list(owners), "figures": dict(self.figures)}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from `state`."""
        if state:
            sequences = [Sampled(tuple(i), tuple(m)) for i, m in zip(state["ids"], state["mask"], strict=True)]
            self.figures = dict(state["figures"])
            self._held = (state["turn"], sequences, dict(state["columns"]), list(state["owners"]))


def _before(tokens: Sequence[int], stop: Sequence[int]) -> list[int]:
    return list(tokens[:-1]) if tokens and tokens[-1] in stop else list(tokens)
