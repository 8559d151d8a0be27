"""Samplers, paths and grids against the schedulers of diffusers in one process."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.consistency import Consistency
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.samplers.dpmpp_2m import DPMpp2M
from luthier.diffusion.samplers.euler import Euler
from luthier.diffusion.samplers.flow_sde import FlowSDE
from luthier.diffusion.samplers.heun import Heun
from luthier.diffusion.samplers.tcd import TCD
from luthier.diffusion.schedules._grid import index_grid, shifted, uniform_grid
from luthier.diffusion.schedules._path import Predictor
from luthier.diffusion.schedules._scheduler import kind_said, path_of
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.vp_table import VPTable

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]
SHAPE = (3, 2, 4, 4)
F64 = torch.float64


def start(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(x: Tensor, step: Tensor | float) -> Tensor:
    """A smooth stand-in for a network of time steps."""
    at = torch.as_tensor(step, dtype=F64).reshape(-1, 1, 1, 1)
    return torch.tanh(0.7 * x + 0.3 * torch.sin(at / 200)) + 0.1 * x.flip(-1)


def saved(scheduler: Any) -> dict[str, Any]:
    """What scheduler_config.json holds."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def ours(scheduler: Any) -> Predictor:
    path = path_of(saved(scheduler))
    return Predictor(lambda x, t, c: network(x, path.network_time(t)), path, kind_said(saved(scheduler)))


def theirs(scheduler: Any, x: Tensor, seed: int, scale: float = 1.0, **extra: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    for step in scheduler.timesteps:
        inside = scheduler.scale_model_input(x, step) if hasattr(scheduler, "scale_model_input") else x
        out = network(inside, scale * step)
        takes_generator = "generator" in type(scheduler).step.__code__.co_varnames
        x = scheduler.step(out, step, x, **extra, **({"generator": generator} if takes_generator else {})).prev_sample
    return x


def close(got: Tensor, want: Tensor, tolerance: float = 2e-4) -> None:
    """Schedulers hold their tables in float32, which many steps enlarge."""
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


TABLES = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.0002 + 1e-5 * i for i in range(1000)]},
}
KINDS = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_the_schedulers(table):
    scheduler = diffusers.DDPMScheduler(**TABLES[table])
    path = path_of(scheduler.config)
    assert isinstance(path, VPTable)
    at = path.level(path.index_time(torch.arange(1000, dtype=F64)))
    torch.testing.assert_close(at.alpha.square(), scheduler.alphas_cumprod.double(), rtol=3e-5, atol=1e-9)


def test_zero_terminal_tables_are_the_schedulers():
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, beta_schedule="scaled_linear")
    path = path_of(scheduler.config)
    at = path.level(torch.arange(1, 1001, dtype=F64) / 1000)
    torch.testing.assert_close(at.alpha.square(), scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)
    assert float(at.alpha[-1]) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(kind, table, eta):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=kind, clip_sample=False, timestep_spacing="trailing", **TABLES[table]
    )
    scheduler.set_timesteps(10)
    grid = index_grid(scheduler.timesteps.tolist(), 1000)
    got = sample(ours(scheduler), DDIM(eta=eta), start(), grid, noise=torch.Generator().manual_seed(5))
    close(got, theirs(scheduler, start(), 5, eta=eta), 2e-3 if table == "cosine" else 2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(kind, variance):
    scheduler = diffusers.DDPMScheduler(prediction_type=kind, clip_sample=False, variance_type=f"fixed_{variance}")
    scheduler.set_timesteps(10)
    grid = index_grid(scheduler.timesteps.tolist(), 1000)
    got = sample(ours(scheduler), DDPM(variance=variance), start(), grid, noise=torch.Generator().manual_seed(5))
    close(got, theirs(scheduler, start(), 5))


def test_clipped_ddim():
    scheduler = diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=1.0, timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    grid = index_grid(scheduler.timesteps.tolist(), 1000)
    got = sample(ours(scheduler), DDIM(), start(), grid, clip=1.0)
    close(got, theirs(scheduler, start(), 0, use_clipped_model_output=True))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["Euler", "Heun"])
def test_euler_and_heun_in_the_ratio(kind, name):
    """Their x is ours divided by alpha."""
    scheduler = getattr(diffusers, f"{name}DiscreteScheduler")(prediction_type=kind, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    table = path_of(scheduler.config)
    steps = list(dict.fromkeys(scheduler.timesteps.tolist()))
    grid = index_grid([int(s) for s in steps], 1000)
    denoiser = Predictor(lambda x, t, c: network(x, table.network_time(t)), table, kind_said(scheduler.config))
    alpha = table.level(grid[0]).alpha
    sampler = Euler(space="ratio") if name == "Euler" else Heun(space="ratio")
    close(sample(denoiser, sampler, start(), grid), theirs(scheduler, start() / alpha, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_dpm_solver_multistep(kind):
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type=kind, lower_order_final=False, final_sigmas_type="zero",
                                                      euler_at_final=True, timestep_spacing="trailing")  # fmt: skip
    scheduler.set_timesteps(10)
    grid = index_grid(scheduler.timesteps.tolist(), 1000)
    close(sample(ours(scheduler), DPMpp2M(), start(), grid), theirs(scheduler, start(), 0))


@pytest.mark.parametrize("kind", KINDS)
def test_latent_consistency(kind):
    """Their boundary scalings are part of the consistency function here; the last step lands on the clean estimate."""
    scheduler = diffusers.LCMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(4, original_inference_steps=50)
    plain = ours(scheduler)
    from luthier.diffusion.schedules._kinds import to_x0
    from luthier.diffusion.schedules._path import level

    def bounded(x: Tensor, t: Tensor, c: object) -> Tensor:
        step = float(plain.path.network_time(t)[0])
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(step)
        return out * to_x0(x, plain(x, t), level(plain.path, t, x), plain.kind) + skip * x

    grid = index_grid(scheduler.timesteps.tolist(), 1000)
    got = sample(
        Predictor(bounded, plain.path, "x0"), Consistency(), start(), grid, noise=torch.Generator().manual_seed(5)
    )
    close(got, theirs(scheduler, start(), 5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8])
def test_tcd_step(kind, eta):
    """A step is theirs where (1 - gamma) s is the time of the step that they round down to."""
    scheduler = diffusers.TCDScheduler(prediction_type=kind)
    scheduler.set_timesteps(4)
    first, second = (int(s) for s in scheduler.timesteps[:2])
    x, out = start(), network(start(), first)
    want = scheduler.step(
        out, scheduler.timesteps[0], x, eta=eta, generator=torch.Generator().manual_seed(2)
    ).prev_sample
    gamma = 1 - (math.floor((1 - eta) * second) + 1) / (second + 1)
    grid = index_grid([first, second], 1000)[:2]
    close(sample(ours(scheduler), TCD(gamma=gamma), x, grid, noise=torch.Generator().manual_seed(2)), want)


@pytest.mark.parametrize("name", ["Euler", "Heun"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(name, shift):
    scheduler = getattr(diffusers, f"FlowMatch{name}DiscreteScheduler")(shift=shift)
    scheduler.set_timesteps(8)
    grid = torch.cat((torch.unique(scheduler.sigmas.double()).flip(0),))
    if name == "Euler":
        stretched = (torch.linspace(1, shift * 1e-3 / (1 + (shift - 1) * 1e-3), 8, dtype=F64)) if shift == 1 else None
        if stretched is not None:
            close(grid[:-1], shifted(stretched, shift), 1e-6)
    sampler = Euler() if name == "Euler" else Heun()
    close(sample(ours(scheduler), sampler, start(), grid), theirs(scheduler, start(), 0))


def test_flow_grpo_step():
    """The formula of the step in the code of arXiv 2505.05470, with noise level a: level = a / sqrt 2."""
    a, t, s = 0.7, 0.8, 0.6
    x = start()
    v, z = network(x, 1000 * t), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=F64)
    std = a * math.sqrt(t / (1 - t))
    want = (
        x * (1 + std**2 / (2 * t) * (s - t))
        + v * (1 + std**2 * (1 - t) / (2 * t)) * (s - t)
        + std * math.sqrt(t - s) * z
    )
    denoiser = Predictor(lambda x, t, c: network(x, 1000 * t), Flow(), "velocity")
    sampler = FlowSDE(level=a / math.sqrt(2), scheme="euler")
    grid = torch.tensor([t, s], dtype=F64)
    close(sample(denoiser, sampler, x, grid, noise=torch.Generator().manual_seed(1)), want, 1e-9)


def test_uniform_grid_is_trailing_spacing():
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    torch.testing.assert_close(index_grid(scheduler.timesteps.tolist(), 1000), uniform_grid(VPTable(), 20))


def test_schedulers_that_are_not_known_are_refused():
    with pytest.raises(ModelError, match="beta_schedule"):
        path_of({"beta_schedule": "sigmoid"})
    with pytest.raises(ModelError, match="prediction_type"):
        kind_said({"prediction_type": "noise"})
    assert path_of({"_class_name": "EDMEulerScheduler", "sigma_max": 50.0}).t_max == 50.0
    assert isinstance(path_of({"_class_name": "FlowMatchEulerDiscreteScheduler"}), Flow)
    assert kind_said({"_class_name": "FlowMatchEulerDiscreteScheduler"}) == "velocity"
