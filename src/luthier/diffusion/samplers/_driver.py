"""The one loop that samples: any denoiser, any sampler, any grid, any guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from luthier.core import Denoiser, Guidance, NoisePath, Sampler, stream
from luthier.core.errors import NonFinite, Refused, sentence
from luthier.diffusion.schedules._kinds import kind_of, to_x0
from luthier.diffusion.schedules._path import Condition, check_times, level


@dataclass(frozen=True)
class Noise:
    """Random numbers of a batch of samples: what row r draws at a step depends on (seed, role, r, step) only.

    rows: the number of each sample, so that a batch may be split or reordered without changing a sample.
    """

    seed: int
    rows: Sequence[int]
    role: str = "diffusion.sample"

    def normal(self, shape: Sequence[int], step: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers (B, ...), on the CPU; half precision rounds those of float32."""
        made = torch.float64 if dtype == torch.float64 else torch.float32
        rows = [torch.randn(tuple(shape[1:]), generator=stream(self.seed, f"{self.role}.{row}", step), dtype=made)
                for row in self.rows]  # fmt: skip
        return torch.stack(rows).to(dtype) if rows else torch.zeros(tuple(shape), dtype=dtype)

    def start(
        self, path: NoisePath, shape: Sequence[int], t: float | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """sigma(t) times normal numbers, (B, ...), at the path's end or at t: where sampling begins."""
        at = path.level(torch.tensor(path.t_max if t is None else t, dtype=torch.float64))
        return self.normal(shape, -1, dtype) * float(at.sigma)

    def part(self, role: str) -> Noise:
        """The same rows with other numbers."""
        return Noise(self.seed, self.rows, f"{self.role}.{role}")


@dataclass(frozen=True)
class Here:
    """What a sampler sees at a step: x at time t, the next time s (0-d, float64), and where to get estimates and noise.

    clean(x, t): the clean estimate (B, ...), one evaluation of the denoiser. draw(): standard normal numbers of this step.
    """

    path: NoisePath
    x: Tensor
    t: Tensor
    s: Tensor
    clean: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[], Tensor]


@dataclass(frozen=True)
class Visit:
    """One step as an observer sees it: before at t, the (first) clean estimate there, after at s."""

    step: int
    t: float
    s: float
    before: Tensor
    clean: Tensor
    after: Tensor


@dataclass
class _Estimate:
    """Clean estimates of a denoiser, the first of each step kept."""

    denoiser: Denoiser
    condition: Condition
    clip: float | None
    first: Tensor | None = field(default=None)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        kind = kind_of(self.denoiser.kind)
        times = t.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)).expand(len(x))
        x0 = to_x0(x, self.denoiser(x, times, self.condition), level(self.denoiser.path, t, x), kind)
        x0 = x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
        self.first = x0 if self.first is None else self.first
        return x0


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    x: Tensor,
    grid: Tensor,
    condition: Condition = None,
    noise: Noise | Generator | None = None,
    *,
    guidance: Sequence[Guidance] = (),
    handles: Mapping[str, Any] | None = None,
    clip: float | None = None,
    grad_last: int = 0,
    watch: Callable[[Visit], None] | None = None,
) -> Tensor:
    """x (B, ...) at time grid[0] -> samples (B, ...) at grid[-1].

    grid: falling times (n + 1,), see `schedules._grid`. noise: where stochastic samplers draw from; a plain generator is
    quicker for many small rows, `Noise` keeps rows independent. guidance: applied in order, each to what the one before
    made; it may leave samples out at the end. handles: other denoisers that it asks for. clip: bound of the clean
    estimate's values. grad_last: number of last steps through which gradients flow; none by default. watch: called after
    every step.
    Raises Refused for a grid that does not fall or fit the path, NonFinite naming the step.
    """
    _check(denoiser.path, x, grid, noise)
    with torch.no_grad():
        for one in guidance:
            condition = one.condition(condition, noise)
    for one in guidance:
        denoiser = one.guide(denoiser, handles or {})
    for one in guidance:
        x = one.start(x, grid[0].to(x).expand(len(x)), denoiser, condition)
    estimate, state, steps = _Estimate(denoiser, condition, clip), None, len(grid) - 1
    for step in range(steps):
        t, s = grid[step], grid[step + 1]
        estimate.first = None
        with torch.set_grad_enabled(torch.is_grad_enabled() and step >= steps - grad_last):
            draw = _coupled(_draws(noise, x, step, sampler), estimate, guidance, handles or {})
            here = Here(denoiser.path, x, t, s, estimate, draw)
            after, state = sampler.step(here, state)
        if not bool(torch.isfinite(after).all()):
            rows = (~torch.isfinite(after.flatten(1)).all(1)).nonzero()[:, 0].tolist()
            raise NonFinite(f"sampling with {sampler.name} became NaN or infinite in step {step + 1} of {steps} "
                            f"(t = {float(t):g}), rows {rows[:8]}. Check the model, or use more steps.")  # fmt: skip
        if watch is not None and estimate.first is not None:
            watch(Visit(step, float(t), float(s), x, estimate.first, after))
        x = after
    for one in guidance:
        index = one.choose(x.detach())
        x = x if index is None else x[index]
    return x


def _coupled(
    draw: Callable[[], Tensor], estimate: _Estimate, guidance: Sequence[Guidance], handles: Mapping[str, Any]
) -> Callable[[], Tensor]:
    """The same source, after each guidance had its say on the noise that goes with the step's clean estimate."""

    def drawn() -> Tensor:
        z = draw()
        for one in guidance if estimate.first is not None else ():
            assert estimate.first is not None
            z = one.renoise(z, estimate.first, handles)
        return z

    return drawn


def _draws(noise: Noise | Generator | None, x: Tensor, step: int, sampler: Sampler) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        if noise is None:
            raise Refused(
                sentence(f"sampler {sampler.name}", "a source of noise", "none", "Give `noise`, or a deterministic one")
            )
        if isinstance(noise, Generator):
            return torch.randn(x.shape, generator=noise, dtype=x.dtype, device=noise.device).to(x.device)
        return noise.normal(x.shape, step, x.dtype).to(x.device)

    return draw


def _check(path: NoisePath, x: Tensor, grid: Tensor, noise: Noise | Generator | None) -> None:
    if grid.ndim != 1 or len(grid) < 2 or bool((grid.diff() >= 0).any()):
        raise Refused(sentence("sampling", "a grid of at least two falling times", str(grid.tolist()), "Use make_grid"))
    check_times(path, grid, "sampling")
    if not x.is_floating_point() or x.ndim < 2:
        raise Refused(
            sentence("sampling", "floating x (B, ...)", f"{tuple(x.shape)} {x.dtype}", "Begin with Noise.start")
        )
    if isinstance(noise, Noise) and len(noise.rows) != len(x):
        raise Refused(
            sentence("sampling", "a row number for each sample", f"{len(noise.rows)} for {len(x)}", "Fix `rows`")
        )
