"""Tuning contribution: how large a part of what a model does at a prompt comes from its tuning?

Paper: arXiv 2506.23423, algorithm 1.
Formula: TuCo = |sum_l FTC_l| / (|sum_l PTC_l| + |sum_l FTC_l|) at the prompt's last token, where x_{l+1} = x_l + PTC_l +
FTC_l, PTC_l = f_base(x_l, l), FTC_l = f_tuned(x_l, l) - PTC_l, f a block's update of the stream x, and x_0 is tuned.
Takes: rows with prompt, a subject whose blocks run with and without the tuning.   Gives: one share per prompt; with
`alphas`, the likelihood of the right responses when FTC_l is multiplied by alpha.
Choose it when: asking on which prompts the tuning acts at all.   Rather not when: base and tuned differ in architecture.
Relatives: token_shift (where answers differ), task arithmetic (the same dial in weights).

>>> tuco(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 5.0]]))
tensor([0.5000])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.core.errors import DataError, sentence
from luthier.measure._rows import mean_reading, need, prompts
from luthier.measure._subject import BlockSubject, scored

CARD = Card(
    name="TuCo",
    source="arXiv 2506.23423, algorithm 1",
    papers=(69,),
    needs=Needs(batch=("prompts", "text"), handles=("blocks",)),
    cost="one forward pass of the prompts through both models at once; one more over prompt and response for each alpha",
    limits=(
        "a model against itself: 0",
        "always in [0, 1]",
        "alpha = 1 is the tuned model bit for bit, alpha = 0 the base where embeddings, last norm and head are shared",
        "the base's parts, the tuning's parts and x_0 add up to the tuned model's last hidden state",
    ),
    differs=(
        "the authors' code could not be had; written from algorithm 1 as published",
        "a layer is a whole block (attention and feed-forward together)",
        "with alpha, embeddings, last norm and head are the tuned model's",
        "a scaled model scores answers and does not generate: its two runs cannot share a key-value cache",
        "prompts with no contribution at all (both sums zero) count as 0",
    ),
    use_when="you look for prompts on which tuning is bypassed, or want to know whether it acts where it should",
    avoid_when="the base model is not at hand",
    relatives=("measure.diagnose.token_shift", "merge.task_vectors.task_arithmetic"),
    mechanism="base and tuned update of one stream",
)


def tuco(base: Tensor, tuning: Tensor) -> Tensor:
    """|tuning| / (|base| + |tuning|) for summed contributions (n, d) each -> (n,); 0 where both are zero."""
    a, b = torch.linalg.vector_norm(base, dim=-1), torch.linalg.vector_norm(tuning, dim=-1)
    return torch.where(b > 0, b / (a + b), 0.0)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TuCo(Measure):
    """alphas: scales of the tuning at which the given responses are scored too; these need rows with a response."""

    alphas: tuple[float, ...] = ()

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("prompt", "response") if self.alphas else ("prompt",), self.name)
        if not hasattr(subject, "contributions"):
            required, came = (
                "a subject that runs its blocks with and without the tuning ('blocks')",
                type(subject).__name__,
            )
            raise DataError(sentence(self.name, required, came, "Leave it out"))
        asked, both = prompts(rows), cast(BlockSubject, subject)
        shares = tuco(*both.contributions(asked)).tolist()
        yield mean_reading("tuco", shares, better=0, unit="share of the stream", axis="drift")
        for alpha in self.alphas:
            total, count = scored(both.scaled(alpha), asked, [str(r["response"]) for r in rows], self.name)
            losses = (-total / count).tolist()
            yield mean_reading(f"nll_at_{alpha:g}", losses, better=0, unit="nats per token", axis="drift")
