"""The policy as the engine holds it: module, adaptation, and the signals of a batch under policy, reference and teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch
from luthier.core.errors import Refused
from luthier.core.protocols import Attached
from luthier.core.signals import Signals, base_signals, split


class View(Protocol):
    """What turns a batch into plain base signals (models.language, models.denoiser, ...).

    A view of models that objectives run themselves also has `runner(around, count)`. spreads: whether its weights may be
    spread over processes: nothing calls layers outside of the module's forward.
    """

    module: Any
    wrapped: nn.Module
    spreads: ClassVar[bool]

    def signals(self, batch: Batch, wants: Iterable[str]) -> dict[str, tuple[Tensor, ...]]: ...


@dataclass
class Policy:
    """What trains, with its frozen relatives.

    view: the policy. attached: its adaptation (switching it off gives the reference). teacher: another view, if any.
    forwards: passes made so far by kind ("policy", "reference", "teacher", "count"), for plan and cost. held: reference
    signals of the current step's batches, kept with the batch itself, so that a second pass does not compute them again.
    """

    view: View
    attached: Attached
    teacher: View | None = None
    tokenizer: Any = None
    handles: Mapping[str, Any] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=dict)
    held: dict[tuple[int, ...], tuple[Batch, dict[str, tuple[Tensor, ...]]]] = field(default_factory=dict, repr=False)

    def count(self, kind: str) -> None:
        """Count one forward pass."""
        self.forwards[kind] = self.forwards.get(kind, 0) + 1

    def signals(self, batch: Batch, names: Iterable[str], kind: str = "policy") -> Signals:
        """All signals an objective asked for, each forward pass once."""
        wants: dict[str, list[str]] = {}
        base = base_signals(names)
        for name in base:
            prefix, plain = split(name)
            wants.setdefault(prefix, []).append(plain)
        got: dict[str, tuple[Tensor, ...]] = {k: (v,) for k, v in batch.columns.items()}
        own = [n for n in wants.get("", []) if n not in batch.columns]
        old = [n for n in wants.get("old_", []) if f"old_{n}" not in batch.columns]
        free = {"token_mask", "token_id"} if set(own) - {"image"} or old else set()
        plain = sorted({*own, *old, *free} & _known(self.view)) if own or old else []
        if plain:
            if set(plain) - {"token_mask", "token_id", "image"}:
                self.count(kind)
            now = self.view.signals(batch, plain)
            got.update({n: now[n] for n in (*own, "token_mask", "token_id") if n in now})
            got.update({f"old_{n}": tuple(t.detach() for t in now[n]) for n in old})
        if "ref_" in wants:
            got.update(self._reference(batch, wants["ref_"]))
        if "teacher_" in wants:
            got.update(self._teacher(batch, wants["teacher_"]))
        return Signals(got, batch.parts, partial(self.handle, kind=kind))

    def handle(self, name: str, kind: str = "policy") -> Any:
        """A model that an objective runs itself: "policy", "reference", "teacher", or what the recipe handed in.

        kind: under which the policy's passes are counted. Raises Refused where there is no such model.
        """
        if name in self.handles:
            return self.handles[name]
        view: Any = self.teacher if name == "teacher" else self.view
        if view is None:
            raise Refused("an objective requires a teacher model; the recipe names none. Add `teacher: MODEL`.")
        if name not in ("policy", "reference", "teacher") or not hasattr(view, "runner"):
            raise Refused(f"an objective requires the handle {name!r}, which this recipe does not give.")
        if name == "policy":
            return view.runner(count=partial(self.count, kind))
        return view.runner(self._frozen if name == "reference" else torch.no_grad, partial(self.count, name))

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """The policy as it was before training: adaptation off, evaluation mode, no gradient."""
        module = self.view.wrapped
        was = module.training
        module.eval()
        try:
            with torch.no_grad(), self.attached.disabled():
                yield
        finally:
            module.train(was)

    def _reference(self, batch: Batch, wants: list[str]) -> dict[str, tuple[Tensor, ...]]:
        if all(f"ref_{n}" in batch.inputs for n in wants):
            size = len(batch)
            return {f"ref_{n}": tuple(batch.inputs[f"ref_{n}"].split(size)) for n in wants}
        key = (id(batch), *map(hash, wants))
        if key not in self.held:
            self.count("reference")
            self.held[key] = batch, {f"ref_{k}": v for k, v in self.reference_signals(batch, wants).items()}
        return self.held[key][1]

    def reference_signals(self, batch: Batch, wants: Iterable[str]) -> dict[str, tuple[Tensor, ...]]:
        """Signals under the policy as it was before training, without gradient, in evaluation mode."""
        with self._frozen():
            return self.view.signals(batch, [w for w in wants if w not in ("token_mask", "token_id")])

    def _teacher(self, batch: Batch, wants: list[str]) -> dict[str, tuple[Tensor, ...]]:
        if self.teacher is None:
            raise Refused("an objective requires a teacher model; the recipe names none. Add `teacher: MODEL`.")
        self.count("teacher")
        with torch.no_grad():
            return {f"teacher_{k}": v for k, v in self.teacher.signals(batch, wants).items()}


def _known(view: View) -> set[str]:
    from luthier.core.signals import BASE

    return set(BASE) | set(getattr(view, "extra_signals", ()))


@contextmanager
def averaged(policy: Policy, average: Any) -> Iterator[None]:
    """The policy with averaged weights in place of its own, without gradient, inside the block."""
    named = list(policy.attached.named_parameters())
    other = average.average(named)
    own = [p.data for _, p in named]
    try:
        with torch.no_grad():
            for name, p in named:
                p.data = other[name]
            yield
    finally:
        for (_, p), data in zip(named, own, strict=True):
            p.data = data
