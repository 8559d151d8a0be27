"""trl #931, #1623, #2059, #3083, #3091: the end token was not appended, or masked because pad = eos."""

from __future__ import annotations

import pytest

from tests.models.made import byte_level
from tests.pains.parts import ready

ROWS = [{"prompt": "Q" * n + "\n", "response": "A" * n} for n in (1, 3, 9, 2, 7, 5)]


@pytest.mark.parametrize("packing", [0, 40])
@pytest.mark.parametrize("pad", ["</s>", "<pad>", None])
def test_every_row_of_a_batch_trains_one_end_token_and_padding_trains_none(tmp_path, pad, packing):
    tokenizer = byte_level(None, "</s>", ("<pad>",), pad_token=pad)
    made = ready(tmp_path, tokenizer, ROWS, train={"packing": packing})
    (batch,) = made.feed.micros(0)
    ids, mask, there = (batch.inputs[k] for k in ("input_ids", "loss_mask", "attention_mask"))
    assert int(((ids == tokenizer.eos_token_id) & (mask == 1)).sum()) == len(ROWS)
    assert int(mask.sum()) == sum(len(r["response"]) + 1 for r in ROWS)
    assert not (mask.bool() & (there == 0)).any()
