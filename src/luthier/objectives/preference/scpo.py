"""Self-consistency preference optimisation: preferences and imitation, each pair weighted by how clear its vote was.

Paper: arXiv 2411.04109.   Formula: -w log sigmoid(beta * margin) - alpha * w / |y+| * log pi(y+), w the difference of the two
answers' shares of the votes.
Takes: pairs with the column `weight`, as the step vote_pairs writes it.   Gives: two terms, each with its own count.
Choose it when: questions have one final answer but no label; the model's own samples vote.
Rather not when: right answers are known (dpo), or the model's most frequent answer is mostly wrong.
Relatives: dpo (w = 1, alpha = 0), nll (imitation alone), cream (smoothing instead of weights).

>>> import torch
>>> weighted_dpo(torch.zeros(2), torch.tensor([0.0, 1.0])).tolist()
[0.0, 0.6931471824645996]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives._columns import column
from luthier.objectives.preference._margin import log_ratio, logistic

CARD = Card(
    name="ScPO",
    source="arXiv 2411.04109",
    papers=(105,),
    needs=Needs(batch=("preference",), signals=("logp", "ref_logp", "mean_logp", "weight")),
    cost="one forward and backward over both texts; reference log-probs once, cached",
    limits=(
        "w = 1 and alpha = 0: dpo",
        "w = 0: zero value and zero gradient",
        "alpha alone adds alpha * w times nll on the chosen answer, averaged per answer",
    ),
    differs=(
        "no code of the authors is known; the formula is the paper's as the index gives it",
        "sampling, voting and rounds are the step vote_pairs and the loop iterated_pairs; writing new questions is not part of it",
    ),
    use_when="questions with one final answer but no label, and a model whose majority is mostly right",
    avoid_when="labels exist for all questions",
    relatives=("objectives.preference.dpo", "objectives.preference.cream", "data.pairs.vote_pairs"),
    mechanism="margin loss",
)


def weighted_dpo(z: Tensor, weight: Tensor) -> Tensor:
    """-w log sigmoid(z), (B,), from scaled margins z and weights w, both (B,)."""
    return weight * logistic(z)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ScPO(Objective):
    """beta: strength of the pull to the reference; alpha: weight of the imitation of the chosen answer."""

    beta: Annotated[float, Gt(0)] = 0.5
    alpha: Annotated[float, Ge(0)] = 1.0

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        margin = log_ratio(*s["logp"], *s["ref_logp"])
        weight = column(s, "weight", self.name, "difference of the shares of votes", margin)
        terms = (Terms("scpo", weighted_dpo(self.beta * margin, weight)),)
        if self.alpha:
            imitated = -weight * s.part("chosen")["mean_logp"]
            terms += (Terms("scpo.nll", imitated).scaled(self.alpha),)
        return terms
