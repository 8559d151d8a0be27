"""Additive deltas: an adaptation states dW for one weight; running, merging and exporting are written once.

A delta sees every weight as the linear map (out, in): convolutions as (out, in * kernel), embeddings as
(width, tokens), the transposed Conv1D of GPT-2 as (out, in).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from luthier.adapt._handle import WornHandle, partners
from luthier.adapt._sites import CHILD, MAPS, choose, geometry, names_of, plain_forward
from luthier.adapt._surgery import Ledger, Switch, Worn, close_if_idle, parts, shed, wear, with_weight
from luthier.adapt._weights import dequantised, quantised, whole, wide
from luthier.core import Adaptation, Calibration, Hook, Site, Sites
from luthier.core.errors import Refused, sentence
from luthier.core.streams import stream

Parts = Mapping[str, Tensor]


class Delta(Adaptation):
    """Base of adaptations that add dW to a weight.

    Give `init` and `delta`; give `factors` if dW = left @ right, or `forward` if the added output has a faster form.
    A contract check holds `forward` and `delta` equal.
    kinds: site kinds it can act on. reads_weight: whether `forward` looks at the base weight. elastic: parts of which one
    dimension may change after attaching (`DeltaHandle.replace`) and is restored by loading, the same size for all of them.
    """

    kinds: ClassVar[tuple[str, ...]] = MAPS
    reads_weight: ClassVar[bool] = True
    elastic: ClassVar[Mapping[str, int]] = {}

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """Parts at the start for a weight w (out, in); g on the CPU. Floating parts take w's dtype and device."""
        raise NotImplementedError

    def start(self, w: Tensor, g: Generator, kernel: tuple[int, ...]) -> dict[str, Tensor]:
        """As `init`, for deltas that must know a convolution's kernel (() elsewhere): w is (out, channels * kernel)."""
        return self.init(w, g)

    def delta(self, w: Tensor, p: Parts) -> Tensor:
        """dW (out, in)."""
        raise NotImplementedError

    def forward(self, x: Tensor, w: Tensor, p: Parts) -> Tensor:
        """x (..., in) -> what dW adds to the output (..., out)."""
        raise NotImplementedError

    def factors(self, w: Tensor, p: Parts) -> tuple[Tensor, Tensor] | None:
        """(left (out, r), right (r, in)) with dW = left @ right, scale included; None if dW has no such form."""
        return None

    def pair(self, p: Parts) -> tuple[str, str, float] | None:
        """Names of the parts A (r, in) and B (out, r), and s, if dW = s B A; None if dW has no such form."""
        return None

    @property
    def trainable(self) -> tuple[str, ...] | None:
        """Names of the parts that train; None: all. The others are saved but get no gradient."""
        return None

    def calibrated(self, handle: DeltaHandle, calibration: Calibration) -> None:
        """Look at the first batches before training and change parts by them; nothing by default."""

    def schedule(self, handle: DeltaHandle) -> tuple[Hook, ...]:
        """What it does at the loop's points; nothing by default."""
        return ()

    def attach(self, model: nn.Module, sites: Sites, seed: int) -> DeltaHandle:
        """Wear the delta at the chosen sites. Raises NoEffect, or Refused with the reason."""
        chosen = choose(model, sites, self.kinds, self.id)
        for site in chosen:
            if site.kind not in self.kinds:
                wanted = f"sites of kind {' or '.join(self.kinds)}"
                raise Refused(sentence(self.id, wanted, f"{site.name}, a {site.kind}", "Choose other sites"))
        Ledger.of(model).refuse_overlap(self.id, [s.name for s in chosen])
        switch, done = Switch(), []
        try:
            for site in chosen:
                module = model.get_submodule(site.name)
                self._wear(module, site, switch, seed)
                done.append(module)
        except BaseException:
            for module in done:
                shed(module)
            close_if_idle(model)
            raise
        return DeltaHandle(self, model, chosen, switch)._enter()

    def _wear(self, module: nn.Module, site: Site, switch: Switch, seed: int) -> None:
        shape, weight = geometry(module), dequantised(module)
        if shape is None or weight is None:
            raise Refused(
                f"{self.id} requires a weight it can read; {site.name} is quantised and cannot be decoded from the "
                "layer alone. Use the component peft, which knows this format, or load the base unquantised."
            )
        fast = type(self).forward is not Delta.forward if shape.kind == "linear" else False
        factored = type(self).factors is not Delta.factors
        additive = (fast or factored) and (plain_forward(module) or quantised(module))
        if getattr(self, "dropout", 0.0) and (not additive or shape.kind == "embedding"):
            required = "dropout = 0 where the delta acts through the weight"
            raise Refused(sentence(self.id, required, f"dropout at {site.name}", "Set it to 0 or leave this site out"))
        kernel = tuple(weight.shape[2:]) if shape.kind == "conv" else ()
        with torch.no_grad():
            made = self.start(shape.matrix(weight.detach()), stream(seed, f"{self.id}.{site.name}"), kernel)
        made = {k: t.to(weight.device, weight.dtype if t.is_floating_point() else t.dtype) for k, t in made.items()}
        wear(module, Worn(self, switch, additive), made, self.trainable, site.name)

    def run(self, module: Any, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Output of an adapted module: added to the base output where possible, else through base weight + dW."""
        shape: Any = geometry(module)
        if not module.__dict__["_luthier_worn"].additive:
            weight: Any = dequantised(module)
            p = _cast(parts(module), weight.dtype)
            new = weight + shape.weight(self.delta(shape.matrix(weight), p), weight.shape)
            if quantised(module):
                return shape.apply(module, x, new.to(x.dtype), module.bias)
            return with_weight(module, forward, new, x, *rest, **named)
        out = forward(x, *rest, **named)
        p = _cast(parts(module), x.dtype if x.is_floating_point() else module.weight.dtype)
        weight = dequantised(module) if self.reads_weight else module.weight
        added = self._added(shape, module, _dropped(self, x, module.training), weight, p)
        return out + added.to(out.dtype)

    def _added(self, shape: Any, module: nn.Module, x: Tensor, weight: Tensor, p: Parts) -> Tensor:
        matrix = shape.matrix(weight) if self.reads_weight else weight
        if shape.kind == "linear" and type(self).forward is not Delta.forward:
            return self.forward(x, matrix, p)
        left, right = self.factors(matrix, p)  # type: ignore[misc]
        if shape.kind == "conv" and not thin(left.shape[1], left.shape[0], right.shape[1]):
            return shape.apply(module, x, shape.weight(self.delta(matrix, p), weight.shape), None)
        return shape.mix(shape.apply(module, x, shape.weight(right, weight.shape), None), left)


def thin(rank: int, out: int, inputs: int) -> bool:
    """Whether two factors of this rank cost no more than the full matrix (out, inputs).

    >>> thin(8, 64, 64), thin(64, 64, 64)
    (True, False)
    """
    return rank * (out + inputs) <= out * inputs


class LowRank(Delta):
    """A delta given by its two factors alone."""

    reads_weight: ClassVar[bool] = False

    def factors(self, w: Tensor, p: Parts) -> tuple[Tensor, Tensor]:
        """(left (out, r), right (r, in)), scale included."""
        raise NotImplementedError

    def delta(self, w: Tensor, p: Parts) -> Tensor:
        """left @ right."""
        left, right = self.factors(w, p)
        return left @ right

    def forward(self, x: Tensor, w: Tensor, p: Parts) -> Tensor:
        """(x right^T) left^T, never the full matrix."""
        left, right = self.factors(w, p)
        return F.linear(F.linear(x, right), left)


class DeltaHandle(WornHandle):
    """A live delta."""

    @property
    def _delta(self) -> Delta:
        return self.adaptation  # type: ignore[return-value]

    def low_rank(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter, float]]:
        """The factors of each weight, read from the live model."""
        self._alive("low_rank")
        for site, module in self.modules.items():
            live: Any = parts(module)
            if (found := self._delta.pair(live)) is not None:
                yield site, live[found[0]], live[found[1]], found[2]

    def calibrate(self, calibration: Calibration) -> None:
        """Let the component look at data."""
        self._delta.calibrated(self, calibration)

    def hooks(self) -> tuple[Hook, ...]:
        """The component's schedule."""
        return self._delta.schedule(self)

    def replace(self, site: str, made: Mapping[str, Tensor]) -> None:
        """Put other tensors in the place of floating parts of a site, of another size if elastic; an empty one cannot train.

        Before an optimiser is built: one that holds the old parameters would go on training them.
        """
        child: Any = self.modules[site]._modules[CHILD]
        trained = self._delta.trainable
        for name, t in made.items():
            old = child[name]
            if not self._fits(f"{site}.{name}", t.shape):
                raise Refused(
                    sentence(self._delta.id, f"{name} of shape {tuple(old.shape)}", f"{tuple(t.shape)}", "Fit it")
                )
            wanted = t.numel() > 0 and (trained is None or name in trained)
            child[name] = nn.Parameter(
                t.detach().to(old).clone(memory_format=torch.contiguous_format), requires_grad=wanted
            )
            self.shapes[f"{site}.{name}"] = t.shape

    def _fits(self, name: str, shape: torch.Size) -> bool:
        free = self._delta.elastic.get(name.rpartition(".")[2])
        own = self.shapes[name]
        return len(shape) == len(own) and all(
            a == b or i == free for i, (a, b) in enumerate(zip(shape, own, strict=True))
        )

    def misfit(self, state: Mapping[str, Tensor]) -> list[str]:
        """As for every handle; and elastic parts of a site must agree."""
        faults, elastic = super().misfit(state), self._delta.elastic
        for site in self.modules if elastic and not faults else ():
            sizes = {part: state[f"{site}.{part}"].shape[at] for part, at in elastic.items()}
            if len(set(sizes.values())) > 1:
                faults.append(f"{site!r} of sizes {sizes} that differ")
        return faults

    def _make_room(self, state: Mapping[str, Tensor]) -> None:
        for site in self.modules if self._delta.elastic else ():
            made = {part: state[f"{site}.{part}"] for part in self._delta.elastic}
            if any(t.shape != self.shapes[f"{site}.{part}"] for part, t in made.items()):
                self.replace(site, made)

    def merged(self) -> dict[str, Tensor]:
        """W + dW by the base model's names, summed in at least float32, in the weight's dtype.

        Where an adapted weight is tied to another, both are given under their own names: the model is untied by
        merging, as `config_changes` says. A quantised weight is given decoded.
        """
        self._can_merge()
        out = {f"{name}.weight": self._merge(module) for name, module in self.modules.items()}
        return {**out, **partners(self.model, out)}

    @torch.no_grad()
    def _merge(self, module: Any) -> Tensor:
        shape: Any = geometry(module)
        weight = whole(dequantised(module)).detach()  # type: ignore[arg-type]
        exact = weight.to(wide(weight.dtype))
        p = {k: whole(t).detach() for k, t in parts(module).items()}
        delta = self._delta.delta(shape.matrix(exact), _cast(p, exact.dtype))
        return (exact + shape.weight(delta, weight.shape)).to(weight.dtype)

    def config_changes(self) -> dict[str, Any]:
        """tie_word_embeddings = False where a tied weight got a delta of its own."""
        changed = {f"{name}.weight" for name in self.modules}
        tied = any(len(names) > 1 and any(n in changed for n in names) for names in names_of(self.model).values())
        return {"tie_word_embeddings": False} if tied else {}


def _cast(p: Parts, dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in p.items()}


def _dropped(delta: Delta, x: Tensor, training: bool) -> Tensor:
    rate = getattr(delta, "dropout", 0.0)
    return F.dropout(x, rate, training) if rate and training else x
