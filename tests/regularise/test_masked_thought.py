"""masked_thought: schedule, exact limits, the engine's gradients, the same holes for any split, padding or packing."""

from __future__ import annotations

import pytest
import torch

from luthier.core import Batch, Context
from luthier.core.errors import ConfigError, Refused
from luthier.regularise.noise.masked_thought import MaskedThought, hide_rate
from luthier.train.loop import Loop
from tests.tolerance import same
from tests.train.parts import job


class Words:
    """A tokenizer of 31 words, the last one of which is for padding."""

    pad_token_id = 30
    unk_token, unk_token_id = "w0", 0

    def __len__(self):
        return 31

    def convert_tokens_to_ids(self, token):
        return {f"w{i}": i for i in range(31)}.get(token, 0)


HANDLES = {"tokenizer": Words()}


def at(step=9, steps=10, seed=0):
    return Context(step, steps, seed, handles=HANDLES)


def by_sequence(batch, name="read_ids"):
    """Token lists of a padded or packed batch, one per sequence."""
    flat = batch.inputs[name].flatten()
    if "home" in batch.inputs:
        return [flat[h[h >= 0]].tolist() for h in batch.inputs["home"]]
    return [row[m != 0].tolist() for row, m in zip(batch.inputs[name], batch.inputs["attention_mask"], strict=True)]


def test_the_rate_rises_to_its_peak_and_stays():
    """min(peak, peak * step / (steps * warmup + 1)), as the authors' trainer computes it."""
    for step in range(100):
        want = 0.4 * step / (100 * 0.66 + 1)
        assert hide_rate(step, 100, 0.4, 0.66) == pytest.approx(min(want, 0.4))
    assert hide_rate(0, 100, 0.4, 0.66) == 0
    assert hide_rate(70, 100, 0.4, 0.66) == 0.4


@pytest.mark.parametrize("width", [0, 30])
@pytest.mark.parametrize("where", ["response", "prompt"])
def test_rate_one_hides_exactly_the_chosen_tokens_and_no_target(where, width):
    (batch,) = job(width=width).feed.micros(0)
    ctx = at()
    read = MaskedThought(rate=1.0, warmup=0.1, where=where).batch(batch, ctx)
    assert torch.equal(read.inputs["input_ids"], batch.inputs["input_ids"])
    assert torch.equal(read.inputs["loss_mask"], batch.inputs["loss_mask"])
    hidden = 0
    for seen, ids, mask in zip(
        by_sequence(read), by_sequence(batch, "input_ids"), by_sequence(batch, "loss_mask"), strict=True
    ):
        for t, (a, b, m) in enumerate(zip(seen, ids, mask, strict=True)):
            hole = t > 0 and (m == 1) == (where == "response")
            assert a == (30 if hole else b)
            hidden += hole
    assert ctx.changed == hidden > 0


def test_the_holes_of_a_row_do_not_depend_on_split_padding_or_packing():
    def holes(**how):
        out = {}
        for batch in job(**how).feed.micros(0):
            read = MaskedThought(rate=0.5).batch(batch, at())
            out.update(zip(batch.rows, by_sequence(read), strict=True))
        return out

    want = holes()
    assert want != {
        r: ids for b in job().feed.micros(0) for r, ids in zip(b.rows, by_sequence(b, "input_ids"), strict=True)
    }
    for how in ({"micro": 1}, {"micro": 3}, {"width": 16}, {"width": 30, "micro": 3}):
        assert holes(**how) == want
    (batch,) = job().feed.micros(0)
    for other in (at(step=8), at(seed=1)):
        read = MaskedThought(rate=0.5, warmup=0.1).batch(batch, other)
        assert dict(zip(batch.rows, by_sequence(read), strict=True)) != want


def test_the_share_of_holes_is_the_rate():
    loop = job(n=400, batch=400)
    (batch,) = loop.feed.micros(0)
    ctx = at()
    MaskedThought(rate=0.3).batch(batch, ctx)
    n = int(batch.inputs["loss_mask"].sum())
    assert abs(ctx.changed / n - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5


def test_random_words_fill_the_holes_evenly():
    (batch,) = job(n=400, batch=400).feed.micros(0)
    read = MaskedThought(rate=1.0, warmup=0.1, by="random").batch(batch, at())
    filled = read.inputs["read_ids"][batch.inputs["loss_mask"] != 0]
    share = filled.bincount(minlength=31).double() / len(filled)
    assert (share - 1 / 31).abs().max() < 5 * (1 / 31 / len(filled)) ** 0.5


def gradients(*hooks, training=True):
    loop = Loop(job(hooks=hooks, handles=HANDLES))
    loop.job.policy.view.wrapped.train(training)
    ctx = loop.context(2)
    micros = [loop._batch_hooks(b, ctx) for b in loop.job.feed.micros(0)]
    result = loop.stepper(micros, ctx)
    return result.loss, {k: p.grad.clone() for k, p in loop.named}


def test_rate_zero_is_training_without_it():
    (want, g_want), (got, g_got) = gradients(), gradients(MaskedThought(rate=0))
    assert got == want
    for k in g_want:
        same(g_got[k], g_want[k])


def test_in_training_the_engine_reads_the_holes_and_predicts_the_words():
    """Against the model itself: logits of the holed text, cross-entropy with the whole text."""
    hook = MaskedThought(rate=0.5, warmup=0.1)
    loop = Loop(job(hooks=[hook], handles=HANDLES))
    ctx = loop.context(2)
    (batch,) = loop.job.feed.micros(0)
    read = hook.batch(batch, ctx)
    model = loop.job.policy.view.module.model
    loop.job.policy.view.wrapped.train()
    logits = model(read.inputs["read_ids"]).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(-1, batch.inputs["input_ids"][:, 1:, None])[..., 0]
    mask = batch.inputs["loss_mask"][:, 1:]
    want = -(logp * mask).sum() / mask.sum()
    assert gradients(hook)[0] == pytest.approx(want.item(), rel=1e-12)


def test_in_evaluation_the_text_is_whole():
    assert gradients(MaskedThought(rate=0.9), training=False)[0] == gradients(training=False)[0]


def test_what_cannot_be_is_refused_in_words():
    (batch,) = job().feed.micros(0)
    with pytest.raises(Refused, match=r"masked_thought requires texts to imitate; got samples of the policy"):
        MaskedThought().batch(Batch("group", batch.inputs), at())
    with pytest.raises(Refused, match="requires the tokenizer among the handles; got none"):
        MaskedThought().batch(batch, Context(5, 10, 0))
    with pytest.raises(ConfigError, match=r"masked_thought\.token requires a token of the vocabulary; got '<mask>'"):
        MaskedThought(token="<mask>").batch(batch, at())
    assert 7 in MaskedThought(token="w7", rate=1.0, warmup=0.1).batch(batch, at()).inputs["read_ids"]
