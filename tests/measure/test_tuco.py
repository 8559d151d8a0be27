"""tuco: the interleaved pass written out layer by layer in float64, its exact limits, and the scaled model."""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.adapt.attach import attach
from luthier.adapt.full import Full
from luthier.adapt.lowrank.lora import LoRA
from luthier.adapt.peft import Peft
from luthier.core import MeasureContext
from luthier.core.errors import DataError, ModelError, Refused
from luthier.measure.diagnose.tuco import TuCo, tuco
from luthier.measure.suites import have
from luthier.models.interleave import Sums, blocks_of, interleaved
from luthier.recipes.export import plain_subject
from tests.adapt.tiny import gpt2, llama, shaken
from tests.measure.fakes import Fake, fixed
from tests.tolerance import same

F64 = torch.float64
IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
MODELS = {"llama": llama, "gpt2": gpt2}
WHAT = {"lora": (LoRA(rank=2), "all-linear"), "full": (Full(), "all-linear")}


@pytest.fixture(params=[(m, w) for m in MODELS for w in WHAT], ids="-".join)
def tuned(request):
    """(model in float64 with a live adaptation, its handle, a plain copy of the base, a plain copy of the tuned model)."""
    name, what = request.param
    model = MODELS[name]().double().eval()
    base, merged = copy.deepcopy(model), copy.deepcopy(model)
    with attach(model, *WHAT[what]) as handle:
        shaken(handle, 0.3)
        merged.load_state_dict(handle.merged(), strict=False)
        yield model, handle, base, merged


def streams(model, ids):
    """x_0, x_1, ..., x_L before the last norm: inputs of the blocks, and the output of the last one."""
    seen, hooks = [], []
    for block in blocks_of(model):
        hooks.append(block.register_forward_hook(
            lambda b, args, kwargs, out: seen.append((args[0] if args else kwargs["hidden_states"],
                                                      out[0] if isinstance(out, tuple) else out)), with_kwargs=True))  # fmt: skip
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return [seen[0][0], *(out for _, out in seen)], logits


def test_sums_equal_the_pass_written_out_layer_by_layer(tuned):
    model, handle, base, merged = tuned
    xs, _ = streams(merged, IDS)
    want = [torch.zeros_like(xs[0][:, -1]) for _ in "ab"]
    for i, block in enumerate(blocks_of(base)):
        # the base's block on the tuned stream, by feeding the tuned x_i into a copy of the base at that place
        hook = block.register_forward_pre_hook(
            lambda b, args, kwargs, i=i: (
                ((xs[i], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": xs[i]})
            ),
            with_kwargs=True,
        )
        after = streams(base, IDS)[0][i + 1]
        hook.remove()
        want[0] += (after - xs[i])[:, -1]
        want[1] += (xs[i + 1] - after)[:, -1]
    sums = Sums(torch.tensor([4, 4]), 5)
    with torch.no_grad(), interleaved(model, handle.disabled, record=sums):
        model(input_ids=IDS, use_cache=False)
    same(sums.base, want[0])
    same(sums.tuning, want[1])
    same(xs[0][:, -1] + sums.base + sums.tuning, xs[-1][:, -1])
    for got, a, b in zip(tuco(sums.base, sums.tuning), *want, strict=True):
        same(got, b.norm() / (a.norm() + b.norm()))


@pytest.mark.parametrize(("alpha", "which"), [(1.0, "tuned"), (0.0, "base")])
def test_alpha_one_is_the_tuned_model_and_zero_the_base(tuned, alpha, which):
    model, handle, _, _ = tuned
    with torch.no_grad():
        if which == "base":
            with handle.disabled():
                want = model(input_ids=IDS, use_cache=False).logits
        else:
            want = model(input_ids=IDS, use_cache=False).logits
        with interleaved(model, handle.disabled, alpha):
            got = model(input_ids=IDS, use_cache=False).logits
        again = model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(got, want)
    assert not torch.equal(again, want) or which == "tuned"


def test_half_way_lies_between_and_nothing_stays_behind(tuned):
    model, handle, _, _ = tuned
    hooks = [len(b._forward_hooks) for b in blocks_of(model)]
    with torch.no_grad():
        full = model(input_ids=IDS, use_cache=False).logits
        with interleaved(model, handle.disabled, 0.5):
            half = model(input_ids=IDS, use_cache=False).logits
    assert not torch.equal(half, full)
    assert [len(b._forward_hooks) for b in blocks_of(model)] == hooks


def test_the_ratio_and_its_bounds():
    base, tuning = torch.randn(2, 50, 7, dtype=F64)
    got = tuco(base, tuning)
    assert ((got > 0) & (got < 1)).all()
    same(tuco(tuning, base), 1 - got)
    assert tuco(base, 0 * tuning).tolist() == [0.0] * 50
    assert tuco(0 * base, tuning).tolist() == [1.0] * 50
    assert tuco(0 * base, 0 * tuning).tolist() == [0.0] * 50


def test_of_a_real_subject():
    subject = plain_subject("lab:language")
    rows = [{"prompt": p, "response": "a b"} for p in ("sort b a", "reverse d c b a", "copy a")]
    assert [r.value for r in TuCo()(subject, rows, MeasureContext())] == [0.0]
    with attach(subject.module.model, LoRA(rank=2), "all-linear") as handle:
        shaken(handle, 0.2)
        subject.off = handle.disabled
        first, *scores = TuCo(alphas=(0, 0.5, 1))(subject, rows, MeasureContext())
        assert all(0 < x < 1 for x in first.items)
        one = TuCo()(subject, rows[1:2], MeasureContext())
        assert next(iter(one)).value == pytest.approx(first.items[1], rel=1e-4)  # padding has no part in it
        for reading, other in ((scores[0], subject.base()), (scores[2], subject)):
            total, count = other.logp([r["prompt"] for r in rows], ["a b"] * 3)
            same(torch.tensor(reading.items), (-total / count).float())
        with pytest.raises(Refused, match="generation with a scaled tuning requires"):
            subject.scaled(0.5).generate(["sort b a"])
        with pytest.raises(Refused, match="no key-value cache"), interleaved(subject.module.model, handle.disabled):
            subject.module.model(input_ids=IDS, use_cache=True)


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_prompts_of_an_adaptation_stand_in_the_way_and_are_found_by_a_probe(method):
    subject = plain_subject("lab:language")
    assert subject.interleaves()
    rows = [{"prompt": "sort b a", "response": "a b"}]
    assert "blocks" in have(rows, MeasureContext(), subject)
    with attach(subject.module.model, Peft(method=method, config={"num_virtual_tokens": 3})) as handle:
        subject.off = handle.disabled
        assert not subject.interleaves()
        assert "blocks" not in have(rows, MeasureContext(), subject)
        with pytest.raises(Refused, match="an interleaved forward pass requires"):
            list(TuCo()(subject, rows, MeasureContext()))


def test_faults():
    with pytest.raises(ModelError, match="a stack of numbered blocks; got Linear"):
        blocks_of(torch.nn.Linear(2, 2))
    whole = fixed({"p": {"a": 1.0}})
    plain = type("Plain", (), {"generate": whole.generate, "logp": whole.logp, "base": lambda self: self})()
    with pytest.raises(DataError, match="'blocks'"):
        list(TuCo()(plain, [{"prompt": "p"}], MeasureContext()))
    with pytest.raises(DataError, match="row 0 requires the field 'response'"):
        list(TuCo(alphas=(1.0,))(Fake(lambda p: {"a": 1.0}), [{"prompt": "p"}], MeasureContext()))
