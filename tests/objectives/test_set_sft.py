"""set_sft: the assignment by brute force, its limits, and sets from the file to the parts."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from luthier.core import Batch, Signals
from luthier.core.errors import DataError
from luthier.core.terms import as_terms
from luthier.data.formats import convert, load
from luthier.models.encode import encode
from luthier.objectives.supervised.set_sft import SetSFT, matched, matching
from tests.models.made import word_level
from tests.models.test_encode import chatml
from tests.objectives.contract import F64, lengths_mask, loss
from tests.tolerance import same


def names(answers, tags):
    return tuple(f"{j}.{i}" for j in range(answers) for i in range(tags))


def signals(tags=3, answers=3, rows=4, seed=0, missing=()):
    """An answer is equally long behind every tag; missing: (row, answer) that a row has not."""
    g = torch.Generator().manual_seed(seed)
    logp, masks = [], []
    for j in range(answers):
        mask = lengths_mask([2 + (j + b) % 4 for b in range(rows)], 7)
        for b in range(rows):
            if (b, j) in missing:
                mask[b] = 0
        for _ in range(tags):
            masks.append(mask)
            logp.append(-3 * torch.rand(rows, 7, generator=g, dtype=F64) * mask)
    return {"token_logp": tuple(logp), "token_mask": tuple(masks)}


def run(objective, s, tags, answers):
    parts = names(answers, tags)
    return as_terms(objective(Batch("set", {}, parts), Signals(s, parts)))


def by_hand(s, tags, answers, per, cost, rows=4):
    """Best assignment of every row by trying them all."""
    tokens, means = [], []
    for b in range(rows):
        there = [j for j in range(answers) if s["token_mask"][j * tags][b].sum() > 0]

        def nll(j, i, b=b):
            at = j * tags + i
            return [-s["token_logp"][at][b, t].item() for t in range(7) if s["token_mask"][at][b, t]]

        def total(pairs, nll=nll):
            return sum(sum(v) if cost == "sum" else sum(v) / len(v) for v in (nll(j, i) for j, i in pairs))

        k = min(tags, len(there))
        every = (
            list(zip(js, ts, strict=True))
            for js in itertools.combinations(there, k)
            for ts in itertools.permutations(range(tags), k)
        )
        for j, i in min(every, key=total):
            tokens += nll(j, i)
            means.append(sum(nll(j, i)) / len(nll(j, i)))
    return sum(tokens) / len(tokens) if per == "token" else sum(means) / len(means)


@pytest.mark.parametrize("cost", ["sum", "mean"])
@pytest.mark.parametrize("per", ["token", "sequence"])
@pytest.mark.parametrize(("tags", "answers"), [(3, 3), (4, 2), (2, 3), (1, 3)])
def test_equals_the_best_of_all_assignments(tags, answers, per, cost):
    s = signals(tags, answers)
    want = by_hand(s, tags, answers, per, cost)
    same(loss([run(SetSFT(cost=cost, per=per), s, tags, answers)]), torch.tensor(want, dtype=F64))


def test_rows_with_fewer_answers_match_those_that_they_have():
    s = signals(3, 3, missing=[(0, 1), (2, 0), (2, 2)])
    want = by_hand(s, 3, 3, "token", "sum")
    same(loss([run(SetSFT(), s, 3, 3)]), torch.tensor(want, dtype=F64))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_the_matched_cost_is_the_least_of_all(size):
    cost = torch.rand(size, size, dtype=F64).tolist()
    got = sum(cost[i][j] for i, j in matching(cost))
    assert got == pytest.approx(
        min(sum(cost[i][j] for i, j in enumerate(p)) for p in itertools.permutations(range(size)))
    )


def test_the_order_of_the_answers_does_not_matter():
    s = signals()
    turned = {k: tuple(v[3 * j + i] for j in (2, 0, 1) for i in range(3)) for k, v in s.items()}
    same(loss([run(SetSFT(), turned, 3, 3)]), loss([run(SetSFT(), s, 3, 3)]))


def test_one_tag_and_one_answer_is_nll():
    s = signals(1, 1)
    logp, mask = s["token_logp"][0], s["token_mask"][0]
    same(loss([run(SetSFT(), s, 1, 1)]), -(logp * mask).sum() / mask.sum())


def test_unmatched_pairs_get_no_gradient_and_any_split_gives_one():
    def gradient(values, cuts):
        leaves = tuple(x.clone().requires_grad_() for x in values["token_logp"])
        full = {**values, "token_logp": leaves}
        value = loss([run(SetSFT(), {k: tuple(x[c] for x in v) for k, v in full.items()}, 3, 3) for c in cuts])
        return value.detach(), torch.stack(torch.autograd.grad(value, leaves), 1)

    s = signals()
    want, g_want = gradient(s, [slice(0, 4)])
    trained = (g_want != 0).any(-1)
    assert (trained.reshape(4, 3, 3).sum(1) == 1).all()
    assert (trained.reshape(4, 3, 3).sum(2) == 1).all()
    spoiled = {
        **s,
        "token_logp": tuple(
            torch.where(m == 0, -7.5, x) for x, m in zip(s["token_logp"], s["token_mask"], strict=True)
        ),
    }
    for values, cuts in (
        (s, [slice(0, 1), slice(1, 4)]),
        (s, [slice(i, i + 1) for i in range(4)]),
        (spoiled, [slice(0, 4)]),
    ):
        got, g_got = gradient(values, cuts)
        same(got, want)
        same(g_got, g_want)


def test_shapes_can_be_had_without_numbers():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        cost = mode.from_tensor(torch.zeros(2, 3, 4))
        assert matched(cost, mode.from_tensor(torch.ones(2, 3, 4, dtype=torch.bool))).shape == (2, 3, 4)


ROWS = [{"prompt": "say", "tags": ["<1>", "<2>"], "responses": ["a b", "c"]},
        {"prompt": "say", "tags": ["<1>", "<2>"], "responses": ["b"]}]  # fmt: skip


@pytest.mark.parametrize("made", [word_level("say a b c <1> <2>"), chatml()], ids=["plain", "chat"])
def test_a_file_of_sets_becomes_every_answer_behind_every_tag(made, tmp_path):
    path = tmp_path / "sets.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    loaded = load(path)
    assert loaded.kind == "set"
    data = encode(loaded.rows, "set", made)
    assert data.parts == ("0.0", "0.1", "1.0", "1.1")
    for example, row in zip(data.examples, ROWS, strict=True):
        for e, (response, tag) in zip(example, itertools.product(row["responses"], row["tags"]), strict=False):
            trained = made.decode([t for t, m in zip(e.ids, e.mask, strict=True) if m])
            read = made.decode([t for t, m in zip(e.ids, e.mask, strict=True) if not m])
            assert trained.replace("<|im_end|>", "").replace("<end>", "").split() == response.split()
            assert tag in read
    assert [e.trained for e in data.examples[1][2:]] == [0, 0]
    assert [r["response"] for r in convert(loaded, "text").rows] == ["a b", "c", "b"]


def test_rows_need_equally_many_tags():
    rows = [ROWS[0], {**ROWS[1], "tags": ["<1>"]}]
    with pytest.raises(DataError, match="set data require as many tags in every row; got 1 and 2"):
        encode(rows, "set", chatml())
