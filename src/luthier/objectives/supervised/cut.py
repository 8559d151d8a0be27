"""Contrastive unlikelihood: a judgment in words shows which tokens of an answer were wrong, and these alone are unlearned.

Paper: arXiv 2312.14591.   Formula: half of -log p(y_t | x, j) on the judged text, and half, on the plain one, of -log p_t for
fine tokens and -strength * log(1 - p_t) for flagged ones, p_t = p(y_t | x); flagged where p(y_t | x, j) > ratio * p_t, as
the judgment j makes a wrong token likelier.
Takes: judged data (prompt, response, judgment; no judgment where the answer is fine).   Gives: two terms, each with its count.
Choose it when: criticism in words is at hand, and most of a criticised answer was right.
Rather not when: the model does not understand judgments yet and there are too few to teach it; only scores are known.
Relatives: nll (no judgment anywhere), dpo (pairs instead of judgments).

>>> import torch
>>> judged, plain = torch.tensor([-0.1, -2.0]), torch.tensor([-2.0, -2.0])
>>> flagged(judged, plain, 1.1)
tensor([ True, False])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives._reduce import reduced
from luthier.objectives.preference._margin import log1mexp

CARD = Card(
    name="CUT",
    source="arXiv 2312.14591",
    papers=(233,),
    needs=Needs(batch=("judged",), signals=("token_logp", "token_mask")),
    cost="one forward and backward over both texts",
    limits=(
        "ratio = infinity: half the nll of the judged texts plus half that of the plain ones",
        "no judgment anywhere: nll",
        "strength = 0: flagged tokens add nothing and still count",
        "the gradient by a flagged token's log-prob is strength * p / (1 - p), that by a fine one's is -1",
    ),
    differs=(
        "checked against the authors' model code: the ratio is a constant for the gradient, both halves are means over "
        "tokens; ratio 1.1 and strength 1 are those of its online script (1.2 and 0.5 offline)",
        "answers without a judgment are in both halves, where they are equal; there the second half has judged rows only",
        "the authors use a prompt template of their own for judged texts; here the judgment follows the prompt after a blank "
        "line",
        "log(1 - p) is computed without cancellation, a p that rounds to 1 counts as 1 - eps; there 1e-5 is added to zeros",
    ),
    use_when="answers come with written criticism",
    avoid_when="only scores or pairs are known",
    relatives=("objectives.supervised.nll", "objectives.preference.dpo"),
    mechanism="token-weighted likelihood",
)


def flagged(judged_logp: Tensor, plain_logp: Tensor, ratio: float) -> Tensor:
    """Which tokens the judgment makes more than `ratio` times as likely; log-probs of equal shape, no gradient."""
    return judged_logp.detach() - plain_logp.detach() > math.log(ratio)


def contrastive(plain_logp: Tensor, wrong: Tensor, strength: float) -> Tensor:
    """-log p where a token is fine, -strength * log(1 - p) where it is wrong; (B, T) from log-probs <= 0."""
    below = plain_logp.clamp(max=-torch.finfo(plain_logp.dtype).eps)
    return torch.where(wrong, -strength * log1mexp(torch.where(wrong, below, -1.0)), -plain_logp)


def to_front(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(values, mask) with the tokens of mask 1 first and in order, (B, T) each: the responses of two texts side by side."""
    order = (mask == 0).to(torch.int8).argsort(dim=-1, stable=True)
    return values.gather(-1, order), mask.gather(-1, order)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class CUT(Objective):
    """ratio: how much likelier the judgment must make a token; strength: factor of the unlikelihood; per: averaging."""

    ratio: Annotated[float, Gt(0)] = 1.1
    strength: Annotated[float, Ge(0)] = 1.0
    per: Literal["token", "sequence"] = "token"

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        judged, plain = s.part("judged"), s.part("plain")
        told, both = to_front(judged["token_logp"], judged["token_mask"])
        logp, mask = to_front(plain["token_logp"], plain["token_mask"])
        wrong = flagged(told, logp, self.ratio) & (both != 0) & (mask != 0)
        halves = (reduced("cut.judged", -told, both, self.per),
                  reduced("cut.plain", contrastive(logp, wrong, self.strength), mask, self.per))  # fmt: skip
        return halves[0].scaled(0.5), halves[1].scaled(0.5)
