"""Sparse changes of single weights: one compact storage of indices and values, whoever chooses them and whenever.

A site's parameter W of any shape gets `<key>_index` (k,), distinct flat positions in W's own layout, and `<key>_value`
(k,), which trains: the site runs with W + scatter(value). W itself is in no optimiser, so that all other entries keep
their bits under any update rule and any weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from luthier.adapt._handle import WornHandle, misfit_error, partners
from luthier.adapt._inplace import trains
from luthier.adapt._sites import CHILD, CONV1D, LINEAR, choose, geometry, names_of, plain_forward
from luthier.adapt._surgery import Ledger, Switch, Worn, close_if_idle, parts, shed, wear
from luthier.adapt._weights import assign, quantised, whole, wide
from luthier.core import Adaptation, Calibration, Hook, Sites
from luthier.core.errors import NoEffect, NonFinite, Refused, sentence
from luthier.core.streams import stream

Tap = Callable[[Tensor, Tensor], None]


def share(density: float, total: int, down: bool = False) -> int:
    """ceil(density * total), or floor, exactly for the decimal number that was written, and at least 1.

    >>> share(0.1, 30), share(0.001, 10)
    (3, 1)
    """
    return max(1, (math.floor if down else math.ceil)(Fraction(str(density)) * total))


def top(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Flat positions, ascending, of exactly the `count` largest scores over all tensors; equal ones by order.

    Raises NonFinite for a score that is no finite number.

    >>> {k: v.tolist() for k, v in top({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([[3.0, 1.0]])}, 3).items()}
    {'a': [0, 1], 'b': [0]}
    """
    for name, s in scores.items():
        if not bool(torch.isfinite(s).all()):
            raise NonFinite(f"choosing weights requires finite scores; those of {name} are not. Check data and model.")
    best = [s.flatten().topk(min(count, s.numel())).values.cpu() for s in scores.values()]
    least = torch.cat(best).topk(count).values[-1]
    room = count - sum(int((s > least.to(s.device)).sum()) for s in scores.values())
    out = {}
    for name, s in scores.items():
        flat, edge = s.flatten(), least.to(s.device)
        tied = (flat == edge).nonzero()[:room, 0]
        room -= len(tied)
        out[name] = torch.cat([(flat > edge).nonzero()[:, 0], tied]).sort().values
    return out


def draw(sizes: Mapping[str, int], count: int, g: Generator) -> dict[str, Tensor]:
    """Flat positions of `count` entries over all tensors, without replacement, each entry with an even chance."""
    total = sum(sizes.values())
    if 2 * count > total:
        found = torch.randperm(total, generator=g)
    else:
        found = torch.empty(0, dtype=torch.long)
        while len(found) < count:
            found = torch.cat([found, torch.randint(total, (count,), generator=g)]).unique()
        found = found[torch.randperm(len(found), generator=g)]
    found, out, start = found[:count].sort().values, {}, 0
    for name, size in sizes.items():
        out[name] = found[(found >= start) & (found < start + size)] - start
        start += size
    return out


def added(w: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """W with value (k,) added at its flat positions index (k,), every other entry with the same bits."""
    out = w.detach().clone(memory_format=torch.contiguous_format)
    out.view(-1).index_add_(0, index, value.detach().to(out.dtype))
    return out


class _Effective(torch.autograd.Function):
    """W + scatter(value) for any module; keeps only the indices for the backward pass."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, value: Tensor, index: Tensor, tap: Tap | None) -> Tensor:
        """w of any shape, value and index (k,) -> the effective weight."""
        ctx.save_for_backward(index)
        ctx.tap = tap
        return added(w, value, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:  # type: ignore[override]
        """Gradient of value: the dense one at the indices."""
        (index,) = ctx.saved_tensors
        flat = grads[0].reshape(-1)
        if ctx.tap is not None:
            ctx.tap(flat, index)
        return None, flat.index_select(0, index), None, None


class _Linear(torch.autograd.Function):
    """x (W + scatter(value))^T + b, in one product; the effective weight is built anew in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, value: Tensor, index: Tensor, turned: bool,
                tap: Tap | None) -> Tensor:  # fmt: skip
        """x (..., in), w (out, in), or (in, out) where turned -> (..., out)."""
        ctx.save_for_backward(x, w, value, index)
        ctx.turned, ctx.tap = turned, tap
        full = added(w, value, index)
        return F.linear(x, full.T if turned else full, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of x, bias and value; the dense gradient of W lives only here."""
        (grad,) = grads
        x, w, value, index = ctx.saved_tensors
        need_x, _, need_bias, need_value, *_ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_bias = grad_value = None
        if need_x:
            full = added(w, value, index).to(grad.dtype)
            grad_x = (grad @ (full.T if ctx.turned else full)).to(x.dtype)
        if need_bias:
            grad_bias = rows.sum(0)
        if need_value:
            seen = x.reshape(-1, x.shape[-1]).to(grad.dtype)
            flat = (seen.T @ rows if ctx.turned else rows.T @ seen).reshape(-1)
            if ctx.tap is not None:
                ctx.tap(flat, index)
            grad_value = flat.index_select(0, index).to(value.dtype)
        return grad_x, None, grad_bias, grad_value, None, None, None


class Sparse(Adaptation):
    """Base of adaptations that train single weights: give `start`, and `chosen` or `schedule` where data decide.

    kinds: site kinds it can act on. keys: which parameters of a site. density: the share of their entries that train.
    """

    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv", "embedding", "norm")
    keys: ClassVar[tuple[str, ...]] = ("weight", "bias")
    density: float

    def start(self, sizes: Mapping[str, int], g: Generator) -> dict[str, Tensor]:
        """Flat positions (k,) by parameter name at attaching, from the number of entries of each; random by default."""
        return draw(sizes, share(self.density, sum(sizes.values())), g)

    def chosen(self, handle: SparseHandle, calibration: Calibration) -> Mapping[str, Tensor] | None:
        """Flat positions by parameter name after a look at data; None: those of the start stay."""
        return None

    def schedule(self, handle: SparseHandle) -> tuple[Hook, ...]:
        """Hooks that move positions during training."""
        return ()

    def loss_term(self, handle: SparseHandle) -> Tensor | None:
        """A term of the loss over the live values (scalar), or None."""
        return None

    def attach(self, model: nn.Module, sites: Sites, seed: int) -> SparseHandle:
        """Wear zero values at the positions of the start. Raises NoEffect, or Refused with the reason."""
        picked = choose(model, sites, self.kinds, self.id)
        for site in picked:
            if site.kind not in self.kinds:
                wanted = f"sites of kind {' or '.join(self.kinds)}"
                raise Refused(sentence(self.id, wanted, f"{site.name}, a {site.kind}", "Choose other sites"))
            if quantised(model.get_submodule(site.name)):
                raise Refused(f"{self.id} requires plain weights; {site.name} is quantised. Load the base unquantised.")
        Ledger.of(model).refuse_overlap(self.id, [s.name for s in picked])
        switch, done = Switch(), []
        try:
            for site in picked:
                module = model.get_submodule(site.name)
                made: dict[str, Tensor] = {}
                for key in self.keys:
                    if trains(module._parameters.get(key)):
                        made.update(_parts(key, module._parameters[key], torch.empty(0)))  # type: ignore[arg-type]
                wear(module, Worn(self, switch, False), made, (), site.name)
                done.append(module)
            handle = SparseHandle(self, model, picked, switch)
            sizes = {name: w.numel() for name, w in handle.weights().items()}
            if not sizes:
                raise NoEffect(f"{self.id} requires weights to train; it found none. Choose other sites.")
            with unset_fake_temporarily():  # plans attach to shapes without numbers; how many train is real
                start = self.start(sizes, stream(seed, f"{self.id}.start"))
            handle.choose(start)
        except BaseException:
            for module in done:
                shed(module)
            close_if_idle(model)
            raise
        return handle._enter()

    def run(self, module: Any, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """The module's own forward with the changed weights; plain linear layers keep no dense copy for backward."""
        own, child = parts(module), module._modules[CHILD]
        taps: Mapping[str, Tap] = child.__dict__.get("taps", {})
        old: dict[str, Any] = {}
        fast = None
        try:
            for key in self.keys:
                value = own.get(f"{key}_value")
                if value is None or not value.numel():
                    continue
                if key == "weight" and geometry(module) in (LINEAR, CONV1D) and plain_forward(module):
                    fast = (value, own["weight_index"], geometry(module) is CONV1D, taps.get(key))
                    continue
                old[key] = module._parameters[key]
                made = _Effective.apply(old[key], value.to(old[key].dtype), own[f"{key}_index"], taps.get(key))
                module._parameters[key] = made
            if fast is not None and not rest and not named:
                return _Linear.apply(x, module._parameters["weight"], module._parameters.get("bias"), *fast)  # type: ignore[no-any-return]
            return forward(x, *rest, **named)
        finally:
            module._parameters.update(old)


def _parts(key: str, w: Tensor, index: Tensor) -> dict[str, Tensor]:
    kind = torch.int32 if w.numel() < 2**31 else torch.int64
    return {f"{key}_value": torch.zeros(len(index), dtype=w.dtype, device=w.device),
            f"{key}_index": index.to(w.device, kind)}  # fmt: skip


class SparseHandle(WornHandle):
    """A live sparse change."""

    @property
    def _sparse(self) -> Sparse:
        return self.adaptation  # type: ignore[return-value]

    def places(self) -> Iterator[tuple[str, nn.Module, str]]:
        """`<site>.<key>`, the module and the key of every parameter that could train."""
        for site, module in self.modules.items():
            for part in parts(module):
                if part.endswith("_index"):
                    key = part.removesuffix("_index")
                    yield f"{site}.{key}", module, key

    def weights(self) -> dict[str, nn.Parameter]:
        """The base parameters by name."""
        return {name: module._parameters[key] for name, module, key in self.places()}  # type: ignore[misc]

    def entries(self) -> dict[str, tuple[nn.Parameter, Tensor]]:
        """Live values and flat positions, (k,) each, by parameter name; k may be 0."""
        out = {}
        for name, module, key in self.places():
            own = parts(module)
            out[name] = own[f"{key}_value"], own[f"{key}_index"]
        return out  # type: ignore[return-value]

    def choose(self, index: Mapping[str, Tensor]) -> None:
        """Train these flat positions by parameter name from now on, from value 0; names left out train nothing.

        Optimisers must be built afterwards: the trained tensors are new. Raises Refused for positions that do not fit.
        """
        foreign = index.keys() - self.weights().keys()
        if foreign:
            known = "parameters of its sites"
            raise Refused(sentence(self.adaptation.id, known, min(foreign), "Name others, or attach to more sites"))
        for name, module, key in self.places():
            w: Any = module._parameters[key]
            at = index.get(name, torch.empty(0, dtype=torch.long))
            if fault := _misplaced(at, w.numel()):
                raise Refused(sentence(self.adaptation.id, f"distinct positions below {w.numel()} in {name}", fault,
                                       "Correct them"))  # fmt: skip
            put(module, _parts(key, w, at))
        self.shapes = {name: t.shape for name, t in self.tensors()}

    def taps(self, taps: Mapping[str, Tap] | None) -> None:
        """Let each parameter's tap see (dense flat gradient, positions) in every backward pass; None: no more."""
        for name, module, key in self.places():
            child: Any = module._modules[CHILD]
            kept = child.__dict__.setdefault("taps", {})
            kept.pop(key, None)
            if taps is not None and name in taps:
                kept[key] = taps[name]

    def calibrate(self, calibration: Calibration) -> None:
        """Let the component choose by data."""
        made = self._sparse.chosen(self, calibration)
        if made is not None:
            self.choose(made)

    def hooks(self) -> tuple[Hook, ...]:
        """The component's schedule."""
        return self._sparse.schedule(self)

    def penalty(self) -> Tensor | None:
        """The component's loss term over the live values."""
        self._alive("penalty")
        return self._sparse.loss_term(self)

    def misfit(self, state: Mapping[str, Tensor]) -> list[str]:
        """As for every handle, but any number of entries fits, if values and distinct positions agree in it."""
        kept = self.shapes
        self.shapes = {n: state[n].shape if n in state and state[n].ndim == 1 else s for n, s in kept.items()}
        faults = super().misfit(state)
        self.shapes = kept
        for name, w in () if faults else self.weights().items():
            value, index = state[f"{name}_value"], state[f"{name}_index"]
            if len(value) != len(index):
                faults.append(f"{len(value)} values but {len(index)} positions for {name!r}")
            elif fault := _misplaced(index, w.numel()):
                faults.append(f"{fault} for {name!r} with {w.numel()} entries")
        return faults

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore from `state`, positions included. Nothing changes unless all of it fits (CheckpointError)."""
        self._alive("load")
        if faults := self.misfit(state):
            raise misfit_error(self.adaptation.id, len(self.shapes), faults)
        if any(state[n].shape != shape for n, shape in self.shapes.items()):
            self.choose({name: state[f"{name}_index"].long() for name in self.weights()})
        for name, target in self.tensors():
            assign(target, state[name])

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Changed parameters by base names, summed in at least float32; entries that do not train keep their bits.

        Where one is tied to another, both are given under their own names: merging unties them, as `config_changes` says.
        """
        self._can_merge()
        out = {}
        for name, (value, index) in self.entries().items():
            if value.numel():
                w = whole(self.weights()[name]).detach()
                made, at = w.clone(memory_format=torch.contiguous_format), index.long()
                exact = wide(w.dtype)
                made.view(-1)[at] = (made.view(-1)[at].to(exact) + whole(value).detach().to(exact)).to(w.dtype)
                out[name] = made
        return {**out, **partners(self.model, out)}

    def config_changes(self) -> dict[str, Any]:
        """tie_word_embeddings = False where a tied weight got a change of its own."""
        changed = {name for name, (value, _) in self.entries().items() if value.numel()}
        tied = any(len(names) > 1 and changed & set(names) for names in names_of(self.model).values())
        return {"tie_word_embeddings": False} if tied else {}


def _misplaced(index: Tensor, size: int) -> str:
    with unset_fake_temporarily():
        if not len(index):
            return ""
        if int(index.min()) < 0 or int(index.max()) >= size:
            return f"positions {int(index.min())} to {int(index.max())}"
        return "a position given twice" if len(index.unique()) < len(index) else ""


def put(module: nn.Module, made: Mapping[str, Tensor]) -> None:
    """Replace parts of an adapted module; floating ones train unless they are empty."""
    child: Any = module._modules[CHILD]
    for name, t in made.items():
        if t.is_floating_point():
            child._parameters[name] = nn.Parameter(t, requires_grad=t.numel() > 0)
        else:
            child._buffers[name] = t


def base_gradients(handle: SparseHandle, calibration: Calibration) -> Iterator[dict[str, Tensor]]:
    """For each step of rows: the dense gradients of the run's loss by parameter name, at the base weights."""
    weights = handle.weights()
    unique: Sequence[nn.Parameter] = list({id(p): p for p in weights.values()}.values())
    with handle.disabled():
        for _ in calibration.gradients(unique):
            yield {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in weights.items()}
