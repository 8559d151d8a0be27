"""aTLAS: learn a factor of its own for every tensor of every task vector, from few rows.

Paper: arXiv 2407.02880.   Formula: theta_b = theta_0b + sum_i lambda_ib (theta_ib - theta_0b), lambda by gradient from 0.
Takes: a base, models tuned from it, a differentiable loss of weights.   Gives: a merge with learned factors.
Choose it when: a new task has few rows, or none with labels (give an entropy as the loss), and related models exist.
Rather not when: there are rows enough to tune.
Relatives: task_arithmetic (one factor for all), learned_soup (an average of models instead of scaled differences).

>>> base, models = {"w": torch.tensor([1.0])}, [{"w": torch.tensor([3.0])}]
>>> found = atlas(base, models, lambda w: (w["w"] - 2).square().sum(), steps=300, lr=0.02, decay=0.0)
>>> round(found.weights[0], 3)
0.5
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, Needs, Site, component, stream
from luthier.core.errors import NonFinite, Refused, sentence
from luthier.merge._rule import MergeView, Rule, shares
from luthier.merge._search import Found, MergeSearch, Trial, Weights, need_some

CARD = Card(
    name="aTLAS",
    source="arXiv 2407.02880",
    papers=(153,),
    needs=Needs(handles=("base", "loss")),
    cost="one forward and backward and one pass over all models per step; memory of the merge, its gradient and one model",
    limits=(
        "lambda = 0, as at the start: the base",
        "all lambda equal: task arithmetic with that scale",
        "the gradient of lambda_ib is the inner product of the loss's gradient with task vector i in block b",
    ),
    differs=(
        "AdamW with decay 0.1 and gradients cut to norm 1, as in the authors' code; the whole batch each step, no cosine "
        "schedule, and no choice among epochs",
        "partitions split all tensors, in the code one mask for each shape, and it leaves out some ranks",
        "pseudo-labels and entropy are losses of the caller",
    ),
    use_when="four to sixteen rows a class of a new task, and a bank of models tuned from one base",
    avoid_when="no model of the bank is related to the task",
    relatives=("merge.search.learned_soup", "merge.task_vectors.task_arithmetic"),
    mechanism="merge",
)
Loss = Callable[[Weights], Tensor]


def places(shape: torch.Size, parts: int, name: str, seed: int) -> Tensor:
    """Which of `parts` random parts each entry of a tensor belongs to, in its shape; drawn by name."""
    if parts == 1:
        return torch.zeros(shape, dtype=torch.long)
    return torch.randint(parts, shape, generator=stream(seed, f"merge.atlas/{name.removesuffix('.weight')}"))


def scaled(base: Tensor, deltas: Sequence[Tensor], factors: Tensor, part: Tensor) -> Tensor:
    """base + sum_i lambda_i delta_i; factors (models, parts) are looked up by the part of each entry."""
    out = base
    for delta, of_model in zip(deltas, factors, strict=True):
        out = out + of_model.to(base.dtype)[part] * delta
    return out


def factor_gradient(gradient: Tensor, deltas: Sequence[Tensor], part: Tensor, parts: int) -> Tensor:
    """d loss / d lambda of one tensor, (models, parts) in float64: <gradient, delta_i> over each part's entries."""
    out = torch.zeros(len(deltas), parts, dtype=torch.float64)
    for i, delta in enumerate(deltas):
        out[i].index_add_(0, part.flatten(), (gradient.double() * delta.double()).flatten())
    return out


def atlas(
    base: Weights,
    models: Sequence[Weights],
    loss: Loss,
    *,
    steps: int = 100,
    lr: float = 0.01,
    decay: float = 0.1,
    parts: int = 1,
    seed: int = 0,
) -> Found:
    """Learn the factors of all task vectors; loss(weights): a scalar, usually through torch.func.functional_call.

    decay: AdamW's, towards the base. parts: random parts of each tensor that have factors of their own. The found weights
    are means over tensors and parts; scores are losses (lower is better). Raises NonFinite when the loss is.
    """
    need_some("atlas", models)
    names = [n for n, v in base.items() if v.is_floating_point()]
    factors = torch.zeros(len(names), len(models), parts, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([factors], lr=lr, weight_decay=decay)
    split = {n: places(base[n].shape, parts, n, seed) for n in names}

    def deltas(name: str) -> list[Tensor]:
        return [m[name] - base[name] for m in models]

    def merged(of: Tensor) -> dict[str, Tensor]:
        made = {n: scaled(base[n], deltas(n), of[i], split[n]) for i, n in enumerate(names)}
        return {n: made.get(n, v) for n, v in base.items()}

    trials, everyone = [], tuple(range(len(models)))
    for step in range(steps):
        leaves = {n: v.requires_grad_() for n, v in merged(factors.detach()).items() if n in split}
        value = loss({**base, **leaves})
        if not bool(torch.isfinite(value)):
            came = f"{float(value.detach())} at step {step}"
            raise NonFinite(sentence("atlas", "a finite loss", came, "Lower lr or check the data"))
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        factors.grad = torch.stack([
            torch.zeros_like(factors[i]) if g is None else factor_gradient(g, deltas(n), split[n], parts)
            for i, (n, g) in enumerate(zip(names, found, strict=True))
        ]).detach()  # fmt: skip
        torch.nn.utils.clip_grad_norm_([factors], 1.0)
        optimiser.step()
        trials.append(Trial(everyone, float(value.detach()), True))
    final = factors.detach()
    with torch.no_grad():
        last = float(loss(merged(final)))
    rule = Scaled(factors={n.removesuffix(".weight"): tuple(map(tuple, final[i].tolist())) for i, n in enumerate(names)},
                  seed=seed)  # fmt: skip
    return Found(rule, tuple(final.mean((0, 2)).tolist()), last, (*trials, Trial(everyone, last, True)))


@dataclass(frozen=True, kw_only=True)
class Scaled(Rule):
    """Task vectors with factors of their own at every site: site name -> for each model one factor a part."""

    factors: Mapping[str, tuple[tuple[float, ...], ...]]
    seed: int = 0

    def prepare(self, view: MergeView) -> Scaled:
        for of_site in self.factors.values():
            shares("atlas", [f[0] for f in of_site], view.models)
        return self

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        if at.name not in self.factors:
            raise Refused(
                sentence("atlas", "the tensors it learned on", repr(at.name), "Merge the models it was given")
            )
        factors = torch.tensor(self.factors[at.name], dtype=torch.float64)
        return scaled(base, deltas, factors, places(base.shape, factors.shape[1], at.name, self.seed))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ATLAS(MergeSearch):
    """steps, lr and decay of AdamW; parts: random parts of each tensor with factors of their own; seed: of the parts."""

    steps: Annotated[int, Ge(0)] = 100
    lr: Annotated[float, Gt(0)] = 0.01
    decay: Annotated[float, Ge(0)] = 0.1
    parts: Annotated[int, Ge(1)] = 1
    seed: int = 0

    def __call__(self, base: Weights, models: Sequence[Weights], loss: Loss) -> Found:
        return atlas(
            base, models, loss, steps=self.steps, lr=self.lr, decay=self.decay, parts=self.parts, seed=self.seed
        )
