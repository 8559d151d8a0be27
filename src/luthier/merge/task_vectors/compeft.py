"""ComPEFT: shrink what tuning changed to the signs of its largest entries and one scale.

Paper: arXiv 2311.13171, algorithm 1.   Formula: tau' = alpha * std(tau) * sign(tau) on the k largest |tau|, else 0.
Takes: a base and models or adapters tuned from it.   Gives: a merge of their compressed differences, and a small file.
Choose it when: many experts are stored, sent or merged.   Rather not when: the difference is small already; signs of
few entries change a little model too much.
Relatives: task_arithmetic (density = 1 without signs), lines (scales by depth).

>>> signs, scale = ternarise({"w": torch.tensor([0.1, -3.0, 0.2, 2.0])}, density=0.5)
>>> signs["w"].tolist(), round(scale, 4)
([0, -1, 0, 1], 2.0759)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le
from torch import Tensor

from luthier.core import Card, MergeRule, Site, component
from luthier.core.errors import CheckpointError, ModelError, sentence
from luthier.core.files import read_tensors, write_tensors
from luthier.merge._golomb import Coded, decode, encode
from luthier.merge._rule import Deltas, Given, MergeView, Rule, prepared, shares
from luthier.merge._sources import AdapterDelta
from luthier.merge._topk import Cut, largest

CARD = Card(
    name="ComPEFT",
    source="arXiv 2311.13171",
    papers=(127,),
    equations=("algorithm 1",),
    cost="six passes over each model's weights; a file takes 0.34 bits an entry at density 0.05 and 1.5 at 0.5",
    limits=(
        "entries are -s, 0 or s; round(density * n) are not 0 unless fewer are; signs agree with the difference",
        "the file gives back scale and signs exactly",
        "up to density 0.5 its bits are within 4 % of the entropy, and 32 bits for padding",
        "any chunking of a vector into tensors gives the same entries",
    ),
    differs=(
        "as in the authors' code the largest entries and the deviation (n - 1) are those of the whole vector, not of "
        "each tensor; theirs keeps int(k n) entries and all that tie with the last of them, here exactly round(k n)",
        "magnitudes are compared as float32",
        "the authors publish no coder; this one is Golomb's for runs and one bit a sign, as their paper proposes",
        "for a LoRA adapter the authors compress A and B; a merge compresses their product, `ternarise` any tensors",
        "several models are summed after compression, or merged by `inner`",
    ),
    use_when="experts must be small to store or send; take alpha from a few tries on held-out data (see best)",
    avoid_when="accuracy at full size matters more than bytes",
    relatives=("merge.task_vectors.task_arithmetic",),
    mechanism="sparse updates",
)
FORMAT = "luthier.compeft@1"
Signs = Mapping[str, Tensor]


def _signs(cut: Cut, name: str, delta: Tensor) -> Tensor:
    return torch.where(cut.mask(name, delta), delta.sign(), torch.zeros_like(delta)).to(torch.int8)


def ternarise(
    deltas: Mapping[str, Tensor], density: float = 0.2, alpha: float = 1.0
) -> tuple[dict[str, Tensor], float]:
    """(signs by name, int8 in {-1, 0, 1}; scale) of differences by name, the largest entries of all tensors together."""
    cut = largest(lambda: deltas.items(), density)
    return {name: _signs(cut, name, d) for name, d in deltas.items()}, alpha * cut.deviation


def best(
    deltas: Mapping[str, Tensor],
    score: Callable[[Mapping[str, Tensor]], float],
    densities: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
    alphas: Sequence[float] = (0.5, 1.0, 2.0, 3.0, 5.0),
) -> tuple[float, float]:
    """(density, alpha) of the highest score of the compressed differences by name; the first of equals."""
    tried: dict[tuple[float, float], float] = {}
    for density in densities:
        signs, deviation = ternarise(deltas, density)
        for alpha in alphas:
            scale = alpha * deviation
            tried[density, alpha] = score({n: scale * s.to(deltas[n].dtype) for n, s in signs.items()})
    return max(tried, key=lambda at: tried[at])


def save(path: Path, signs: Signs, scale: float) -> int:
    """Write signs and scale as one safetensors file of Golomb codes; the number of bits of all codes."""
    flat = (
        torch.cat([t.flatten().to(torch.int8) for t in signs.values()]) if signs else torch.zeros(0, dtype=torch.int8)
    )
    coded = encode(flat.numpy())
    streams = {k: torch.from_numpy(getattr(coded, k)) for k in ("quotients", "heads", "tails", "signs")}
    head = {"length": coded.length, "count": coded.count, "divisor": coded.divisor, "scale": scale.hex(),
            "shapes": {n: list(t.shape) for n, t in signs.items()}}  # fmt: skip
    write_tensors(path, streams, {"format": FORMAT, "head": json.dumps(head)})
    return coded.bits


def load(path: Path) -> tuple[dict[str, Tensor], float]:
    """(signs by name, scale) of a file that `save` wrote. Raises ModelError for other and for damaged files."""
    from safetensors import SafetensorError, safe_open

    try:
        streams = {k: v.numpy() for k, v in read_tensors(path).items()}
        with safe_open(str(path), framework="pt") as file:
            told: dict[str, Any] = file.metadata() or {}
        if told.get("format") != FORMAT:
            came = str(told.get("format", "another file"))
            raise ModelError(sentence(str(path), f"a file of the format {FORMAT}", came, "Give a file that save wrote"))
        head = json.loads(told["head"])
        flat = decode(Coded(head["length"], head["count"], head["divisor"], **streams))
        shapes = {n: tuple(s) for n, s in head["shapes"].items()}
        parts = torch.from_numpy(flat).split([torch.Size(s).numel() for s in shapes.values()])
    except (CheckpointError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as fault:
        raise ModelError(sentence(str(path), "a readable file of codes", str(fault), "Copy it again")) from fault
    return {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}, float.fromhex(head["scale"])


def as_delta(path: Path) -> AdapterDelta:
    """A saved file as a model of a merge: what it adds to the base, by the base's tensor names."""
    signs, scale = load(path)
    return AdapterDelta.added(str(path), {n: scale * s.float() for n, s in signs.items()})


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ComPEFT(Rule):
    """density: share of entries kept; alpha: scale in deviations of the difference; inner: the rule that merges the
    compressed models (None: their sum is added to the base)."""

    density: Annotated[float, Gt(0), Le(1)] = 0.2
    alpha: float = 1.0
    inner: MergeRule | None = None

    def prepare(self, view: MergeView) -> Rule:
        shares("compeft", None, view.models)

        def of(model: int) -> Cut:
            return largest(lambda: ((at.name, deltas[model]) for _, deltas, at in view.tensors()), self.density)

        cuts = tuple(of(i) for i in range(view.models))
        fitted = _Fitted(rule=self, cuts=cuts)
        if self.inner is None:
            return fitted

        def compressed() -> Iterator[tuple[Tensor, Deltas, Site]]:
            return ((base, fitted.compressed(base, deltas, at), at) for base, deltas, at in view.tensors())

        inner = prepared(self.inner, MergeView(view.sites, view.models, compressed))
        return replace(fitted, rule=replace(self, inner=inner))

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        alone = MergeView((at,), len(deltas), lambda: iter([(base, deltas, at)]))  # type: ignore[arg-type,return-value]
        return self.prepare(alone)(base, deltas, at)


@dataclass(frozen=True, kw_only=True)
class _Fitted(Rule):
    """The rule with the cut of every model."""

    rule: ComPEFT
    cuts: tuple[Cut, ...]

    def compressed(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Deltas:
        def of(i: int) -> Callable[[], Tensor]:
            scale = self.rule.alpha * self.cuts[i].deviation
            return lambda: scale * _signs(self.cuts[i], at.name, deltas[i]).to(base.dtype)

        return Deltas(base, [Given(of(i), full=False) for i in range(len(deltas))])

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        small = self.compressed(base, deltas, at)
        return base + sum(small[1:], start=small[0]) if self.rule.inner is None else self.rule.inner(base, small, at)
