"""Diffuse-distribution tuning: all valid answers of a prompt at once, each with the probability that it shall have.

Paper: arXiv 2404.10859.   Formula: L = -sum_i w_i log p(y_i | x), summed over all tokens of each answer, weights w of a
prompt summing to 1; a mean over prompts. L - H(w) = KL(w || p), so the best p is w itself, and H(w) is the floor of L.
Takes: scored data whose scores are the wanted probabilities (any positive scale: prompt, answers, weights).   Gives: (B,)
values, counted by their weights.
Choose it when: many answers are right and the model shall vary: names, numbers, test cases, choices.
Rather not when: answers cannot be listed (train on samples of them with nll), or one answer is right.
Relatives: nll (one answer, or all the weight on one).

>>> import torch
>>> round(floor(torch.tensor([0.5, 0.5])).item(), 4), reached(0.8, 0.6931, 0.2)
(0.6931, True)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives._columns import column

CARD = Card(
    name="Diffuse distributions",
    source="arXiv 2404.10859",
    papers=(329,),
    needs=Needs(batch=("scored",), signals=("logp", "share")),
    cost="one forward and backward over every answer",
    limits=(
        "L - H(w) = KL(w || p), zero only where p = w",
        "answers of one token: the gradient by their logits is p - w",
        "all the weight on one answer: the log-likelihood of that answer, summed over its tokens",
    ),
    differs=(
        "checked against the authors' search.py: sums over tokens, the end token included, weights divided by their sum",
        "a batch holds answers, not whole prompts: what it counts is the weight in it, so a prompt's answers may lie in "
        "several batches; in a batch of whole prompts it is the paper's loss",
        "the authors' stop at L <= (1 + 0.2) H(w) is offered as a function; training goes on for its steps",
        "one tokenisation of each answer; the authors draw among several where a prompt lists them",
    ),
    use_when="the valid answers of a prompt can be listed and the model shall spread over them",
    avoid_when="answers are open texts",
    relatives=("objectives.supervised.nll",),
    mechanism="distribution matching",
)


def floor(weights: Tensor) -> Tensor:
    """Entropy of the wanted distribution in nats, a scalar: the least value of the loss of a prompt; weights (n,)."""
    p = weights / weights.sum()
    return -torch.xlogy(p, p).sum()


def reached(loss: float, entropy: float, slack: float = 0.2) -> bool:
    """Whether a loss is as near to its floor as the authors' stop asks: loss <= (1 + slack) * entropy."""
    return loss <= (1 + slack) * entropy


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Diffuse(Objective):
    """No parameters: the data say what is wanted."""

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        share = column(s, "share", self.name, "the wanted probability of each answer, from scores none of which is negative",
                       s["logp"])  # fmt: skip
        return Terms(self.name, -s["logp"], share)
