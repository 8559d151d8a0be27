"""LLaMA-Factory #10827, #9630: a masked history still trained the end token of an old turn; masks per turn asked for."""

from __future__ import annotations

import pytest

from tests.pains.parts import chatml, ready, texts, turns


def test_only_the_last_turn_trains_where_that_is_asked_for(tmp_path):
    assert texts(ready(tmp_path, chatml(), [turns(4)], data={"train_on": "last"})) == ["answer 3<|im_end|>"]


@pytest.mark.parametrize("off", [(0,), (1, 2), (3,)])
def test_turns_that_a_row_switches_off_train_nothing_not_even_their_end(tmp_path, off):
    got = texts(ready(tmp_path, chatml(), [turns(4, off=off)]))
    assert got == [f"answer {i}<|im_end|>" for i in range(4) if i not in off]


def test_tool_turns_leave_the_masks_of_the_others_in_place(tmp_path):
    talk = turns(2)["messages"]
    talk.insert(2, {"role": "tool", "content": "a reply of a tool that is long"})
    assert texts(ready(tmp_path, chatml(), [{"messages": talk}])) == ["answer 0<|im_end|>", "answer 1<|im_end|>"]
