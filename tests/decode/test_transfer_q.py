"""transfer_q: exact values on a token tree, its limits, and roll-outs of a real model beside another in a recipe."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from luthier.core import DecodeView
from luthier.core.config import as_dict, build_component
from luthier.core.errors import Refused
from luthier.core.streams import stream
from luthier.decode.guidance.transfer_q import TransferQ, guided, value
from luthier.lab.micro.token_tree import TokenTree
from luthier.models.generation import Sampling, generate
from luthier.models.loading import load_causal_lm
from luthier.recipes.recipe import parse, recipe_faults
from luthier.recipes.run import run, subject_of
from luthier.reward.verifiers.format import Format
from tests.recipes.parts import chat_rows, model_folder, write
from tests.tolerance import same

F64 = torch.float64
TREE = TokenTree(vocabulary=3, depth=3, end=0)
EVEN = Format(pattern="(w[0-9]*[02468] ?)*")
PROMPTS = [[1, 8, 9], [1, 10], [1, 11, 12, 13]]


def enumerated(baseline, reward, other=None, beta=1.0):
    """Values (nodes, tokens) with every completion of every choice as a roll-out, counted by its probability."""
    log_p, q = TREE.log_probs(baseline), torch.zeros(len(TREE.nodes), TREE.vocabulary, dtype=F64)
    for i, node in enumerate(TREE.nodes):
        for z in range(TREE.vocabulary):
            below = [k for k, leaf in enumerate(TREE.leaves) if leaf[: len(node) + 1] == (*node, z)]
            q[i, z] = value(reward[below], None if other is None else other[below], beta, log_p[below])
    return q


def test_direct_transfer_is_the_value_under_the_baseline():
    baseline, reward = TREE.random(0)
    same(enumerated(baseline, reward), TREE.values(baseline, reward)[1])


def test_an_optimal_baseline_gives_the_optimal_values():
    sft, reward = TREE.random(1)
    best = TREE._backward(reward, lambda q, i: q.max())[1]
    greedy = torch.zeros_like(best).scatter(-1, best.argmax(-1, keepdim=True), 1e3)
    q = enumerated(greedy, reward)
    same(q, best)
    every = torch.arange(3).expand_as(q)
    same(guided(sft, every, q, 0.7).softmax(-1), (sft.log_softmax(-1) + best / 0.7).softmax(-1))


def test_indirect_transfer_is_exact_between_optima():
    reference, reward = TREE.random(2)
    other = TREE.random(3)[1]
    mine, theirs = (TREE.soft_optimum(r, reference, 0.5)[0] for r in (reward, other))
    same(enumerated(theirs, reward, other, 0.5), TREE.values(mine, reward)[1])
    assert (enumerated(theirs, reward) - TREE.values(mine, reward)[1]).abs().max() > 0.01


def test_weights_equal_the_loop_and_are_even_for_equal_rewards():
    reward, other = torch.randn(2, 4, 6, generator=stream(0, "test"), dtype=F64)
    want = []
    for r, o in zip(reward.tolist(), other.tolist(), strict=True):
        w = [math.exp((x - y) / 0.4) for x, y in zip(r, o, strict=True)]
        want.append(sum(a * x for a, x in zip(w, r, strict=True)) / sum(w))
    same(value(reward, other, 0.4), torch.tensor(want, dtype=F64))
    same(value(reward, reward, 0.4), reward.mean(-1))


def test_only_the_tokens_tried_are_possible():
    out = guided(torch.zeros(1, 5), torch.tensor([[4, 1]]), torch.tensor([[1.0, 3.0]]), 2.0)
    assert out.tolist() == [[-torch.inf, 1.5, -torch.inf, -torch.inf, 0.5]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("transfer")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    return at


@pytest.fixture
def how(place):
    from luthier.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(place / "model"))
    helper = load_causal_lm(str(place / "model"))
    return Sampling(max_new=6, stop=(2,), helpers={"baseline": helper},
                    text=lambda ids: tokenizer.decode(ids, skip_special_tokens=True))  # fmt: skip


def test_alpha_at_infinity_gives_the_models_own_tokens(place, how):
    model = load_causal_lm(str(place / "model"))
    plain = generate(model, PROMPTS, Sampling(max_new=6, stop=(2,)), stream(0, "test")).tokens
    far = replace(how, decode=(TransferQ(reward=EVEN, alpha=1e12, top=47, rollouts=1, length=6),))
    assert generate(model, PROMPTS, far, stream(0, "test")).tokens == plain


def test_the_reward_is_heard_and_batches_do_not_matter(place, how):
    model = load_causal_lm(str(place / "model"))
    one = TransferQ(reward=EVEN, alpha=0.02, top=47, rollouts=2, length=3)
    near = replace(how, max_new=3, decode=(one,))
    got = generate(model, PROMPTS, near, stream(0, "test")).tokens
    assert all(how.text and EVEN([{}], [how.text(t)]).item() == 1 for t in got)
    assert generate(model, PROMPTS, near, stream(0, "test"), batch=1).tokens == got
    alike = replace(near, decode=(replace(one, aligned_to=EVEN),))
    assert generate(model, PROMPTS, alike, stream(0, "test")).tokens == got


def test_a_recipe_names_the_baseline(place):
    decode = [
        {
            "transfer_q": {
                "reward": {"format": {"pattern": EVEN.pattern}},
                "alpha": 0.02,
                "top": 47,
                "rollouts": 1,
                "length": 3,
            }
        }
    ]
    plain = {"model": str(place / "model"), "data": {"train": str(place / "chat.jsonl"), "test_rows": 2},
             "adapt": {"lora": {"rank": 2}}, "train": {"steps": 2, "batch": 8}, "decode": decode}  # fmt: skip
    assert "a model 'baseline'" in recipe_faults(plain)[0]
    subject = subject_of(run(parse({**plain, "decode_models": {"baseline": plain["model"]}})).prepared)
    (texts,) = subject.generate(["w1 w2"], samples=3, max_new=3)
    assert EVEN([{}] * 3, texts).tolist() == [1, 1, 1]


def test_faults_and_round_trip():
    view = DecodeView(torch.zeros(1, 1).long(), torch.ones(1, 1).long(), 0)
    with pytest.raises(Refused, match="the helper model baseline inside generation"):
        TransferQ(reward=EVEN)(torch.zeros(1, 5), view)
    one = TransferQ(reward=EVEN, alpha=2.0, aligned_to=EVEN)
    assert build_component(as_dict(one), "decode", "decode") == one
