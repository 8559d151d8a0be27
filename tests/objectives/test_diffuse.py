"""diffuse: loops over answers, KL to the wanted distribution, its gradients, and weights from the file to the loss."""

from __future__ import annotations

import json
import math

import pytest
import torch

from luthier.core.errors import Refused
from luthier.data.formats import load
from luthier.models.encode import encode
from luthier.objectives.supervised.diffuse import Diffuse, floor, reached
from luthier.objectives.supervised.nll import NLL
from tests.models.made import word_level
from tests.objectives.contract import F64, loss, random_signals, run
from tests.tolerance import same


def wanted(rows=5, seed=0):
    """Signals of the answers of two prompts (rows 0-1 and 2-4) with their shares."""
    s = dict(random_signals())
    s["share"] = (torch.tensor([0.3, 0.7, 0.2, 0.2, 0.6], dtype=F64),)
    return s


def test_equals_the_loop_over_prompts_answers_and_tokens():
    s = wanted()
    logp, mask, share = (s[k][0] for k in ("token_logp", "token_mask", "share"))
    prompts = []
    for answers in ([0, 1], [2, 3, 4]):
        prompts.append(sum(-share[i].item() * sum(logp[i, t].item() for t in range(7) if mask[i, t]) for i in answers))
    same(loss([run(Diffuse(), s)]), torch.tensor(sum(prompts) / 2, dtype=F64))


def test_above_the_floor_it_is_the_divergence_from_the_wanted_distribution():
    logits = torch.randn(6, dtype=F64)
    w = torch.rand(6, dtype=F64)
    w = w / w.sum()
    log_p = logits.log_softmax(-1)
    s = {"token_logp": (log_p[:, None],), "token_mask": (torch.ones(6, 1, dtype=F64),), "share": (w,)}
    kl = sum(a * math.log(a / b) for a, b in zip(w.tolist(), log_p.exp().tolist(), strict=True))
    same(loss([run(Diffuse(), s)]) - floor(w), torch.tensor(kl, dtype=F64))
    at_best = {**s, "token_logp": (w.log()[:, None],)}
    same(loss([run(Diffuse(), at_best)]), floor(w))
    same(floor(7 * w), floor(w))
    same(floor(torch.tensor([0.0, 1.0], dtype=F64)), torch.zeros((), dtype=F64))


def test_the_gradient_of_answers_of_one_token_is_p_minus_w():
    logits = torch.randn(6, dtype=F64, requires_grad=True)
    w = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.15, 0.25], dtype=F64)
    s = {"token_logp": (logits.log_softmax(-1)[:, None],), "token_mask": (torch.ones(6, 1, dtype=F64),), "share": (w,)}
    (gradient,) = torch.autograd.grad(loss([run(Diffuse(), s)]), logits)
    same(gradient, (logits.softmax(-1) - w).detach())


def test_all_weight_on_one_answer_is_its_likelihood():
    s = wanted()
    s["share"] = (torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0], dtype=F64),)
    one = {k: tuple(x[3:4] for x in v) for k, v in s.items()}
    length = one["token_mask"][0].sum()
    same(loss([run(Diffuse(), s)]), loss([run(NLL(), one)]) * length)


def test_any_split_gives_one_gradient_and_masked_tokens_have_no_part():
    s = wanted()

    def gradient(values, cuts):
        leaf = values["token_logp"][0].clone().requires_grad_()
        full = {**values, "token_logp": (leaf,)}
        value = loss([run(Diffuse(), {k: tuple(x[c] for x in v) for k, v in full.items()}) for c in cuts])
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    want, g_want = gradient(s, [slice(0, 5)])
    spoiled = {**s, "token_logp": (torch.where(s["token_mask"][0] == 0, -7.5, s["token_logp"][0]),)}
    for values, cuts in (
        (s, [slice(0, 2), slice(2, 5)]),
        (s, [slice(i, i + 1) for i in range(5)]),
        (spoiled, [slice(0, 5)]),
    ):
        got, g_got = gradient(values, cuts)
        same(got, want)
        same(g_got, g_want)


def test_the_authors_stop():
    assert reached(1.2 * 2.0, 2.0)
    assert not reached(1.21 * 2.0, 2.0)


def test_weights_of_a_file_become_shares_of_its_prompts(tmp_path):
    rows = [{"prompt": "pick one", "answers": ["a", "b c"], "weights": [1, 3]},
            {"prompt": "pick any", "answers": ["c", "a", "b"], "weights": [0.5, 0.5, 0]}]  # fmt: skip
    path = tmp_path / "wanted.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    loaded = load(path)
    assert loaded.kind == "scored"
    made = encode(loaded.rows, "scored", word_level("pick one any a b c"))
    assert made.columns["share"] == [0.25, 0.75, 0.5, 0.5, 0.0]
    assert made.columns["group"] == [0, 0, 1, 1, 1]
    loaded.rows[0]["scores"][0] = -1
    assert "share" not in encode(loaded.rows, "scored", word_level("pick one any a b c")).columns


def test_without_shares_it_says_what_to_do():
    with pytest.raises(Refused, match=r"diffuse requires the column 'share' in every row \(the wanted probability"):
        run(Diffuse(), random_signals())
