"""LT-SFT: finds by a full tuning which weights move most, rewinds, and trains only these; the changes can be added.

Paper: arXiv 2110.07560.   Formula: theta1 = full tuning of theta0; M = the K largest |theta1 - theta0|; phi = the change of
M's entries when tuned from theta0 under l1 / N * sum |phi|. Composition: theta0 + phi_language + phi_task.
Takes: linear weights and biases (others by `sites`), first batches of the task.   Gives: positions and values, merged
exactly, added by `combined`.   Choose it when: separately tuned skills or languages are to be added up.
Rather not when: one full tuning is too much memory.   Relatives: saft (chooses by gradient), spiel (moves while it trains).

>>> phi = {"w_index": torch.tensor([0, 2]), "w_value": torch.tensor([1.0, 2.0])}
>>> both = combined(phi, {"w_index": torch.tensor([2, 3]), "w_value": torch.tensor([3.0, 4.0])})
>>> both["w_index"].tolist(), both["w_value"].tolist()
([0, 2, 3], [1.0, 5.0, 4.0])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.adapt._sparse import Sparse, SparseHandle, share, top
from luthier.core import Calibration, Card, component
from luthier.core.errors import CheckpointError, sentence

CARD = Card(
    name="LT-SFT (lottery ticket sparse fine-tuning)",
    source="arXiv 2110.07560",
    papers=(22,),
    cost="`steps` steps of full fine-tuning with its optimiser state before the first step; then K values, their 4-byte "
    "positions, and the dense gradient of one weight at a time",
    limits=(
        "exactly K = ceil(density * N) entries can change; all others stay bit-identical, under weight decay too",
        "density = 1: full fine-tuning of the sites' weights and biases under SGD or Adam without weight decay",
        "combined(a, b) equals combined(b, a) bit for bit; where positions are disjoint the order of any number is free",
        "detaching after composition gives theta0 back bit for bit",
        "l1 > 0: the loss has l1 / N * sum |phi| more, N all entries of the sites",
    ),
    differs=(
        "N counts the weights and biases of the sites, linear layers by default; the authors' code counts the whole model "
        "and lets embeddings and norms train too",
        "the first phase is AdamW with linear decay of its own `lr`, dropout and the recipe's hooks off, on the rows of the "
        "first `steps` steps, which the second phase sees again; the authors run one trainer twice",
        "one round of choice, the default of the authors' code (n_ft_iterations = 1)",
        "equal differences go by order; the authors' threshold keeps all that tie, and so at times more than K",
        "the authors mask gradients under AdamW, whose decay still moves masked weights; here they are in no optimiser",
        "l1 acts in both phases; its default 0 is that of the authors' code",
        "attached outside of a run the positions are random until `handle.choose`",
    ),
    use_when="several skills or languages are tuned apart and added, without interfering much",
    avoid_when="one full fine-tuning does not fit in memory",
    relatives=("adapt.sparse.saft", "adapt.sparse.spiel", "merge.task_vectors.task_arithmetic"),
    mechanism="sparse updates",
    tags=("starts_at_base", "exact_merge"),
)


def combined(*states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of sparse changes of one base, in the form of a handle's `state`: positions united, values added.

    Load it into a handle on the same sites, then merge. Raises CheckpointError for states of other parameters.
    """
    out: dict[str, Tensor] = {}
    for name in sorted({n for s in states for n in s if n.endswith("_index")}):
        key = name.removesuffix("_index")
        if missing := [f for s in states for f in (f"{key}_index", f"{key}_value") if f not in s]:
            raise CheckpointError(sentence("combining sparse changes", "states of the same sites", f"no {missing[0]!r} in one",
                                           "Tune all of them on the same sites"))  # fmt: skip
        index, at = torch.cat([s[name].long() for s in states]).unique(return_inverse=True)
        values = torch.cat([s[f"{key}_value"] for s in states])
        out[name] = index.to(states[0][name].dtype)
        out[f"{key}_value"] = values.new_zeros(len(index)).index_add_(0, at, values)
    return out


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LTSFT(Sparse):
    """density: share of the entries that train. steps, lr: of the full tuning that chooses them; 0 steps: at random.

    l1: weight of the mean |change|, in both phases.
    """

    density: Annotated[float, Gt(0), Le(1)] = 0.01
    steps: Annotated[int, Ge(0)] = 100
    lr: Annotated[float, Gt(0)] = 5e-5
    l1: Annotated[float, Ge(0)] = 0.0

    @property
    def calibration(self) -> int:
        """Steps of rows for the first phase."""
        return self.steps

    def chosen(self, handle: SparseHandle, calibration: Calibration) -> dict[str, Tensor]:
        """The entries that a full tuning moves most. It trains values at all positions, so that rewinding is dropping them."""
        sizes = {name: w.numel() for name, w in handle.weights().items()}
        handle.choose({name: torch.arange(n) for name, n in sizes.items()})
        values = {name: value for name, (value, _) in handle.entries().items()}
        search = torch.optim.AdamW(values.values(), lr=self.lr, weight_decay=0.0)
        for step in calibration.gradients(list(values.values())):
            search.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            search.step()
        return top({n: v.detach().abs() for n, v in values.items()}, share(self.density, sum(sizes.values())))

    def loss_term(self, handle: SparseHandle) -> Tensor | None:
        """l1 / N * sum |phi|."""
        if not self.l1:
            return None
        total = sum(w.numel() for w in handle.weights().values())
        return self.l1 / total * torch.stack([p.abs().sum() for _, p in handle.named_parameters()]).sum()
