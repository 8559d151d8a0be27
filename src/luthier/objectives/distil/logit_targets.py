"""Logits-based fine-tuning: the label, and beside it a teacher's few most probable words at the same place.

Paper: arXiv 2505.24461.   Formula: label * -log p(y) + (1 - label) * KL(q || p) at each trained token, q the teacher's k most
probable words, their probabilities divided by their sum.
Takes: text, with the teacher's words beside each token (`data.topk`, a file of luthier.models.topk; or `teacher`, which is
then read once before training).   Gives: (B, T) or (B,) values.
Choose it when: answers are right but one of many; a teacher's second and third choice say what else would do.
Rather not when: the teacher is often wrong, or has another tokenizer.
Relatives: nll (label 1).

>>> import torch
>>> ids, logp = torch.tensor([[[1]]]), torch.tensor([[[-0.5]]])  # one word, so q is certain of it
>>> round(sparse_kl(torch.zeros(1, 1, 4), ids, logp, torch.ones(1, 1)).exp().item(), 4)
4.0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.core.errors import Refused, sentence
from luthier.objectives._reduce import reduced

CARD = Card(
    name="Logits-based fine-tuning",
    source="arXiv 2505.24461",
    papers=(87,),
    needs=Needs(batch=("text",), signals=("logits", "token_logp", "token_mask", "topk_id", "topk_logp")),
    cost="one forward and backward with full logits; one pass of the teacher over the rows, or a file of 6 k + 4 bytes a token",
    limits=(
        "label = 1: nll",
        "a teacher that is certain of the label: nll whatever `label` is",
        "k = the whole vocabulary: label * nll + (1 - label) * KL(teacher || policy)",
        "the target's probabilities sum to one",
    ),
    differs=(
        "checked against the released trainer: KL(q || p), q the top probabilities divided by their sum, label 0.9, five words",
        "the trainer's frequency prior and its progressive blending of q with p are left out; its published scripts use "
        "neither, and without the prior its factor gamma cancels",
        "both parts are averaged over the same tokens; the trainer averages the KL within each row first",
        "the trainer also drops the teacher at the first position of each sequence, which is never trained here",
    ),
    use_when="a teacher with the same tokenizer can read the rows once",
    avoid_when="the teacher is no better than the labels",
    relatives=("objectives.supervised.nll",),
    mechanism="distillation",
)


def target(topk_logp: Tensor) -> Tensor:
    """Probabilities (..., k) that sum to one, from the log-probs of the teacher's k words."""
    return topk_logp.log_softmax(-1).exp()


def sparse_kl(logits: Tensor, topk_id: Tensor, topk_logp: Tensor, mask: Tensor) -> Tensor:
    """KL(q || policy) in nats at tokens with mask 1, 0 elsewhere, (B, T).

    logits (B, T, V); topk_id, topk_logp (B, T, k): the teacher's words and their log-probs; mask (B, T).
    """
    q = target(topk_logp.to(logits.dtype))
    log_p = logits.log_softmax(-1).gather(-1, topk_id)
    return torch.where(mask != 0, (torch.xlogy(q, q) - q * log_p).sum(-1), 0)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LogitTargets(Objective):
    """label: share of the label in the loss; top: the teacher's words per token; per: averaging over tokens or sequences."""

    label: Annotated[float, Ge(0), Le(1)] = 0.9
    top: Annotated[int, Gt(0)] = 5
    per: Literal["token", "sequence"] = "token"

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        if "topk_id" not in s:
            raise Refused(sentence(self.name, "a teacher's words at each token", "rows without them",
                                   "Name a `teacher`, or a file of luthier.models.topk in data.topk"))  # fmt: skip
        kl = sparse_kl(s["logits"], s["topk_id"], s["topk_logp"], s["token_mask"])
        return reduced(self.name, (1 - self.label) * kl - self.label * s["token_logp"], s["token_mask"], self.per)
