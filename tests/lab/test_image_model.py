"""How the image world's models are trained, and the shipped ones as diffusers and the engine load them."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from torch import nn

from luthier.core.errors import CheckpointError, DataError, ModelError
from luthier.diffusion.schedules._scheduler import kind_said
from luthier.lab.image import CONCEPTS, Digits, World, _build, _training, _world, parse
from luthier.lab.image._shapes import indices
from luthier.lab.image._training import Muon, Training, euler, factor, fit, orthogonal, velocity_loss
from luthier.models.conditioning import ClassLabels
from luthier.models.denoiser import DenoiserModule, load_denoiser

WORLD = World()
SMALL = Training(steps=4, batch=4, hidden=32, heads=1, layers=1)


class Straight(nn.Module):
    """Knows the one image there is: its velocity is exact."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.image, self.scale = nn.Parameter(image), nn.Parameter(torch.ones(()))

    def forward(self, x, timestep, class_labels, return_dict):
        t = timestep.view(-1, 1, 1, 1) / 1000
        return (self.scale * (x - self.image) / t + 0.1 * (class_labels == 1).view(-1, 1, 1, 1),)


def straight(image: torch.Tensor) -> DenoiserModule:
    return DenoiserModule(Straight(image), ClassLabels(1, unconditional=True))


# -- mathematics ----------------------------------------------------------------------------------------------


def test_the_exact_velocity_has_no_loss_and_nothing_has_the_loss_of_nothing():
    image, g = torch.randn(3, 8, 8), torch.Generator()
    module, label = straight(image), {"label": torch.zeros(64, dtype=torch.long)}
    assert velocity_loss(module, image.expand(64, 3, 8, 8), label, g.manual_seed(0)).item() < 1e-6
    nn.init.zeros_(module.network.scale)
    loss = velocity_loss(module, image.expand(64, 3, 8, 8), label, g.manual_seed(0))
    assert loss.item() == pytest.approx(1 + float(image.square().mean()), rel=0.1)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_euler_is_exact_on_straight_paths_and_guidance_adds_the_difference(steps):
    image, noise = torch.randn(3, 8, 8), torch.randn(5, 3, 8, 8)
    module, label = straight(image), {"label": torch.zeros(5, dtype=torch.long)}
    torch.testing.assert_close(euler(module, label, noise, steps, 1.0), image.expand(5, 3, 8, 8), rtol=1e-4, atol=1e-5)
    if steps == 1:  # v = v0 + cfg * (v1 - v0), and v0 - v1 = 0.1
        moved = euler(module, label, noise, 1, 3.0) - image
        torch.testing.assert_close(moved, torch.full_like(moved, 0.2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_orthogonal_brings_singular_values_near_one(shape):
    g = torch.Generator().manual_seed(0)
    made = orthogonal(torch.randn(3, *shape, generator=g))
    for value in torch.linalg.svdvals(made):
        assert float(value.min()) > 0.1 and float(value.max()) < 1.3
    u, _, v = torch.linalg.svd(torch.randn(1, *shape, generator=g), full_matrices=False)
    assert float(torch.cosine_similarity(orthogonal(u @ v).flatten(), (u @ v).flatten(), dim=0)) > 0.999


@pytest.mark.parity
def test_muon_equals_torchs_to_its_half_precision():
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(16, 16, generator=g), torch.randn(16, 24, generator=g), torch.randn(16, 16, generator=g)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    pair = (Muon(ours, 0.02, 0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    for _ in range(3):
        gradients = [torch.randn(w.shape, generator=g) for w in start]
        for optimiser, parameters in zip(pair, (ours, theirs), strict=True):
            for p, grad in zip(parameters, gradients, strict=True):
                p.grad = grad.clone()
            optimiser.step()
    for a, b, w in zip(ours, theirs, start, strict=True):
        moved, far = (b - w).norm().item(), (a - b).norm().item()
        assert far / moved < 0.03


def test_rate_warms_up_stays_and_falls_to_nothing():
    how = Training(steps=1000, warmup=10, decay=0.4)
    assert [round(factor(how, s), 3) for s in (0, 9, 599, 600, 800, 1000)] == [0.1, 1, 1, 1, 0.5, 0]


# -- data of the recipe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["told", "open"])
def test_batches_tell_the_truth_with_words_missing(phase):
    draw, module = _build.captioned(phase), _build.base_module(SMALL)
    pixels, told = draw(torch.Generator().manual_seed(0), 800)
    seen, words = WORLD.oracle(pixels), module.conditioner.words
    captions = [" ".join(words[i - 1] for i in row if i) for row in told["ids"].tolist()]
    assert float(seen.rmse.max()) == 0 and seen.accuracy(captions)["all"] == 1
    assert torch.equal(module.conditioner.tokens([{"caption": c} for c in captions if c])["ids"],
                       told["ids"][[bool(c) for c in captions]])  # fmt: skip
    left_out, untold = _build.SHARES[phase]
    length = [len(parse(c)) for c in captions]
    assert length.count(0) / 800 == pytest.approx(untold + left_out / 64, abs=0.03)
    assert length.count(6) / 800 == pytest.approx(1 - untold - left_out * 63 / 64, abs=0.05)
    pairs = {(w["colour"], w["shape"]) for w in seen.words()}
    assert len(pairs) == 21


def test_digit_batches_are_of_the_train_split():
    pytest.importorskip("sklearn")
    pixels, told = _build.labelled()(torch.Generator().manual_seed(0), 1500)
    seen = Digits().oracle(pixels)
    assert float(seen.copy.max()) < 1e-3
    known = told["label"] < 10
    assert float((~known).float().mean()) == pytest.approx(_build.UNTOLD, abs=0.03)
    assert float((seen.label[known] == told["label"][known]).float().mean()) > 0.99


@pytest.mark.parametrize("make", [_build.base_module, _build.digit_module])
def test_a_cut_build_goes_on_to_the_same_bits(tmp_path, monkeypatch, make):
    how = Training(steps=4, batch=4, hidden=32, heads=1, layers=1, patch=4 if make is _build.base_module else 2)

    def draw(g, n):
        if make is _build.base_module:
            return torch.randn(n, 3, 16, 16, generator=g), {"ids": torch.randint(22, (n, 6), generator=g)}
        return torch.randn(n, 1, 8, 8, generator=g), {"label": torch.randint(11, (n,), generator=g)}

    monkeypatch.setattr(_training, "EVERY", 2)
    whole, _ = fit(lambda: make(how), draw, how, tmp_path / "whole", "x", lambda line: None)

    def cut(line: str) -> None:
        if "step 2/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(lambda: make(how), draw, how, tmp_path / "cut", "x", cut)
    again, _ = fit(lambda: make(how), draw, how, tmp_path / "cut", "x", lambda line: None)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="another recipe"):
        fit(
            lambda: make(how),
            draw,
            SMALL if how != SMALL else Training(steps=9),
            tmp_path / "cut",
            "x",
            lambda line: None,
        )
    _training.write(whole, tmp_path / "folder")
    loaded = load_denoiser(str(tmp_path / "folder"))
    assert kind_said(loaded.scheduler) == "velocity"
    for (name, a), b in zip(loaded.module.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_a_folder_that_is_no_build_is_named(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="lab build image"):
        _build.check(tmp_path)
    monkeypatch.setattr(_world, "ASSETS", tmp_path)
    for ask in (World().model_folder, Digits().model_folder):
        with pytest.raises(DataError, match="lab build image"):
            ask()
    with pytest.raises(ModelError, match="learnt reader"):
        _ = World().reader


# -- what is shipped ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts():
    return json.loads((_world.ASSETS / "world.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def base():
    return _build.load(WORLD.model_folder())


def test_shipped_files_are_the_recorded_ones(facts):
    for name in ("base", "digits"):
        assert facts["hashes"][name] == _build.file_hash(_world.ASSETS / name / _build.WEIGHTS)
    assert facts["hashes"]["reader"] == _build.file_hash(_world.ASSETS / "reader.safetensors")
    assert facts["hashes"]["generator"] == _build.generator_hash()
    files = [p for p in _world.ASSETS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 5_000_000
    assert all(stat.S_IMODE(p.stat().st_mode) & 0o444 == 0o444 for p in files)


def test_recorded_base_meets_its_goal(facts):
    assert facts["accuracy"]["test"]["all"] >= 0.9 and facts["accuracy"]["train"]["all"] >= 0.9
    assert all(v > 0.9 for name, v in facts["accuracy"]["reader"].items() if name != "worn")


def test_shipped_base_measures_as_recorded(facts, base):
    got = _build.attributes(base, "test", 48)
    assert got["all"] == pytest.approx(facts["accuracy"]["test"]["all"], abs=0.1)
    assert got["rmse"] == pytest.approx(facts["accuracy"]["test"]["rmse"], abs=0.05)


def test_shipped_reader_agrees_with_the_oracle():
    rows = WORLD.rows("test", 80) + [r for name in CONCEPTS for r in WORLD.concept_rows(name, "test", 10)]
    right = WORLD.reader.index(WORLD.stack(rows)) == indices([r["attributes"] for r in rows])
    assert float(right.all(-1).float().mean()) > 0.95


def test_diffusers_loads_the_parts():
    from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel

    folder = WORLD.model_folder()
    PixArtTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    DiTTransformer2DModel.from_pretrained(Digits().model_folder() / "transformer", torch_dtype=torch.float32)
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler").config.shift == 1.0


@pytest.mark.parity
def test_sampling_equals_the_scheduler_of_diffusers(base):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(WORLD.model_folder() / "scheduler")
    scheduler.set_timesteps(sigmas=[1 - i / 5 for i in range(5)])
    raw = base.conditioner.tokens([{"caption": "one large red square"}] * 2)
    x = noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(base(x, t.expand(2), raw), t, x).prev_sample
    torch.testing.assert_close(euler(base, raw, noise, 5, 1.0), x, rtol=1e-4, atol=1e-5)


def test_check_names_files_that_differ(tmp_path, monkeypatch, facts):
    monkeypatch.setattr(
        _build, "measure", lambda folder, n=0: {k: dict.fromkeys(v, 0.0) for k, v in facts["accuracy"].items()}
    )
    assert any(f.startswith("test all: stated") for f in _build.check(_world.ASSETS)["faults"])
    monkeypatch.setattr(_build, "measure", lambda folder, n=0: facts["accuracy"])
    assert _build.check(_world.ASSETS)["ok"]
    monkeypatch.setattr(_build, "file_hash", lambda path: "other")
    assert len(_build.check(_world.ASSETS)["faults"]) == 3
