"""Set supervised fine-tuning: several answers to one question, each learned behind the tag that already suits it best.

Paper: arXiv 2510.05132.   Formula: sum over the answers j of a question of -log p(y_j | x, tag_s(j)), where s is the cheapest
one-to-one assignment of answers to tags under the cost -log p(y_j | x, tag_i), found without gradient (Hungarian method).
Takes: set data (prompt, tags, responses).   Gives: (B * pairs, T) or (B * pairs,) values, of which the matched ones count.
Choose it when: each question has several right answers of different kinds, and a tag shall call up one kind.
Rather not when: there is one answer per question (nll), or the kinds are labelled (put the label into the prompt).
Relatives: nll (one tag, one answer).

>>> matching([[1.0, 2.0], [0.5, 4.0]])  # tags by answers: tag 1 takes answer 0, tag 0 takes answer 1
[(0, 1), (1, 0)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives._reduce import reduced, row_mean, row_sum

CARD = Card(
    name="SSFT",
    source="arXiv 2510.05132",
    papers=(344,),
    needs=Needs(batch=("set",), signals=("token_logp", "token_mask")),
    cost="forward and backward over every answer behind every tag: as many times nll as there are tags",
    limits=(
        "one tag: nll of the cheapest answer; one tag and one answer: nll",
        "the order of the answers does not matter",
        "the matched cost is the least of all one-to-one assignments",
        "pairs that are not matched get no gradient",
    ),
    differs=(
        "no training code is published; the algorithm is that of the paper's figure and abstract",
        "whether the cost is a sum or a mean over tokens, or of a prefix, is not verified: sum is the likelihood that is "
        "trained, mean weighs long and short answers alike",
        "all pairs are in one forward pass with gradient; the paper finds the assignment first and trains the matched ones",
        "tags are texts that open an answer; none is added to the vocabulary. With fewer tags than answers the rest is left",
        "the reinforcement phase that learns to choose a tag is left out",
    ),
    use_when="questions have several right answers of different kinds, and you want to call them up in parallel",
    avoid_when="answers differ in wording only, or there is one per question",
    relatives=("objectives.supervised.nll",),
    mechanism="set matching",
)


def matching(cost: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The one-to-one pairs (tag, answer) of least total cost; cost[tag][answer], as many pairs as the shorter side has."""
    from scipy.optimize import linear_sum_assignment

    tags, answers = linear_sum_assignment(cost)
    return list(zip(tags.tolist(), answers.tolist(), strict=True))


@torch.library.custom_op("luthier::matched", mutates_args=())
def matched(cost: Tensor, there: Tensor) -> Tensor:
    """Mask of the matched pairs (B, answers, tags), from costs of that shape and which pairs are there."""
    out = torch.zeros(cost.shape, dtype=torch.float64)
    for row, (own, real) in enumerate(zip(cost.tolist(), there.any(-1).tolist(), strict=True)):
        answers = [j for j, is_there in enumerate(real) if is_there]
        for tag, at in matching(list(zip(*[own[j] for j in answers], strict=True))) if answers else []:
            out[row, answers[at], tag] = 1
    return out.to(cost.device, cost.dtype)


@matched.register_fake
def _(cost: Tensor, there: Tensor) -> Tensor:
    return torch.empty_like(cost)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SetSFT(Objective):
    """cost: what the assignment makes small, the sum over an answer's tokens or their mean; per: averaging of the loss."""

    cost: Literal["sum", "mean"] = "sum"
    per: Literal["token", "sequence"] = "token"

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        logp, mask = torch.stack(s.tensors("token_logp"), 1), torch.stack(s.tensors("token_mask"), 1)
        tags = 1 + max(int(name.split(".")[1]) for name in s.parts)
        own = -(row_sum(logp, mask) if self.cost == "sum" else row_mean(logp, mask)).detach()
        shape = (own.shape[0], -1, tags)
        chosen = matched(own.reshape(shape), (mask.sum(-1) > 0).reshape(shape)).reshape(own.shape)
        counted = (mask * chosen[..., None]).flatten(0, 1)
        return reduced(self.name, -logp.flatten(0, 1), counted, self.per)
