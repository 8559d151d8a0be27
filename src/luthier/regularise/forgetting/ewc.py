"""Elastic weight consolidation: weights are pulled back to the start, each as hard as old rows depended on it.

Paper: arXiv 2402.02868 (among the remedies compared; the method is arXiv 1612.00796).   Formula: strength * sum_i F_i (w_i -
w0_i)^2 is added to the loss; F_i = mean over old rows of (d log p(y | x) / d w_i)^2, the diagonal Fisher information.
Takes: old rows (`data.retain`) once, gradients of what trains.   Gives: gradients with the pull.
Choose it when: old rows may be read once but not trained on.
Rather not when: old rows can be replayed, which keeps more; or memory for two copies of the weights is short.
Relatives: l2_base (all weights alike, no old rows), replay, bc_anchor.

>>> import torch
>>> pull(torch.tensor([3.0]), torch.tensor([1.0]), 0.5 * torch.tensor([4.0]) * 2).item()
8.0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from luthier.core import Card, Context, Needs, Signals, component
from luthier.core.errors import CheckpointError, sentence
from luthier.regularise.anchor.l2_base import L2Base, pull
from luthier.regularise.forgetting._old import old_rows

CARD = Card(
    name="EWC",
    source="arXiv 2402.02868",
    papers=(110,),
    needs=Needs(handles=("retain",)),
    cost="one forward and backward per old row before the first step; two copies of the trained weights",
    limits=(
        "at the start the gradient is unchanged; strength 0 never changes it",
        "the added gradient is that of strength * sum F (w - w0)^2",
        "F is the mean of squared gradients, one for each old row",
        "F = 1/2 everywhere: l2_base",
    ),
    differs=(
        "the row's log-prob is one score: its tokens' gradients are added before they are squared",
        "labels: model draws each token from the model, which makes F the Fisher information at the start; data takes the "
        "row's own words (the empirical Fisher), as many implementations do",
        "an adapter is anchored in its own parameters: for LoRA F of the first factor is zero, as the second starts at zero",
        "added to the gradient, so Adam rescales it as it does the loss's; it is not in the logged loss",
    ),
    use_when="old rows may be read before training but not kept in it",
    avoid_when="old rows can be replayed",
    relatives=("regularise.anchor.l2_base", "regularise.forgetting.replay", "regularise.forgetting.bc_anchor"),
    mechanism="anchor penalty",
    tags=("stateful",),
)


def mean_squared_scores(score: Callable[[int], Tensor], weights: Sequence[Tensor], rows: int) -> list[Tensor]:
    """Diagonal Fisher information: the mean over rows of the squared gradient of score(row), a scalar, by each weight."""
    out = [torch.zeros_like(w) for w in weights]
    for row in range(rows):
        for total, g in zip(out, torch.autograd.grad(score(row), weights, allow_unused=True), strict=True):
            if g is not None:
                total.add_(g.detach() ** 2, alpha=1 / rows)
    return out


def score(s: Signals, labels: str, generator: torch.Generator) -> Tensor:
    """Log-prob of the row's words, or of words drawn from the model at each trained token, a scalar."""
    if labels == "data":
        return s["logp"].sum()
    at = s["token_mask"].nonzero(as_tuple=True)
    log_p = s["logits"][at].log_softmax(-1)
    drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(log_p.device)
    return log_p.gather(-1, drawn).sum()


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class EWC(L2Base):
    """strength: factor of the penalty; samples: old rows that the Fisher information is estimated on; labels: whose words."""

    points: ClassVar[tuple[str, ...]] = ("start", "gradients")
    strength: Annotated[float, Ge(0)] = 1.0
    samples: Annotated[int, Gt(0)] = 128
    labels: Literal["model", "data"] = "model"

    def start(self, ctx: Context) -> None:
        """Remember where training starts, and how much each weight matters to the old rows."""
        L2Base.start(self, ctx)
        old = old_rows(ctx.handles, self.name)
        g, count = ctx.generator("regularise.forgetting.ewc"), min(self.samples, len(old))
        chosen = torch.randperm(len(old), generator=g)[:count].tolist()
        named = dict(ctx.attached.named_parameters()) if ctx.attached else {}
        wants = ("logp",) if self.labels == "data" else ("logits", "token_mask")
        was = ctx.model.training if ctx.model else False
        if ctx.model:
            ctx.model.eval()

        def one(row: int) -> Tensor:
            return score(old.signals(old.batch([chosen[row]], ctx.step), wants), self.labels, g)

        found = mean_squared_scores(one, list(named.values()), count)
        if ctx.model:
            ctx.model.train(was)
        object.__setattr__(self, "_matters", dict(zip(named, found, strict=True)))

    def gradients(self, named: Sequence[tuple[str, nn.Parameter]], ctx: Context) -> None:
        """Add the pull to every gradient."""
        start, matters = self._start, self.__dict__.get("_matters", {})
        for name, p in named:
            if p.grad is None:
                continue
            if name not in matters:
                raise CheckpointError(sentence(self.id, "the start of every trained weight", f"none of {name}",
                                               "Start the run anew, or resume from a whole checkpoint"))  # fmt: skip
            fisher, first = matters[name].to(p.device), start[name].to(p.device)
            p.grad.add_((fisher * pull(p.detach(), first, 2 * self.strength)).to(p.grad.dtype))
            ctx.note(1)

    def state(self) -> dict[str, Any]:
        """The starting weights and what each matters."""
        return {**L2Base.state(self), "fisher": dict(self.__dict__.get("_matters", {}))}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        L2Base.load(self, state)
        object.__setattr__(self, "_matters", dict(state["fisher"]))
