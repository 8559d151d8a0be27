"""Adaptations that train base parameters themselves.

Memory: unless told otherwise the handle keeps one copy on the CPU of every tensor that trains, so that `disabled` and
`detach` give the base back bit for bit. Where nobody asks for the base (no reference, no detach),
`attach(..., keep_base=False)` or `handle.forget_base()` saves that copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from luthier.adapt._handle import Handle
from luthier.adapt._sites import KINDS, choose, find_sites, names_of
from luthier.adapt._surgery import Ledger, Place, base_places, close_if_idle
from luthier.adapt._weights import assign, whole
from luthier.core import Adaptation, Site, Sites
from luthier.core.errors import NoEffect, Refused
from luthier.core.streams import stream


class InPlace(Adaptation):
    """Base of adaptations that choose which base parameters train. Sites("") means the whole model."""

    sites: ClassVar[Sites] = Sites("", KINDS)
    role: ClassVar[str] = "choose"

    def trains(self, parameters: Mapping[str, nn.Parameter], sites: Sequence[Site], g: Generator) -> set[str]:
        """Names of the parameters that train.

        parameters: candidates by name, each tensor once. sites: all sites of the model with their kinds and blocks.
        """
        raise NotImplementedError

    @property
    def stream_step(self) -> int:
        """Step of the named random stream; a stage that redraws its choice returns its number."""
        return 0

    def attach(self, model: nn.Module, sites: Sites, seed: int, keep_base: bool = True) -> InPlaceHandle:
        """Choose and unfreeze. Raises NoEffect when nothing trains, Refused when another adaptation holds a site."""
        places = base_places(model)
        everything = find_sites(model)
        if sites.pattern:
            chosen = {s.name for s in choose(model, sites, KINDS, self.id)}
            inside = {id(p) for n in chosen for p in model.get_submodule(n).parameters(recurse=False)}
            places = {n: (m, k) for n, (m, k) in places.items() if id(m._parameters[k]) in inside}
        candidates: dict[str, Any] = {n: m._parameters[k] for n, (m, k) in places.items() if trains(m._parameters[k])}
        names = self.trains(candidates, everything, stream(seed, f"{self.id}.{self.role}", self.stream_step))
        if not names:
            raise NoEffect(
                f"{self.id} requires parameters to train; it chose 0 of {len(candidates)}. Choose other sites."
            )
        picked = {n: p for n, p in places.items() if n in names}
        owners = {n.rpartition(".")[0] for same in names_of(model).values() if picked.keys() & set(same) for n in same}
        held = [s for s in everything if s.name in owners]
        free = [Site(o, "other") for o in sorted(owners - {s.name for s in held})]
        try:
            Ledger.of(model).refuse_overlap(self.id, owners)
            return InPlaceHandle(self, model, [*held, *free], picked, keep_base)._enter()
        except BaseException:
            close_if_idle(model)
            raise


def trains(p: Any) -> bool:
    """Whether a parameter (or None) holds plain floating numbers of at least 16 bits, which can train."""
    return p is not None and p.is_floating_point() and p.element_size() >= 2 and not hasattr(p, "quant_state")


class InPlaceHandle(Handle):
    """A live adaptation of base parameters."""

    def __init__(self, adaptation: InPlace, model: nn.Module, sites: Sequence[Site], places: Mapping[str, Place],
                 keep_base: bool = True) -> None:  # fmt: skip
        """places: what trains, by name. keep_base: copy it to the CPU now."""
        super().__init__(adaptation, model, sites)
        self.places = dict(places)
        self.base: dict[str, Tensor] | None = None
        self.asleep = 0
        if keep_base:
            self.base = {n: _aside(whole(t)) for n, t in self.tensors()}

    def forget_base(self) -> None:
        """Free the copy of the base for good."""
        self.base = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What trains, by its base name."""
        for name, (module, key) in self.places.items():
            yield name, module._parameters[key]  # type: ignore[misc]

    def trained_places(self) -> Sequence[Place]:
        """All of it is trained in place."""
        return list(self.places.values())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base weights inside the block, then the trained ones again, both bit for bit.

        On one device the two sets of storage change places; across devices the values are exchanged. Raises Refused
        without a base copy, or where parameters are sharded.
        """
        self._alive("disabled")
        base = self._base("disabled")
        if self.asleep:
            yield
            return
        live = dict(self.tensors())
        if any(hasattr(p, "full_tensor") for p in live.values()):
            raise Refused(
                f"{self.adaptation.id}: sharded parameters cannot be switched off; cache the reference, or load a "
                "second model."
            )
        aside: dict[str, Tensor] = {}
        self.asleep = 1
        try:
            for name, p in live.items():
                if p.device == base[name].device:
                    aside[name], p.data = p.data, base[name]
                else:
                    aside[name] = _aside(p)
                    p.data.copy_(base[name])
            yield
        finally:
            for name, kept in aside.items():
                p = live[name]
                if p.device == kept.device:
                    p.data = kept
                else:
                    p.data.copy_(kept)
            self.asleep = 0

    @contextmanager
    def folding(self) -> Iterator[dict[str, Tensor]]:
        """Nothing: the model's own weights are the merged ones."""
        self._can_merge()
        yield {}

    def merged(self) -> dict[str, Tensor]:
        """The trained tensors that differ from the base (all of them without a base copy), on the CPU, tied ones once."""
        self._can_merge()
        out = {}
        for name, t in self.tensors():
            value = whole(t).detach()
            if self.base is None or not same_bits(value, self.base[name]):
                out[name] = _aside(value)
        return out

    def describe(self) -> dict[str, Any]:
        """As for every handle, and the bytes of the base copy."""
        copies = sum(t.numel() * t.element_size() for t in (self.base or {}).values())
        return {**super().describe(), "base_copy_bytes": copies}

    def detach(self) -> None:
        """Put the base values back. Raises Refused without a base copy; `merge_into_model` keeps the trained ones."""
        if not self.live:
            return
        base = self._base("detach")
        for name, p in self.tensors():
            assign(p, base[name])
            p.grad = None
        self._leave()
        self.base = None

    def merge_into_model(self) -> None:
        """Keep the trained values; the model is plain, its gradient flags as they were."""
        self._can_merge()
        self._leave()
        self.base = None

    def _alive(self, what: str) -> None:
        super()._alive(what)
        if self.asleep and what != "disabled":
            raise Refused(
                f"{what} requires the trained weights; {self.adaptation.id} is switched off here. "
                "Leave `disabled` first."
            )

    def _base(self, what: str) -> dict[str, Tensor]:
        if self.base is None:
            raise Refused(
                f"{what} requires the base weights; {self.adaptation.id} keeps no copy of them. Attach it with "
                "keep_base=True and leave out forget_base, or use merge_into_model to keep the trained weights."
            )
        return self.base


def _aside(t: Tensor) -> Tensor:
    return t.detach().clone() if t.is_meta else t.detach().to("cpu", copy=True)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit (NaN equals itself, -0 differs from 0)."""
    a = a.to(b.device)
    return a.shape == b.shape and torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )
