"""What both image models are trained with: flow matching, Muon in single precision, an averaged copy, Euler sampling.

Time t runs from data (0) to noise (1): x = (1 - t) x0 + t eps, and the network predicts the velocity eps - x0.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from luthier.core.streams import seed_of, stream
from luthier.lab.language._build import _resume, _save
from luthier.models.denoiser import DenoiserModule

TICKS = 1000.0  # of the network's clock in one unit of t
MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of torch.optim.Muon
EVERY = 100
Draw = Callable[[Generator, int], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Training:
    """All that decides one of the models, besides its data."""

    steps: int
    batch: int = 128
    lr: float = 4e-3
    warmup: int = 50
    decay: float = 0.4
    weight_decay: float = 0.05
    average: float = 0.995
    hidden: int = 96
    layers: int = 4
    heads: int = 3
    patch: int = 4
    seed: int = 0


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by five Newton-Schulz steps, matrices of one shape together.

    torch.optim.Muon takes these steps in bfloat16, which processors without it do ten times slower.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; its root mean square is that of AdamW at the same rate."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                alike.setdefault(p.shape, []).append(p)
            for shape, some in alike.items():
                steps = torch.stack([self._momentum(p) for p in some])
                scale = 0.2 * math.sqrt(max(shape))
                for p, update in zip(some, orthogonal(steps).unbind(0), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, p: nn.Parameter) -> Tensor:
        assert p.grad is not None
        held = self.state[p].setdefault("momentum", torch.zeros_like(p))
        held.lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(held, MOMENTUM)


def orthogonal(g: Tensor) -> Tensor:
    """Matrices (k, m, n) with all singular values brought near 1."""
    x = g.mT if g.shape[-2] > g.shape[-1] else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if g.shape[-2] > g.shape[-1] else x


def optimisers(module: nn.Module, how: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    inside = {
        n: p
        for n, p in module.named_parameters()
        if p.ndim == 2 and "blocks" in n and "emb" not in n and "table" not in n
    }
    others = [p for n, p in module.named_parameters() if n not in inside]
    muon = Muon(list(inside.values()), how.lr, how.weight_decay)
    return [muon, torch.optim.AdamW(others, lr=how.lr, betas=(0.9, 0.99), weight_decay=0.0)]


def factor(how: Training, step: int) -> float:
    """On the learning rate: linear warm-up, flat, linear decay to nothing."""
    return min(1.0, (step + 1) / how.warmup, (how.steps - step) / (how.decay * how.steps))


def velocity_loss(module: DenoiserModule, x0: Tensor, condition: Mapping[str, Tensor], g: Generator) -> Tensor:
    """Mean squared error of the velocity at logit-normal times, one from each of B equal strata."""
    n = len(x0)
    u = (torch.randperm(n, generator=g) + torch.rand(n, generator=g)) / n
    t = torch.sigmoid(torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))
    noise = torch.randn(x0.shape, generator=g)
    at = t.view(-1, 1, 1, 1)
    return (module((1 - at) * x0 + at * noise, TICKS * t, condition) - (noise - x0)).square().mean()


def fit(make: Callable[[], DenoiserModule], draw: Draw, how: Training, out: Path, role: str, log: Callable[[str], None],
        probe: Callable[[DenoiserModule], str] | None = None) -> tuple[DenoiserModule, float]:  # fmt: skip
    """Train into `out`, going on from its last checkpoint; the averaged model and the seconds it took.

    Networks stay in evaluation mode, so that they drop nothing of their own accord.
    """
    torch.manual_seed(seed_of(how.seed, f"{role}.init") % 2**31)
    live = make().eval()
    both = nn.ModuleDict({"live": live, "average": copy.deepcopy(live)})
    average = cast(DenoiserModule, both["average"])
    search = optimisers(live, how)
    started, folder = time.monotonic(), out / f"_{role}"
    folder.mkdir(parents=True, exist_ok=True)
    first, spent = _resume(folder, cast(Any, how), cast(Any, both), search)
    for step in range(first, how.steps):
        g = stream(how.seed, f"{role}.data", step)
        loss = velocity_loss(live, *draw(g, how.batch), g)
        for optimiser in search:
            optimiser.zero_grad(set_to_none=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live.parameters(), 1.0)
        for optimiser in search:
            optimiser.param_groups[0]["lr"] = how.lr * factor(how, step)
            optimiser.step()
        _follow(average, live, min(how.average, (step + 1) / (step + 10)))
        done, seconds = step + 1, spent + time.monotonic() - started
        if done % EVERY == 0 or done == how.steps:
            _save(folder, cast(Any, how), cast(Any, both), search, done, seconds)
            told = probe(average) if probe and done % (4 * EVERY) == 0 else ""
            log(f"{role} step {done}/{how.steps} loss {loss.item():.4f} {seconds:.0f} s {told}")
    return average, spent + time.monotonic() - started


@torch.no_grad()
def _follow(average: nn.Module, live: nn.Module, keep: float) -> None:
    for slow, fast in zip(average.parameters(), live.parameters(), strict=True):
        slow.lerp_(fast.detach(), 1 - keep)


@torch.no_grad()
def euler(
    module: DenoiserModule, condition: Mapping[str, Tensor], noise: Tensor, steps: int = 20, cfg: float = 2.0
) -> Tensor:
    """Images from noise by even Euler steps, guided by cfg (1: not at all), in chunks of 128."""
    out = []
    for at in torch.arange(len(noise)).split(128):
        x = noise[at]
        told = module.encode({k: v[at] for k, v in condition.items()})
        none = module.encode(module.conditioner.null(len(at)))
        for step in range(steps):
            t = torch.full((len(at),), 1 - step / steps)
            v = module(x, TICKS * t, told)
            if cfg != 1:
                free = module(x, TICKS * t, none)
                v = free + cfg * (v - free)
            x = x - v / steps
        out.append(x)
    return torch.cat(out)


def write(module: DenoiserModule, folder: Path) -> None:
    """The folder of diffusers: network in half precision, scheduler, conditioner, index."""
    from diffusers import FlowMatchEulerDiscreteScheduler  # type: ignore[reportPrivateImportUsage]

    network = cast(Any, copy.deepcopy(module.network).half())
    network.save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(TICKS), shift=1.0).save_pretrained(folder / "scheduler")
    if module.conditioner.raw == ("ids",):
        (folder / "conditioner").mkdir(parents=True, exist_ok=True)
        copy.deepcopy(module.conditioner).half().save(folder / "conditioner")
    index = {
        "_class_name": "ImageWorldPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", type(module.network).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
