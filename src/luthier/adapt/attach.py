"""Attach an adaptation to a model: the one door to the surgery, as a function or around a block.

    with attach(model, LoRA(rank=2), Sites("*q_proj")) as handle:
        ...                                  # train handle.named_parameters(), in any loop
                                             # here the model is as it was, bit for bit

Several adaptations may be attached one after the other on disjoint sites; `Several` makes one handle of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapt._handle import Handle, misfit_error
from luthier.adapt._inplace import InPlace
from luthier.adapt._sites import find_sites
from luthier.adapt._surgery import handles_of
from luthier.core import Adaptation, Hook, Site, Sites
from luthier.core.errors import Refused

__all__ = ["Handle", "Several", "attach", "find_sites", "handles_of"]


def attach(model: nn.Module, adaptation: Adaptation, sites: Sites | str | None = None, seed: int = 0,
           keep_base: bool = True) -> Any:  # fmt: skip
    """Attach `adaptation` to `model` in place and return its handle, which is also a context manager that detaches.

    sites: where it acts; a string is a pattern or group, None the component's own default. seed: of its random streams.
    keep_base: for adaptations that train base weights, keep a CPU copy of these (needed by `disabled` and `detach`).
    Raises NoEffect for a pattern without a match, Refused for sites that another adaptation holds.
    """
    if sites is None:
        sites = adaptation.sites
    elif isinstance(sites, str):
        sites = Sites(sites, adaptation.sites.kinds)
    if isinstance(adaptation, InPlace):
        return adaptation.attach(model, sites, seed, keep_base)
    if not keep_base:
        raise Refused(
            f"keep_base=False is for adaptations that train base weights; {adaptation.id} leaves them as they are."
        )
    return adaptation.attach(model, sites, seed)


class Several:
    """Several live adaptations of one model as one handle, the first attached first."""

    def __init__(self, handles: Sequence[Any]) -> None:
        """handles: on disjoint sites of the same model."""
        if not handles:
            raise Refused("several adaptations require at least one handle; got none.")
        self.handles = list(handles)
        self.model = handles[0].model
        self.adaptation = handles[0].adaptation

    @property
    def sites(self) -> list[Site]:
        """Sites of all, in order."""
        return [s for h in self.handles for s in h.sites]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What trains in any of them."""
        for handle in self.handles:
            yield from handle.named_parameters()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """All of them off: the model before the first was attached."""
        with ExitStack() as stack:
            for handle in self.handles:
                stack.enter_context(handle.disabled())
            yield

    def state(self) -> dict[str, Tensor]:
        """All states together; their names are disjoint as their sites are."""
        return {k: v for h in self.handles for k, v in h.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore all; nothing is changed unless every name and shape fits (CheckpointError)."""
        own = [{k: v for k, v in state.items() if k in h.shapes} for h in self.handles]
        rest = {k: v for k, v in state.items() if not any(k in part for part in own)}
        faults = [f for h, part in zip(self.handles, own, strict=True) for f in h.misfit(part)] + [
            f"foreign {k!r}" for k in rest
        ]
        if faults:
            raise misfit_error(self.describe()["adaptation"], sum(len(h.shapes) for h in self.handles), faults)
        for handle, part in zip(self.handles, own, strict=True):
            handle.load(part)

    def merged(self) -> dict[str, Tensor]:
        """Changed weights of all."""
        return _union(h.merged() for h in self.handles)

    @contextmanager
    def folding(self) -> Iterator[dict[str, Tensor]]:
        """Changed weights of all, to be laid over the model's own inside the block."""
        with ExitStack() as stack:
            yield _union([stack.enter_context(handle.folding()) for handle in self.handles])

    def forget_base(self) -> None:
        """Free what any of them keeps only for `disabled` and `detach`."""
        for handle in self.handles:
            handle.forget_base()

    def config_changes(self) -> dict[str, Any]:
        """Configuration changes of all."""
        return _union(h.config_changes() for h in self.handles)

    def penalty(self) -> Tensor | None:
        """Sum of their penalties, None if none has one."""
        terms = [t for h in self.handles if (t := h.penalty()) is not None]
        return torch.stack(terms).sum() if terms else None

    def low_rank(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter, float]]:
        """Low-rank factors of all."""
        for handle in self.handles:
            yield from handle.low_rank()

    def hooks(self) -> tuple[Hook, ...]:
        """What any of them wants to do during training."""
        return tuple(hook for h in self.handles for hook in h.hooks())

    def merge_into_model(self) -> None:
        """Fold all into the model, the last attached first."""
        for handle in reversed(self.handles):
            handle.merge_into_model()

    def detach(self) -> None:
        """Detach all, the last attached first."""
        for handle in reversed(self.handles):
            handle.detach()

    def describe(self) -> dict[str, Any]:
        """Sums over all, and each on its own under `parts`."""
        own = [h.describe() for h in self.handles]
        trained, total = sum(d["trained"] for d in own), own[0]["total"]
        return {"adaptation": " + ".join(d["adaptation"] for d in own), "trained": trained, "total": total,
                "percent": 100.0 * trained / max(total, 1), "bytes": sum(d["bytes"] for d in own),
                "sites": [s for d in own for s in d["sites"]], "parts": own}  # fmt: skip

    def __enter__(self) -> Several:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def _union(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for part in parts:
        out.update(part)
    return out
