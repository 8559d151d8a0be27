"""Contrastive policy gradient: learn from scored answers of any origin, two of a prompt at a time.

Paper: arXiv 2406.19185.   Formula: -(D - beta / 2 * d) * d for two answers of a prompt, D the difference of their rewards, d
that of their log-ratios log(pi / pi_ref). Its gradient, (beta * d - D) times that of d, is the policy gradient of the reward
R - beta * log(pi / pi_ref) with the other answer as baseline; no importance weights are needed.
Takes: pairs with the column `gap` (reward of the chosen minus that of the rejected), or sampled and scored completions.
Gives: (B,) values; a completion's value is the mean over the others of its prompt.
Choose it when: answers have scores rather than preferences, and may come from elsewhere.
Rather not when: only the order of two answers is known (dpo).
Relatives: grpo (samples of the policy itself), trajectory_balance (the same target, by variance), dpo (preferences).

>>> import torch
>>> one = torch.ones(1); copg(one, one, beta=0.5)  # -(1 - 0.25 * 1) * 1
tensor([-0.7500])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives._columns import column
from luthier.objectives.policy._groups import differences, rival_mean, rivals
from luthier.objectives.preference._margin import log_ratio

CARD = Card(
    name="CoPG",
    source="arXiv 2406.19185",
    papers=(255,),
    needs=Needs(batch=("group", "preference"), signals=("logp", "ref_logp", "reward", "group", "gap")),
    cost="one forward and backward over both texts or over the samples; reference log-probs, cached where data are fixed",
    limits=(
        "the gradient is that of (D - beta * d)^2 / (2 * beta)",
        "swapping the two answers changes nothing",
        "one D for all pairs: the gradient of IPO, (d - D / beta)^2, times beta / 2",
        "every pair's gradient is zero at the optimum pi_ref * exp(R / beta) / Z",
        "all pairs of a group: the gradient of beta times the group's variance (n - 1) of log(pi / pi_ref) - R / beta",
    ),
    differs=(
        "from a group all pairs are formed, each completion's value being its mean over the others; the paper takes pairs",
        "no code of the authors is known; formula and gradient were derived again and tested",
    ),
    use_when="scored answers of any origin are at hand, or samples are reused for many steps",
    avoid_when="only preferences are known, or there is one answer per prompt",
    relatives=("objectives.policy.grpo", "objectives.policy.trajectory_balance", "objectives.preference.dpo"),
    mechanism="margin loss",
)


def copg(gap: Tensor, margin: Tensor, beta: float = 0.1) -> Tensor:
    """-(D - beta / 2 * d) * d, elementwise: gap D of the rewards, margin d of the log-ratios (in nats), of any shape."""
    return -(gap - beta / 2 * margin) * margin


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class CoPG(Objective):
    """beta: price of a nat of KL to the reference, in units of the reward."""

    beta: Annotated[float, Gt(0)] = 0.1

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        if batch.kind == "preference":
            margin = log_ratio(*s["logp"], *s["ref_logp"])
            gap = column(s, "gap", self.name, "reward of the chosen minus reward of the rejected", margin)
            return Terms(self.name, copg(gap, margin, self.beta))
        same = rivals(s["group"])
        ahead = s["logp"] - s["ref_logp"]
        pairs = copg(differences(s["reward"].to(ahead)), differences(ahead), self.beta)
        return Terms(self.name, rival_mean(pairs, same))
