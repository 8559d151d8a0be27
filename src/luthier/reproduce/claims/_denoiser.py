"""Small denoisers of 2-D points, trained by the room's own objectives: shared by claims on diffusion.

Points stand as images (B, 2, 1, 1), so that every objective, sampler and guidance of the diffusion room takes them as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core import Batch, NoisePath, Objective, Signals, stream
from luthier.core.terms import as_terms
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.schedules._grid import make_grid

WIDTH = 64


class Net(nn.Module):
    """(x, t) -> prediction, a three-layer network with sines of the log noise ratio; output scaled for its path."""

    def __init__(self, path: NoisePath, kind: str, seed: int) -> None:
        super().__init__()
        self.path, self.kind = path, kind
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(2 + 17, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(),
                                        nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2))  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """x (B, 2, 1, 1), t (B,) -> (B, 2, 1, 1)."""
        at = self.path.level(t)
        scale = (at.alpha.square() * 4 + at.sigma.square()).rsqrt().to(x.dtype)
        angle = torch.atan2(at.sigma, at.alpha).to(x.dtype)[:, None]
        waves = angle * torch.arange(1, 9, dtype=x.dtype)
        seen = torch.cat([x.flatten(1) * scale[:, None], angle, waves.sin(), waves.cos()], 1)
        return self.layers(seen).view_as(x)


@dataclass
class Trainer:
    """Runs an objective on points: the least that the engine does, without its files.

    handles: models beside the policy; what the objective brings trains too. data: points (n, 2). steady: a rate that does not
    fall; every: steps between the weights that are kept in `saved`, oldest first (0: none).
    """

    net: Net
    data: Tensor
    seed: int
    handles: dict[str, Any] = field(default_factory=dict)
    batch: int = 128
    steady: bool = False
    every: int = 0
    saved: list[dict[str, Tensor]] = field(default_factory=list)

    def run(self, objective: Objective, steps: int, lr: float, average: float = 0.0, references: int = 0) -> Net:
        """Adam with a linear decay; returns the trained net, or its average with this decay."""
        beside = objective.brings((2, 1, 1), self.seed)
        self.handles = {**self.handles, **beside}
        pair = getattr(objective, "pair", lambda image, noise: noise)
        search = torch.optim.Adam([p for m in (self.net, *beside.values()) for p in m.parameters()], lr=lr)
        slow = copy.deepcopy(self.net).requires_grad_(False) if average else None
        handles: dict[str, Any] = {"policy": self.net, "ema": slow, **self.handles}
        for step in range(steps):
            g = stream(self.seed, "claim.denoiser", step)
            rows = torch.randint(len(self.data), (self.batch,), generator=g)
            image = self.data[rows].view(-1, 2, 1, 1)
            columns = {"image": image, "noise": torch.randn(image.shape, generator=g), "uniform": torch.rand(self.batch, 8, generator=g),
                       "progress": torch.full((self.batch,), step / steps)}  # fmt: skip
            columns["noise"] = pair(image, columns["noise"])
            if references:
                columns["references"] = self.data[torch.randint(len(self.data), (references,), generator=g)].view(
                    -1, 2, 1, 1
                )
            s = Signals({k: (v,) for k, v in columns.items()}, ("image",), handles.__getitem__)
            terms = as_terms(objective(Batch("image", {"image": image}, ("image",), meta=[{}] * self.batch), s))
            for group in search.param_groups:
                group["lr"] = lr if self.steady else lr * (1 - step / steps)
            search.zero_grad()
            sum(t.scale * t.sums()[0] / t.sums()[1] for t in terms).backward()
            search.step()
            if self.every and (step + 1) % self.every == 0:
                self.saved.append({k: v.clone() for k, v in self.net.state_dict().items()})
            if slow is not None:
                with torch.no_grad():
                    for a, p in zip(slow.parameters(), self.net.parameters(), strict=True):
                        a.lerp_(p, 1 - average)
        return self.net if slow is None else slow


@torch.no_grad()
def points(net: Net, sampler: Any, steps: int, seed: int, n: int = 2000, spacing: Any = "uniform") -> Tensor:
    """n samples (n, 2), float64, from the same noise for every net."""
    noise = torch.Generator().manual_seed(seed + 77)
    grid = make_grid(net.path, steps, spacing)
    x = torch.randn(n, 2, 1, 1, generator=noise) * float(net.path.level(grid[:1]).sigma)
    return sample(net, sampler, x, grid, None, noise).flatten(1).double()


def frozen(net: Net) -> Net:
    """A copy that does not train."""
    return copy.deepcopy(net).requires_grad_(False).eval()
