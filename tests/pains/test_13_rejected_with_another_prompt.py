"""LLaMA-Factory #4617: rejected answers were joined to a prompt cut for the other answer, and the limit was not kept."""

from __future__ import annotations

import pytest

from tests.pains.parts import chatml, ready

ROWS = [
    {"prompt": f"{i}" * 40, "chosen": "c" * a, "rejected": "r" * b}
    for i, (a, b) in enumerate([(2, 30), (30, 2), (5, 5), (1, 45), (45, 1), (9, 20)])
]


@pytest.mark.parametrize("way", ["prompt", "left", "right"])
def test_both_answers_of_every_row_follow_the_same_prompt_of_that_row(tmp_path, way):
    made = ready(tmp_path, chatml(), ROWS, objective="dpo", data={"max_length": 90, "truncation": way})
    assert len(made.encoded.examples) == len(ROWS)
    for number, pair in enumerate(made.encoded.examples):
        chosen, rejected = (one.ids[: one.mask.index(1)] for one in pair)
        assert chosen == rejected
        assert str(number) in made.policy.tokenizer.decode(chosen)
        assert max(len(one.ids) for one in pair) <= 90
