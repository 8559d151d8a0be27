"""Preferences with a measured trust: each pair counts both ways round, in the shares in which two rankings agreed.

Paper: arXiv 2410.12735.   Formula: -C log sigmoid(beta * margin) - (1 - C) log sigmoid(-beta * margin), C in [0, 1] the
consistency of the pair's label.
Takes: pairs with the column `consistency`, as the step `cream_pairs` writes it.   Gives: (B,) values.
Choose it when: a model ranks its own answers and grows too sure of itself round after round.
Rather not when: labels come from people or a verifier (dpo).
Relatives: dpo (one smoothing for all pairs, given instead of measured), scpo (weights instead of smoothing).

>>> import torch
>>> round(cream(torch.zeros(1), torch.tensor([0.5])).item(), 4)
0.6931
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives._columns import column
from luthier.objectives.preference._margin import log_ratio, logistic

CARD = Card(
    name="CREAM",
    source="arXiv 2410.12735",
    papers=(236,),
    needs=Needs(batch=("preference",), signals=("logp", "ref_logp", "consistency")),
    cost="one forward and backward over both texts; reference log-probs once, cached",
    limits=(
        "C = 1: dpo; C = 0: dpo with the pair swapped",
        "C = 0.5 and no margin: zero gradient",
        "one C for all pairs: dpo with smoothing 1 - C",
    ),
    differs=(
        "the loss is that of the released code; sampling and ranking by two models are not part of it: the step cream_pairs reads "
        "both scores from the rows",
    ),
    use_when="labels are a model's own and their reliability is measured, as by cream_pairs",
    avoid_when="labels are trusted alike",
    relatives=("objectives.preference.dpo", "objectives.preference.scpo", "data.pairs.cream_pairs"),
    mechanism="margin loss",
)


def cream(z: Tensor, consistency: Tensor) -> Tensor:
    """-C log sigmoid(z) - (1 - C) log sigmoid(-z), (B,), from scaled margins z and consistencies C in [0, 1], both (B,)."""
    return consistency * logistic(z) + (1 - consistency) * logistic(-z)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class CREAM(Objective):
    """beta: strength of the pull to the reference."""

    beta: Annotated[float, Gt(0)] = 0.1

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        margin = log_ratio(*s["logp"], *s["ref_logp"])
        return Terms(self.name, cream(self.beta * margin, column(s, "consistency", self.name, "from 0 to 1", margin)))
