"""axolotl #3098: the older template path masked every token. Every way to write a conversation trains the same tokens."""

from __future__ import annotations

import pytest

from tests.pains.parts import chatml, ready, texts

Q, A = "What is six times seven?", "It is 42."
FORMS = {
    "messages": {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
    "sharegpt": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "alpaca": {"instruction": Q, "input": "", "output": A},
    "prompt and response": {"prompt": Q, "response": A},
    "question and answer": {"question": Q, "answer": A},
}


@pytest.mark.parametrize("form", FORMS)
def test_each_older_format_trains_the_answer_and_its_end(tmp_path, form):
    made = ready(tmp_path, chatml(), [FORMS[form]] * 6)
    assert texts(made) == [f"{A}<|im_end|>"]
