"""Models that decoding listens to: checked without loading, loaded once, beside the model in a run and in a run read back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from luthier.core.errors import ModelError, Refused
from luthier.core.streams import stream
from luthier.decode.guidance.emulated_ft import EmulatedFT
from luthier.models.generation import Helper, Sampling, generate
from luthier.models.loading import load_causal_lm
from luthier.recipes.export import LoadedRun
from luthier.recipes.helpers import asked_models
from luthier.recipes.recipe import parse, recipe_faults
from luthier.recipes.run import run, subject_of
from tests.recipes.parts import chat_rows, model_folder, write

ASKED = [["w1 w2", "w3 w4 w5"], {"samples": 2, "max_new": 6}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("helpers")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    run(parse(plain(at, train={"steps": 8, "batch": 8, "lr": 0.1})), at / "expert")
    return at


def plain(at, **more):
    return {"model": str(at / "model"), "data": {"train": str(at / "chat.jsonl"), "test_rows": 2}, "adapt": {"lora": {"rank": 2}},
            "train": {"steps": 3, "batch": 8, "lr": 0.1}, **more}  # fmt: skip


def told(subject):
    prompts, how = ASKED
    return subject.generate(prompts, **how)


def test_a_recipe_must_name_the_models_it_listens_to_and_no_others(tmp_path):
    faults = recipe_faults(plain(tmp_path, decode="emulated_ft"))
    assert [f.split("'")[1] for f in faults] == ["tuned", "reference"]
    assert "decode_models: {tuned: FOLDER}" in faults[0]
    renamed = {"emulated_ft": {"tuned": ["a", "b"], "reference": "base"}}
    assert [f.split("'")[1] for f in recipe_faults(plain(tmp_path, decode=[renamed]))] == ["a", "b"]
    assert recipe_faults(plain(tmp_path, decode=[renamed], decode_models={"a": "x", "b": "y"})) == []
    assert asked_models([EmulatedFT(reference="base")]) == {"tuned": "emulated_ft", "base": "emulated_ft"}
    assert (
        "decode_models.c: requires a decoding component" in recipe_faults(plain(tmp_path, decode_models={"c": "x"}))[0]
    )
    assert recipe_faults(plain(tmp_path, decode="top_p", decode_models={"c": 3}))


def test_a_run_lends_its_tuning_to_an_untuned_model(place):
    """The run sampled here changes nothing (lr 1e-9), so that the emulated model is the expert, token for token."""
    decode = [{"emulated_ft": {"tuned": ["expert"], "reference": "base"}}]
    recipe = parse(plain(place, decode=decode, decode_models={"expert": str(place / "expert")},
                         train={"steps": 1, "batch": 8, "lr": 1e-9}, dtype="fp64"))  # fmt: skip
    finished = run(recipe, place / "lent")
    got = told(subject_of(finished.prepared))
    assert got == told(LoadedRun(place / "expert").subject())
    assert got == told(LoadedRun(place / "lent").subject())
    without = parse({**recipe.as_dict(), "decode": [], "decode_models": None})
    assert got != told(subject_of(run(without).prepared))


@pytest.mark.parametrize("adapt", [{"lora": {"rank": 2}}, "full"], ids=["lora", "full"])
def test_base_is_the_model_before_training(place, adapt):
    """tuned = base, reference = a model equal to the base: the tuned run itself; its base subject nests without harm."""
    decode = [{"emulated_ft": {"tuned": ["base"], "reference": "same"}}]
    recipe = parse(plain(place, adapt=adapt, decode=decode, decode_models={"same": str(place / "model")}, dtype="fp64"))
    finished = run(recipe)
    subject = subject_of(finished.prepared)
    plainly = subject_of(run(parse({**recipe.as_dict(), "decode": [], "decode_models": None})).prepared)
    assert told(subject) == told(plainly)
    assert told(subject.base()) == told(plainly.base())
    assert told(plainly) != told(plainly.base())


def test_another_vocabulary_or_no_model_is_refused(place, tmp_path):
    from tokenizers import Tokenizer

    other = model_folder(tmp_path / "other")
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace('"w7"', '"v7"'), encoding="utf-8")
    assert Tokenizer.from_file(str(other / "tokenizer.json")).token_to_id("v7") is not None
    decode = [{"emulated_ft": {"tuned": ["base"]}}]
    with pytest.raises(Refused, match=r"decode_models\.reference requires the vocabulary of the model"):
        run(parse(plain(place, decode=decode, decode_models={"reference": str(other)})))
    with pytest.raises(ModelError, match="existing folder"):
        run(parse(plain(place, decode=decode, decode_models={"reference": str(tmp_path / "none")})))


def test_a_helper_may_read_prompts_of_its_own(place):
    """tuned: the same model with other prompts, reference: the model itself: as if it had been given those prompts."""
    model = load_causal_lm(str(place / "model"), "fp64")
    prompts, others = [[1, 8, 9], [1, 10], [1, 11, 12]], [[1, 20], [1, 21, 22, 23, 24], [1, 25]]
    helpers = {"tuned": Helper(model, prompts=others), "reference": Helper(model)}
    how = Sampling(max_new=6, stop=(2,), decode=(EmulatedFT(),), helpers=helpers)
    got = generate(model, prompts, how, stream(0, "test"), batch=2)
    want = generate(model, others, Sampling(max_new=6, stop=(2,)), stream(0, "test"))
    assert got.tokens == want.tokens
    few = replace(how, helpers={**helpers, "tuned": Helper(model, prompts=others[:2])})
    with pytest.raises(ModelError, match="helper tuned requires 3 prompts"):
        generate(model, prompts, few, stream(0, "test"))
    long = replace(how, max_new=60, helpers={**helpers, "tuned": Helper(model, prompts=[[1] * 9] * 3)})
    with pytest.raises(ModelError, match="prompt of tuned 0"):
        generate(model, prompts, long, stream(0, "test"))


def test_given_random_numbers_replace_the_generator(place):
    model = load_causal_lm(str(place / "model"))
    uniform = torch.rand(2, 6, generator=stream(0, "test"))
    want = generate(model, [[1, 8], [1, 9]], Sampling(max_new=6), stream(0, "test"))
    assert generate(model, [[1, 8], [1, 9]], Sampling(max_new=6), stream(5, "other"), uniform=uniform) == want
