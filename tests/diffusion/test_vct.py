"""vct and coupled_noise: independent noise as the limit, the KL, the pairing, gradients of the encoder, and a resumed run."""

from __future__ import annotations

import itertools
import math
import shutil

import pytest
import torch

from luthier.core import Batch, Signals
from luthier.core.config import as_dict, build_component
from luthier.core.errors import ConfigError, LuthierError
from luthier.core.files import read_tensors
from luthier.core.terms import as_terms
from luthier.diffusion.consistency._couple import NoiseEncoder, kl_to_normal, transported
from luthier.diffusion.consistency.ict import ICT
from luthier.diffusion.consistency.sct import SCT
from luthier.diffusion.consistency.vct import VCT, gap
from luthier.diffusion.guidance.coupled_noise import CoupledNoise
from luthier.diffusion.samplers._driver import Noise, sample
from luthier.diffusion.samplers.consistency import Consistency
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules.ve import VE
from luthier.recipes.image_runs import subject_at
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.diffusion.test_consistency import Network, signals
from tests.recipes.image_parts import ddpm_folder, digits
from tests.tolerance import same

F64 = torch.float64
BASES = [ICT(first=4, last=16), SCT(references=0)]


def coupled(policy, encoder, n=5):
    _, values = signals(policy, n)
    values.pop("references")
    handles = {"policy": policy, "coupling": encoder}
    return Signals({k: (v,) for k, v in values.items()}, ("image",), handles.__getitem__), values


def terms_of(objective, s, n=5):
    return as_terms(objective(Batch("image", {"image": s["image"]}, ("image",), meta=[{}] * n), s))


def encoder_of(shape=(2, 1, 1), seed=3, start=False):
    made = NoiseEncoder(shape, width=4, depth=2, seed=seed).double()
    if not start:
        torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


@pytest.mark.parametrize("base", BASES, ids=lambda b: b.name)
def test_an_encoder_at_its_start_and_independent_noise_are_the_technique_itself(base):
    s, _ = coupled(Network(VE(), "eps"), encoder_of(start=True))
    (want,) = terms_of(base, s)
    (plain,) = terms_of(VCT(consistency=base, coupling="independent"), s)
    assert torch.equal(plain.values, want.values)
    own, kl = terms_of(VCT(consistency=base), s)
    torch.testing.assert_close(own.values, want.values, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(kl.values, torch.zeros(5, dtype=F64), rtol=0, atol=1e-12)


def test_the_divergence_is_that_of_torch():
    g = torch.Generator().manual_seed(0)
    mean, deviation = (
        torch.randn(4, 2, 3, 3, generator=g, dtype=F64),
        torch.rand(4, 2, 3, 3, generator=g, dtype=F64) + 0.1,
    )
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(
        normal(mean, deviation), normal(torch.zeros_like(mean), torch.ones_like(mean))
    )
    same(kl_to_normal(mean, deviation), want.flatten(1).sum(1))


def test_the_loss_in_loops_and_the_gradient_that_reaches_the_encoder():
    network, encoder = Network(VE(), "eps"), encoder_of()
    s, v = coupled(network, encoder)
    base = SCT(references=0)
    own, kl = terms_of(VCT(consistency=base, strength=3.0), s)
    total = (own.scale * own.values + kl.scale * kl.values).mean()
    got = torch.autograd.grad(total, list(encoder.parameters()))
    mean, deviation = encoder(v["image"])
    losses = []
    for i in range(5):
        ratio = torch.exp(-1.1 + 2.0 * torch.special.ndtri(v["uniform"][i, 0]))
        near = max(ratio * (1 - (1 + 8 * torch.sigmoid(-ratio)) / 2 ** (math.floor(0.6 * 8) + 1)), ratio * 0)
        z = mean[i] + deviation[i] * v["noise"][i]

        def f(ratio, z, x0=v["image"][i]):
            x = x0 + ratio * z
            return x - ratio * network(x[None], ratio.clamp_min(VE().t_min)[None])[0]

        with torch.no_grad():
            goal = f(near, z) if near > 0 else v["image"][i]
        top = torch.tensor(80.0, dtype=F64)
        weight = 3.0 / (top * (1 + 8 * torch.sigmoid(-top)) / 2 ** (math.floor(0.6 * 8) + 1))
        divergence = sum(
            (m * m + d * d - 1) / 2 - d.log() for m, d in zip(mean[i].flatten(), deviation[i].flatten(), strict=True)
        )
        losses.append((f(ratio, z) - goal).norm() / (ratio - near) + weight * divergence)
    want = torch.autograd.grad(torch.stack(losses).mean(), list(encoder.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
    assert any(float(g.abs().max()) > 0 for g in got)


def test_the_gap_is_that_of_the_two_highest_levels():
    assert gap(ICT(first=2, last=2, low=1.0, high=80.0), 0.0) == pytest.approx(
        80.0 - ((1 + 80 ** (1 / 7)) / 2) ** 7, rel=1e-12
    )
    assert gap(SCT(references=0), 0.999) == pytest.approx(80.0 / 2**8, rel=1e-6)


def test_no_order_of_the_noise_is_nearer_to_the_images():
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(5, 2, 1, 1, generator=g), torch.randn(5, 2, 1, 1, generator=g)
    cost = lambda order: float((x - z[list(order)]).square().sum())  # noqa: E731
    best = min(itertools.permutations(range(5)), key=cost)
    assert torch.equal(transported(x, z), z[list(best)])
    assert torch.equal(transported(x, 80 * z), 80 * z[list(best)])


def test_sampling_draws_its_noise_from_the_encoder():
    network, grid, noise = Network(VE(), "eps"), make_grid(VE(), 3), Noise(0, range(4))
    x = noise.start(VE(), (4, 2, 1, 1), dtype=F64)
    drawn = lambda encoder: sample(network, Consistency(), x, grid, None, noise, guidance=[CoupledNoise()],  # noqa: E731
                                   handles={"coupling": encoder}).detach()  # fmt: skip
    plain = sample(network, Consistency(), x, grid, None, noise).detach()
    same(drawn(lambda c: (torch.zeros_like(c), torch.ones_like(c))), plain)
    moved = drawn(lambda c: (c, 0 * c))
    t, clean = grid[0], None
    with torch.no_grad():
        for step in range(3):
            clean = (
                x - t * network(x, t.expand(4)) if step == 0 else (y := clean + t * clean) - t * network(y, t.expand(4))
            )
            t = grid[step + 1]
    torch.testing.assert_close(moved, clean, rtol=1e-6, atol=1e-8)
    with pytest.raises(LuthierError, match="requires the encoder"):
        sample(network, Consistency(), x, grid, None, noise, guidance=[CoupledNoise()])


def test_what_cannot_be_coupled_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="sct with references 0"):
        VCT(consistency=SCT())
    with pytest.raises(ConfigError, match="got Denoise"):
        build_component({"vct": {"consistency": "denoise"}}, "diffusion", "objective")
    made = VCT(consistency=SCT(references=0, q=4.0), strength=2.0)
    assert build_component(as_dict(made), "diffusion", "objective") == made


def test_a_network_with_its_encoder_trains_resumes_and_draws(tmp_path):
    model, data = ddpm_folder(tmp_path / "model"), digits(tmp_path / "x.npz")
    plain = {"model": str(model), "data": {"train": str(data), "holdout": 4, "drop_condition": 0.0}, "adapt": "full",
             "objective": [{"vct": {"consistency": {"ict": {"first": 4, "last": 8}}, "width": 4, "depth": 1, "weight": 0.5}}],
             "regularise": ["ema"], "train": {"steps": 4, "batch": 6, "lr": 1e-3, "save_every": 2, "micro": 4},
             "sampling": {"sampler": "consistency", "steps": 2, "guides": ["coupled_noise"]}}  # fmt: skip
    finished = run(parse(plain), tmp_path / "whole")
    assert {"term/vct.kl", "term/ict"} <= finished.outcome.curves[0].keys()
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000004")
    run(parse(plain), tmp_path / "half", resume=True)
    a, b = (read_tensors(tmp_path / n / "adapter" / "adaptation.safetensors") for n in ("whole", "half"))
    own = [k for k in a if k.startswith("beside.coupling.")]
    assert own
    assert all(torch.equal(a[k], b[k]) for k in a)
    start = NoiseEncoder(finished.prepared.kit.loaded.shape, 4, 1, 0).state_dict()
    assert any(not torch.equal(a[k], start[k.removeprefix("beside.coupling.")]) for k in own)
    assert not any("beside" in k for k in finished.prepared.policy.attached.merged())
    again = subject_at(str(tmp_path / "whole"), None, 0)
    same(again.generate([{}], samples=2), finished.prepared.kit.subject.generate([{}], samples=2))


def test_transport_pairs_the_noise_of_the_whole_step_however_it_is_split(tmp_path):
    model, data = ddpm_folder(tmp_path / "model"), digits(tmp_path / "x.npz")
    losses = []
    for micro in (None, 2):
        plain = {"model": str(model), "data": {"train": str(data), "holdout": 4, "drop_condition": 0.0},
                 "objective": {"vct": {"coupling": "transport", "consistency": {"ict": {"first": 4, "last": 8}}}},
                 "train": {"steps": 2, "batch": 6, "lr": 1e-3, "micro": micro}, "sampling": {"steps": 2}}  # fmt: skip
        losses.append([c["loss"] for c in run(parse(plain)).outcome.curves])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
