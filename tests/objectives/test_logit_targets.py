"""logit_targets: loops over the teacher's words, its limits, the released trainer's formula, and the stored file."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from luthier.core.errors import DataError, Refused
from luthier.models.language import LanguageModule, LanguageView
from luthier.models.topk import TopK, teacher_topk, trained_tokens
from luthier.objectives.distil.logit_targets import LogitTargets, sparse_kl, target
from luthier.objectives.supervised.nll import NLL
from luthier.train.feed import RowFeed
from tests.objectives.contract import F64, loss, run
from tests.objectives.test_anchored_sft import with_logits
from tests.tolerance import same
from tests.train.parts import rows, tiny_llama


def taught(k=3, seed=0):
    """Signals with a teacher's k words at each token; the teacher's logits are the reference's."""
    s = with_logits(seed=seed)
    top = s["ref_logits"][0].log_softmax(-1).topk(k, -1)
    return {**s, "topk_id": (top.indices,), "topk_logp": (top.values,)}


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_equals_the_loop_over_the_teachers_words(per):
    s = taught()
    z, logp, mask, ids, q = (s[k][0] for k in ("logits", "token_logp", "token_mask", "topk_id", "topk_logp"))
    sequences = []
    for i in range(5):
        values = []
        for t in range(7):
            if mask[i, t]:
                words = [math.exp(v) for v in q[i, t].tolist()]
                norm = math.log(sum(math.exp(v) for v in z[i, t].tolist()))
                kl = sum(w / sum(words) * (math.log(w / sum(words)) - (z[i, t, j].item() - norm))
                         for w, j in zip(words, ids[i, t].tolist(), strict=True))  # fmt: skip
                values.append(0.6 * -logp[i, t].item() + 0.4 * kl)
        sequences.append(values)
    flat = [v for values in sequences for v in values]
    want = sum(flat) / len(flat) if per == "token" else sum(sum(v) / len(v) for v in sequences) / 5
    same(loss([run(LogitTargets(label=0.6, per=per), s)]), torch.tensor(want, dtype=F64))


def test_equals_the_released_trainer_on_one_row():
    """Top probabilities written into a vector over the vocabulary, divided by their sum; F.kl_div, batchmean; 0.9 of the label."""
    s = {k: tuple(x[:1] for x in v) for k, v in taught(k=5).items()}
    inner = s["token_mask"][0][0] != 0
    z, label = s["logits"][0][0, inner], s["target"][0][0, inner]
    q = torch.zeros_like(z).scatter(-1, s["topk_id"][0][0, inner], s["topk_logp"][0][0, inner].exp())
    kl = F.kl_div(z.softmax(-1).log(), F.normalize(q, p=1, dim=-1), reduction="batchmean")
    same(loss([run(LogitTargets(), s)]), 0.9 * F.cross_entropy(z, label) + 0.1 * kl)


def test_label_one_is_nll_and_so_is_a_teacher_that_is_certain_of_the_label():
    s = taught()
    want = loss([run(NLL(), s)])
    same(loss([run(LogitTargets(label=1.0), s)]), want)
    certain = {**s, "topk_id": (torch.stack([s["target"][0], (s["target"][0] + 1) % 6], -1),),
               "topk_logp": (torch.tensor([0.0, -math.inf], dtype=F64).expand(5, 7, 2),)}  # fmt: skip
    for label in (0.0, 0.4):
        leaf = s["logits"][0].clone().requires_grad_()
        logp = leaf.log_softmax(-1).gather(-1, s["target"][0][..., None])[..., 0]
        value = loss([run(LogitTargets(label=label), {**certain, "logits": (leaf,), "token_logp": (logp,)})])
        same(value, want)
        (gradient,) = torch.autograd.grad(value, leaf)
        mask = s["token_mask"][0]
        by_hand = (s["logits"][0].softmax(-1) - F.one_hot(s["target"][0], 6)) * mask[..., None] / mask.sum()
        same(gradient, by_hand)


def test_the_whole_vocabulary_is_forward_distillation():
    s = taught(k=6)
    mask = s["token_mask"][0]
    kl = F.kl_div(s["logits"][0].log_softmax(-1), s["ref_logits"][0].softmax(-1), reduction="none").sum(-1)
    same(loss([run(LogitTargets(label=0.0), s)]), (kl * mask).sum() / mask.sum())
    same(target(s["topk_logp"][0]).sum(-1), torch.ones(5, 7, dtype=F64))


def test_any_split_gives_one_gradient_and_untrained_tokens_have_no_part():
    s = taught()

    def gradient(values, cuts):
        leaf = values["logits"][0].clone().requires_grad_()
        full = {**values, "logits": (leaf,)}
        value = loss([run(LogitTargets(label=0.3), {k: tuple(x[c] for x in v) for k, v in full.items()}) for c in cuts])
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    want, g_want = gradient(s, [slice(0, 5)])
    hidden = dict(s)
    for name in ("logits", "topk_logp"):
        hidden[name] = (torch.where(s["token_mask"][0][..., None] == 0, 7.5, s[name][0]),)
    for values, cuts in (
        (s, [slice(0, 2), slice(2, 5)]),
        (s, [slice(i, i + 1) for i in range(5)]),
        (hidden, [slice(0, 5)]),
    ):
        got, g_got = gradient(values, cuts)
        same(got, want)
        same(g_got, g_want)


def test_rows_without_a_teachers_words_are_refused():
    with pytest.raises(Refused, match=r"logit_targets requires a teacher's words at each token; got rows without them"):
        run(LogitTargets(), with_logits())


def stored(k=4, width=0, size=1):
    feed = RowFeed(rows(9), "text", ("text",), 0, 4, seed=0, width=width)
    view = LanguageView(LanguageModule(tiny_llama()))
    at = range(0, 9, size)
    return teacher_topk(view, (feed.collate(list(range(a, min(9, a + size)))) for a in at), k), feed, view


@pytest.mark.parametrize(("width", "size"), [(0, 1), (0, 4), (40, 4)])
def test_stored_words_are_those_of_the_model_whatever_the_batches(width, size):
    found, feed, view = stored(width=width, size=size)
    at = 0
    for (example,) in feed.examples:
        log_p = view.module.model(torch.tensor([example.ids])).logits[0].log_softmax(-1)
        for t in range(1, len(example.ids)):
            if example.mask[t]:
                top = log_p[t - 1].topk(4)
                same(found.logp[at], top.values)
                assert found.id[at].tolist() == top.indices.tolist()
                at += 1
    assert at == len(found.id) == int(found.count.sum())


def test_the_file_round_trips_and_reaches_the_right_tokens(tmp_path):
    found, feed, _ = stored()
    found.save(tmp_path / "top.safetensors")
    again = TopK.load(tmp_path / "top.safetensors")
    assert torch.equal(again.id, found.id)
    assert (again.logp - found.logp).abs().max() < 1e-2
    n = int(found.count.sum())
    assert (tmp_path / "top.safetensors").stat().st_size < n * (6 * 4 + 4) + 1000
    for width in (0, 40):
        own = RowFeed(feed.examples, "text", ("text",), 0, 4, seed=0, width=width, tables=again.rows(feed.examples, 2))
        batch = own.collate([3, 1, 8])
        starts = (again.count.cumsum(0) - again.count).tolist()
        for i, row in enumerate([3, 1, 8]):
            (example,) = feed.examples[row]
            places = [t for t in range(1, len(example.ids)) if example.mask[t]]
            assert batch.columns["topk_id"][i, places].tolist() == again.id[starts[row] :][: len(places), :2].tolist()
            others = [t for t in range(batch.columns["topk_id"].shape[1]) if t not in places]
            assert (batch.columns["topk_logp"][i, others] == 0).all()


def test_a_file_of_other_rows_is_recognised(tmp_path):
    found, feed, _ = stored()
    with pytest.raises(DataError, match="at least 9 per token; got 4"):
        found.rows(feed.examples, 9)
    with pytest.raises(DataError, match="the 8 rows of training; got those of 9 rows"):
        found.rows(feed.examples[:8], 2)
    with pytest.raises(DataError, match="the tokens of training; got others in row 1"):
        found.rows(feed.examples[::-1], 2)
    assert trained_tokens(feed.examples[0][0]) == found.target[: int(found.count[0])].tolist()
    from luthier.core.files import write_tensors

    write_tensors(tmp_path / "other.safetensors", {"id": found.id})
    with pytest.raises(DataError, match="got a file without count"):
        TopK.load(tmp_path / "other.safetensors")


def test_certain_policies_stay_finite():
    z = torch.tensor([[[0.0, 800.0]]], requires_grad=True)
    value = sparse_kl(z, torch.tensor([[[0, 1]]]), torch.tensor([[[-0.1, -3.0]]]), torch.ones(1, 1))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(z.grad).all()
