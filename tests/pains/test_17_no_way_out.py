"""torchtune #2883: the library stopped and its users must move. What a run leaves is read without Luthier."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.recipes.export import export
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import logits, plain

OPEN = {".safetensors", ".json", ".md", ".jinja", ".txt"}


def test_transformers_and_peft_read_a_run_and_every_file_is_of_an_open_format(place, tmp_path):
    made = run(parse(plain(place, adapt={"lora": {"rank": 2}}, train={"save_every": 1})), tmp_path / "run")
    ids = torch.arange(7, 19)[None]
    want = logits(made.prepared.policy.view.module.model, ids)
    assert {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file()} <= OPEN
    export(tmp_path / "run", "peft", tmp_path / "peft")
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base, tmp_path / "peft"), ids), want, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"), ids), want, rtol=1e-5, atol=1e-5
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").chat_template
