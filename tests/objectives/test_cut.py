"""cut: loops over tokens, its limits, the authors' formula, and judgments from the file to the parts."""

from __future__ import annotations

import json
import math

import pytest
import torch

from luthier.core import Batch, Signals
from luthier.core.terms import as_terms
from luthier.data.formats import convert, load
from luthier.models.encode import encode
from luthier.objectives.supervised.cut import CUT, contrastive, flagged, to_front
from tests.models.made import word_level
from tests.models.test_encode import chatml
from tests.objectives.contract import F64, lengths_mask, loss
from tests.tolerance import same

PARTS = ("judged", "plain")
LENGTHS = [1, 4, 3, 5, 2]


def signals(seed=0):
    """Responses of equal length behind prompts of one and of three tokens."""
    g = torch.Generator().manual_seed(seed)
    plain = lengths_mask(LENGTHS, 9)
    judged = torch.roll(plain, 2, -1)
    logp = [(-3 * torch.rand(5, 9, generator=g, dtype=F64) - 0.01) * m for m in (judged, plain)]
    return {"token_logp": tuple(logp), "token_mask": (judged, plain)}


def run(objective, s):
    return as_terms(objective(Batch("judged", {}, PARTS), Signals(s, PARTS)))


def tokens(s, part, row):
    logp, mask = s["token_logp"][part], s["token_mask"][part]
    return [logp[row, t].item() for t in range(9) if mask[row, t]]


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_equals_the_loop_over_tokens(per):
    s = signals()
    halves = ([], [])
    flags = 0
    for i in range(5):
        told, plain = tokens(s, 0, i), tokens(s, 1, i)
        halves[0].append([-x for x in told])
        values = []
        for a, b in zip(told, plain, strict=True):
            wrong = math.exp(a) / math.exp(b) > 1.3
            flags += wrong
            values.append(-0.7 * math.log(1 - math.exp(b)) if wrong else -b)
        halves[1].append(values)
    assert 0 < flags < sum(LENGTHS)

    def mean(rows):
        flat = [v for r in rows for v in r]
        return sum(flat) / len(flat) if per == "token" else sum(sum(r) / len(r) for r in rows) / 5

    want = (mean(halves[0]) + mean(halves[1])) / 2
    same(loss([run(CUT(ratio=1.3, strength=0.7, per=per), s)]), torch.tensor(want, dtype=F64))


def test_equals_the_authors_formula_where_all_rows_are_judged():
    s = signals()
    told = torch.tensor([x for i in range(5) for x in tokens(s, 0, i)], dtype=F64).exp()
    p = torch.tensor([x for i in range(5) for x in tokens(s, 1, i)], dtype=F64).exp()
    wrong = told / p > 1.1
    kept = p.clone()
    kept[wrong] = 1 - kept[wrong]
    logs = kept.log()
    logs[wrong] = 0.5 * logs[wrong]
    same(loss([run(CUT(strength=0.5), s)]), (-logs.sum() / len(p) + -told.log().mean()) / 2)


def test_an_infinite_ratio_is_the_mean_of_two_likelihoods():
    s = signals()
    want = sum(-(x * m).sum() / m.sum() for x, m in zip(s["token_logp"], s["token_mask"], strict=True)) / 2
    same(loss([run(CUT(ratio=math.inf), s)]), want)


def test_without_judgments_it_is_nll():
    s = signals()
    s = {k: (v[1], v[1]) for k, v in s.items()}
    logp, mask = s["token_logp"][0], s["token_mask"][0]
    same(loss([run(CUT(ratio=1.0), s)]), -(logp * mask).sum() / mask.sum())


def test_strength_zero_takes_flagged_tokens_out_but_counts_them():
    s = signals()
    got = run(CUT(strength=0), s)[1]
    wrong = flagged(
        to_front(s["token_logp"][0], s["token_mask"][0])[0], to_front(s["token_logp"][1], s["token_mask"][1])[0], 1.1
    )
    counted = got.mask != 0
    same(got.values[wrong & counted], torch.zeros(int((wrong & counted).sum()), dtype=F64))
    assert got.sums()[1] == sum(LENGTHS)


def test_gradients_of_flagged_and_fine_tokens_have_opposite_signs():
    logp = torch.tensor([-0.5, -0.5, -2.0], dtype=F64, requires_grad=True)
    wrong = torch.tensor([True, False, True])
    (g,) = torch.autograd.grad(contrastive(logp, wrong, 0.3).sum(), logp)
    p = logp.detach().exp()
    same(g, torch.where(wrong, 0.3 * p / (1 - p), -1.0))


def test_certain_tokens_stay_finite():
    logp = torch.zeros(2, dtype=F64, requires_grad=True)
    value = contrastive(logp, torch.tensor([True, False]), 1.0)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(logp.grad).all()


def test_the_flags_carry_no_gradient_to_the_judged_text():
    s = signals()
    judged = s["token_logp"][0].clone().requires_grad_()
    term = run(CUT(), {**s, "token_logp": (judged, s["token_logp"][1].clone().requires_grad_())})[1]
    assert torch.autograd.grad(term.sums()[0], judged, allow_unused=True) == (None,)


def test_any_split_gives_one_gradient_and_masked_tokens_have_no_part():
    def gradient(values, cuts):
        leaves = tuple(x.clone().requires_grad_() for x in values["token_logp"])
        full = {**values, "token_logp": leaves}
        value = loss([run(CUT(), {k: tuple(x[c] for x in v) for k, v in full.items()}) for c in cuts])
        return value.detach(), torch.autograd.grad(value, leaves)

    s = signals()
    spoiled = {
        **s,
        "token_logp": tuple(
            torch.where(m == 0, -7.5, x) for x, m in zip(s["token_logp"], s["token_mask"], strict=True)
        ),
    }
    want, g_want = gradient(s, [slice(0, 5)])
    for values, cuts in (
        (s, [slice(0, 2), slice(2, 5)]),
        (s, [slice(i, i + 1) for i in range(5)]),
        (spoiled, [slice(0, 5)]),
    ):
        got, g_got = gradient(values, cuts)
        same(got, want)
        for a, b in zip(g_got, g_want, strict=True):
            same(a, b)


ROWS = [
    {"prompt": "say one", "response": "a b", "judgment": "b is wrong"},
    {"prompt": "say any", "response": "c", "judgment": None},
]


@pytest.mark.parametrize("made", [word_level("say one any a b c is wrong Judgment:"), chatml()], ids=["plain", "chat"])
def test_a_file_of_judgments_becomes_two_parts_with_one_response(made, tmp_path):
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    loaded = load(path, format="judged")
    assert loaded.rows[1]["judgment"] == ""
    data = encode(loaded.rows, "judged", made)
    assert data.parts == PARTS
    for judged, plain in data.examples:
        response = [[t for t, m in zip(e.ids, e.mask, strict=True) if m] for e in (judged, plain)]
        assert response[0] == response[1] != []
    (first, plain), (fine, same_text) = data.examples
    assert fine == same_text
    assert len(first.ids) > len(plain.ids)
    assert "wrong" in made.decode(first.ids)
    assert convert(loaded, "text").rows == [{"prompt": "say any", "response": "c"}]


def test_a_chat_gets_the_judgment_in_its_last_turn():
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    ((judged, _),) = encode([{"prompt": turns, "response": "a", "judgment": "bad"}], "judged", chatml()).examples
    assert "z\n\nJudgment: bad<|im_end|>" in chatml().decode(judged.ids)
    assert turns[-1]["content"] == "z"
