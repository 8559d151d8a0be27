"""Replay: old rows are trained again beside the new ones, so that what they show is not forgotten.

Paper: arXiv 2402.02868 (episodic memory, among the remedies compared).   Formula: strength * mean over tokens of old rows of
-log p(x_t | x_<t) is added to the loss.
Takes: old rows (`data.retain`), any objective.   Gives: one more term.
Choose it when: rows of the old skill, or the old model's own answers, are at hand: it is the remedy to beat.
Rather not when: there are no old rows (l2_base needs none), or old answers are worse than the model.
Relatives: bc_anchor (the old model's whole distribution on old rows), ewc, l2_base.

>>> Replay(strength=0.5, share=0.25).points
('terms',)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.core import Card, Needs, Signals, component
from luthier.regularise.forgetting._old import OnOld

CARD = Card(
    name="Replay",
    source="arXiv 2402.02868",
    papers=(110,),
    needs=Needs(handles=("retain",)),
    cost="one forward and backward over `share` old rows per new row",
    limits=(
        "strength 0: the loss and gradient of training without it",
        "the gradient is that of training on new and old rows with their two means added",
    ),
    differs=(
        "the paper keeps old transitions in the replay buffer of an off-policy learner; here old rows are imitated, which "
        "asks nothing of the objective",
        "a term of its own with its own count: how many new rows there are does not change how much an old one weighs",
    ),
    use_when="old rows are at hand and old skills must stay",
    avoid_when="old answers are worse than what the model would say now",
    relatives=("regularise.forgetting.bc_anchor", "regularise.forgetting.ewc", "regularise.anchor.l2_base"),
    mechanism="anchor penalty",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Replay(OnOld):
    """strength: factor of the old rows' loss; share: old rows per new row."""

    wants: ClassVar[tuple[str, ...]] = ("token_logp", "token_mask")
    strength: Annotated[float, Ge(0)] = 1.0
    share: Annotated[float, Gt(0), Le(1)] = 0.25

    def values(self, s: Signals) -> Tensor:
        """-log p of each token, (B, T)."""
        return -s["token_logp"]
