"""Does long off-policy DPO squeeze, and does imitating both sides first keep it from doing so?

A log-linear autoregressive model writes four tokens after a context: logits_t = W f(context, last token, place) with fixed
random features f that texts share. It starts peaked. Pairs come from another, flatter writer and are judged by a known reward.
Before the same DPO, one arm imitates the chosen texts, the other the chosen and the rejected ones, with as many steps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from luthier.core import stream
from luthier.objectives.preference.dpo import dpo
from luthier.ops.dynamics import predicted_change, residual_dpo
from luthier.reproduce.claim import TUNING_SEED, Claim

F64 = torch.float64
WORDS, LENGTH, CONTEXT, FEATURES = 10, 4, 6, 48
PAIRS, FRESH, BETA = 200, 400, 0.1
SFT_RATES, DPO_RATES, SFT_STEPS, DPO_STEPS = (0.01, 0.03), (0.003, 0.01), 60, 300
ARMS = ("chosen_first", "both_first")


@dataclass(frozen=True)
class Writers:
    """Fixed features of (context, last token, place), and weights (WORDS, FEATURES) of the policy, the other writer and the
    reward, which adds up over tokens."""

    mix: Tensor
    start: Tensor
    writer: Tensor
    taste: Tensor

    @classmethod
    def random(cls, seed: int) -> Writers:
        """Normal weights; the policy is three times as peaked as the writer of the pairs."""
        g = stream(seed, "claim.learning_dynamics.world")
        mix = torch.randn(CONTEXT + WORDS + 1 + LENGTH, FEATURES, generator=g, dtype=F64)
        made = [torch.randn(WORDS, FEATURES, generator=g, dtype=F64) / FEATURES**0.5 for _ in range(3)]
        return cls(mix, 6.0 * made[0], 2.0 * made[1], made[2])

    def features(self, context: Tensor, text: Tensor) -> Tensor:
        """(n, LENGTH, FEATURES) of contexts (n, CONTEXT) and texts (n, LENGTH)."""
        last = torch.cat([torch.full_like(text[:, :1], WORDS), text[:, :-1]], 1)
        word = torch.nn.functional.one_hot(last, WORDS + 1).to(F64)
        place = torch.eye(LENGTH, dtype=F64).expand(len(text), -1, -1)
        seen = torch.cat([context[:, None].expand(-1, LENGTH, -1), 2 * word, place], -1)
        return torch.tanh(seen @ self.mix / 3)

    def write(self, weight: Tensor, context: Tensor, g: Generator) -> Tensor:
        """One text for each context, (n, LENGTH)."""
        text = torch.zeros(len(context), LENGTH, dtype=torch.long)
        for t in range(LENGTH):
            p = (self.features(context, text)[:, t] @ weight.T).softmax(-1)
            text[:, t] = torch.multinomial(p, 1, generator=g)[:, 0]
        return text

    def reward(self, context: Tensor, text: Tensor) -> Tensor:
        """Sum over tokens of the taste for each, (n,)."""
        return _of(self.features(context, text) @ self.taste.T, text).sum(-1)

    def pairs(self, n: int, g: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(contexts, chosen, rejected): two texts of the writer, the better one chosen with probability sigmoid(2 difference)."""
        context = torch.randn(n, CONTEXT, generator=g, dtype=F64)
        one, two = self.write(self.writer, context, g), self.write(self.writer, context, g)
        ahead = torch.sigmoid(2 * (self.reward(context, one) - self.reward(context, two)))
        first = (torch.rand(n, generator=g, dtype=F64) < ahead)[:, None]
        return context, torch.where(first, one, two), torch.where(first, two, one)


def _of(values: Tensor, text: Tensor) -> Tensor:
    return values.gather(-1, text[..., None])[..., 0]


def descend(weight: Tensor, loss: Any, lr: float, steps: int) -> Tensor:
    """The weight after full-batch Adam."""
    live = weight.clone().requires_grad_()
    search: Any = torch.optim.Adam([live], lr=lr)
    for _ in range(steps):
        search.zero_grad()
        loss(live).backward()
        search.step()
    return live.detach()


def trained(world: Writers, arm: str, data: Any, sft_lr: float, dpo_lr: float) -> tuple[Tensor, Tensor]:
    """(weight before DPO, weight after it)."""
    context, chosen, rejected = data
    f = {"chosen": world.features(context, chosen), "rejected": world.features(context, rejected)}
    text = {"chosen": chosen, "rejected": rejected}

    def logp(weight: Tensor, side: str) -> Tensor:
        return _of((f[side] @ weight.T).log_softmax(-1), text[side]).sum(-1)

    sides = ("chosen",) if arm == "chosen_first" else ("chosen", "rejected")
    middle = descend(world.start, lambda w: -torch.cat([logp(w, s) for s in sides]).mean(), sft_lr, SFT_STEPS)
    before = {s: logp(middle, s) for s in f}
    end = descend(middle, lambda w: dpo(logp(w, "chosen"), logp(w, "rejected"), before["chosen"], before["rejected"],
                                        BETA).mean(), dpo_lr, DPO_STEPS)  # fmt: skip
    return middle, end


def figures(arm: str, seed: int, sft_lr: float, dpo_lr: float) -> dict[str, float]:
    """On fresh pairs: changes during DPO of chosen and most likely tokens, accuracy; mean reward of fresh texts."""
    world = Writers.random(seed)
    middle, end = trained(world, arm, world.pairs(PAIRS, stream(seed, "claim.learning_dynamics.pairs")), sft_lr, dpo_lr)
    g = stream(seed, "claim.learning_dynamics.fresh")
    context, chosen, rejected = world.pairs(FRESH, g)
    f, other = world.features(context, chosen), world.features(context, rejected)
    before, after = ((f @ w.T).log_softmax(-1) for w in (middle, end))
    lost = _of((other @ end.T).log_softmax(-1), rejected).sum(-1)
    return {
        "chosen": float((_of(after, chosen) - _of(before, chosen)).mean()),
        "top": float((after.amax(-1) - before.amax(-1)).mean()),
        "accuracy": float((_of(after, chosen).sum(-1) > lost).double().mean()),
        "reward": float(world.reward(context, world.write(end, context, g)).mean()),
    }


def correlation(seed: int) -> float:
    """Of the predicted with the true change of all log-probs on fresh texts, for one small DPO step on one pair."""
    world = Writers.random(seed)
    context, chosen, rejected = world.pairs(40, stream(seed, "claim.learning_dynamics.step"))
    f, other = world.features(context, chosen), world.features(context, rejected)
    learned = (f[0], other[0])
    residual = residual_dpo(
        (f[0] @ world.start.T, other[0] @ world.start.T), (chosen[0], rejected[0]), torch.zeros(()), BETA
    )
    predicted = predicted_change(
        lambda w: f[1:] @ w.T, lambda w: tuple(x @ w.T for x in learned), world.start, residual, 1.0
    )
    gradient = sum(r.T @ x for r, x in zip(residual, learned, strict=True))
    true = (f[1:] @ (world.start - gradient).T).log_softmax(-1) - (f[1:] @ world.start.T).log_softmax(-1)
    return float(torch.corrcoef(torch.stack([predicted.flatten(), true.flatten()]))[0, 1])


@functools.cache
def tuned(arm: str) -> tuple[float, float]:
    """Both learning rates of the highest reward, on worlds that are not reported."""
    grid = [(a, b) for a in SFT_RATES for b in DPO_RATES]
    return max(grid, key=lambda at: sum(figures(arm, TUNING_SEED + i, *at)["reward"] for i in range(2)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Both arms at their own best rates; and how well one step was predicted."""
    made = {arm: figures(arm, seed, *tuned(arm)) for arm in ARMS}
    plain = made["chosen_first"]
    return {
        **made,
        "top_token": {"change": plain["top"]},
        "chosen_token": {"change": plain["chosen"]},
        "prediction": {"correlation": correlation(seed)},
        "half": {"correlation": 0.5},
    }


CLAIM = Claim(
    component="learning_dynamics",
    papers=(35,),
    source="arXiv 2407.10490",
    says="During long off-policy DPO chosen texts fall while the most likely tokens rise (squeezing); imitating chosen and "
    "rejected texts first lessens this and gives a better model than imitating the chosen ones first.",
    world="log-linear model of four tokens with shared features, 200 pairs of another writer, known reward",
    expect="top_token > chosen_token",
    also=(
        "both_first > chosen_first : chosen",
        "both_first > chosen_first : reward",
        "both_first > chosen_first : accuracy",
        "prediction > half : correlation",
    ),
    measure="change",
    seeds=tuple(range(8)),
    run=run,
    budget_s=90,
    note="Changes are log-probs per token on fresh texts, after DPO minus before it. Both learning rates are chosen for each arm "
    "by the reward of its texts. `correlation`: of the first-order prediction with the true change for one step on one pair.",
)
