"""axolotl #2089: masking borders became -1 from turn 6 on with Mistral Small, every later turn trained wrongly."""

from __future__ import annotations

import pytest

from tests.models.made import byte_level, template
from tests.pains.parts import ready, texts, turns

MARKS = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")


@pytest.mark.parametrize("name", ["mistral_small", "mistral_v3_last"])
def test_all_of_nine_turns_train_their_own_answer_and_nothing_else(tmp_path, name):
    tokenizer = byte_level("<s>", "</s>", MARKS, template(name))
    made = ready(tmp_path, tokenizer, [turns(9, system=True)], train={"batch": 1})
    assert [t.strip() for t in texts(made)] == [f"answer {i}</s>" for i in range(9)]
