"""Behaviour-cloning anchor: on old rows the model must keep the next-token distributions that it had before training.

Paper: arXiv 2402.02868.   Formula: strength * mean over tokens of old rows of KL(p_start || p) over the whole vocabulary.
Takes: old rows (`data.retain`), any objective.   Gives: one more term; the reference is the model before training.
Choose it when: reinforcement tuning rarely visits what the model could do before, and texts that show it are at hand.
Rather not when: the old behaviour itself was wrong; full logits of the old rows do not fit.
Relatives: kickstarting (the same on the policy's own texts), replay (the old rows' words instead of distributions), ewc.

>>> BCAnchor().strength
1.0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.core import Card, Needs, Signals, component
from luthier.ops.divergence import token_kl
from luthier.regularise.forgetting._old import OnOld

CARD = Card(
    name="Behaviour-cloning anchor",
    source="arXiv 2402.02868",
    papers=(110,),
    needs=Needs(handles=("retain",)),
    cost="one forward and backward over `share` old rows per new row, and one forward of the reference over them; full logits",
    limits=(
        "at the start value and gradient are zero",
        "strength 0: the loss and gradient of training without it",
        "the gradient by the logits is p - p_start at each token, over the number of tokens",
    ),
    differs=(
        "direction and averaging checked against the authors' NetHack learner (its loss on the expert's data)",
        "states are tokens of old rows; strength is constant, their coefficient may decay",
    ),
    use_when="a policy learns from its own samples and must keep what those samples do not show",
    avoid_when="old behaviour is to be unlearned",
    relatives=("objectives.policy.kickstarting", "regularise.forgetting.replay", "regularise.forgetting.ewc"),
    mechanism="anchor penalty",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class BCAnchor(OnOld):
    """strength: factor of the KL on old rows; share: old rows per new row."""

    wants: ClassVar[tuple[str, ...]] = ("logits", "ref_logits", "token_mask")
    strength: Annotated[float, Ge(0)] = 1.0
    share: Annotated[float, Gt(0), Le(1)] = 0.25

    def values(self, s: Signals) -> Tensor:
        """KL(start || policy) at each token in nats, (B, T)."""
        return token_kl(s["ref_logits"], s["logits"], s["token_mask"])
