"""Merging pipelines of diffusers: the result loads in diffusers, untouched parts are the base's, misfits are named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import ModelError, Refused
from luthier.core.files import damage, sha256
from luthier.merge._sources import AdapterDelta, FolderTensors
from luthier.merge.average.linear import Linear
from luthier.merge.average.soup import Soup
from luthier.merge.executor import merge_folders, merge_tensors
from luthier.merge.search.lcsc import lcsc
from luthier.recipes.merging import folder_of, merge_by_recipe
from tests.recipes.image_parts import dit_folder, sd3_folder, stable_folder, xl_folder

NAMES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "conditioner": "conditioner.safetensors",
}


def moved(base, to, seed, *parts):
    """The pipeline with small random changes of the weights of some parts."""
    shutil.copytree(base, to)
    g = torch.Generator().manual_seed(seed)
    for part in parts:
        path = to / part / NAMES[part]
        state = {k: v + 0.1 * torch.randn(v.shape, generator=g) if v.is_floating_point() else v
                 for k, v in load_file(path).items()}  # fmt: skip
        save_file(state, path, {"format": "pt"})
    return to


def weights(folder):
    with FolderTensors(folder) as held:
        return {k: held[k] for k in held}


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("make", "part"), [(stable_folder, "unet"), (dit_folder, "transformer"), (sd3_folder, "transformer"),
                                            (xl_folder, "unet")])  # fmt: skip
def test_a_merged_pipeline_loads_in_diffusers_with_the_merged_denoiser(make, part, tmp_path):
    import diffusers

    base = make(tmp_path / "base")
    models = [moved(base, tmp_path / f"m{i}", i, part) for i in range(2)]
    rule, seen = Linear(weights=(0.25, 0.75)), []
    done = merge_folders(rule, base, models, tmp_path / "out", progress=lambda *a: seen.append(a[2]))
    want = merge_tensors(rule, weights(base / part), [weights(m / part) for m in models])
    assert equal(weights(tmp_path / "out" / part), want)
    assert done.files == (f"{part}/{NAMES[part]}",)
    assert done.merged == done.changed == len(want) == len(seen)
    assert seen[0].startswith(f"{part}.")
    theirs = [p.relative_to(base) for p in base.rglob("*") if p.is_file() and p.relative_to(base).parts[0] != part]
    assert all(sha256(tmp_path / "out" / p) == sha256(base / p) for p in theirs)
    assert damage(tmp_path / "out") is None
    told = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert list(told["parts"]) == [part]
    assert told["models"] == [str(m) for m in models]
    name = json.loads((base / "model_index.json").read_text())["_class_name"]
    if name != "DiTPipeline":  # which cannot be without a VAE
        network = getattr(getattr(diffusers, name).from_pretrained(tmp_path / "out"), part)
    else:
        network = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out" / part)
    state = network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in want.items())


def test_trained_text_encoders_are_merged_and_others_are_copied(tmp_path):
    base = stable_folder(tmp_path / "base")
    models = [moved(base, tmp_path / "a", 1, "unet", "text_encoder"), moved(base, tmp_path / "b", 2, "unet")]
    done = merge_folders(Soup(), base, models, tmp_path / "out")
    want = merge_tensors(Soup(), weights(base / "text_encoder"), [weights(m / "text_encoder") for m in models])
    assert equal(weights(tmp_path / "out" / "text_encoder"), want)
    assert not equal(want, weights(base / "text_encoder"))
    assert {f.split("/")[0] for f in done.files} == {"unet", "text_encoder"}
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["copied"] == ["vae"]


def test_shards_and_halves_are_read_again_by_diffusers(tmp_path):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    base = stable_folder(tmp_path / "base")
    UNet2DConditionModel.from_pretrained(base / "unet").save_pretrained(base / "unet", max_shard_size="20KB")
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    model = tmp_path / "a"
    shutil.copytree(base, model)
    for path in (model / "unet").glob("*.safetensors"):
        save_file({k: v + 1 for k, v in load_file(path).items()}, path, {"format": "pt"})
    merge_folders(Linear(weights=(0.5,), normalise=False), base, [model], tmp_path / "out", dtype=torch.bfloat16,
                  shard_bytes=9000)  # fmt: skip
    assert len(list((tmp_path / "out" / "unet").glob("diffusion_pytorch_model-*"))) > 2
    made = StableDiffusionPipeline.from_pretrained(tmp_path / "out").unet.state_dict()
    want = weights(model / "unet")
    assert all(torch.equal(made[k], (0.5 * v).bfloat16().float()) for k, v in want.items())


def test_checkpoints_searched_by_lcsc_become_a_pipeline(tmp_path):
    base = dit_folder(tmp_path / "base")
    models = [moved(base, tmp_path / f"m{i}", i, "transformer") for i in range(3)]
    held = [weights(m / "transformer") for m in models]
    want = {k: 1.5 * held[2][k] - 0.5 * held[0][k] for k in held[0]}

    def score(made):
        return -float(sum((made[k] - v).square().sum() for k, v in want.items()))

    found = lcsc(held, score, trials=150)
    assert found.score > max(score(m) for m in held)
    merge_folders(found.rule, base, models, tmp_path / "out")
    assert score(weights(tmp_path / "out" / "transformer")) == pytest.approx(found.score, rel=1e-4)


def test_a_merge_recipe_takes_runs_and_the_image_world(tmp_path):
    from luthier.models.denoiser import load_denoiser

    base = folder_of("lab:image")
    run = tmp_path / "run"
    moved(base, run / "model", 3, "transformer", "conditioner")
    plain = {"base": "lab:image", "models": [str(run), "lab:image"], "merge": "soup", "dtype": "bf16"}
    assert merge_by_recipe(plain, tmp_path / "out") == f"2 models merged by merge.average.soup into {tmp_path / 'out'}"
    for part in ("transformer", "conditioner"):
        mean = merge_tensors(Soup(), weights(base / part), [weights(run / "model" / part), weights(base / part)],
                             dtype=torch.bfloat16)  # fmt: skip
        assert equal(weights(tmp_path / "out" / part), mean)
    assert (
        load_denoiser(str(tmp_path / "out")).module.conditioner.words
        == load_denoiser(str(base)).module.conditioner.words
    )


def broken(folder, name, **facts):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_pipelines_that_do_not_fit_are_refused_with_every_reason(tmp_path):
    base = stable_folder(tmp_path / "base")
    models = [moved(base, tmp_path / n, 1, "unet") for n in "abc"]
    broken(
        models[0],
        "scheduler/scheduler_config.json",
        prediction_type="v_prediction",
        _class_name="EulerDiscreteScheduler",
    )
    broken(models[1], "unet/config.json", attention_head_dim=8)
    broken(models[1], "tokenizer/vocab.json", z=0)
    shutil.rmtree(models[2] / "text_encoder")
    with pytest.raises(ModelError) as fault:
        merge_folders(Soup(), base, models, tmp_path / "out")
    told = str(fault.value).splitlines()
    assert "model 1" in told[0]
    assert "prediction_type = 'v_prediction' against 'epsilon'" in told[0]
    assert "unet requires the base's settings; got attention_head_dim = 8 against 4" in told[1]
    assert "tokenizer requires the base's tokenizer" in told[2]
    assert "none of text_encoder" in told[3]
    assert len(told) == 4
    assert not (tmp_path / "out").exists()
    merge_folders(Soup(), base, [moved(base, tmp_path / "d", 1, "unet")], tmp_path / "fine")


def test_adapters_and_plain_folders_on_a_pipeline_are_refused(tmp_path):
    base = stable_folder(tmp_path / "base")
    for model in (AdapterDelta.added("mine", {}), base / "unet"):
        with pytest.raises(Refused, match="luthier export RUN --to merged"):
            merge_folders(Soup(), base, [model], tmp_path / "out")


def test_an_unknown_dtype_of_a_merge_recipe_is_named(tmp_path):
    from luthier.core.errors import ConfigError

    with pytest.raises(ConfigError, match=r"dtype: input should be 'fp32', .* got 'bf61'"):
        merge_by_recipe({"base": "x", "models": ["y"], "merge": "soup", "dtype": "bf61"}, tmp_path / "out")
