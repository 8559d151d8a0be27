"""What the run cost: time, tokens, memory, trained parameters, forward passes, as the engine counted them.

Takes: the cost figures of the run (context).   Gives: one reading per figure, lower is better where that has a meaning.
Choose it when: always; a gain in quality is judged against its price.
Rather not when: machines differ (seconds, bytes).
Relatives: none; every other axis is read beside this one.

>>> figure("train_seconds"), figure("forwards_policy")
(('s', -1), ('forward passes', -1))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.core.errors import DataError, sentence

CARD = Card(
    name="cost",
    source="standard",
    needs=Needs(handles=("cost",)),
    cost="nothing: it reads what was counted during the run",
    limits=("every figure of the run is read, none is changed",),
    use_when="always",
    avoid_when="arms ran on different machines; then compare parameters, tokens and forward passes only",
    mechanism="cost",
)

Better = Literal[-1, 0, 1]
FIGURES: Mapping[str, tuple[str, Better]] = {
    "train_seconds": ("s", -1),
    "train_tokens": ("tokens", -1),
    "train_images": ("images", -1),
    "tokens_per_second": ("tokens/s", 1),
    "peak_bytes": ("bytes", -1),
    "trained_parameters": ("parameters", -1),
    "total_parameters": ("parameters", 0),
    "measure_seconds": ("s", 0),
    "total_seconds": ("s", 0),
}


def figure(name: str) -> tuple[str, Better]:
    """(unit, better) of a cost figure; `forwards_<kind>` counts passes; unknown names have no direction."""
    return ("forward passes", -1) if name.startswith("forwards") else FIGURES.get(name, ("", 0))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Cost(Measure):
    """One reading per figure in the context's cost, by its name there."""

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        if not ctx.cost:
            raise DataError(
                sentence(
                    self.name,
                    "the run's figures ('cost')",
                    "none",
                    "Measure a run that was trained, or leave this measure out",
                )
            )
        for name, value in ctx.cost.items():
            unit, better = figure(name)
            yield Reading(name, float(value), (), better, unit, "cost")
