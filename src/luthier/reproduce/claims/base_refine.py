"""Do repaired drafts of a varied writer teach more than the drafts, and than a careful writer who repeats itself?

Questions are pairs of numbers on a grid whose answer changes from cell to cell. The base asks anything and errs in half of
its answers; the instruction-tuned writer asks few favourite questions and is right; the refiner answers what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.core import Row, stream
from luthier.core.streams import python_stream
from luthier.data.synthesise._makers import Sampler, read, similarity, written
from luthier.data.synthesise.base_refine import DRAFT, BaseRefine
from luthier.reproduce.claim import Claim

SIDE, CELLS, ROWS, FRESH, NEIGHBOURS = 30, 6, 200, 1000, 3
ERRORS = {"base": 0.5, "instruct": 0.05, "refiner": 0.1}
FAVOURITES = 20


def pair(row: Row) -> tuple[int, int]:
    """The two numbers of a question."""
    a, b = map(int, row["prompt"].split())
    return a, b


class Writers:
    """The three models of one world, as samplers."""

    def __init__(self, seed: int) -> None:
        self.truth = torch.randn(CELLS, CELLS, generator=stream(seed, "claim.base_refine"), dtype=torch.float64)
        self.rng = python_stream(seed, "claim.base_refine.writers")
        self.favourites = [(self.rng.randrange(SIDE), self.rng.randrange(SIDE)) for _ in range(FAVOURITES)]

    def right(self, a: int, b: int) -> float:
        """The answer to a pair."""
        return float(self.truth[a * CELLS // SIDE, b * CELLS // SIDE])

    def row(self, a: int, b: int, who: str) -> dict[str, str]:
        """The pair with an answer by this writer, at times one of another cell."""
        wrong = self.rng.random() < ERRORS[who]
        value = self.right(self.rng.randrange(SIDE), self.rng.randrange(SIDE)) if wrong else self.right(a, b)
        return {"prompt": f"{a} {b}", "response": f"{value:.6f}"}

    def base(self, prompts: Sequence[str]) -> list[str]:
        """Any pair, one in ten texts broken."""
        rows = [self.row(self.rng.randrange(SIDE), self.rng.randrange(SIDE), "base") for _ in prompts]
        return ["" if self.rng.random() < 0.1 else written(r).split(":", 1)[1] for r in rows]

    def instruct(self, prompts: Sequence[str]) -> list[str]:
        """A favourite pair, the first ones most often."""
        weights = [1 / (i + 1) for i in range(FAVOURITES)]
        asked = self.rng.choices(self.favourites, weights, k=len(prompts))
        return [written(self.row(a, b, "instruct")).split(":", 1)[1] for a, b in asked]

    def refiner(self, prompts: Sequence[str]) -> list[str]:
        """The draft's question with an answer of its own."""
        out = []
        for prompt in prompts:
            a, b = pair(read(prompt.rsplit(DRAFT, 1)[1]) or {})
            out.append(written(self.row(a, b, "refiner")))
        return out

    def figures(self, rows: Sequence[Row]) -> dict[str, float]:
        """Error of a learner on fresh pairs, share of right answers, mean similarity of the questions."""
        x = torch.tensor([pair(r) for r in rows], dtype=torch.float64)
        y = torch.tensor([float(r["response"]) for r in rows], dtype=torch.float64)
        truth = torch.tensor([self.right(*pair(r)) for r in rows], dtype=torch.float64)
        asked = torch.tensor([[self.rng.randrange(SIDE), self.rng.randrange(SIDE)] for _ in range(FRESH)])
        want = torch.tensor([self.right(a, b) for a, b in asked.tolist()], dtype=torch.float64)
        near = torch.cdist(asked.double(), x).topk(NEIGHBOURS, largest=False).indices
        wide: Tensor = x - (SIDE - 1) / 2
        return {"error": float((y[near].mean(1) - want).square().mean()),
                "valid": float((y - truth).abs().lt(1e-4).double().mean()), "similarity": similarity(wide).item()}  # fmt: skip


def run(seed: int) -> dict[str, dict[str, float]]:
    """Rows by BARE, by the base alone, and by the instruction-tuned writer alone, as many each."""
    examples = [{"prompt": "0 0", "response": "0"}]
    arms: dict[str, dict[str, str]] = {
        "bare": {"base": "base", "refiner": "refiner"},
        "base_only": {"base": "base"},
        "instruct_only": {"base": "instruct"},
    }
    out = {}
    for arm, parts in arms.items():
        writers = Writers(seed)
        samplers: dict[str, Sampler] = {slot: getattr(writers, who) for slot, who in parts.items()}
        out[arm] = writers.figures(BaseRefine(retries=9)(examples, ROWS, **samplers).rows)
    return out


CLAIM = Claim(
    component="base_refine",
    papers=(281,),
    source="arXiv 2502.01697",
    says="A base model's drafts, repaired one by one by an instruction-tuned model, train better models than rows of either alone.",
    world="pairs on a grid of 36 cells; 200 rows each of a varied writer, a careful repetitive one, and a repairer; 3 neighbours",
    expect="bare < instruct_only",
    also=("bare < base_only", "bare > base_only : valid", "bare < instruct_only : similarity"),
    measure="error",
    seeds=tuple(range(20)),
    run=run,
    budget_s=30,
    note="The world grants what the paper presumes: the base is varied and errs (a half of its answers), the other writer repeats "
    "twenty questions and is right (all but one in twenty), and the refiner can answer what is drafted (all but one in ten).",
)
