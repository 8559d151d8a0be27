"""parallel_adapter: beside a linear layer it is LoRA without a curve; beside a sublayer it reads what the sublayer reads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.adapt.attach import Several, attach, find_sites
from luthier.adapt.lowrank.lora import LoRA
from luthier.adapt.modules.parallel_adapter import ParallelAdapter
from luthier.adapt.peft import Peft
from luthier.core.errors import Refused
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.adapt.tiny import bert, gpt2, llama, logits, shaken
from tests.tolerance import same

F64 = torch.float64


@pytest.mark.parametrize("build", [gpt2, lambda: llama(tied=True), bert])
def test_beside_linear_layers_without_a_curve_it_is_lora(build):
    ours, theirs = build().double(), build().double()
    adapter = attach(ours, ParallelAdapter(bottleneck=3, scaling=0.5, activation="identity", placement="linear"))
    lora = attach(theirs, LoRA(rank=3, alpha=1.5))
    shaken(adapter)
    names = {"down": "a", "up": "b"}
    lora.load({f"{n.rpartition('.')[0]}.{names[n.rpartition('.')[2]]}": t for n, t in adapter.state().items()})
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-9, atol=1e-12)
    want = lora.merged()
    assert adapter.merged().keys() == want.keys()
    assert all(same(t, want[n]) is None for n, t in adapter.merged().items())
    assert [(s, scale) for s, *_, scale in adapter.low_rank()] == [(s, scale) for s, *_, scale in lora.low_rank()]


@pytest.mark.parametrize(("placement", "part"), [("mlp", "mlp"), ("attention", "self_attn")])
def test_beside_a_sublayer_it_adds_what_the_bottleneck_makes_of_the_input(placement, part):
    model = llama(layers=1).double()
    plain = copy.deepcopy(model)
    handle = attach(model, ParallelAdapter(bottleneck=4, scaling=4.0, bias=True, placement=placement))
    assert [s.name for s in handle.sites] == [f"model.layers.0.{part}"]
    shaken(handle)
    p = {k.rpartition(".")[2]: v for k, v in handle.state().items()}

    def beside(module, args, kwargs, out):
        x = args[0] if args else kwargs["hidden_states"]
        more = 4.0 * (torch.relu(x @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"])
        return (out[0] + more, *out[1:]) if isinstance(out, tuple) else out + more

    plain.get_submodule(f"model.layers.0.{part}").register_forward_hook(beside, with_kwargs=True)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-9, atol=1e-12)


def test_the_layers_inside_a_sublayer_stay_free_for_others():
    model = llama()
    attach(model, ParallelAdapter())
    assert [s.name for s in find_sites(model)] == [s.name for s in find_sites(llama())]
    lora = attach(model, LoRA(rank=2), "mlp")
    assert torch.equal(logits(model), logits(llama()))
    shaken(lora)
    assert not torch.equal(logits(model), logits(llama()))


def test_a_learnt_scale_starts_at_one_and_multiplies():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).double()
    x = torch.randn(3, 6, dtype=F64)
    base = model(x).detach()
    handle = attach(model, ParallelAdapter(bottleneck=2, learn_scaling=True, placement="linear"), "0")
    shaken(handle)
    once = model(x).detach() - base
    with torch.no_grad():
        dict(handle.named_parameters())["0.scale"].mul_(2)
    same(model(x) - base, 2 * once)


def test_prefixes_at_attention_are_a_gated_parallel_adapter():
    """softmax over [prefix; keys] is (1 - share) * plain attention + share * attention to the prefix alone."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 4, generator=g, dtype=F64) for n in (3, 5, 5))
    pk, pv = (torch.randn(2, 4, generator=g, dtype=F64) for _ in range(2))
    whole = torch.softmax(q @ torch.cat([pk, k]).T / 2, -1) @ torch.cat([pv, v])
    ours, theirs = (q @ pk.T / 2).exp().sum(-1, keepdim=True), (q @ k.T / 2).exp().sum(-1, keepdim=True)
    share = ours / (ours + theirs)
    adapter = torch.softmax(q @ pk.T / 2, -1) @ pv
    same(whole, (1 - share) * (torch.softmax(q @ k.T / 2, -1) @ v) + share * adapter)


def test_mam_is_a_scaled_parallel_adapter_with_prefixes():
    model = llama()
    base = logits(model)
    beside = attach(model, ParallelAdapter(bottleneck=8, scaling=4.0))
    assert torch.equal(logits(model), base)
    prefixes = attach(model, Peft(method="PREFIX_TUNING", config={"num_virtual_tokens": 3}))
    mam = Several([beside, prefixes])
    before = logits(model)
    shaken(mam)
    out = logits(model)
    assert out.shape == base.shape
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for _, p in mam.named_parameters())
    with mam.disabled():
        assert torch.equal(logits(model), base)
    assert not torch.equal(out, before)
    mam.detach()
    assert torch.equal(logits(model), base)


def test_what_cannot_be_is_refused():
    with pytest.raises(Refused, match=r"neither residual nor norm; got none around encoder\.layer\.0\.output\.dense"):
        attach(bert(), ParallelAdapter())
    with pytest.raises(Refused, match=r"got none around encoder\.layer\.0\.attention\.output\.dense"):
        attach(bert(), ParallelAdapter(placement="attention"))
    assert "set placement to linear" in ParallelAdapter(activation="identity").merge.why
    model = llama()
    attach(model, ParallelAdapter())
    with pytest.raises(Refused, match="is held by"):
        attach(model, ParallelAdapter())


def test_in_a_recipe_beside_lora(tmp_path):
    recipe = {"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "seed": 3,
              "adapt": [{"parallel_adapter": {"bottleneck": 4, "scaling": 4.0}}, {"lora": {"rank": 2, "sites": "attention"}}],
              "train": {"steps": 3, "batch": 4}}  # fmt: skip
    run(parse(recipe), tmp_path)
    assert list(tmp_path.glob("**/*.safetensors"))
