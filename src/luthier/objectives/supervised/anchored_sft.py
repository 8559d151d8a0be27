"""Anchored supervised fine-tuning: DFT's probability-weighted likelihood with a KL to the frozen start model.

Paper: arXiv 2509.23753.   Formula: mean over trained tokens of -sg(p_t) log p_t + strength * KL_t, KL_t over the whole
vocabulary at token t.
Takes: text.   Gives: (B, T) or (B,) values.
Choose it when: dft drifts: it sharpens what is already likely, and nothing holds the rest of the distribution.
Rather not when: the base must change a lot, or the vocabulary times the batch does not fit twice into memory
(kl_reference is the estimate from the tokens' own probabilities).
Relatives: dft (strength 0), nll (strength 0, weighting none), kl_reference.

Modes of the authors' code: sft = nll; dft = dft; sft+kl = {weighting: none}; asft = the default.

>>> import torch
>>> logits = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
>>> anchor(logits, logits, torch.ones(1, 2), "forward")
tensor([[0., 0.]])
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Needs, Signals, component
from luthier.objectives.supervised._weighted import TokenWeighted, needs_of, weighted_nll
from luthier.objectives.supervised.dft import dft
from luthier.ops.divergence import token_kl

CARD = Card(
    name="ASFT (anchored)",
    source="arXiv 2509.23753",
    papers=(76,),
    needs=Needs(batch=("text", "preference"), signals=("token_logp", "token_mask", "logits", "ref_logits")),
    cost="one forward and backward, one forward of the reference; full logits of both are held",
    limits=(
        "strength = 0: dft, and nll with weighting none; no reference is asked for",
        "policy equals reference: the KL and its gradient are zero, so the first gradient is that of dft",
        "forward: the gradient of the KL by the logits is p - q",
    ),
    differs=(
        "checked against the authors' training script: forward is its KL(reference || policy), as in sft+kl and asft "
        "there; which direction the paper's text means is not checked",
        "strength 0.1 is the script's default; its README uses 0.05",
        "reverse, KL(policy || reference), is offered beside it",
    ),
    use_when="dft is the right loss but the model drifts from its base",
    avoid_when="the model must move far from its base, or full logits do not fit",
    relatives=("objectives.supervised.dft", "objectives.supervised.nll", "objectives.policy.kl_reference"),
    mechanism="token-weighted likelihood",
)

Direction = Literal["forward", "reverse"]


def anchor(logits: Tensor, ref_logits: Tensor, mask: Tensor, direction: Direction) -> Tensor:
    """KL between reference and policy at trained tokens, nats, (B, T) from logits (B, T, V) and the token mask (B, T).

    forward: KL(reference || policy); reverse: KL(policy || reference).
    """
    pair = (ref_logits, logits) if direction == "forward" else (logits, ref_logits)
    return token_kl(*pair, mask)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class AnchoredSFT(TokenWeighted):
    """strength: factor of the KL; weighting: weigh tokens by their probability, or none; direction of the KL; on; per."""

    strength: Annotated[float, Ge(0)] = 0.1
    weighting: Literal["probability", "none"] = "probability"
    direction: Literal["forward", "reverse"] = "forward"
    on: Literal["chosen", "rejected"] | None = None
    per: Literal["token", "sequence"] = "token"

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        whole = needs_of(self)
        return whole if self.strength else replace(whole, signals=("token_logp", "token_mask"))

    def loss(self, s: Signals) -> Tensor:
        """Likelihood and anchor together, (B, T), so that both are averaged over the same tokens."""
        logp = s["token_logp"]
        likelihood = dft(logp) if self.weighting == "probability" else weighted_nll(logp)
        if not self.strength:
            return likelihood
        return likelihood + self.strength * anchor(s["logits"], s["ref_logits"], s["token_mask"], self.direction)
