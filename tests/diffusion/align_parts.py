"""What tests of alignment share: a tiny network with a base, signals made by hand, and a real pipeline as the engine holds it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core import Batch, Objective, Signals
from luthier.core.terms import as_terms
from luthier.diffusion.schedules.flow import Flow

F64 = torch.float64
PARTS = {"image_preference": ("chosen", "rejected")}


class Network(torch.nn.Module):
    """A small network of x and t, in float64."""

    def __init__(self, path=None, kind="velocity", seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.path, self.kind = path or Flow(), kind
        self.inner = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.inner(torch.cat([x.flatten(1), t[:, None].to(x)], 1)).view_as(x)


def pair_of(path=None, kind="velocity", apart=0.2) -> tuple[Network, Network]:
    """A policy that has left its reference by this much, and the reference."""
    policy = Network(path, kind)
    reference = copy.deepcopy(policy).requires_grad_(False)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(apart * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return policy, reference


def drawn(n: int = 5, kind: str = "image", seed: int = 1) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """Random signals of n rows."""
    g = torch.Generator().manual_seed(seed)
    images = tuple(torch.randn(n, 2, 1, 1, generator=g, dtype=F64) for _ in PARTS.get(kind, ("image",)))
    more = {} if kind == "image_prompts" else {"image": images}
    return {
        **more,
        "noise": torch.randn(n, 2, 1, 1, generator=g, dtype=F64),
        "uniform": torch.rand(n, 8, generator=g, dtype=F64),
    }


def part_of(value: Any, at: slice) -> Any:
    """Some rows of a signal."""
    return tuple(v[at] for v in value) if isinstance(value, tuple) else value[at]


def terms_of(
    objective: Objective, values: Mapping[str, Any], handles: Mapping[str, Any], kind: str = "image"
) -> list[Any]:
    """What the objective makes of signals."""
    parts = PARTS.get(kind, ("image",))
    tuples = {k: v if isinstance(v, tuple) else (v,) for k, v in values.items()}
    inputs = (
        {"image": torch.cat(tuples["image"])}
        if "image" in tuples
        else {"condition.none": torch.zeros(len(values["noise"]))}
    )
    batch = Batch(kind, inputs, parts, meta=[{"row": i} for i in range(len(values["noise"]))])
    return list(as_terms(objective(batch, Signals(tuples, parts, handles.__getitem__))))


def values_of(
    objective: Objective, values: Mapping[str, Any], handles: Mapping[str, Any], kind: str = "image"
) -> Tensor:
    """The scaled sum of all terms, per row."""
    return sum(term.scale * term.values for term in terms_of(objective, values, handles, kind))  # type: ignore[return-value]


def gradient(total: Tensor, network: torch.nn.Module) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(network.parameters()), retain_graph=True)])


def check_rows_are_independent(objective: Objective, handles: Mapping[str, Any], kind: str = "image") -> None:
    """Each row alone gives what it gives among others."""
    values = drawn(kind=kind)
    whole = values_of(objective, values, handles, kind)
    for i in range(5):
        alone = {k: part_of(v, slice(i, i + 1)) for k, v in values.items()}
        torch.testing.assert_close(values_of(objective, alone, handles, kind), whole[i : i + 1], rtol=1e-9, atol=1e-11)


def real_step(objective: Objective, tmp_path: Path, kind: str = "image", reward: Any = None) -> tuple[Any, Tensor]:
    """One step of a real class-conditional DiT with a LoRA, through the engine's own handles: (policy, gradient of the LoRA)."""
    from luthier.adapt.lowrank.lora import LoRA
    from luthier.core import Sites
    from luthier.diffusion.schedules._scheduler import kind_said, path_of
    from luthier.models.denoiser import DenoiserView, load_denoiser
    from luthier.train.policy import Policy
    from tests.recipes.image_parts import dit_folder

    loaded = load_denoiser(str(dit_folder(tmp_path / "model")))
    attached = LoRA(rank=2).attach(loaded.module, Sites("*to_q"), 0)
    path = path_of(loaded.scheduler)
    view = DenoiserView(loaded.module, path, kind_said(loaded.scheduler), path.network_time)
    policy = Policy(view, attached, handles={} if reward is None else {"reward": reward})
    parts, g = PARTS.get(kind, ("image",)), torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(len(parts))
    inputs = {f"condition.{next(iter(loaded.module.conditioner.raw))}": labels}
    if kind != "image_prompts":
        inputs["image"] = torch.randn(3 * len(parts), *loaded.shape, generator=g)
    columns = {"noise": torch.randn(3, *loaded.shape, generator=g), "uniform": torch.rand(3, 8, generator=g)}
    batch = Batch(kind, inputs, parts, columns, meta=[{"label": i} for i in range(3)])
    total = sum(
        t.scale * t.values.sum() for t in as_terms(objective(batch, policy.signals(batch, objective.needs.signals)))
    )
    named = [p for _, p in attached.named_parameters()]
    return policy, torch.cat([g.flatten() for g in torch.autograd.grad(total, named)])
