"""Kickstarting: on its own texts the policy must keep the next-token distributions that it had before training.

Paper: arXiv 2402.02868 (among the remedies compared; kickstarting itself is arXiv 1803.03835).   Formula: mean over trained
tokens of KL(p_start || p) over the whole vocabulary.
Takes: any data, sampled completions above all.   Gives: (B, T) or (B,) values.
Choose it when: `[grpo, {kickstarting: {weight: 0.1}}]` and the policy must not lose what it could do where it goes.
Rather not when: what must stay lies where the policy no longer goes (bc_anchor), or full logits do not fit (kl_reference).
Relatives: kl_reference (an estimate of KL(p || p_start) from sampled tokens), bc_anchor.

>>> import torch
>>> logits = torch.tensor([[[0.0, 2.0]]])
>>> token_kl(logits, logits, torch.ones(1, 1))
tensor([[0.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives._reduce import one_part, reduced
from luthier.ops.divergence import token_kl

CARD = Card(
    name="Kickstarting",
    source="arXiv 2402.02868",
    papers=(110,),
    needs=Needs(signals=("logits", "ref_logits", "token_mask")),
    cost="full logits of policy and reference at the trained tokens; one forward of the reference",
    limits=(
        "policy equals reference: value and gradient are zero",
        "the gradient by the logits is p - p_start at each token",
        "it is never below zero, and zero only where the distributions agree",
    ),
    differs=(
        "direction and averaging checked against the authors' NetHack learner: KL(start || policy), a mean over states",
        "the weight is constant; in the paper's experiments it may decay",
    ),
    use_when="a policy is tuned by reinforcement and must stay near its start on what it does",
    avoid_when="what must stay is no longer visited, or full logits do not fit",
    relatives=("objectives.policy.kl_reference", "objectives.policy.grpo", "regularise.forgetting.bc_anchor"),
    mechanism="anchor penalty",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Kickstarting(Objective):
    """on: part of the batch for data with several; per: every token of the batch weighs the same, or every sequence."""

    on: Literal["chosen", "rejected"] | None = None
    per: Literal["token", "sequence"] = "token"

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        own = one_part(s, self.on, self.name)
        values = token_kl(own["ref_logits"], own["logits"], own["token_mask"])
        return reduced("kickstarting", values, own["token_mask"], self.per)
