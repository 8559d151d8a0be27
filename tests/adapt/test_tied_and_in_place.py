from __future__ import annotations

import pytest
import torch

from luthier.adapt.attach import attach
from luthier.adapt.full import Full
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Sites
from luthier.core.errors import Refused
from tests.adapt.tiny import llama, logits, shaken
from tests.tolerance import same


@pytest.mark.parametrize("site", ["lm_head", "*embed_tokens", "lm_head, *embed_tokens"])
def test_a_delta_on_a_tied_weight_unties_and_survives_the_disk(site: str, tmp_path):
    from transformers import LlamaForCausalLM

    model = llama(tied=True)
    kinds = ("linear", "embedding") if "," in site else ("linear",)
    handle = attach(model, LoRA(rank=2), Sites(site, kinds=kinds))
    shaken(handle)
    want = logits(model)
    merged = handle.merged()
    assert merged.keys() == {"lm_head.weight", "model.embed_tokens.weight"}
    assert handle.config_changes() == {"tie_word_embeddings": False}
    handle.merge_into_model()
    same(logits(model), want)
    model.save_pretrained(tmp_path)
    same(logits(LlamaForCausalLM.from_pretrained(tmp_path).eval()), want)


def test_training_a_tied_weight_in_place_keeps_the_tie(tmp_path):
    from transformers import LlamaForCausalLM

    model = llama(tied=True)
    handle = attach(model, Full(), "lm_head")
    shaken(handle)
    assert [n for n, _ in handle.named_parameters()] == ["model.embed_tokens.weight"]
    assert handle.merged().keys() == {"model.embed_tokens.weight"}
    want = logits(model)
    with pytest.raises(Refused, match="embed_tokens"):
        attach(model, LoRA(), "*embed_tokens")
    handle.merge_into_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path).eval()), want)


def test_without_a_base_copy_nothing_pretends_to_have_one():
    model = llama()
    handle = attach(model, Full(), keep_base=False)
    assert handle.describe()["base_copy_bytes"] == 0
    with pytest.raises(Refused, match="keep_base=True"), handle.disabled():
        pass
    with pytest.raises(Refused, match="merge_into_model"):
        handle.detach()
    shaken(handle)
    want = logits(model)
    assert len(handle.merged()) == len(list(model.parameters()))
    handle.merge_into_model()
    assert torch.equal(logits(model), want)
    with pytest.raises(Refused, match="leaves them as they are"):
        attach(model, LoRA(), keep_base=False)


def test_the_base_copy_can_be_given_up_later():
    handle = attach(llama(), Full())
    assert handle.describe()["base_copy_bytes"] == sum(p.numel() * 4 for p in handle.model.parameters())
    handle.forget_base()
    assert handle.describe()["base_copy_bytes"] == 0
    with pytest.raises(Refused, match="forget_base"), handle.disabled():
        pass


def test_only_tensors_that_changed_are_merged():
    handle = attach(llama(), Full())
    assert handle.merged() == {}
    with torch.no_grad():
        dict(handle.named_parameters())["model.norm.weight"][3] += 1
    assert handle.merged().keys() == {"model.norm.weight"}


def test_a_reference_pass_between_forward_and_backward_changes_no_gradient():
    model = llama()
    handle = attach(model, Full())
    shaken(handle)
    logits(model).square().mean().backward()
    want = {n: p.grad.clone() for n, p in handle.named_parameters()}
    model.zero_grad()
    loss = logits(model).square().mean()
    with handle.disabled(), torch.no_grad():
        logits(model)
        with pytest.raises(Refused, match="switched off"):
            handle.state()
    loss.backward()
    assert all(torch.equal(p.grad, want[n]) for n, p in handle.named_parameters())
