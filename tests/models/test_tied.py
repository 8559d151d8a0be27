"""Tied embeddings get the gradient that autograd gives them, and no second matrix is made for it."""

from __future__ import annotations

import pytest
import torch

from luthier.core import Batch
from luthier.models.collate import pad
from luthier.models.language import LanguageModule, LanguageView
from luthier.models.tied import tied_weight
from luthier.train.memory import PeakMemory
from tests.models.test_language import SMALL, sequences


def tied(name="llama", **changes):
    import transformers as t

    torch.manual_seed(0)
    small = {**SMALL, "tie_word_embeddings": True, **changes}
    kinds = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**small)),
        "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**small)),  # scales what it reads
        "gemma3": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**small, sliding_window=8, query_pre_attn_scalar=4, layer_types=["full_attention"] * 2)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64)),
    }
    return kinds[name]()


def token_sum(model, batch, plain=False):
    """A sum that depends on both uses; plain: through the model's own logits."""
    if not plain:
        got = LanguageView(LanguageModule(model)).signals(batch, ["token_logp", "token_entropy"])
        return got["token_logp"][0].sum() + 0.3 * got["token_entropy"][0].square().sum()
    ids, mask = batch.inputs["input_ids"], batch.inputs["loss_mask"][:, 1:].bool()
    log_p = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    logp = log_p.gather(-1, ids[:, 1:, None])[..., 0][mask]
    return logp.sum() + 0.3 * (log_p.exp() * log_p).sum(-1)[mask].square().sum()


@pytest.mark.parametrize("padding", [0, None])
@pytest.mark.parametrize("name", ["llama", "gemma", "gemma3", "gpt2"])
def test_the_gradient_is_that_of_the_plain_model(name, padding):
    model, batch = tied(name).double().train(), Batch("text", pad(sequences(), 0))
    for module in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        module.p = 0.0
    model.get_input_embeddings().padding_idx = padding
    parameters = dict(model.named_parameters())
    want = torch.autograd.grad(token_sum(model, batch, plain=True), list(parameters.values()))
    for _ in range(2):  # a second pass adds to the first one's gradient
        token_sum(model, batch).backward()
    for (key, p), g in zip(parameters.items(), want, strict=True):
        torch.testing.assert_close(p.grad, 2 * g, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


def test_the_embedding_is_as_it_was_even_after_a_failed_pass():
    model = tied()
    weight = model.get_input_embeddings().weight
    with tied_weight(model) as head:
        assert head is not weight and head.data_ptr() == weight.data_ptr()
        assert model.get_input_embeddings().weight is not weight
    with pytest.raises(IndexError), tied_weight(model):
        model(input_ids=torch.tensor([[len(weight)]]))
    assert model.get_input_embeddings().weight is weight is model.lm_head.weight
    assert not model.get_input_embeddings().sparse


@pytest.mark.parametrize("why", ["untied", "frozen", "no gradient", "counted"])
def test_elsewhere_the_weight_is_the_head_s_own(why):
    model = tied(tie_word_embeddings=why != "untied").requires_grad_(why != "frozen")
    model.get_input_embeddings().scale_grad_by_freq = why == "counted"
    with torch.set_grad_enabled(why != "no gradient"), tied_weight(model) as head:
        assert head is model.lm_head.weight


def test_one_use_alone_gets_its_own_gradient():
    model, ids = tied().double(), torch.tensor([[1, 2, 2]])
    for use in ("read", "written"):
        with tied_weight(model) as head:
            out = (model.get_input_embeddings()(ids) if use == "read" else head).square().sum()
        (got,) = torch.autograd.grad(out, [model.lm_head.weight])
        counts = torch.bincount(ids[0], minlength=len(head)) if use == "read" else torch.ones(len(head))
        torch.testing.assert_close(got, 2 * counts[:, None] * head.detach())


@pytest.mark.parametrize("ways", [("rows", "rows"), ("rows", "whole"), ("whole",)])
def test_a_model_that_reads_the_weight_in_several_ways(ways):
    model, ids = tied().double(), torch.tensor([[1, 2, 2]])
    embedding = model.get_input_embeddings()

    def total(head):
        read = {"rows": lambda: embedding(ids).square().sum(), "whole": lambda: embedding.weight.sin().sum()}
        return sum(read[way]() for way in ways) + head.cos().sum()

    with tied_weight(model) as head:
        out = total(head)
    (got,), (want,) = (torch.autograd.grad(o, [embedding.weight]) for o in (out, total(embedding.weight)))
    torch.testing.assert_close(got, want)


def test_no_second_matrix_is_made():
    model = tied(vocab_size=50_000)
    matrix = model.lm_head.weight.nbytes
    batch = Batch("text", pad(sequences((5, 9)), 0))
    view = LanguageView(LanguageModule(model))
    with PeakMemory() as memory:
        memory.track(model.parameters())
        view.signals(batch, ["token_logp"])["token_logp"][0].sum().backward()
    assert memory.peak < 2.5 * matrix + sum(p.nbytes for p in model.model.layers.parameters()) + 4 * 50_000 * 14
