"""g2: loops over probabilities, centres, and its limits in a recipe whose answers are drawn one after the other."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core import DecodeView
from luthier.core.config import as_dict, build_component
from luthier.core.errors import ConfigError, Refused
from luthier.decode.guidance.g2 import G2, centres, guide
from luthier.recipes.recipe import parse
from luthier.recipes.run import run, subject_of
from tests.recipes.parts import chat_rows, model_folder, write
from tests.tolerance import same

F64 = torch.float64
PROMPTS = ["w1 w2", [{"role": "user", "content": "w3 w4"}]]


def models(rows=40, words=7):
    return (2 * torch.randn(3, rows, words, generator=torch.Generator().manual_seed(0), dtype=F64)).unbind(0)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_equals_the_loop(gamma):
    base, other, like = models()
    want, open_ = [], 0
    for rows in zip(base.tolist(), other.tolist(), like.tolist(), strict=True):
        p, q, r = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in rows)
        opened = -sum(v * math.log(v) for v in p) > 1.2
        open_ += opened
        made = [x * (y / z) ** (gamma if opened else 0) for x, y, z in zip(p, q, r, strict=True)]
        want.append([v / sum(made) for v in made])
    assert 0 < open_ < 40
    same(guide(base, other, like, gamma, 1.2).softmax(-1), torch.tensor(want, dtype=F64))


def test_limits_are_bitwise_and_impossible_tokens_stay_so():
    base, other, like = (m.clone() for m in models())
    assert torch.equal(guide(base, other, like, 0.0, 0.0), base)
    assert torch.equal(guide(base, other, other, 1.5, 0.0), base)
    assert torch.equal(guide(base, other, like, 1.5, math.log(7)), base)
    for m in (base, other, like):
        m[:, 2] = -torch.inf
    p = guide(base, other, like, 1.0, 0.0).softmax(-1)
    assert torch.isfinite(p).all()
    assert (p[:, 2] == 0).all()


def test_centres_stand_for_groups():
    answers = ["red fish", "red big fish", "blue old bird", "red fish now", "blue bird", "green"]
    assert centres(answers, 3) == [0, 2, 5]
    assert centres(answers, 6) == centres(answers, 9) == list(range(6))
    assert len(centres(["same"] * 8, 3)) == 3
    assert centres(answers, 1) == [0]


def test_guides_show_earlier_answers_in_the_last_turn():
    one = G2(diversity="{prompt} | {answers} | other", dedupe="{prompt} | {answers} | like")
    assert one.guides("ask {x}", []) == {}
    assert one.guides("ask {x}", ["a", "b"]) == {
        "diversity": "ask {x} | - a\n- b | other",
        "dedupe": "ask {x} | - a\n- b | like",
    }
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "ask"}]
    assert one.guides(chat, ["a"])["dedupe"] == [chat[0], {"role": "user", "content": "ask | - a | like"}]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    at = tmp_path_factory.mktemp("g2")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())

    def make(**given):
        plain = {"model": str(at / "model"), "data": {"train": str(at / "chat.jsonl"), "test_rows": 2},
                 "adapt": {"lora": {"rank": 2}}, "train": {"steps": 2, "batch": 8, "lr": 0.1},
                 "decode": [{"g2": {"diversity": "w8 {prompt} w9 {answers}", "dedupe": "w7 {answers} {prompt}", **given}}]
                 if given else []}  # fmt: skip
        return subject_of(run(parse(plain)).prepared)

    return make


def test_in_a_recipe_the_limits_give_the_tokens_of_ordinary_sampling(subject):
    def told(**given):
        return subject(**given).generate(PROMPTS, samples=4, max_new=6)

    plain = told()
    assert told(gamma=0.0) == plain
    assert told(gamma=3.0, threshold=math.log(47)) == plain
    assert told(gamma=3.0, threshold=0.0, dedupe="w8 {prompt} w9 {answers}") == plain
    guided = told(gamma=3.0, threshold=0.0)
    assert guided != plain
    assert [g[0] for g in guided] == [p[0] for p in plain]


def test_faults_and_round_trip():
    base, other, _ = models()
    with pytest.raises(Refused, match="got only diversity"):
        G2()(base, DecodeView(torch.zeros(40, 1).long(), torch.ones(40, 1).long(), 0, {"diversity": other}))
    with pytest.raises(ConfigError, match=r"requires \{prompt\} in `dedupe`"):
        build_component({"g2": {"dedupe": "again"}}, "decode", "decode")
    one = G2(gamma=0.2, shown=2)
    assert build_component(as_dict(one), "decode", "decode") == one
