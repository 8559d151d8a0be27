"""baco: loops over probabilities, its limits under the same seed, a recipe with a real model and its base."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core import DecodeView
from luthier.core.config import as_dict, build_component
from luthier.core.errors import ConfigError, Refused
from luthier.core.streams import stream
from luthier.decode.guidance.baco import BACo, base_speaks, certainty, mixture, role_tokens
from luthier.models.generation import Sampling, generate
from luthier.models.loading import load_causal_lm
from luthier.recipes.recipe import parse, recipe_faults
from luthier.recipes.run import run, subject_of
from tests.recipes.parts import chat_rows, model_folder, write
from tests.tolerance import same

F64 = torch.float64
PROMPTS = [[1, 8, 9], [1, 10], [1, 11, 12, 13]]


def models(rows=40, words=7):
    return (2 * torch.randn(2, rows, words, generator=torch.Generator().manual_seed(0), dtype=F64)).unbind(0)


def view(base):
    return DecodeView(torch.zeros(len(base), 1).long(), torch.ones(len(base), 1).long(), 0, {"base": base})


def loop(tuned, base, threshold, router, reads, when, content, mix):
    """Probabilities one row at a time, in plain Python."""
    out = []
    for t, b in zip(tuned.tolist(), base.tolist(), strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (t, b))
        read = p if reads == "tuned" else q
        sure = max(read) if router == "probability" else 1 + sum(v * math.log(v) for v in read) / math.log(len(read))
        base_turn = (sure < threshold) if when == "uncertain" else (sure >= threshold)
        w = mix if base_turn and p.index(max(p)) not in content else 0.0
        out.append([w * y + (1 - w) * x for x, y in zip(p, q, strict=True)])
    return torch.tensor(out, dtype=F64)


@pytest.mark.parametrize("router", ["probability", "entropy"])
@pytest.mark.parametrize("reads", ["tuned", "base"])
@pytest.mark.parametrize("when", ["uncertain", "certain"])
def test_equals_the_loop(router, reads, when):
    tuned, base = models()
    for mix, content in ((1.0, ()), (0.3, (2, 5))):
        one = BACo(threshold=0.45, router=router, reads=reads, base_when=when, content=content, mix=mix)
        got = one(tuned, view(base)).softmax(-1)
        same(got, loop(tuned, base, 0.45, router, reads, when, content, mix))
    turns = base_speaks(certainty(tuned if reads == "tuned" else base, router), 0.45, when)
    assert 0 < turns.sum() < len(turns)


def test_a_mixture_sums_to_one():
    tuned, base = models()
    for w in (0.0, 0.1, 0.5, 1.0):
        p = mixture(tuned, base, torch.full((40,), w, dtype=F64)).softmax(-1)
        same(p.sum(-1), torch.ones(40, dtype=F64))
        same(p, w * base.softmax(-1) + (1 - w) * tuned.softmax(-1))
    half = mixture(tuned, base, torch.full((40,), 0.5))
    same(half.exp().sum(-1), torch.ones(40, dtype=F64))


def test_more_threshold_gives_the_base_more_turns():
    tuned, _ = models()
    turns = [int(base_speaks(certainty(tuned), t).sum()) for t in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert turns == sorted(turns)
    assert (turns[0], turns[-1]) == (0, 40)


def test_certainty_at_its_ends_and_impossible_tokens():
    sure = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    for by in ("probability", "entropy"):
        assert certainty(sure, by).tolist() == [1.0]
        assert base_speaks(certainty(sure, by), 1.0).all()
        assert not base_speaks(certainty(torch.zeros(1, 3), by), 0.0).any()
    out = mixture(sure, torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([0.5]))
    assert torch.isneginf(out[0, 2])
    assert torch.isfinite(out[0, :2]).all()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("baco")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    return at


@pytest.mark.parametrize("router", ["probability", "entropy"])
def test_the_extremes_give_one_models_tokens_under_the_same_seed(place, router):
    base, tuned = (load_causal_lm(str(place / "model")) for _ in range(2))
    with torch.no_grad():
        for p in tuned.parameters():
            p.mul_(2.0)

    def told(model, *decode, helpers=None):
        how = Sampling(max_new=12, stop=(2,), decode=decode, helpers=helpers or {})
        return generate(model, PROMPTS, how, stream(0, "test")).tokens

    beside = {"base": base}
    assert told(tuned, BACo(threshold=0, router=router), helpers=beside) == told(tuned)
    assert told(tuned, BACo(threshold=1, router=router), helpers=beside) == told(base)
    assert told(tuned, BACo(threshold=0, router=router, base_when="certain"), helpers=beside) == told(base)
    assert told(tuned, BACo(threshold=1, router=router, base_when="certain"), helpers=beside) == told(tuned)
    assert told(tuned, BACo(threshold=0.4, router=router), helpers={"base": tuned}) == told(tuned)
    assert told(tuned) != told(base)


def test_a_recipe_listens_to_the_model_before_training(place):
    def subject(**decode):
        plain = {"model": str(place / "model"), "data": {"train": str(place / "chat.jsonl"), "test_rows": 2},
                 "adapt": {"lora": {"rank": 2}}, "train": {"steps": 6, "batch": 8, "lr": 0.1},
                 "decode": [{"baco": decode}] if decode else []}  # fmt: skip
        assert recipe_faults(plain) == []
        return subject_of(run(parse(plain)).prepared)

    plainly, told = subject(), {"samples": 2, "max_new": 6}
    tuned = plainly.generate(["w1 w2"], **told)
    untuned = plainly.base().generate(["w1 w2"], **told)
    assert subject(threshold=0.0).generate(["w1 w2"], **told) == tuned
    assert subject(threshold=1.0).generate(["w1 w2"], **told) == untuned != tuned


def test_punctuation_and_words_are_found_by_text():
    assert role_tokens([" of", "of", "off", "...", "a.", " "], {"of"}) == (0, 1, 3)


def test_faults_and_round_trip():
    tuned, base = models()
    with pytest.raises(Refused, match="the helper model base"):
        BACo()(tuned, DecodeView(torch.zeros(40, 1).long(), torch.ones(40, 1).long(), 0))
    with pytest.raises(Refused, match="7 and 5 tokens"):
        BACo()(tuned, view(base[:, :5]))
    with pytest.raises(ConfigError, match="less than or equal to 1"):
        build_component({"baco": {"threshold": 1.5}}, "decode", "decode")
    one = BACo(threshold=0.2, content=(3,), base="other")
    assert build_component(as_dict(one), "decode", "decode") == one
