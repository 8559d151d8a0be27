"""cfg, rlg, reward_guidance and what all guidance promises: composition with samplers, handles, errors."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from luthier.core import stream
from luthier.core.config import as_dict, build_component
from luthier.core.errors import ConfigError, Refused
from luthier.diffusion.guidance.cfg import CFG, cfg
from luthier.diffusion.guidance.reward_guidance import RewardGuidance, reward_guidance
from luthier.diffusion.guidance.rlg import RLG, rlg
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.heun import Heun
from luthier.diffusion.schedules._grid import log_snr_grid, uniform_grid
from luthier.diffusion.schedules._kinds import convert, from_x0, to_score
from luthier.diffusion.schedules._path import Predictor, level
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.ve import VE
from luthier.diffusion.schedules.vp import VP
from luthier.lab.micro.mixture import Mixture
from tests.diffusion.oracle import F64, KINDS
from tests.tolerance import same

PATHS = {"flow": Flow(), "ve": VE(), "vp": VP()}
WORLD = Mixture.random(4, 2, seed=0)
X = 2 * torch.randn(6, 2, generator=stream(0, "x"), dtype=F64)
T = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 0.9], dtype=F64)
LABEL = {"label": torch.tensor([0, 1, 2, 3, 0, 1])}


@dataclass
class Conditional:
    """The exact denoiser of a mixture, conditioned on the mode; counts its passes."""

    world: Mixture
    path: object
    kind: str
    shift: float = 0.0
    passes: list[bool] = field(default_factory=list)

    def __call__(self, x, t, condition=None):
        self.passes.append(condition is not None)
        at = level(self.path, t, x)
        x0 = self.world.denoise(x, at.alpha.flatten(), at.sigma.flatten())
        if condition is not None:
            x0 = torch.cat([self.world.only(condition["label"][i : i + 1]).denoise(
                x[i : i + 1], at.alpha[i], at.sigma[i]) for i in range(len(x))])  # fmt: skip
        return from_x0(x, x0 + self.shift, at, self.kind)


def model(path="flow", kind="velocity", shift=0.0):
    return Conditional(WORLD, PATHS[path], kind, shift)


# ------------------------------------------------------------------------ cfg
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_cfg_equals_the_loop(scale):
    denoiser = model()
    none, conditional = denoiser(X, T), denoiser(X, T, LABEL)
    got = CFG(scale=scale).guide(denoiser, {})(X, T, LABEL)
    want = [
        [float(n + scale * (c - n)) for n, c in zip(*rows, strict=True)] for rows in zip(none, conditional, strict=True)
    ]
    same(got, torch.tensor(want, dtype=F64))
    if scale in (0, 1):
        assert torch.equal(got, conditional if scale else none)
    assert torch.equal(CFG(scale=scale).guide(denoiser, {})(X, T, None), none)


def test_cfg_asks_no_more_than_it_needs():
    for guidance, passes in ((CFG(scale=1.0), [True]), (CFG(scale=0.0), [False]), (CFG(scale=2.0), [False, True]),
                             (CFG(scale=2.0, low=0.95), [True])):  # fmt: skip
        denoiser = model()
        guidance.guide(denoiser, {})(X, T, LABEL)
        assert denoiser.passes == passes


def test_cfg_acts_in_its_interval_only():
    denoiser = model()
    got = CFG(scale=3.0, low=0.25, high=0.7).guide(denoiser, {})(X, T, LABEL)
    inside = (T >= 0.25) & (T <= 0.7)
    assert torch.equal(got[~inside], denoiser(X, T, LABEL)[~inside])
    same(got[inside], CFG(scale=3.0).guide(denoiser, {})(X, T, LABEL)[inside])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_mixes_are_the_same_in_every_kind(path, kind):
    at = level(PATHS[path], T, X)
    want = CFG(scale=2.5).guide(model(path, "x0"), {})(X, T, LABEL)
    same(convert(X, CFG(scale=2.5).guide(model(path, kind), {})(X, T, LABEL), at, kind, "x0"), want)
    mixed = RLG(weight=1.7).guide(model(path, kind, 0.5), {"reference": model(path, kind)})(X, T, LABEL)
    want = RLG(weight=1.7).guide(model(path, "x0", 0.5), {"reference": model(path, "x0")})(X, T, LABEL)
    same(convert(X, mixed, at, kind, "x0"), want)


@pytest.mark.parity
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_cfg_is_the_guider_of_diffusers(rescale):
    guiders = pytest.importorskip("diffusers.guiders")
    none, conditional = torch.randn(2, 3, 4, 5, 5, generator=stream(1, "x")).unbind(0)
    guider = guiders.ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=rescale)
    guider.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(999))
    same(cfg(none, conditional, 4.0, rescale), guider.forward(pred_cond=conditional, pred_uncond=none).pred)
    if rescale == 1.0:
        same(cfg(none, conditional, 4.0, 1.0).std((1, 2, 3)), conditional.std((1, 2, 3)))


# ------------------------------------------------------------------------ rlg
def test_rlg_ends_are_the_models_bit_for_bit():
    base, tuned = torch.randn(2, 5, 3, generator=stream(0, "rlg"), dtype=torch.float32)
    assert torch.equal(rlg(base, tuned, 0.0), base) and torch.equal(rlg(base, tuned, 1.0), tuned)
    same(rlg(base, tuned, 2.5), -1.5 * base + 2.5 * tuned)
    one, other = model(), model(shift=1.0)
    assert RLG(weight=0.0).guide(other, {"reference": one}) is one
    assert RLG(weight=1.0).guide(other, {"reference": one}) is other


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight", [0.4, 1.0, 3.0])
def test_rlg_of_a_gaussian_is_the_tilt_at_every_level(path, weight):
    """A tuned model at beta = 1 and weight w is the optimum at beta = 1 / w."""
    base = WORLD.only(torch.tensor([1]))
    direction = torch.tensor([0.8, -0.3], dtype=F64)
    denoisers = {w: Conditional(base.tilted(direction, w), PATHS[path], "eps") for w in (0.0, 1.0)}
    at = level(PATHS[path], T, X)
    mixed = RLG(weight=weight).guide(denoisers[1.0], {"reference": denoisers[0.0]})(X, T, None)
    want = base.tilted(direction, weight).score(X, at.alpha.flatten(), at.sigma.flatten())
    same(to_score(X, mixed, at, "eps"), want)
    shift = base.tilted(direction, weight).mean - base.mean
    same(shift, weight * (base.tilted(direction).mean - base.mean))


def test_rlg_of_a_gaussian_samples_the_tilt():
    base = WORLD.only(torch.tensor([1]))
    direction = torch.tensor([0.8, -0.3], dtype=F64)
    tuned, reference = (Conditional(base.tilted(direction, w), VE(), "x0") for w in (1.0, 0.0))
    x = 80 * torch.randn(400, 2, generator=stream(3, "x"), dtype=F64)
    out = sample(tuned, Heun(), x, log_snr_grid(VE(), 60), guidance=[RLG(weight=2.5)], handles={"reference": reference})
    want = base.tilted(direction, 2.5)
    torch.testing.assert_close(out.mean(0), want.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(torch.cov(out.T), want.covariance, rtol=0.15, atol=0.05)


def test_rlg_and_cfg_commute():
    one, other = model(), model(shift=0.7)
    outer = CFG(scale=3.0).guide(RLG(weight=2.0).guide(other, {"reference": one}), {})(X, T, LABEL)
    guided = {"reference": CFG(scale=3.0).guide(one, {})}
    inner = RLG(weight=2.0).guide(CFG(scale=3.0).guide(other, {}), guided)(X, T, LABEL)
    same(outer, inner)


# ------------------------------------------------------------ reward_guidance
def test_reward_guidance_equals_the_loop_and_its_limits():
    base, tuned = model(), model(shift=0.5)
    handles = {"reference": base}
    n, b, c = base(X, T), base(X, T, LABEL), tuned(X, T, LABEL)
    got = RewardGuidance(condition_scale=2.0, reward_scale=0.6).guide(tuned, handles)(X, T, LABEL)
    same(got, n + 2.0 * (b - n) + 0.6 * (c - b))
    same(reward_guidance(n, b, c, 1.0, 1.0), c)
    same(reward_guidance(n, b, b, 2.0, 9.0), cfg(n, b, 2.0))
    tuned.passes.clear()
    assert torch.equal(
        RewardGuidance(condition_scale=2.0, reward_scale=0.0).guide(tuned, handles)(X, T, LABEL), cfg(n, b, 2.0)
    )
    assert tuned.passes == []


def test_the_tuned_model_may_have_a_caption_of_its_own():
    own = {"label": torch.zeros(6, dtype=torch.long)}
    base, tuned = model(), model(shift=0.5)
    handles = {"reference": base, "tuned_condition": own}
    got = RewardGuidance(condition_scale=1.0, reward_scale=1.0).guide(tuned, handles)(X, T, LABEL)
    same(got, tuned(X, T, own))


# ---------------------------------------------------------------- all of them
@pytest.mark.parametrize("guidance", [RLG(), RewardGuidance()], ids=repr)
def test_handles_that_do_not_fit_are_refused(guidance):
    with pytest.raises(Refused, match="reference"):
        guidance.guide(model(), {})
    with pytest.raises(Refused, match="one path and kind"):
        guidance.guide(model(), {"reference": model("vp")})
    with pytest.raises(Refused, match="one path and kind"):
        guidance.guide(model(), {"reference": model(kind="x0")})


def test_guidance_round_trips_and_is_checked():
    for guidance in (CFG(scale=2.0, high=0.8), RLG(weight=3.0), RewardGuidance(reward_scale=1.0)):
        assert build_component(as_dict(guidance), "diffusion", "guidance") == guidance
    with pytest.raises(ConfigError, match="low <= high"):
        build_component({"cfg": {"low": 0.9, "high": 0.1}}, "diffusion", "guidance")
    with pytest.raises(ConfigError, match="weight"):
        build_component({"rlg": {"weight": -1.0}}, "diffusion", "guidance")


def test_guidance_is_applied_in_order_by_the_driver():
    def predict(x, t, c):
        return x * (1.0 if c is None else 2.0)

    base = Predictor(lambda x, t, c: 0 * x, Flow(), "velocity")
    denoiser = Predictor(predict, Flow(), "velocity")
    grid, x = uniform_grid(Flow(), 3), torch.ones(2, 2, dtype=F64)
    got = sample(
        denoiser, DDIM(), x, grid, LABEL, guidance=[RLG(weight=0.5), CFG(scale=3.0)], handles={"reference": base}
    )
    both = Predictor(lambda x, t, c: 0.5 * x * (1 + 3.0), Flow(), "velocity")
    same(got, sample(both, DDIM(), x, grid))
