"""A model folder, a tokenizer or sites that do not fit are refused in one sentence, and nothing is written."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from tests.cli.shell import copy_model, luthier, sound, write_recipe
from tests.recipes.parts import model_folder

ADAPTER = "adapter/adaptation.safetensors"


def test_a_tokenizer_without_a_pad_token_works(tmp_path, place):
    folder = model_folder(tmp_path / "model", pad=False)
    assert "pad_token" not in json.loads((folder / "tokenizer_config.json").read_text())
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, model=str(folder)))
    assert luthier("run", recipe, "--out", tmp_path / "out").code == 0
    padded = write_recipe(tmp_path / "padded.yaml", sound(place))
    assert luthier("run", padded, "--out", tmp_path / "padded").code == 0
    assert (tmp_path / "out" / ADAPTER).read_bytes() == (tmp_path / "padded" / ADAPTER).read_bytes()


def test_a_model_folder_without_weights(tried, tmp_path, place):
    folder = copy_model(place, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    tried(
        f"model folder {folder} requires weights as *.safetensors; got no weights. Download the weights",
        model=str(folder),
    )
    torch.save({}, folder / "pytorch_model.bin")
    tried("got only pickle files (pytorch_model.bin). Convert them to safetensors", model=str(folder))
    (folder / "config.json").unlink()
    tried(f"model folder {folder} requires config.json; got", model=str(folder))


def test_a_model_folder_that_does_not_exist(tried, tmp_path):
    for command in ("run", "plan", "preview"):
        tried(
            f"model requires an existing folder; got '{tmp_path}/none', which does not exist",
            command=command,
            model=str(tmp_path / "none"),
        )


def test_a_model_with_half_of_its_weights(tried, tmp_path, place):
    folder = copy_model(place, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layers.1" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    tried("all weights of its architecture; got", "missing, first 'model.layers.1.", model=str(folder))


def test_a_model_whose_file_is_cut_short(tried, tmp_path, place):
    folder = copy_model(place, tmp_path / "model")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    tried(str(folder), model=str(folder))


def test_a_model_without_a_tokenizer(tried, tmp_path, place):
    folder = copy_model(place, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tried(f"tokenizer '{folder}' requires tokenizer files beside the model", "Set `tokenizer:`", model=str(folder))


def test_a_chat_without_a_chat_template(tried, tmp_path):
    folder = model_folder(tmp_path / "model", template=None)
    tried("chat messages require a chat template; there is none", "Set data.template to plain", model=str(folder))


def test_sites_that_match_nothing(tried):
    tried(
        "lora requires sites that exist; the pattern '*qproj' matches 0 of",
        "Nearest names:",
        "q_proj",
        adapt={"lora": {"sites": "*qproj"}},
    )
    tried("matches 0 of", adapt={"lora": {"sites": "q_proj,nothing"}})


def test_adaptations_on_the_same_sites(tried):
    tried("q_proj", adapt=[{"lora": {"sites": "q_proj"}}, {"neuroada": {"sites": "q_proj,k_proj"}}])
