"""mergekit #169, #47, #425, #469, #457, #107: merges of different vocabularies finished, and the models spoke gibberish."""

from __future__ import annotations

import json
import shutil

from tests.cli.shell import luthier, refused, write_recipe
from tests.recipes.parts import model_folder


def merge(tmp_path, place, other):
    recipe = {"base": str(place / "model"), "models": [str(place / "model"), str(other)], "merge": "soup"}
    return luthier("merge", write_recipe(tmp_path / "m.yaml", recipe), "--out", tmp_path / "merged")


def test_a_model_with_more_words_is_refused_before_the_first_tensor(place, tmp_path):
    other = model_folder(tmp_path / "other", vocab_extra=5)
    refused(merge(tmp_path, place, other), "embed_tokens")
    assert not (tmp_path / "merged").exists()


def test_equal_shapes_with_words_in_another_order_are_refused_too(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    plain = json.loads(path.read_text())
    words = plain["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    path.write_text(json.dumps(plain))
    refused(merge(tmp_path, place, tmp_path / "other"), "tokenizer")
    assert not (tmp_path / "merged").exists()
