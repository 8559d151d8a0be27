"""NovelSum: diversity as the mean novelty of outputs, where near outputs count most and dense regions are wider.

Paper: arXiv 2502.17184.   Formula: mean over i of sigma(x_i) * sum over ranks r of d_r / r^power / sum of 1 / r^power,
d_r the cosine distances of x_i to all outputs, ascending; sigma = 1 / (mean squared distance of x_i to its nearest
neighbours among the reference responses)^density.
Takes: rows with prompt and response; an embedder, else hashed character n-grams (the unit says which).
Gives: 0 for copies, larger for more diverse sets.
Choose it when: outputs that nearly repeat should count as repeats, and common topics should be told apart finely.
Rather not when: an absolute number is wanted; it depends on the reference and on the number of samples.
Relatives: embedding (power = density = 0, without the outputs' distance to themselves), vendi (effective number).

>>> from luthier.ops.novelty import novelsum
>>> from luthier.measure._embed import hashed
>>> novelsum(hashed(["a", "a", "a"])).item()
0.0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from luthier.core import Card, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._embed import embedded, embedder
from luthier.measure._rows import need
from luthier.measure.diversity._texts import SetMeasure
from luthier.ops.novelty import local_density, novelsum

CARD = Card(
    name="NovelSum",
    source="arXiv 2502.17184",
    papers=(312,),
    needs=Needs(batch=("text",), handles=("embed",)),
    cost="`samples` generations per row, shared with the other diversity measures, and their embeddings",
    limits=(
        "power = 0 and density = 0: the mean of the cosine distance matrix, its diagonal included",
        "identical outputs: 0",
        "any order of the outputs",
    ),
    differs=(
        "the paper measures data sets, here it reads a model's outputs; luthier.ops.novelty.novelsum measures vectors "
        "of any set",
        "the density is that of the rows' own responses, the same reference for all arms; the paper takes a large corpus",
        "the factor of row i is its own density and its distance to itself is at rank 1, as in the authors' code",
        "distances in the density are squared as in that code; copies in the reference count once",
        "without an embedder: hashed counts of character n-grams (orders 2 to 4, 1024 places): spelling, not meaning",
    ),
    use_when="near repeats should weigh most, and the reference says where fine differences matter",
    avoid_when="sets of different size or with other references are compared",
    relatives=("measure.diversity.embedding", "measure.diversity.vendi", "data.select.novelselect"),
    mechanism="diversity layer",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class NovelSum(SetMeasure):
    """power: how fast the weight of farther outputs falls; density: power of the local density; neighbours: reference
    responses that measure it; samples: per prompt. Reading: novelsum_<scope>."""

    scope: Literal["per_input", "across_inputs"] = "across_inputs"
    power: Annotated[float, Ge(0)] = 1.0
    density: Annotated[float, Ge(0)] = 0.5
    neighbours: Annotated[int, Ge(1)] = 10
    samples: Annotated[int, Ge(1)] = 8
    temperature: Annotated[float, Gt(0)] = 1.0
    max_new: Annotated[int, Ge(1)] = 64

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("prompt", "response"), self.name, least=1 if self.scope == "per_input" else 2)
        own = [str(row["response"]) for row in rows]

        def of(texts: Sequence[str]) -> float:
            x = embedded([*texts, *own], ctx, self.name)
            sigma = local_density(x[: len(texts)], x[len(texts) :], self.neighbours, self.density)
            return novelsum(x[: len(texts)], sigma, self.power).item()

        unit = f"mean novelty, power {self.power:g}, density {self.density:g}, {embedder(ctx)}"
        yield self.reading("novelsum", of, self.drawn(subject, rows, ctx), unit)
