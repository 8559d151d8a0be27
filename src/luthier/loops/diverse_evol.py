"""Iterative self-selection: train on a subset, embed the pool with the model just trained, add the rows farthest away, again.

Paper: arXiv 2311.08182 (DiverseEvol).   Formula: add argmax over x of min over p in P of ||e(x) - e(p)||, one by one, e the mean
last hidden state of prompt and answer under the present model; then train on P, and choose again.
Takes: rows of text.   Gives: text batches of the chosen rows for any supervised objective (nll, dft, ...).
Choose it when: a small part of a large pool must do, and no judge or stronger model is at hand.   Rather not when: the pool holds
garbage, which lies far from everything, or one choice is enough (kcenter).
Relatives: kcenter (one choice by a fixed embedder), prismatic (gradients instead of embeddings).

>>> sizes(10, 2, 4), starts(100, [1, 3])
([4, 6, 8, 10], [0, 25])
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Procedure, component
from luthier.core.errors import Refused, sentence
from luthier.core.streams import stream
from luthier.loops._parts import RowParts
from luthier.models.collate import pad
from luthier.ops.submodular import k_centre
from luthier.train.feed import Feed, RowFeed

CARD = Card(
    name="DiverseEvol",
    source="arXiv 2311.08182",
    papers=(308,),
    needs=Needs(batch=("text",)),
    cost="a forward over the whole pool each round; with restart a copy of what trains, and rounds of training before the last",
    limits=(
        "one round: k-centre in the embedding of the untrained model, and the same training as on rows chosen before",
        "a round keeps all rows of the rounds before",
        "restart: every round begins with the same weights, a fresh optimiser and the schedule from its start",
        "the distance of the last row chosen is at most twice the best covering radius",
    ),
    differs=(
        "read in the authors' code: rows by lot first (100), then 100 a round for 10 rounds, each trained from the pretrained model",
        "the first choice is made with the untrained model; the authors train on the lot alone first",
        "steps are shared out by the size of the rounds, as the authors' epochs are",
        "state of regularisers goes on over the rounds",
    ),
    use_when="few rows of a large pool should teach all of it, and what is near is to be judged by the model itself",
    avoid_when="the pool has outliers with useless answers",
    relatives=("data.select.kcenter", "data.select.prismatic", "loops.raft"),
    mechanism="diversity layer",
    tags=("stateful",),
)


def sizes(keep: int, drawn: int, rounds: int) -> list[int]:
    """Rows that train in each round: the drawn ones and equal additions, up to `keep`."""
    return [drawn + -(-(keep - drawn) * t // rounds) for t in range(1, rounds + 1)]


def starts(steps: int, rows: Sequence[int]) -> list[int]:
    """First step of each round when steps are shared out by the rounds' rows; every round has one step at least."""
    total, out = sum(rows), list[int]()
    for t in range(len(rows)):
        earliest = out[-1] + 1 if out else 0
        out.append(min(max(earliest, steps * sum(rows[:t]) // total), steps - len(rows) + t))
    return out


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DiverseEvol(Procedure):
    """keep: rows of the last round (int), or their share (float up to 1.0); rounds: choices, each followed by training;
    drawn: how many of them are drawn by lot first; restart: each round trains the model from its start, else goes on."""

    gives: ClassVar[str] = "text"
    keep: Annotated[int | float, Gt(0)] = 0.25
    rounds: Annotated[int, Gt(0)] = 4
    drawn: Annotated[int, Ge(0)] = 0
    restart: bool = True

    def count(self, n: int) -> int:
        """Rows of the last round, of n. Raises Refused where they do not suffice for all rounds."""
        if isinstance(self.keep, float) and self.keep > 1:
            raise Refused(
                sentence("diverse_evol.keep", "a share up to 1.0, or a whole number", str(self.keep), "Change it")
            )
        k = max(1, round(self.keep * n)) if isinstance(self.keep, float) else min(self.keep, n)
        if k < self.drawn + self.rounds:
            required = f"a row for each of {self.rounds} rounds beside the {self.drawn} drawn"
            raise Refused(sentence("diverse_evol.keep", required, f"{k} of {n} rows", "Raise keep, or lower rounds"))
        return k

    def feed(self, parts: RowParts) -> EvolFeed:
        """Batches of the rows chosen so far."""
        return EvolFeed(self, parts)


@dataclass
class EvolFeed(Feed):
    """Batches of the chosen rows. chosen: row numbers of the pool, by order of choice; begin: what trained, as it was.

    figures: for the log.
    """

    loop: DiverseEvol
    parts: RowParts
    chosen: list[int] = field(default_factory=list)
    turn: int = -1
    begin: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    inner: RowFeed | None = None

    def __post_init__(self) -> None:
        keep = self.loop.count(len(self.parts.pool))
        steps = self.parts.steps(keep)
        if steps < self.loop.rounds:
            raise Refused(sentence("diverse_evol", f"a step for each of its {self.loop.rounds} rounds", f"{steps} steps",
                                   "Raise train.steps, or lower rounds"))  # fmt: skip
        self.sizes = sizes(keep, self.loop.drawn, self.loop.rounds)
        self.starts = [*starts(steps, self.sizes), steps]

    def __len__(self) -> int:
        return self.sizes[-1]

    def phase(self, step: int, steps: int) -> tuple[int, int]:
        """(step, steps) of this step's round, by which schedule and optimiser begin anew; those of the run without restart."""
        if not self.loop.restart:
            return step, steps
        turn = self._turn(step)
        return step - self.starts[turn], self.starts[turn + 1] - self.starts[turn]

    def micros(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """Micro-batches of this step; at the first step of a round more rows are chosen."""
        turn = self._turn(step)
        if step == 0:
            self.turn, self.chosen = -1, []
            self.begin = (
                {k: v.detach().clone() for k, v in self.parts.policy.attached.state().items()}
                if self.loop.restart
                else {}
            )
        if turn != self.turn:
            self._round(turn)
        assert self.inner is not None
        made = self.inner.micros(step - self.starts[turn], rank, world)
        return [replace(batch, rows=tuple(self.used[r] for r in batch.rows)) for batch in made]

    @property
    def used(self) -> list[int]:
        """The chosen rows in the order of the pool."""
        return sorted(self.chosen)

    def _turn(self, step: int) -> int:
        return min(bisect_right(self.starts, step), self.loop.rounds) - 1

    def _round(self, turn: int) -> None:
        vectors = self.vectors()
        if not self.chosen and self.loop.drawn:
            lot = torch.randperm(len(vectors), generator=stream(self.parts.pool.seed, "loops.diverse_evol.lot"))
            self.chosen = lot[: self.loop.drawn].tolist()
        index, radius = k_centre(vectors, self.sizes[turn], self.chosen or None)
        self.chosen, self.turn = index.tolist(), turn
        self.figures = {"round": float(turn + 1), "chosen": float(len(self.chosen)), "radius": float(radius)}
        if turn and self.loop.restart:
            self.parts.policy.attached.load(self.begin)
        self._use()

    def _use(self) -> None:
        pool, index = self.parts.pool, torch.tensor(self.used)
        self.inner = replace(
            pool,
            examples=[pool.examples[i] for i in self.used],
            columns={k: v[index] for k, v in pool.columns.items()},
            meta=[pool.meta[i] for i in self.used] if pool.meta else (),
            tables={k: [v[i] for i in self.used] for k, v in pool.tables.items()},
        )

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """Mean last hidden state of every row of the pool under the model as it is, (n, H), on the CPU."""
        pool, policy, out = self.parts.pool, self.parts.policy, list[Tensor]()
        module = policy.view.wrapped
        device, was = next(module.parameters()).device, module.training
        module.eval()
        size = pool.micro or pool.batch
        for at in range(0, len(pool), size):
            batch = Batch("text", pad([e[0] for e in pool.examples[at : at + size]], pool.pad_id)).to(device)
            hidden, mask = policy.signals(batch, ("hidden",), "embed")["hidden"], batch.inputs["attention_mask"] != 0
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out.append(mean.to("cpu", torch.promote_types(mean.dtype, torch.float32)))
        module.train(was)
        return torch.cat(out)

    def state(self) -> dict[str, Any]:
        """The round, its rows and the start, so that a resumed run goes on with them."""
        return {"turn": self.turn, "chosen": list(self.chosen), "figures": dict(self.figures),
                **{f"begin.{k}": v for k, v in self.begin.items()}}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from `state`."""
        self.turn, self.chosen, self.figures = (
            int(state["turn"]),
            [int(i) for i in state["chosen"]],
            dict(state["figures"]),
        )
        self.begin = {k.removeprefix("begin."): v for k, v in state.items() if k.startswith("begin.")}
        if self.chosen:
            self._use()
