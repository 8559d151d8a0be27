from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn

from luthier.adapt.attach import attach, find_sites, handles_of
from luthier.adapt.full import Full
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Sites
from luthier.core.errors import NoEffect, Refused
from tests.adapt.tiny import bert, convolutions, embedding, gpt2, llama, logits, shaken
from tests.tolerance import same


def test_sites_of_a_llama():
    found = {s.name: s for s in find_sites(llama())}
    assert len(found) == 1 + 2 * (7 + 2) + 2
    q, k = found["model.layers.1.self_attn.q_proj"], found["model.layers.0.self_attn.k_proj"]
    assert (q.kind, q.block, q.depth, q.shape, q.head, q.role) == ("linear", 1, 1.0, (32, 32), False, "q_proj")
    assert (k.shape, k.depth) == ((16, 32), 0.0)
    assert (found["model.embed_tokens"].kind, found["model.embed_tokens"].shape) == ("embedding", (32, 40))
    assert found["model.norm"].kind == found["model.layers.0.input_layernorm"].kind == "norm"
    assert found["lm_head"].head
    assert found["lm_head"].shape == (40, 32)


def test_sites_see_transposed_weights_and_kernels_as_they_are():
    found = {s.name: s for s in find_sites(gpt2())}
    assert found["transformer.h.0.attn.c_attn"].shape == (96, 32)
    assert found["transformer.h.0.mlp.c_proj"].shape == (32, 128)
    assert [s.shape for s in find_sites(convolutions()) if s.kind == "conv"] == [(8, 3, 3, 3), (8, 4, 3, 3), (6, 8, 3)]
    assert sum(s.kind == "norm" for s in find_sites(bert())) == 5


def test_a_weight_that_its_parent_reads_itself_is_no_linear_site():
    kinds = {s.name: s.kind for s in find_sites(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8)))}
    assert kinds["0.out_proj"] == "other"
    assert kinds["1"] == "linear"


def test_a_pattern_without_a_match_is_an_error_even_beside_one_that_matches():
    model = llama()
    with pytest.raises(NoEffect, match=r"'\*v_porj' matches 0 of .*Nearest names: v_proj"):
        attach(model, LoRA(), "*q_proj, *v_porj")
    assert handles_of(model) == []
    assert all(p.requires_grad for p in model.parameters())


def test_a_pattern_may_name_an_embedding_without_saying_so():
    with attach(llama(), LoRA(rank=2), "*embed_tokens") as handle:
        assert [s.kind for s in handle.sites] == ["embedding"]
    with pytest.raises(NoEffect, match="embedding"):
        attach(llama(), LoRA(), "*embed_toknes")


def test_all_linear_leaves_the_head_out_unless_it_is_named():
    with attach(llama(), LoRA()) as handle:
        assert len(handle.sites) == 14
        assert not any(s.head for s in handle.sites)
    with attach(llama(), LoRA(), "lm_head") as handle:
        assert handle.sites[0].head


def test_a_scaled_embedding_gets_its_delta_through_the_weight():
    class Scaled(nn.Embedding):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(Scaled(40, 6), nn.Linear(6, 4))
    handle = attach(model, LoRA(rank=2), Sites("0", kinds=("embedding",)))
    shaken(handle)
    want = logits(model)
    handle.merge_into_model()
    same(logits(model), want)


def test_a_replaced_forward_is_refused_since_the_adaptation_would_never_run():
    model = embedding()
    linear = model[1]
    linear.forward = types.MethodType(lambda self, x: x[..., :10], linear)
    with pytest.raises(Refused, match="forward replaced"):
        attach(model, LoRA(), "1, 3")
    assert type(model[3]) is nn.Linear
    assert handles_of(model) == []


def test_a_weight_in_codes_is_refused_where_it_cannot_be_decoded():
    model = embedding()
    model[1].weight = nn.Parameter(torch.zeros(10, 12, dtype=torch.int8), requires_grad=False)
    with pytest.raises(Refused, match="quantised"):
        attach(model, LoRA(), "1")


def test_packed_codes_have_the_shape_of_the_layer():
    """4-bit layers store two codes a byte in one column; choices of rows and columns need the matrix."""
    model = embedding()
    model[1].weight = nn.Parameter(torch.zeros(60, 1, dtype=torch.uint8), requires_grad=False)
    assert {s.name: s.shape for s in find_sites(model)}["1"] == (10, 12)


def test_dropout_acts_in_training_only_and_is_refused_where_it_cannot_act():
    model = llama()
    handle = attach(model, LoRA(rank=2, dropout=0.5))
    shaken(handle)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))
    with pytest.raises(Refused, match="dropout"):
        attach(llama(), LoRA(dropout=0.1), "*embed_tokens")


def test_the_start_depends_on_seed_and_site_only():
    one = dict(attach(llama(), LoRA(rank=2), "*q_proj", seed=3).state())
    two = dict(attach(llama(), LoRA(rank=2), "*v_proj, *q_proj", seed=3).state())
    other = dict(attach(llama(), LoRA(rank=2), "*q_proj", seed=4).state())
    name = "model.layers.1.self_attn.q_proj.a"
    assert torch.equal(one[name], two[name])
    assert not torch.equal(one[name], other[name])


def test_a_model_without_storage_can_be_adapted_for_counting():
    with torch.device("meta"):
        model = convolutions()
    assert attach(model, LoRA(rank=2), Sites("*", kinds=("conv", "linear"))).describe()["trained"] > 0
    assert attach(copy.deepcopy(embedding()).to("meta"), Full()).describe()["percent"] == 100.0


@pytest.mark.slow
def test_a_diffusion_model_is_adapted_in_its_convolutions():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
                        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4).eval()  # fmt: skip
    x = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)

    def run() -> torch.Tensor:
        return model(x, torch.tensor([3, 5])).sample

    before = run()
    handle = attach(model, LoRA(rank=2), Sites("*", kinds=("linear", "conv")))
    assert {s.kind for s in handle.sites} == {"linear", "conv"}
    assert torch.equal(run(), before)
    shaken(handle)
    want = run()
    handle.merge_into_model()
    torch.testing.assert_close(run(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bitsandbytes_layer_is_adapted_and_merges_decoded(bits: int):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    plain = nn.Linear(64, 64)
    four, eight = bnb.nn.Linear4bit, bnb.nn.Linear8bitLt
    made = four(64, 64, compute_dtype=torch.float32) if bits == 4 else eight(64, 64, has_fp16_weights=False)
    made.load_state_dict(plain.state_dict())
    model = nn.Sequential(made.to("cpu"))
    x = torch.randn(5, 64)
    before = model(x)
    handle = attach(model, LoRA(rank=2), "0")
    assert torch.equal(model(x), before)
    shaken(handle)
    want = model(x)
    merged = handle.merged()["0.weight"].float()
    torch.testing.assert_close(x @ merged.T + plain.bias, want, rtol=5e-2, atol=5e-2)
    with pytest.raises(Refused, match="quantised"):
        handle.merge_into_model()
    assert torch.equal(model(x), want)
