"""trl #2538, #2551, #2209: the truncation mode of pairs did nothing after a refactor, and was wrong before."""

from __future__ import annotations

import pytest

from tests.pains.parts import chatml, ready

ROW = {"prompt": "0123456789" * 6, "chosen": "good answer", "rejected": "bad"}


@pytest.mark.parametrize("way", ["prompt", "left"])
def test_the_mode_decides_which_end_of_the_prompt_is_lost(tmp_path, way):
    made = ready(tmp_path, chatml(), [ROW] * 6, objective="dpo", data={"max_length": 64, "truncation": way})
    tokenizer = made.policy.tokenizer
    for part, answer in enumerate(("good answer<|im_end|>", "bad<|im_end|>")):
        one = made.encoded.examples[0][part]
        assert len(one.ids) <= 64
        assert tokenizer.decode([i for i, m in zip(one.ids, one.mask, strict=True) if m]) == answer
        asked = tokenizer.decode(one.ids[: one.mask.index(1)])
        assert ROW["prompt"] not in asked
        assert asked.endswith("assistant\n")


def test_cutting_on_the_right_cuts_the_answer_and_leaves_the_prompt(tmp_path):
    row = {"prompt": "ask", "chosen": "c" * 60, "rejected": "r" * 60}
    made = ready(tmp_path, chatml(), [row] * 6, objective="dpo", data={"max_length": 64, "truncation": "right"})
    for one in made.encoded.examples[0]:
        assert len(one.ids) == 64
        assert "ask" in made.policy.tokenizer.decode(one.ids[: one.mask.index(1)])
