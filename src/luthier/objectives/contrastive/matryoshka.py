"""Nested vectors: apply a contrastive loss to the first coordinates as well, so that vectors may be cut.

Paper: arXiv 2205.13147, eq. 1.   Formula: sum over dims m of weight_m * L(e[:m]).
Takes: an inner objective on embeddings.   Gives: its values, summed over the dims.
Choose it when: an index should be searched with short vectors first.   Rather not when: one size is all that is used.
Relatives: starbucks (layers too).

`{matryoshka: {inner: info_nce, dims: [384, 128, 64]}}`
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.core.errors import ConfigError, sentence
from luthier.objectives.contrastive._nested import added, check_inner, head, on
from luthier.objectives.contrastive.info_nce import InfoNCE

CARD = Card(
    name="Matryoshka",
    source="arXiv 2205.13147",
    equations=("1",),
    needs=Needs(batch=("pairs",), signals=("embedding",)),
    cost="one forward pass; the inner loss once for each dim",
    limits=("the full dim alone: the inner objective itself", "equal dims: the inner objective times their number"),
    differs=("vectors cut short are not normalised here: the contrastive losses compare cosines",),
    use_when="short vectors must work as well as the full ones",
    avoid_when="one size is all that is used",
    relatives=("objectives.contrastive.starbucks", "objectives.contrastive.info_nce"),
    mechanism="nested dimensions",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Matryoshka(Objective):
    """inner: the loss on each size; dims: numbers of coordinates; weights: one for each dim (1 each by default)."""

    inner: Objective = field(default_factory=InfoNCE)
    dims: tuple[int, ...] = (384, 192, 96, 48)
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for dims or weights that do not fit each other."""
        check_inner(self.inner, "matryoshka")
        if not self.dims or min(self.dims) < 1 or (self.weights and len(self.weights) != len(self.dims)):
            raise ConfigError(sentence("matryoshka", "dims of at least 1, and as many weights or none",
                                       f"dims {list(self.dims)}, weights {list(self.weights)}", "Correct them"))  # fmt: skip

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Those of the inner objective."""
        return replace(self.inner.needs, batch=("pairs",))

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        parts = s.tensors("embedding")
        each = [on(self.inner, batch, s, head(parts, d, "matryoshka")) for d in self.dims]
        return added(each, self.weights or (1.0,) * len(each))
