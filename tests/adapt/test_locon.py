"""locon: loops, the Tucker form as three convolutions, its limits, and parity with peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from luthier.adapt.attach import attach
from luthier.adapt.export import export_lora
from luthier.adapt.lowrank.locon import LoCon
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Sites
from luthier.core.errors import Refused
from tests.adapt.tiny import convolutions, llama, logits, pixels, shaken
from tests.tolerance import same

F64 = torch.float64
BOTH = ("linear", "conv")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def image() -> nn.Module:
    """A 3 x 3 convolution with stride, a 1 x 1 one, and one over time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 6, 1), nn.Flatten(2), nn.Conv1d(6, 8, 3)
    ).eval()


def test_the_tucker_delta_equals_the_loop():
    core, a, b = drawn(2, 2, 3, 2), drawn(2, 4, seed=1), drawn(5, 2, seed=2)
    want = torch.zeros(5, 4, 3, 2, dtype=F64)
    for o in range(5):
        for c in range(4):
            for y in range(3):
                for x in range(2):
                    terms = [b[o, i] * core[i, j, y, x] * a[j, c] for i in range(2) for j in range(2)]
                    want[o, c, y, x] = 1.5 * sum(terms)
    locon, p = LoCon(conv_rank=2, conv_alpha=3.0, tucker=True), {"conv_a": a, "core": core, "conv_b": b}
    same(locon.delta(want, p), want.flatten(1))
    assert torch.linalg.matrix_rank(locon.delta(want, p)) == 2


@pytest.mark.parametrize("tucker", [False, True])
def test_it_runs_as_a_chain_of_convolutions(tucker: bool):
    model, x = image().double(), drawn(2, 3, 9, 9)
    before = model[0](x)
    handle = attach(model, LoCon(conv_rank=3, conv_alpha=6.0, tucker=tucker), Sites("0", BOTH))
    shaken(handle)
    p = {k.removeprefix("0."): v for k, v in handle.state().items()}
    if tucker:
        thin = F.conv2d(F.conv2d(x, p["conv_a"][:, :, None, None]), p["core"], stride=2, padding=1)
    else:
        thin = F.conv2d(x, p["conv_a"].view(3, 3, 3, 3), stride=2, padding=1)
    same(model[0](x) - before, 2.0 * F.conv2d(thin, p["conv_b"][:, :, None, None]))


def test_without_ranks_of_their_own_it_is_lora():
    ours, theirs = image().double(), image().double()
    one = attach(ours, LoCon(rank=2, alpha=3.0, rank_stabilised=True), "*", seed=3)
    two = attach(theirs, LoRA(rank=2, alpha=3.0, rank_stabilised=True), Sites("*", BOTH), seed=3)
    shaken(one)
    shaken(two)
    names = {"conv_a": "a", "conv_b": "b"}
    state = {f"{n.rpartition('.')[0]}.{names.get(n.rpartition('.')[2], n.rpartition('.')[2])}": v
             for n, v in one.state().items()}  # fmt: skip
    two.load(state)
    same(pixels(ours), pixels(theirs))


def test_ranks_scales_and_pairs_by_kernel():
    handle = attach(image(), LoCon(rank=2, alpha=4.0, conv_rank=3, conv_alpha=12.0))
    shapes = {n: tuple(p.shape) for n, p in handle.named_parameters()}
    assert shapes == {"0.conv_a": (3, 27), "0.conv_b": (16, 3), "2.a": (2, 16), "2.b": (6, 2),
                      "4.conv_a": (3, 18), "4.conv_b": (8, 3)}  # fmt: skip
    pairs = {site: (tuple(a.shape), tuple(b.shape), s) for site, a, b, s in handle.low_rank()}
    assert pairs == {"0": ((3, 27), (16, 3), 4.0), "2": ((2, 16), (6, 2), 2.0), "4": ((3, 18), (8, 3), 4.0)}
    handle.detach()
    assert [site for site, *_ in attach(image(), LoCon(tucker=True)).low_rank()] == ["2"]


def test_dropout_is_refused_where_it_cannot_act():
    with pytest.raises(Refused, match="dropout = 0 where the delta acts through the weight; got dropout at 2"):
        attach(convolutions(), LoCon(dropout=0.1))
    handle = attach(image().train(), LoCon(dropout=0.5))
    shaken(handle)
    assert not torch.equal(pixels(handle.model), pixels(handle.model))


@pytest.mark.parity
def test_forward_gradient_and_merge_equal_peft():
    from peft import LoraConfig, get_peft_model

    model = image().double()
    other = copy.deepcopy(model)
    handle = attach(model, LoCon(rank=2, alpha=3.0, conv_rank=3, conv_alpha=5.0))
    shaken(handle)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0", "2", "4"], rank_pattern={"0": 3, "4": 3},
                        alpha_pattern={"0": 5, "4": 5})  # fmt: skip
    twin = get_peft_model(other, config).eval()
    theirs: dict[str, Any] = {}
    for name, value in handle.state().items():
        site, _, part = name.rpartition(".")
        layer = twin.base_model.model.get_submodule(site)
        theirs[name] = getattr(layer, "lora_A" if part.endswith("a") else "lora_B")["default"].weight
        theirs[name].data = value.reshape(theirs[name].shape).clone()
    out, want = pixels(model), pixels(twin)
    assert (out - want).abs().max() < 1e-12
    out.square().mean().backward()
    want.square().mean().backward()
    for name, p in handle.named_parameters():
        assert (p.grad - theirs[name].grad.reshape(p.shape)).abs().max() < 1e-12
    plain = dict(twin.merge_and_unload().named_parameters())
    for name, weight in handle.merged().items():
        assert (weight - plain[name]).abs().max() < 1e-12


@pytest.mark.parity
@pytest.mark.parametrize(
    "given", [{"rank": 2, "conv_rank": 3, "conv_alpha": 5.0}, {"rank": 2, "tucker": True}], ids=str
)
def test_peft_reads_the_export(given: dict[str, Any], tmp_path: Path):
    from peft import PeftModel

    handle = attach(image(), LoCon(**given))
    shaken(handle)
    export_lora(handle, tmp_path / "a", "somewhere/base")
    same(pixels(PeftModel.from_pretrained(image(), str(tmp_path / "a")).eval()), pixels(handle.model))


def test_a_model_without_convolutions_is_served():
    model = llama()
    handle = attach(model, LoCon(rank=2))
    shaken(handle)
    assert {s.kind for s in handle.sites} == {"linear"}
    assert not any(s.head for s in handle.sites)
    assert torch.isfinite(logits(model)).all()
