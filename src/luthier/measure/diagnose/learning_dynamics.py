"""Learning dynamics: where did the probability go that preference tuning took from the texts it learned?

Paper: arXiv 2407.10490.
Formula: one step on (x_u, y_u) gives Delta log pi(. | x_o) = -lr A(x_o) K(x_o, x_u) G(x_u) + O(lr^2); its exact first-order
prediction is `luthier.ops.dynamics.predicted_change`. A negative gradient on an unlikely text moves mass to what is most
likely already (squeezing). This probe reads it from a finished run: log-probs per token after minus before.
Takes: pairs, a subject that tells tokens.   Gives: changes for chosen, rejected, the most likely token along the chosen text,
and the share of squeezed rows: chosen fell while the most likely token rose.
Choose it when: DPO made chosen answers unlikely too.   Rather not when: no pairs were trained.
Relatives: token_shift (answers of its own), pair_accuracy (who wins, not where the mass went).
The remedy of the paper (`dpo_extend`) is a composition of two runs: `objective: [{nll: {on: chosen}}, {nll: {on: rejected}}]`,
then `objective: dpo` from the model it left (examples/lab/both_sides.yaml and dpo_extend.yaml).

>>> squeezed(torch.tensor([-0.5, -0.5, 0.2]), torch.tensor([0.1, -0.1, 0.1])).tolist()
[1.0, 0.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.core.errors import DataError, sentence
from luthier.measure._rows import has, mean_reading, need, prompts
from luthier.measure._subject import TokenSubject
from luthier.measure.quality.pair_accuracy import said

CARD = Card(
    name="learning dynamics",
    source="arXiv 2407.10490",
    papers=(35,),
    needs=Needs(batch=("preference",), handles=("tokens",)),
    cost="one forward pass of model and base over both texts of each pair; two over chosen where prompts have a paraphrase",
    limits=(
        "a model against itself: every change is 0, nothing is squeezed",
        "predicted_change: the error falls to a quarter when the learning rate is halved",
        "linear softmax: the kernel is (x_o . x_u) times the identity",
        "a step that lowers one class of a softmax that is not its most likely one never lowers the odds of the most likely "
        "class against any other",
    ),
    differs=(
        "the authors log these figures during training; here they are read from a finished run, or from any checkpoint",
        "the paraphrase is one of the prompt; the authors also score paraphrases of answers",
        "the most likely token is read along the chosen text, as the authors' `argmax` column does (their trainers.py, read)",
        "the prediction is exact to first order in the parameters as they are, without the paper's assumption of a kernel that "
        "stays",
    ),
    use_when="likelihoods fall during preference tuning and you want to know whether it is squeezing",
    avoid_when="only accuracy on pairs matters",
    relatives=("measure.diagnose.token_shift", "measure.quality.pair_accuracy", "objectives.preference.dpo"),
    mechanism="log-probs before and after",
)


def squeezed(chosen: Tensor, top: Tensor) -> Tensor:
    """1 where the change of the chosen text's log-prob is below 0 and that of the most likely tokens above; (n,) each."""
    return ((chosen < 0) & (top > 0)).double()


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LearningDynamics(Measure):
    """Readings: dynamics_chosen, _rejected, _top, _squeezed, and _paraphrase where every row has one."""

    def changes(self, subject: Subject, asked: Sequence[object], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Changes per token since before training: of each text's log-prob and of the most likely tokens', (n,) each."""
        if not hasattr(subject, "token_table"):
            came = type(subject).__name__
            raise DataError(sentence(self.name, "a subject that tells tokens ('tokens')", came, "Leave it out"))
        before, after = (
            cast(TokenSubject, s).token_table(cast(Sequence[str], asked), texts) for s in (subject.base(), subject)
        )
        own = torch.stack([b.logp.mean() - a.logp.mean() for a, b in zip(before, after, strict=True)])
        top = torch.stack([b.top_logp.mean() - a.top_logp.mean() for a, b in zip(before, after, strict=True)])
        return own.double().cpu(), top.double().cpu()

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("prompt", "chosen", "rejected"), self.name)
        asked, (chosen, rejected) = prompts(rows), ([said(r[s]) for r in rows] for s in ("chosen", "rejected"))
        own, top = self.changes(subject, asked, chosen)
        other, _ = self.changes(subject, asked, rejected)
        unit = "nats per token"
        yield mean_reading("dynamics_chosen", own.tolist(), better=1, unit=unit, axis="drift")
        yield mean_reading("dynamics_rejected", other.tolist(), better=0, unit=unit, axis="drift")
        yield mean_reading("dynamics_top", top.tolist(), better=0, unit=unit, axis="drift")
        share = squeezed(own, top).tolist()
        yield mean_reading("dynamics_squeezed", share, better=-1, unit="share of pairs", axis="drift")
        if all(has(r, "paraphrase") for r in rows):
            reworded, _ = self.changes(subject, [r["paraphrase"] for r in rows], chosen)
            yield mean_reading("dynamics_paraphrase", reworded.tolist(), better=1, unit=unit, axis="drift")
