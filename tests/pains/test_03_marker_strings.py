"""unsloth #2900, #2364, #2117, #3198, #2095, #1128: markers that did not match the template masked every label."""

from __future__ import annotations

import pytest

from tests.models.made import byte_level
from tests.pains.parts import ready, texts, turns

ODD = (
    "{% for m in messages %}{{ '~~' if m.role == 'user' else '^ ' }}{{ m.content }}{{ '$\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}^ {% endif %}"
)
SAME = (  # no marker tells the roles apart: every turn begins and ends alike
    "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"
)


@pytest.mark.parametrize(("form", "end"), [(ODD, "$"), (SAME, "]")])
def test_a_template_that_no_list_of_markers_knows_trains_its_answers_and_their_ends(tmp_path, form, end):
    made = ready(tmp_path, byte_level(None, "<end>", (), form), [turns(4)])
    got = texts(made)
    assert [t[: len("answer 0") + 1] for t in got] == [f"answer {i}{end}" for i in range(4)]
    assert all("question" not in t for t in got)
