"""G-Vendi: how many different things the outputs would teach, counted by the directions of their gradients.

Paper: arXiv 2505.20161.   Formula: exp(-sum_i l_i log l_i), l the eigenvalues of G G^T / n, the rows of G the unit
projected gradients of -log p(output | prompt) under the model before training.
Takes: rows with prompt; a subject that gives gradients.   Gives: between 1 and n.
Choose it when: a model makes training data and the reach of what it makes is the question.
Rather not when: texts shall differ in wording or topic; gradients hear what is hard for the model.
Relatives: vendi (embeddings instead of gradients), data.select.prismatic (chooses for it).

>>> [round(g_vendi(g).item(), 6) for g in (torch.eye(3), torch.tensor([[1.0, 0.0], [9.0, 0.0]]))]
[3.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.core.errors import DataError, sentence
from luthier.measure._rows import prompts
from luthier.measure.diversity._texts import SetMeasure
from luthier.ops.vendi import vendi

CARD = Card(
    name="G-Vendi",
    source="arXiv 2505.20161",
    papers=(371,),
    needs=Needs(batch=("prompts", "text"), handles=("gradients",)),
    cost="`samples` generations per row, and one forward and backward of the base for each",
    limits=(
        "n equal gradients: 1; n orthogonal ones: n",
        "G G^T / n and G^T G / n give the same",
        "the lengths of single gradients do not matter",
    ),
    differs=(
        "the proxy is the measured run's own base, not a small model chosen once; arms of one base can be compared",
        "gradients are projected to `dim` numbers by a count sketch; the released code has a dense matrix of signs to 1024",
        "an output whose gradient is 0 is an error; the paper does not say",
        "the paper measures data sets, here a model's outputs; g_vendi takes gradients of any set",
    ),
    use_when="outputs are to be training data and their number is the same in all arms",
    avoid_when="there is no memory or time for backward passes",
    relatives=("measure.diversity.vendi", "data.select.prismatic"),
    mechanism="diversity layer",
)


def g_vendi(gradients: Tensor) -> Tensor:
    """Effective number of directions of gradients (n, d), a scalar in [1, n]. Raises ValueError for rows of zeros."""
    return vendi(gradients.double())


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class GVendi(SetMeasure):
    """samples: per prompt; dim: numbers that a gradient is projected to. Reading: g_vendi_<scope>."""

    scope: Literal["per_input", "across_inputs"] = "across_inputs"
    dim: Annotated[int, Ge(1)] = 1024
    samples: Annotated[int, Ge(1)] = 1
    temperature: Annotated[float, Gt(0)] = 1.0
    max_new: Annotated[int, Ge(1)] = 64

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        base = subject.base()
        if not hasattr(base, "gradients"):
            came = type(base).__name__
            raise DataError(sentence(self.name, "a subject that gives gradients", came, "Leave this measure out"))
        flat = [(p, text) for p, texts in zip(prompts(rows), self.drawn(subject, rows, ctx), strict=True) for text in texts]
        made: Tensor = base.gradients([p for p, _ in flat], [t for _, t in flat], dim=self.dim)  # type: ignore[attr-defined]
        empty = (made == 0).all(1)
        if bool(empty.any()):
            text = flat[int(empty.nonzero()[0])][1]
            raise DataError(sentence(self.name, "outputs with a gradient", f"none for {text!r}", "Check the outputs"))
        unit = f"effective number of gradient directions, {self.dim} dimensions"
        yield self.reading("g_vendi", lambda one: g_vendi(torch.stack(list(one))).item(),
                           [list(one) for one in made.view(len(rows), self.samples, -1)], unit)  # fmt: skip
