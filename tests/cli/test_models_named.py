"""Models that a recipe names: what `check` says of them without loading any, and wrong names on every command."""

from __future__ import annotations

import pytest

from luthier.recipes.model_check import WORLDS, model_statement, world_faults
from tests.cli.shell import files, folder_with_data, luthier, refused, sound, write_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return folder_with_data(tmp_path_factory.mktemp("named"))


def test_all_worlds_are_known_to_the_one_list():
    assert [world_faults(w) for w in (*WORLDS, "owner/name", "/folder", None)] == [[]] * (len(WORLDS) + 3)
    for name, near in (
        ("lab:imag", "lab:image"),
        ("lab:languag", "lab:language"),
        ("lab:image/digit", "lab:image/digits"),
    ):
        (told,) = world_faults(name, "teacher")
        assert told.startswith(f"teacher: unknown world {name!r}; did you mean {near!r}")
    assert world_faults("lab:zzzzzz") == [
        "model: unknown world 'lab:zzzzzz'; known: lab:image, lab:image/digits, lab:language"
    ]


@pytest.mark.parametrize("command", ["check", "preview", "plan", "run"])
def test_a_misspelt_world_is_named_with_the_nearest_before_anything_is_loaded(command, place, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, model="lab:imag", objective="denoise"))
    refused(luthier(command, recipe), "model: unknown world 'lab:imag'; did you mean 'lab:image'")
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, model="lab:pairs"))
    refused(
        luthier(command, recipe), "model requires one of lab:language", "lab:pairs, whose encoder is tuned from Python"
    )


def test_generate_knows_the_worlds_too(tmp_path):
    for more in (["--out", tmp_path / "x.png"], []):
        refused(
            luthier("generate", "lab:imag", "--prompt", "a", *more),
            "unknown world 'lab:imag'; did you mean 'lab:image'",
        )
    assert files(tmp_path) == {}


def test_check_finds_a_folder_that_is_missing_or_holds_no_model(place, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, model=str(tmp_path / "none"), train={"step": 3}))
    ran = luthier("check", recipe)
    refused(
        ran, "2 faults", "unknown key 'step'", "model requires an existing folder;", "/none', which does not exist."
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(
        luthier("check", recipe, "--set", f"model={empty}"), f"model folder {empty} requires config.json; got nothing"
    )
    (empty / "config.json").write_text("{}")
    refused(luthier("check", recipe, "--set", f"model={empty}"), "requires weights as *.safetensors; got no weights")
    refused(luthier("check", recipe, "--set", f"model={recipe}"), "recipe.yaml', which is a file. Check the path")
    taught = sound(place, objective="kickstarting", teacher=str(tmp_path / "none"))
    refused(luthier("check", write_recipe(tmp_path / "t.yaml", taught)), "teacher: model requires an existing folder")


def test_check_says_which_model_it_is_and_what_it_did_not_ask(place, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place))
    assert f"model: LlamaForCausalLM in {place / 'model'}\n" in luthier("check", recipe).out
    said = luthier("check", recipe, "--set", "model=some/hub-name").out
    assert "model: some/hub-name, a hub name; whether it exists was not asked\n" in said
    assert model_statement("lab:language") == "lab:language, shipped with Luthier"


def test_an_empty_recipe_is_told_the_keys_of_its_kind(tmp_path):
    empty = write_recipe(tmp_path / "empty.yaml", "# nothing\n")
    refused(luthier("merge", empty), "requires at least `base`, `models` and `merge`; the file is empty.")
    refused(luthier("run", empty), "requires at least `model` and `data`; the file is empty.")
