"""guardrail: the identity without phrases, what each guard stops, and that weights and scores stay."""

from __future__ import annotations

import pytest
import torch

from luthier.core import MeasureContext
from luthier.core.config import as_dict, build_component
from luthier.core.errors import ConfigError
from luthier.edit.guard.guardrail import Guarded, Guardrail, forbidden, instructed
from luthier.measure.quality.exact_match import ExactMatch
from luthier.recipes.export import plain_subject
from tests.measure.fakes import Fake

KINDS = ("instruction", "input", "output")
FACTS = {"capital of italy ?": "rome", "capital of france ?": "paris", "where is rome ?": "italy"}


def fake():
    return Fake(lambda p: {FACTS.get(p.split("\n")[-1], "no idea"): 1.0})


def said(guard, prompts):
    return [one for (one,) in guard.generate(list(prompts), temperature=0.0)]


@pytest.mark.parametrize("kind", KINDS)
def test_without_phrases_it_is_the_subject_itself(kind):
    inner = fake()
    guarded = Guardrail(phrases=(), kind=kind)(inner)
    assert guarded.generate(list(FACTS), samples=3) == inner.generate(list(FACTS), samples=3)


def test_each_guard_stops_what_it_can_see():
    stop = {k: said(Guardrail(phrases=("Rome",), kind=k, refusal="-")(fake()), FACTS) for k in KINDS}
    assert stop["input"] == ["rome", "paris", "-"]
    assert stop["output"] == ["-", "paris", "italy"]
    assert stop["instruction"] == ["rome", "paris", "italy"]  # this subject does not listen


def test_the_input_filter_keeps_order_and_number_of_samples():
    guarded = Guardrail(phrases=("rome",), kind="input", refusal="-")(fake())
    got = guarded.generate(["where is rome ?", "capital of france ?", "about Rome", "capital of italy ?"], samples=2)
    assert got == [["-", "-"], ["paris", "paris"], ["-", "-"], ["rome", "rome"]]
    assert guarded.generate(["rome"], samples=1) == [["-"]]


def test_the_instruction_stands_before_the_prompt():
    seen = []
    inner = Fake(lambda p: seen.append(p) or {"x": 1.0})
    said(Guardrail(phrases=("a", "b c"), kind="instruction", instruction="not {phrases}")(inner), ["hello"])
    assert set(seen) == {"not a, b c\nhello"}
    chat = [{"role": "user", "content": "hello"}]
    assert instructed(chat, "no") == [{"role": "system", "content": "no"}, *chat]
    system = [{"role": "system", "content": "be kind"}, *chat]
    assert instructed(system, "no") == [{"role": "system", "content": "no\nbe kind"}, *chat]
    assert system[0]["content"] == "be kind"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Rome.", True),
        ("in ROME today", True),
        ("romeo", False),
        ("new  york", True),
        ("New\nYork!", True),
        ("york", False),
    ],
)
def test_phrases_are_whole_words_in_any_case(text, want):
    assert forbidden(text, ("rome", "new york")) == want


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_scores_of_a_real_model_stay(kind):
    subject = plain_subject("lab:language")
    before = {k: v.clone() for k, v in subject.module.model.state_dict().items()}
    guarded = Guardrail(phrases=("sort",), kind=kind, instruction="please {phrases}", refusal="no")(subject)
    guarded.generate(["sort b a", "copy a b"], temperature=0.0, max_new=4)
    scores = [s.logp(["sort b a"], ["a b"]) for s in (guarded, subject)]
    assert all(torch.equal(a, b) for a, b in zip(*scores, strict=True))
    assert all(torch.equal(before[k], v) for k, v in subject.module.model.state_dict().items())
    assert guarded.base() is subject


def test_measures_see_the_guard():
    rows = [{"prompt": p, "answer": a} for p, a in FACTS.items()]
    (bare,) = ExactMatch()(fake(), rows, MeasureContext())
    (guarded,) = ExactMatch()(Guardrail(phrases=("rome",))(fake()), rows, MeasureContext())
    assert bare.value == 1
    assert guarded.items == (0, 1, 1)


def test_a_judge_of_ones_own():
    guarded = Guarded(fake(), "output", lambda text: len(text) > 4, "-")
    assert said(guarded, FACTS) == ["rome", "-", "-"]


def test_faults_and_round_trip():
    with pytest.raises(ConfigError, match="phrases with a word in them"):
        Guardrail(phrases=("a", " "))
    one = Guardrail(phrases=("a",), kind="input")
    assert build_component(as_dict(one), "edit", "edit") == one
