"""What every live adaptation can do: switch off, save, load, merge, describe, leave without trace."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from luthier.adapt._sites import names_of
from luthier.adapt._surgery import Adapted, Ledger, Place, Switch, parts, shed
from luthier.adapt._weights import assign, quantised, saved
from luthier.core import Adaptation, Calibration, Hook, Site
from luthier.core.errors import CheckpointError, Refused, nearest


class Handle:
    """A live adaptation on a model. As a context manager it detaches at the end of the block.

    Subclasses give `tensors` (all that must be saved, by stable names) and `merged`.
    """

    def __init__(self, adaptation: Adaptation, model: nn.Module, sites: Sequence[Site]) -> None:
        """sites: the places the adaptation holds."""
        self.adaptation, self.model, self.sites = adaptation, model, list(sites)
        self.live = True
        self.shapes: dict[str, torch.Size] = {}

    # ------------------------------------------------------------ for subclasses
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Live tensors of the adaptation, trained and frozen, by stable names."""
        raise NotImplementedError

    def trained_places(self) -> Sequence[Place]:
        """Base parameters trained in place."""
        return ()

    def merged(self) -> dict[str, Tensor]:
        """Changed weights by the base model's names."""
        raise NotImplementedError

    def config_changes(self) -> dict[str, Any]:
        """What the base model's configuration must say for `merged` to load, by field name; mostly nothing."""
        return {}

    def penalty(self) -> Tensor | None:
        """A term that the adaptation adds to the loss (scalar), or None."""
        return None

    def low_rank(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter, float]]:
        """(site, A (r, in), B (out, r), s) wherever dW = s B A, for what must see both factors of a weight together."""
        return iter(())

    def calibrate(self, calibration: Calibration) -> None:
        """Look at the first batches before training; what trains may change by it."""

    def hooks(self) -> tuple[Hook, ...]:
        """What the adaptation does at the loop's points; run before the recipe's own hooks."""
        return ()

    # ------------------------------------------------------------- for all users
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What trains, by `<site>.<parameter>`, read from the live model."""
        self._alive("named_parameters")
        for name, t in self.tensors():
            if isinstance(t, nn.Parameter) and t.requires_grad:
                yield name, t

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model as it was before attaching, bit for bit, inside the block. Meant for passes without gradient."""
        raise NotImplementedError
        yield

    @contextmanager
    def folding(self) -> Iterator[dict[str, Tensor]]:
        """Inside the block: what to lay over the model's own weights, by the base's names, to have the merged model.

        Collective where parameters are sharded. Raises Refused where the adaptation cannot be merged.
        """
        changed = self.merged()
        with self.disabled():
            yield changed

    def forget_base(self) -> None:
        """Free what is kept only for `disabled` and `detach`; most adaptations keep nothing."""

    def state(self) -> dict[str, Tensor]:
        """All that must be saved, whole on every process; like a state dict it shares memory with the live tensors.

        Collective where parameters are sharded: call it on every process. Raises CheckpointError for a partial tensor.
        """
        self._alive("state")
        return {name: saved(name, t, self.shapes[name]) for name, t in self.tensors()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore from `state`. Nothing changes unless all names and shapes fit; CheckpointError says what does not."""
        self._alive("load")
        faults = self.misfit(state)
        if faults:
            raise misfit_error(self.adaptation.id, len(self.shapes), faults)
        self._make_room(state)
        for name, target in self.tensors():
            assign(target, state[name])

    def misfit(self, state: Mapping[str, Tensor]) -> list[str]:
        """Why `state` does not belong to this adaptation: missing and foreign names, other shapes; empty if it does."""
        faults = [f"missing {n!r}" for n in self.shapes if n not in state]
        for name, value in state.items():
            if name not in self.shapes:
                near = nearest(name, self.shapes, 1)
                faults.append(f"foreign {name!r}" + (f" (nearest here: {near[0]!r})" if near else ""))
            elif not self._fits(name, value.shape):
                faults.append(f"{name!r} of shape {tuple(value.shape)} instead of {tuple(self.shapes[name])}")
        return faults

    def describe(self) -> dict[str, Any]:
        """trained and total parameters, per cent, bytes of the adaptation's tensors, and its sites by name."""
        trained = sum(p.numel() for _, p in self.named_parameters())
        total = sum(p.numel() for p in self.model.parameters())
        return {
            "adaptation": self.adaptation.id,
            "trained": trained,
            "total": total,
            "percent": 100.0 * trained / max(total, 1),
            "bytes": sum(t.numel() * t.element_size() for _, t in self.tensors()),
            "sites": [s.name for s in self.sites],
        }

    def detach(self) -> None:
        """Restore the base model bit for bit. A handle that has left does nothing."""
        raise NotImplementedError

    def merge_into_model(self) -> None:
        """Fold the adaptation into the model's own weights and leave; the model is plain afterwards."""
        raise NotImplementedError

    # ------------------------------------------------------------------ internal
    def _fits(self, name: str, shape: torch.Size) -> bool:
        return shape == self.shapes[name]

    def _make_room(self, state: Mapping[str, Tensor]) -> None:
        """Before loading: give tensors whose shapes may differ the shapes of `state`, which was found to fit."""

    def _enter(self) -> Self:
        self.shapes = {name: t.shape for name, t in self.tensors()}
        Ledger.of(self.model).enter(self, [s.name for s in self.sites])
        return self

    def _leave(self) -> None:
        self.live = False
        Ledger.of(self.model).leave(self.model, self, [s.name for s in self.sites])

    def _alive(self, what: str) -> None:
        if not self.live:
            raise Refused(
                f"{what} requires a live adaptation; {self.adaptation.id} was detached or merged. Attach it again."
            )

    def _can_merge(self) -> None:
        self._alive("merged")
        if self.adaptation.merge.kind == "never":
            raise Refused(f"merging {self.adaptation.id} is impossible: {self.adaptation.merge.why}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


class WornHandle(Handle):
    """Handle of an adaptation that modules wear (deltas, activation edits)."""

    def __init__(self, adaptation: Adaptation, model: nn.Module, sites: Sequence[Site], switch: Switch) -> None:
        """switch: the one shared by the worn modules."""
        super().__init__(adaptation, model, sites)
        self.switch = switch
        self.modules = {s.name: model.get_submodule(s.name) for s in sites}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """`<site>.<part>` and the live tensor."""
        for site, module in self.modules.items():
            for name, t in parts(module).items():
                yield f"{site}.{name}", t

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model inside the block: adapted modules run their own forward and nothing else."""
        self._alive("disabled")
        was, self.switch.on = self.switch.on, False
        try:
            yield
        finally:
            self.switch.on = was

    def detach(self) -> None:
        """Take the adaptation off every module; base weights were never touched."""
        if not self.live:
            return
        for module in self.modules.values():
            if isinstance(module, Adapted):
                shed(module)
        self._leave()

    def merge_into_model(self) -> None:
        """Write the merged tensors into the model and detach; a weight that was tied to another becomes its own."""
        self._can_merge()
        new, changes = self.merged(), self.config_changes()
        coded = [n for n, m in self.modules.items() if f"{n}.weight" in new and quantised(m)]
        if coded:
            raise Refused(
                f"merge_into_model requires plain weights; {coded[0]}.weight is stored quantised. Take `merged`, whose "
                "weights are decoded, into an unquantised model."
            )
        tied = {n for names in names_of(self.model).values() if len(names) > 1 for n in names}
        self.detach()
        write_back(self.model, new, tied, changes)


def write_back(model: nn.Module, new: Mapping[str, Tensor], untie: Collection[str], changes: Mapping[str, Any]) -> None:
    """Write merged tensors into a plain model; names in `untie` and new biases get a parameter of their own."""
    for name, value in new.items():
        path, _, key = name.rpartition(".")
        module: Any = model.get_submodule(path)
        old = module._parameters.get(key)
        if old is None or name in untie:
            flag = bool(module.weight.requires_grad)
            setattr(module, key, nn.Parameter(value.detach().to(module.weight.device, copy=True), requires_grad=flag))
        else:
            assign(old, value)
    set_config(model, changes)


def misfit_error(who: str, count: int, faults: Sequence[str]) -> CheckpointError:
    """The error for a state that does not fit."""
    shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
    return CheckpointError(
        f"{who} requires a state with exactly its {count} tensors; got {shown}. "
        "Load it into the same adaptation on the same sites."
    )


def set_config(model: nn.Module, changes: Mapping[str, Any]) -> None:
    """Write configuration changes where the model's configuration has these fields."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for one in (config, text):
        for key, value in changes.items():
            if hasattr(one, key):
                setattr(one, key, value)


def partners(model: nn.Module, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights tied to a changed one that nothing changes, by name: once untied they must be written too."""
    out = {}
    for names in names_of(model).values():
        if len(names) > 1 and any(n in changed for n in names):
            plain = [
                n
                for n in names
                if n not in changed and not isinstance(model.get_submodule(n.rpartition(".")[0]), Adapted)
            ]
            out.update({n: model.get_parameter(n).detach() for n in plain})
    return out
