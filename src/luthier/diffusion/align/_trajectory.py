"""What techniques that sample during training share: whole walks from noise to image, and what a step says about the model.

All randomness of a row comes from its own uniform numbers, so that any split of a batch walks the same ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.core import NoisePath, Sampler, stream
from luthier.core.errors import Refused, sentence
from luthier.diffusion.samplers._affine import Affine, Move
from luthier.diffusion.samplers._driver import Noise, Visit, sample
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._kinds import kind_of, to_x0
from luthier.diffusion.schedules._path import level, like

Condition = Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Drawn(Noise):
    """Noise that was drawn before: values (steps, B, ...)."""

    values: Tensor = field(kw_only=True)

    def normal(self, shape: Any, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values of this step."""
        return self.values[step].to(dtype)


def drawn(uniform: Tensor, steps: int, like: Tensor, role: str) -> Drawn:
    """Normal numbers (steps, B, ...) of like's shape; row r's follow from its uniform number (B,) and the role alone."""
    keys = (uniform.double() * 2**32).long().tolist()
    shape = (steps, *like.shape[1:])
    rows = [torch.randn(shape, generator=stream(key, f"diffusion.align.{role}"), dtype=like.dtype) for key in keys]
    return Drawn(0, tuple(range(len(keys))), role, values=torch.stack(rows, 1).to(like.device))


@dataclass(frozen=True)
class Walk:
    """States (n + 1 tensors (B, ...)) at the falling times `grid` (n + 1,), without gradient; the last is the sample."""

    grid: Tensor
    states: tuple[Tensor, ...]

    @property
    def sample(self) -> Tensor:
        """Where the walk ended, (B, ...)."""
        return self.states[-1]

    def at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x, t, s, after) of the step with this number for each row (B,): t and s are times (B,)."""
        rows = torch.arange(len(index), device=index.device)
        states = torch.stack(self.states)
        grid = self.grid.to(index.device)
        return states[index, rows], grid[index], grid[index + 1], states[index + 1, rows]


@torch.no_grad()
def walk(model: Any, sampler: Sampler, steps: int, noise: Tensor, condition: Condition, source: Noise | None) -> Walk:
    """Sample from noise (B, ...) of deviation 1 and keep every state."""
    grid = make_grid(model.path, steps)
    seen: list[Visit] = []
    start = noise * like(model.path.level(grid[0]).sigma, noise)
    sample(model, sampler, start, grid, condition, source, watch=seen.append)
    return Walk(grid, (start, *(v.after for v in seen)))


def noisy_steps(sampler: Sampler, path: NoisePath, grid: Tensor, who: str) -> int:
    """How many steps of the grid, from its beginning, draw noise. Raises Refused unless at least one has a density."""
    if isinstance(sampler, Affine):
        some = int((sampler.move(path, grid[:-1], grid[1:]).noise > 0).sum())
        if some:
            return some
    raise Refused(
        sentence(who, "a sampler whose steps draw noise", sampler.name, "Use ddpm, ddim with eta > 0, or flow_sde")
    )


def picks(uniform: Tensor, steps: int, count: int | None) -> list[Tensor]:
    """Numbers of steps to learn from, each (B,): all of them, or `count` of each row spread evenly from a random start."""
    if count is None or count >= steps:
        return [torch.full(uniform.shape, i, dtype=torch.long, device=uniform.device) for i in range(steps)]
    start = (uniform * steps).floor().clamp(0, steps - 1).long()
    return [(start + i * steps // count) % steps for i in range(count)]


def clean(model: Any, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The model's estimate of the image, (B, ...)."""
    times = t.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    return to_x0(x, model(x, times, condition), level(model.path, t, x), kind_of(model.kind))


def step_kl(move: Move, x0: Tensor, other: Tensor) -> Tensor:
    """KL (B,), in nats, between steps with clean estimates x0 and other, (B, ...): |mean - mean'|^2 / (2 noise^2)."""
    return (like(move.clean / move.noise, x0) * (x0 - other)).square().flatten(1).sum(1) / 2


def repeated(condition: Condition, times: int) -> dict[str, Tensor]:
    """The condition with each row several times in a row."""
    return {k: v.repeat_interleave(times, 0) for k, v in (condition or {}).items()}


def group_walk(
    model: Any, sampler: Sampler, steps: int, noise: Tensor, uniform: Tensor, condition: Condition, samples: int
) -> tuple[Walk, dict[str, Tensor]]:
    """`samples` walks for each row, next to one another: (walk of B * samples rows, their condition).

    noise (B, ...) gives the shape; uniform (B,) all random numbers.
    """
    values = drawn(uniform, (steps + 1) * samples, noise, "group").values
    values = values.unflatten(0, (steps + 1, samples)).transpose(1, 2).flatten(1, 2)
    held = repeated(condition, samples)
    source = Drawn(0, tuple(range(values.shape[1])), "group", values=values[1:])
    return walk(model, sampler, steps, values[0], held, source), held


@torch.no_grad()
def rewards_of(reward: Any, made: Tensor, rows: Any, samples: int) -> Tensor:
    """Rewards (B, samples) of what was made, (B * samples, ...), for these rows."""
    return reward(made, [row for row in rows for _ in range(samples)]).to(made).view(-1, samples)


def weighed(
    model: Any, sampler: Any, taken: Walk, numbers: Sequence[Tensor], held: Condition
) -> Iterator[tuple[Any, ...]]:
    """For each picked step: (its move, x, t, after, the model's clean estimate), with gradient."""
    for index in numbers:
        x, t, s, after = taken.at(index)
        yield sampler.move(model.path, t, s), x, t, after, clean(model, x, t, held)
