"""Samplers and guidance on a tiny real network of diffusers, through the engine's own view of it."""

from __future__ import annotations

import pytest
import torch

from luthier.diffusion.guidance.cfg import CFG
from luthier.diffusion.guidance.contrastive_noise import ContrastiveNoise
from luthier.diffusion.guidance.nn_repulsion import NNRepulsion
from luthier.diffusion.guidance.reward_guidance import RewardGuidance
from luthier.diffusion.guidance.rlg import RLG
from luthier.diffusion.guidance.subset_select import SubsetSelect
from luthier.diffusion.samplers._driver import Noise, sample
from luthier.diffusion.samplers.consistency import Consistency
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.samplers.dpmpp_2m import DPMpp2M
from luthier.diffusion.samplers.euler import Euler
from luthier.diffusion.samplers.flow_sde import FlowSDE
from luthier.diffusion.samplers.heun import Heun
from luthier.diffusion.samplers.tcd import TCD
from luthier.diffusion.schedules._grid import uniform_grid
from luthier.diffusion.schedules._kinds import KINDS
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.vp_table import VPTable
from luthier.models.conditioning import ClassLabels
from luthier.models.denoiser import DenoiserModule, DenoiserView, Runner

diffusers = pytest.importorskip("diffusers")
SHAPE = (4, 1, 8, 8)
LABEL = {"label": torch.tensor([0, 1, 2, 0])}
NOISE = Noise(0, range(4))


def runner(path, kind, seed=0) -> Runner:
    torch.manual_seed(seed)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=1, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=4)  # fmt: skip
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.05)
    module = DenoiserModule(network.eval(), ClassLabels(3, unconditional=True))
    return DenoiserView(module, path, kind, path.network_time).runner()


@pytest.mark.parametrize("path", [VPTable(), Flow()], ids=repr)
@pytest.mark.parametrize(
    "sampler", [DDIM(), DDPM(), DPMpp2M(), Euler(), Heun(), Consistency(), TCD(), FlowSDE()], ids=repr
)
def test_samplers(path, sampler):
    model = runner(path, "velocity" if isinstance(path, Flow) else "eps")
    grid = uniform_grid(path, 5)
    whole = sample(model, sampler, NOISE.start(path, SHAPE), grid, LABEL, NOISE)
    assert whole.shape == SHAPE and not whole.requires_grad
    one = Noise(0, [2])
    again = sample(model, sampler, one.start(path, (1, *SHAPE[1:])), grid, {"label": LABEL["label"][2:3]}, one)
    torch.testing.assert_close(again, whole[2:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_of_all_sorts_together(kind):
    path = Flow(t_max=0.99)
    model, base = runner(path, kind), runner(path, kind, seed=1)
    guidance = [
        ContrastiveNoise(steps=2, group=4),
        RLG(weight=1.5),
        CFG(scale=2.0, low=0.1),
        NNRepulsion(eta=0.1),
        SubsetSelect(keep=2),
    ]
    made = sample(model, DDIM(), NOISE.start(path, SHAPE, 0.99), uniform_grid(path, 4), LABEL, NOISE, guidance=guidance,
                  handles={"reference": base})  # fmt: skip
    assert made.shape == (2, *SHAPE[1:])
    own = sample(model, DDIM(), NOISE.start(path, SHAPE, 0.99), uniform_grid(path, 4), LABEL, NOISE,
                 guidance=[RewardGuidance()], handles={"reference": base})  # fmt: skip
    assert own.shape == SHAPE


def test_gradients_reach_the_weights_through_the_last_step():
    model = runner(Flow(), "velocity")
    made = sample(model, DDIM(), NOISE.start(Flow(), SHAPE), uniform_grid(Flow(), 4), LABEL, NOISE, grad_last=1)
    made.square().mean().backward()
    assert all(p.grad is not None for n, p in model.view.module.network.named_parameters() if "proj_out_2" in n)
