"""EVA: LoRA that starts from the directions in which the task's activations vary, and gives rank to layers by variance.

Paper: arXiv 2410.07170.   Formula: dW = s B A; A = the leading principal components of what the layer reads on the first
batches (orthonormal rows), B = 0. Ranks: the components of all layers are sorted by their share of their layer's variance
and the first N r kept, at most rho r in one layer; s = alpha / r everywhere.
Takes: linear weights, some batches of the task.   Gives: a LoRA with ranks of its own that merges and exports like LoRA.
Choose it when: a few batches of the task are there before training.   Rather not when: inputs vary equally in all directions.
Relatives: lora (random A, equal ranks), lora_pro (changes the gradients instead of the start).

>>> share = {"narrow": torch.tensor([0.9, 0.1, 0.0, 0.0]), "broad": torch.tensor([0.3, 0.3, 0.2, 0.2])}
>>> allocate(share, 4)
{'narrow': 1, 'broad': 3}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Generator, Tensor

from luthier.adapt._delta import DeltaHandle, LowRank
from luthier.adapt._inputs import site_inputs
from luthier.adapt._principal import Principal
from luthier.adapt.lowrank._factors import uniform
from luthier.core import Calibration, Card, component
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="EVA",
    source="arXiv 2410.07170",
    papers=(178,),
    cost="some forward passes before training, holding one batch's inputs of all adapted layers; then that of LoRA",
    limits=(
        "B = 0 at the start: the model is the base bit for bit",
        "A has orthonormal rows",
        "with one batch A spans the leading right singular vectors of the centred inputs",
        "the ranks add up to the budget; rho = 1: all ranks are equal",
        "no other ranks under the same cap explain more variance",
    ),
    differs=(
        "inputs are centred, as in the released code and in peft; the paper speaks of the singular vectors of the inputs",
        "the pass over data ends after `calibration` batches even where components still move; peft goes on without end",
        "a layer may get rank 0; it is kept and does not train, where peft takes the adapter off",
        "tokens of the prompt are left out, as peft does by default; the released code leaves them in by default",
        "decompositions are exact up to a width of 1024, where the released code and peft draw random directions, "
        "and a component that turns its sign stands still",
        "whitening is not offered; before calibration A is drawn as in LoRA",
        "starts and ranks compared with peft's initialize_lora_eva_weights",
    ),
    use_when="LoRA's first steps are slow, or a rank budget should go where inputs vary",
    avoid_when="no data are at hand before training",
    relatives=("adapt.lowrank.lora", "optim.gradients.lora_pro"),
    mechanism="additive deltas",
    tags=("starts_at_base", "exact_merge", "low_rank", "factor_pair"),
)


def allocate(shares: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """Ranks by layer: how many of its components are among the `budget` largest shares of all layers.

    shares: descending shares of variance, as many as the layer may have rank. Equal shares go to the layer named first.
    """
    owners = [name for name, share in shares.items() for _ in range(len(share))]
    order = torch.cat([share.double().cpu() for share in shares.values()]).argsort(descending=True, stable=True)
    ranks = dict.fromkeys(shares, 0)
    for i in order[:budget].tolist():
        ranks[owners[i]] += 1
    return ranks


class Search:
    """Components of all layers' inputs, batch by batch, until those that get a rank stand still."""

    def __init__(self, widths: Mapping[str, int], rank: int, rho: float, tau: float) -> None:
        """widths: inputs of each layer. tau: least cosine between successive components that counts as standing still."""
        self.caps = {site: min(round(rank * rho), width) for site, width in widths.items()}
        self.budget, self.tau = sum(min(rank, width) for width in widths.values()), tau
        self.found = {site: Principal(cap) for site, cap in self.caps.items()}
        self.still = {site: torch.zeros(cap, dtype=torch.bool) for site, cap in self.caps.items()}
        self.ranks = dict(self.caps)
        self.most = dict.fromkeys(widths, 0)

    def open(self, site: str) -> bool:
        """Whether a layer's components still move."""
        return not bool(self.still[site][: self.ranks[site]].all())

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Take in what the layers read; layers with fewer rows than components wait for the next batch."""
        shared: dict[tuple[int, int], str] = {}
        for site, x in rows.items():
            self.most[site] = max(self.most[site], len(x))
            if len(x) < self.caps[site]:
                continue
            twin = shared.setdefault((id(x), self.caps[site]), site)
            one, before = self.found[site], self.found[site].components
            if twin != site and self.found[twin].count == one.count + len(x):
                self.found[site].__dict__.update(self.found[twin].__dict__)
            else:
                one.add(x)
            if before is not None and one.components is not None:
                cosine = torch.cosine_similarity(one.components, before, 1).abs()
                self.still[site] = (cosine >= self.tau).cpu()
        if all(one.components is not None for one in self.found.values()):
            self.ranks = allocate({site: one.ratio for site, one in self.found.items()}, self.budget)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class EVA(LowRank):
    """rank: on average; rho: a layer's largest rank as a multiple of it. alpha, dropout: as in lora.

    calibration: batches to look at at most; tau: cosine at which components stand still; trained_only: leave prompts out.
    """

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    rho: Annotated[float, Ge(1)] = 2.0
    calibration: Annotated[int, Gt(0)] = 32  # type: ignore[assignment]
    tau: Annotated[float, Ge(0), Le(1)] = 0.99
    trained_only: bool = True
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    elastic: ClassVar[Mapping[str, int]] = {"a": 0, "b": 1}

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """LoRA's start, until `calibrated`."""
        r = min(self.rank, w.shape[1])
        return {"a": uniform(r, w.shape[1], g), "b": torch.zeros(w.shape[0], r)}

    def factors(self, w: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(s B, A)."""
        return self.alpha / self.rank * p["b"], p["a"]

    def pair(self, p: Mapping[str, Tensor]) -> tuple[str, str, float] | None:
        """A, B and the scale; none at rank 0."""
        return ("a", "b", self.alpha / self.rank) if p["a"].shape[0] else None

    @torch.no_grad()
    def calibrated(self, handle: DeltaHandle, calibration: Calibration) -> None:
        """Set A and the ranks from the first batches. Raises Refused where no batch has enough tokens."""
        state: Any = handle.state()
        search = Search({s: state[f"{s}.a"].shape[1] for s in handle.modules}, self.rank, self.rho, self.tau)
        for rows in site_inputs(handle, calibration, self.trained_only, search.open):
            search.add(rows)
            if not any(search.open(site) for site in search.found):
                break
        for site, one in search.found.items():
            if one.components is None:
                required = f"a batch with at least {search.caps[site]} tokens at {site}"
                do = "Lower rank or rho, take larger batches, or set trained_only to false"
                raise Refused(sentence("eva", required, f"at most {search.most[site]}", do))
            r = search.ranks[site]
            b = state[f"{site}.b"]
            handle.replace(site, {"a": one.components[:r], "b": b.new_zeros(b.shape[0], r)})
