"""Pipelines of the families that people use: the same numbers as diffusers' own, trained, merged, exported, read back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.errors import ModelError, Refused
from luthier.diffusion.guidance.cfg import CFG
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.euler import Euler
from luthier.diffusion.schedules._grid import index_grid, make_grid, shifted
from luthier.models._forms import pack, unpack
from luthier.models.denoiser import load_denoiser
from luthier.models.pipelines import pixel_shape
from luthier.recipes.export import export
from luthier.recipes.images import shift_of, view_of
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.recipes.image_parts import digits, dit_folder, flux_folder, index, sd3_folder, stable_folder, xl_folder

PROMPTS = ["kind a", "b c"]
FAMILIES = {
    "stable": stable_folder,
    "xl": xl_folder,
    "sd3": sd3_folder,
    "sd3 without T5": lambda at: sd3_folder(at, long=False),
    "flux": flux_folder,
    "flux, not distilled": lambda at: flux_folder(at, guided=False),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    at = tmp_path_factory.mktemp("families")
    return {name: build(at / name.replace(" ", "_")) for name, build in FAMILIES.items()}


def pipeline(folder, dtype=torch.float32):
    from diffusers import DiffusionPipeline

    missing = {} if "without" not in folder.name else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, **missing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe, name, x, time):
    """The pipeline's own call of its network for PROMPTS."""
    if name == "stable":
        states, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
        return pipe.unet(x, time, states).sample
    if name == "xl":
        states, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
        size = torch.tensor([[16, 16, 0, 0, 16, 16]] * 2).to(x)
        return pipe.unet(x, time, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": size}).sample
    if name.startswith("sd3"):
        states, _, pooled, _ = pipe.encode_prompt(PROMPTS, None, None)
        return pipe.transformer(x, states, pooled, time).sample
    length, guided = (256, None) if "not" in name else (512, torch.full((2,), 3.5).to(x))
    states, pooled, text = pipe.encode_prompt(PROMPTS, None, max_sequence_length=length)
    places = pipe._prepare_latent_image_ids(2, 4, 4, "cpu", x.dtype)
    packed = pipe._pack_latents(x, 2, 4, 8, 8)
    made = pipe.transformer(packed, states, pooled, time / 1000, places, text, guided).sample
    return pipe._unpack_latents(made, 16, 16, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_predictions_equal_the_pipelines_own_call_of_its_network(folders, name):
    loaded = load_denoiser(str(folders[name]), "fp64")
    view, rows = view_of(loaded), [{"caption": p} for p in PROMPTS]
    x = torch.randn(2, *loaded.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    with torch.no_grad():
        want = theirs(pipeline(folders[name], torch.float64), name, x, view.time(t))
        got = view.runner()(x, t, loaded.module.conditioner.tokens(rows))
    assert want.abs().mean() > 0.01
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_equal_the_pipelines(folders, name):
    loaded, pipe = load_denoiser(str(folders[name])), pipeline(folders[name])
    runner = view_of(loaded).runner(torch.no_grad)
    held = runner.encode(loaded.module.conditioner.tokens([{"caption": p} for p in PROMPTS]))
    x = torch.randn(2, *loaded.shape, generator=torch.Generator().manual_seed(1))
    said = {"prompt": PROMPTS, "num_inference_steps": 4, "output_type": "latent", "height": 16, "width": 16}
    if name in ("stable", "xl"):
        want = pipe(**said, guidance_scale=3.0, latents=x.clone()).images
        grid = index_grid(pipe.scheduler.timesteps.tolist(), 1000)
        got = sample(runner, DDIM(), x, grid, held, guidance=[CFG(scale=3.0)])
    elif name.startswith("sd3"):
        want = pipe(**said, guidance_scale=3.0, latents=x.clone()).images
        got = sample(runner, Euler(), x, pipe.scheduler.sigmas.double(), held, guidance=[CFG(scale=3.0)])
    else:
        more = {"max_sequence_length": 256} if "not" in name else {}
        want = unpack(pipe(**said, guidance_scale=3.5, latents=pack(x), **more).images, 8, 8)
        grid = shifted(make_grid(runner.path, 4), shift_of(loaded.scheduler, loaded.tokens))
        torch.testing.assert_close(grid, pipe.scheduler.sigmas.double(), rtol=1e-5, atol=1e-6)
        got = sample(runner, Euler(), x, grid, held)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["xl", "sd3", "flux"])
def test_no_caption_is_what_the_pipeline_takes_for_it(folders, name):
    loaded, pipe = load_denoiser(str(folders[name])), pipeline(folders[name])
    got = loaded.module.encode(loaded.module.conditioner.null(2))
    if name == "flux":
        want = pipe.encode_prompt(["", ""], None, max_sequence_length=512)[:2]
    else:
        rest = () if name == "xl" else (None, None)
        want = pipe.encode_prompt(PROMPTS, *rest, do_classifier_free_guidance=True)[1::2]
    torch.testing.assert_close(list(got.values())[:2], list(want), rtol=0, atol=0)


def trained(folder, out, **more):
    data = digits(out.parent / f"{out.name}.npz", n=10, size=16, channels=3)
    plain = {"model": str(folder), "data": {"train": str(data), "holdout": 2}, "objective": "denoise", "sampling": {"steps": 2},
             "train": {"steps": 2, "batch": 2, "lr": 1e-1}, "adapt": {"lora": {"rank": 2, "sites": "*to_[qkv]"}}, **more}  # fmt: skip
    return run(parse(plain), out)


@pytest.mark.parametrize("name", ["stable", "xl", "sd3", "flux"])
def test_a_pipeline_trains_and_other_tools_load_what_it_becomes(folders, name, tmp_path):
    done = trained(folders[name], tmp_path / "run")
    view, condition = done.prepared.policy.view, {k: v[:2] for k, v in done.prepared.kit.test.conditions.items()}
    x, t = torch.randn(2, *done.prepared.kit.loaded.shape), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        want = view.run(x, t, condition)
        with done.prepared.policy.attached.disabled():
            assert not torch.allclose(view.run(x, t, condition), want, atol=1e-3)
        for folder in (tmp_path / "run" / "model", tmp_path / "merged"):
            if folder.name == "merged":
                export(tmp_path / "run", "merged", folder)
            again = load_denoiser(str(folder))
            torch.testing.assert_close(view_of(again).run(x, t, condition), want, rtol=1e-4, atol=1e-5)
        export(tmp_path / "run", "peft", tmp_path / "lora")
        pipe, plain = pipeline(folders[name]), load_denoiser(str(folders[name]))
        pipe.load_lora_weights(str(tmp_path / "lora"))
        plain.module.network = getattr(pipe, plain.part)
        torch.testing.assert_close(view_of(plain).run(x, t, condition), want, rtol=1e-4, atol=1e-5)
    assert (
        len(pipeline(tmp_path / "merged")(PROMPTS, num_inference_steps=1, output_type="np", height=16, width=16).images)
        == 2
    )


@pytest.mark.parametrize("name", ["xl", "sd3", "flux"])
def test_half_precision_trains_and_is_written_as_it_is(folders, name, tmp_path):
    done = trained(folders[name], tmp_path / "run", dtype="bf16")
    assert all(0 < c["loss"] < 100 for c in done.outcome.curves)
    assert done.prepared.kit.loaded.codec.vae.dtype == torch.float32
    loaded = done.prepared.kit.loaded
    held = load_file(next((tmp_path / "run" / "model" / loaded.part).glob("*.safetensors")))
    assert {held[k].dtype for k, _ in loaded.module.network.named_parameters() if k in held} == {torch.bfloat16}


def test_adapted_text_encoders_are_part_of_the_lora_file(folders, tmp_path):
    done = trained(folders["stable"], tmp_path / "run", adapt={"lora": {"rank": 2, "sites": "conditioner.*_proj"}})
    raw = done.prepared.kit.loaded.module.conditioner.tokens([{"caption": "kind a"}])
    export(tmp_path / "run", "peft", tmp_path / "lora")
    pipe = pipeline(folders["stable"])
    before = pipe.text_encoder(raw["ids"])[0]
    pipe.load_lora_weights(str(tmp_path / "lora"))
    got = pipe.text_encoder(raw["ids"])[0]
    want = done.prepared.policy.view.module.encode(raw)["encoder_hidden_states"]
    assert not torch.allclose(got, before, atol=1e-3)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_what_pipelines_have_no_place_for_is_refused(tmp_path):
    model, data = dit_folder(tmp_path / "model"), digits(tmp_path / "x.npz")
    plain = {"model": str(model), "data": {"train": str(data), "holdout": 4}, "objective": "denoise",
             "train": {"steps": 1, "batch": 2, "lr": 1e-3}}  # fmt: skip
    run(parse(plain), tmp_path / "full")
    with pytest.raises(Refused, match="low-rank"):
        export(tmp_path / "full", "peft", tmp_path / "lora")
    with pytest.raises(Refused, match="'merged' or 'peft'"):
        export(tmp_path / "full", "onnx", tmp_path / "lora")
    with pytest.raises(ModelError, match="a finished run"):
        export(model, "merged", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_unknown_combinations_of_networks_and_text_encoders_are_named(tmp_path):
    folder = dit_folder(tmp_path / "model")
    index(
        folder,
        "Odd",
        transformer=["diffusers", "DiTTransformer2DModel"],
        text_encoder=["transformers", "CLIPTextModel"],
    )
    with pytest.raises(ModelError, match="DiTTransformer2DModel with text_encoder"):
        load_denoiser(str(folder))


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_read_without_the_weights(folders, name):
    assert pixel_shape(folders[name]) == (3, 16, 16)
    assert load_denoiser(str(folders[name]), weights=False).shape == (4, 8, 8)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (8, 8)])
def test_packing_is_undone(height, width):
    x = torch.randn(2, 3, height, width)
    assert pack(x).shape == (2, height * width // 4, 12)
    torch.testing.assert_close(unpack(pack(x), height, width), x, rtol=0, atol=0)
