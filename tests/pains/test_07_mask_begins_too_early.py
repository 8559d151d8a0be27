"""NeMo Automodel #3352: the mask started three tokens early and the model learned to repeat the turn's header."""

from __future__ import annotations

import pytest

from tests.models.made import byte_level, template
from tests.pains.parts import CHATML, ready, turns

MARKS = (
    *CHATML,
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<|end|>",
)


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma2", "phi3", "qwen2_5", "zephyr"])
def test_the_first_trained_token_is_the_first_after_the_generation_prompt(tmp_path, name):
    tokenizer = byte_level("<s>", "</s>", MARKS, template(name))
    talk = turns(3)
    one = ready(tmp_path, tokenizer, [talk] * 6, data={"train_on": "last"}).encoded.examples[0][0]
    asked = tokenizer.apply_chat_template(
        talk["messages"][:-1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert list(one.ids[: one.mask.index(1)]) == asked
