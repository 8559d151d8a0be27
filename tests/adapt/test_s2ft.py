"""s2ft: slices of full gradients, whole heads, co-permutation, export, and its limits."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.adapt._sites import geometry
from luthier.adapt.attach import attach
from luthier.adapt.export import export_lora
from luthier.adapt.sparse.s2ft import S2FT, channels, co_permuted
from luthier.core import Batch
from luthier.core.errors import NoEffect, Refused
from tests.adapt.sparse_tools import GivenLosses, trained
from tests.adapt.tiny import IDS, bert, convolutions, gpt2, llama, logits, shaken
from tests.tolerance import same

F64 = torch.float64


def test_channels_equal_the_loop():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0])
    order = sorted(range(4), key=lambda i: (-scores[i].item(), i))
    for count in (1, 2, 3):
        want = sorted(u * 5 + c for u in order[:count] for c in range(5))
        assert channels(scores, count, 5).tolist() == want


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("build", [llama, gpt2, bert])
def test_heads_are_whole_and_every_layer_gets_its_share(build, side: str):
    handle = attach(build(), S2FT(ratio=0.3, side=side), seed=4)
    layers = {"llama": (4, 6), "gpt2": (4, 2), "bert": (4, 4)}[build.__name__]
    assert len(handle.sites) == layers[side == "out"]
    axis = 1 if side == "in" else 0
    for site in handle.sites:
        width = 8 if "attn" in site.name or "attention" in site.name else 1
        index = handle.modules[site.name].adapted.index.long()
        assert len(index) == math.ceil(0.3 * site.shape[axis] / width) * width
        heads = index.view(-1, width)
        assert torch.equal(heads, heads[:, :1] // width * width + torch.arange(width))


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_partial_gradients_are_slices_of_the_full_ones_and_no_full_one_is_made(build, side: str):
    model = build().double()
    plain = copy.deepcopy(model)
    handle = attach(model, S2FT(ratio=0.3, side=side))
    logits(model).square().mean().backward()
    logits(plain).square().mean().backward()
    for site, module in handle.modules.items():
        full = geometry(module).matrix(plain.get_submodule(site).weight.grad)
        value, index = module.adapted["value"], module.adapted.index.long()
        torch.testing.assert_close(
            value.grad, full.index_select(1 if side == "in" else 0, index), rtol=1e-7, atol=1e-10
        )
        assert module.weight.grad is None


def test_the_backward_pass_keeps_the_chosen_inputs_only():
    layer = nn.Linear(64, 48, bias=False)
    model = nn.Sequential(nn.Linear(8, 64), layer)
    attach(model, S2FT(ratio=4 / 64), "1")
    x = model[0](torch.randn(5, 8)).detach()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    assert sorted(tuple(t.shape) for t in saved if t.numel() > 20) == []  # 5 x 4 chosen inputs, 4 positions
    assert (5, 4) in [tuple(t.shape) for t in saved]


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("side", ["in", "out"])
def test_a_ratio_of_one_is_full_training_of_these_weights(side: str, optimiser: type[torch.optim.Optimizer]):
    model = gpt2().double()
    plain = copy.deepcopy(model)
    handle = attach(model, S2FT(ratio=1.0, side=side))
    for n, p in plain.named_parameters():
        p.requires_grad_(n.removesuffix(".weight") in handle.modules)
    for one in (model, plain):
        trained(one, logits, optimiser, lr=0.01)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-7, atol=1e-9)


def test_unchosen_weights_keep_their_bits_under_weight_decay():
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3] = -0.0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = attach(model, S2FT(ratio=0.1))
    trained(model, logits, torch.optim.AdamW, lr=0.05, weight_decay=0.1)
    chosen = {f"{n}.weight": m.adapted.index.long() for n, m in handle.modules.items()}
    handle.merge_into_model()
    for name, p in model.named_parameters():
        differs = p.detach().view(torch.int32) != before[name].view(torch.int32)
        columns = differs.any(0).nonzero()[:, 0].tolist() if name in chosen else []
        assert columns == (chosen[name].tolist() if name in chosen else [])
        assert name in chosen or not differs.any()


def test_co_permutation_leaves_the_block_as_it_is_and_makes_the_slice_contiguous():
    model = llama().double()
    want = logits(model)
    handle = attach(model, S2FT(ratio=0.3))
    for layer, block in enumerate(model.model.layers):
        at = handle.modules[f"model.layers.{layer}.mlp.down_proj"].adapted.index.long()
        order = torch.cat([at, torch.tensor([c for c in range(48) if c not in at.tolist()])])
        mlp = block.mlp
        (up, gate), down = co_permuted([mlp.up_proj.weight, mlp.gate_proj.weight], mlp.down_proj.weight, order)
        assert torch.equal(down[:, : len(at)], mlp.down_proj.weight[:, at])
        for module, w in ((mlp.up_proj, up), (mlp.gate_proj, gate), (mlp.down_proj, down)):
            module.weight.data = w
    handle.detach()
    torch.testing.assert_close(logits(model), want, rtol=1e-9, atol=1e-12)


def test_heads_may_be_co_permuted_too():
    """Each output head with its value head; keys and queries alike, no grouping."""
    model = llama(num_key_value_heads=4).double()
    want, order = logits(model), torch.tensor([2, 0, 3, 1])
    wide = channels(torch.zeros(4), 4, 8).view(4, 8)[order].flatten()
    for block in model.model.layers:
        a = block.self_attn
        writes, reads = co_permuted([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight], a.o_proj.weight, wide)
        for module, w in zip((a.q_proj, a.k_proj, a.v_proj, a.o_proj), (*writes, reads), strict=True):
            module.weight.data = w
    torch.testing.assert_close(logits(model), want, rtol=1e-6, atol=1e-7)  # float32 inside a Llama's norms


@dataclass
class Given(GivenLosses):
    """Forward passes on given tokens with a mask."""

    mask: torch.Tensor | None = None

    def forwards(self) -> Iterator[Batch]:
        for loss in self.losses:
            with torch.no_grad():
                loss()
            yield Batch("", {"attention_mask": self.mask} if self.mask is not None else {}, ())


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("how", ["weight", "activation", "product", "gradient"])
def test_choices_equal_loops(how: str, smallest: bool):
    model = llama(layers=1).double()
    base = copy.deepcopy(model)
    handle = attach(model, S2FT(ratio=0.25, choose=how, smallest=smallest, batches=1))
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    seen: dict[str, torch.Tensor] = {}
    for name in handle.modules:
        base.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: seen.update({name: x[0].detach()}))
    logits(base).square().mean().backward()
    if how != "weight":
        handle.calibrate(Given([lambda: logits(model).square().mean()], mask=mask))
    for name, module in handle.modules.items():
        w, x, grad = module.weight, seen[name][mask != 0], base.get_submodule(name).weight.grad
        width = 8 if "attn" in name else 1
        scores = []
        for unit in range(w.shape[1] // width):
            at = range(unit * width, (unit + 1) * width)
            weight = math.sqrt(sum(float(w[i, j]) ** 2 for i in range(w.shape[0]) for j in at))
            carried = math.sqrt(sum(float(v) ** 2 for row in x for v in row[list(at)]))
            steep = math.sqrt(sum(float(grad[i, j]) ** 2 for i in range(w.shape[0]) for j in at))
            scores.append(
                {"weight": weight, "activation": carried, "product": weight * carried, "gradient": steep}[how]
            )
        order = sorted(range(len(scores)), key=lambda u: scores[u] if smallest else -scores[u])
        want = sorted(u * width + c for u in order[: math.ceil(0.25 * len(scores))] for c in range(width))
        assert module.adapted.index.tolist() == want
    assert S2FT(choose=how).calibration == (0 if how == "weight" else 4)
    assert not IDS.requires_grad


@pytest.mark.parametrize("side", ["in", "out"])
def test_base_plus_the_exported_delta_is_the_tuned_model(side: str):
    model = llama()
    handle = attach(model, S2FT(ratio=0.2, side=side))
    shaken(handle)
    for name, value in handle.merged().items():
        module, site = model.get_submodule(name.removesuffix(".weight")), name.removesuffix(".weight")
        w, p = module.weight.detach(), handle.modules[site].adapted
        want = w.clone()
        for k, c in enumerate(p.index.tolist()):
            if side == "in":
                want[:, c] += p["value"][:, k]
            else:
                want[c] += p["value"][k]
        same(value, want.detach())


@pytest.mark.parity
@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_peft_reads_it_as_a_lora(build, side: str, tmp_path: Path):
    from peft import PeftModel

    model = build()
    handle = attach(model, S2FT(ratio=0.2, side=side))
    shaken(handle)
    export_lora(handle, tmp_path / "adapter", "somewhere/base")
    same(logits(PeftModel.from_pretrained(build(), str(tmp_path / "adapter")).eval()), logits(model))


def test_the_choice_travels_with_the_state():
    """A run's choice by data is restored by load, whatever was drawn at attaching."""
    model, fresh = llama(), llama()
    handle, again = attach(model, S2FT(ratio=0.2), seed=1), attach(fresh, S2FT(ratio=0.2), seed=2)
    shaken(handle)
    again.load(handle.state())
    assert torch.equal(logits(fresh), logits(model))


def test_models_without_heads_or_channels_are_refused():
    with pytest.raises(NoEffect, match=r"it knows none of this model's\. Name them with sites"):
        attach(convolutions(), S2FT())
    model = llama()
    model.config.head_dim = 7
    before = {n: type(m) for n, m in model.named_modules()}
    with pytest.raises(Refused, match=r"heads of one size at .*o_proj"):
        attach(model, S2FT())
    assert {n: type(m) for n, m in model.named_modules()} == before


def test_a_run_chooses_by_its_own_activations():
    from luthier.recipes.build import prepare
    from luthier.recipes.recipe import parse
    from luthier.train.loop import Loop

    made = prepare(parse({"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "seed": 1,
                          "adapt": {"s2ft": {"ratio": 0.1, "choose": "product", "batches": 2}},
                          "train": {"steps": 2, "batch": 4}}))  # fmt: skip
    loop = Loop(made.job)
    loop.run()
    assert loop.cost()["forwards_calibration"] == 2
    assert all(p.abs().sum() > 0 for _, p in made.policy.attached.named_parameters())
