"""transformers #45127; unsloth #9331, #1971, #3428, #219; LLaMA-Factory #10832: tied embeddings and new tokens, head lost."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.recipes.export import LoadedRun
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import chatml, folder, logits, plain, turns
from tests.recipes.parts import write

ADAPT = {
    "head": {"lora": {"rank": 2, "sites": "lm_head"}},
    "head in place": {"full": {"sites": "lm_head"}},
    "all": "full",
}


@pytest.mark.parametrize("adapt", ADAPT)
def test_what_was_trained_on_a_tied_model_with_added_tokens_is_what_comes_back(tmp_path, adapt):
    tokenizer = chatml()
    tokenizer.add_tokens(["<new>", "<more>"], special_tokens=True)
    folder(tmp_path / "model", tokenizer, tie_word_embeddings=True)
    talk = turns(2)
    talk["messages"][1]["content"] = "<new> <more>"
    write(tmp_path / "rows.jsonl", [talk] * 6)
    made = run(parse(plain(tmp_path, "rows", adapt=ADAPT[adapt])), tmp_path / "run")
    ids = torch.tensor([tokenizer("say <new> and <more>")["input_ids"]])
    want = logits(made.prepared.policy.view.module.model, ids)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    for model in (merged, LoadedRun(tmp_path / "run").model):
        torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (logits(base, ids) - want).abs().max() > 1e-3
    assert merged.lm_head.weight.shape == base.lm_head.weight.shape
