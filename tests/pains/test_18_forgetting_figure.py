"""peft #2925, #2986, #3419: the shared forgetting figure counted padding, was off by a token, started from the fresh adapter."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import logits, plain


def by_hand(model, tokenizer, row) -> float:
    """Mean negative log-likelihood of the answer's words and its end, one row at a time, without any padding."""
    asked = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_dict=False)
    answer = tokenizer(row["messages"][1]["content"] + " <end>", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([asked + answer])
    logp = logits(model, ids)[0, len(asked) - 1 : -1].double().log_softmax(-1)
    return -float(logp[torch.arange(len(answer)), torch.tensor(answer)].mean())


def test_the_figure_of_a_run_equals_the_sums_by_hand_on_the_folders_it_began_and_ended_with(place, tmp_path):
    more = {"data": {"old": str(place / "old.jsonl"), "test_rows": 10}, "measure": ["forgetting"]}
    made = run(parse(plain(place, adapt={"lora": {"rank": 2}}, train={"lr": 0.1}, **more)), tmp_path / "run")
    reading = next(r for r in made.readings if r.name == "forgetting_nll")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    before, after = (AutoModelForCausalLM.from_pretrained(p) for p in (place / "model", tmp_path / "run" / "model"))
    rows = [json.loads(line) for line in (place / "old.jsonl").read_text().splitlines()]
    want = [by_hand(after, tokenizer, r) - by_hand(before, tokenizer, r) for r in rows]
    assert max(map(abs, want)) > 0.05
    assert reading.items == pytest.approx(want, abs=1e-4)
