"""loha: loops, its limits, parity with peft, and its form as a LoRA of rank r^2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.adapt.attach import attach
from luthier.adapt.export import export_lora
from luthier.adapt.lowrank.loha import LoHa, as_factors, hadamard
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Sites
from luthier.core.config import build_component
from luthier.core.errors import ConfigError, Refused
from tests.adapt.tiny import convolutions, embedding, gpt2, llama, logits, pixels, shaken
from tests.tolerance import same

F64 = torch.float64


def factors(out: int, inputs: int, r: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=F64, generator=g) for shape in [(out, r), (r, inputs)] * 2]


def test_delta_equals_the_loop_and_its_factors():
    b1, a1, b2, a2 = made = factors(4, 5, 2)
    want = torch.zeros(4, 5, dtype=F64)
    for i in range(4):
        for j in range(5):
            one = sum(b1[i, k] * a1[k, j] for k in range(2))
            two = sum(b2[i, k] * a2[k, j] for k in range(2))
            want[i, j] = 1.5 * one * two
    loha, p = LoHa(rank=2, alpha=3.0), {"b1": b1, "a1": a1, "b2": b2, "a2": a2}
    same(loha.delta(want, p), want)
    left, right = as_factors(*made)
    assert left.shape == (4, 4) and right.shape == (4, 5)
    same(1.5 * left @ right, want)


@pytest.mark.parametrize("width", [6, 40])
def test_both_ways_of_running_equal_the_delta(width: int):
    """Rank 9: thin beside 40 x 40, not beside 6 x 6."""
    b1, a1, b2, a2 = factors(width, width, 3)
    p, w = {"b1": b1, "a1": a1, "b2": b2, "a2": a2}, torch.zeros(width, width, dtype=F64)
    x = torch.randn(7, width, dtype=F64, generator=torch.Generator().manual_seed(2))
    same(LoHa(rank=3).forward(x, w, p), x @ LoHa(rank=3).delta(w, p).T)


@pytest.mark.parametrize("r", [1, 2, 3])
def test_the_rank_is_the_square_of_r(r: int):
    assert torch.linalg.matrix_rank(hadamard(*factors(20, 30, r))) == r * r
    assert torch.linalg.matrix_rank(hadamard(*factors(5, 30, 3))) == 5


def test_a_product_of_ones_leaves_lora():
    _, _, b2, a2 = factors(4, 5, 2)
    ones = {"b1": torch.full((4, 2), 0.5, dtype=F64), "a1": torch.ones(2, 5, dtype=F64)}
    w = torch.zeros(4, 5, dtype=F64)
    want = LoRA(rank=2, alpha=2.0).delta(w, {"a": a2, "b": b2})
    same(LoHa(rank=2, alpha=2.0).delta(w, {**ones, "b2": b2, "a2": a2}), want)


def test_starting_values():
    p = LoHa(rank=16).init(torch.zeros(300, 500), torch.Generator().manual_seed(0))
    assert float(p["b1"].std()) == pytest.approx(0.1, rel=0.05)
    assert float(p["a1"].std()) == pytest.approx(1.0, rel=0.05)
    assert float(p["a2"].std()) == pytest.approx(1.0, rel=0.05)
    assert not p["b2"].any()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="rank"):
        build_component({"loha": {"rank": 0}}, "adapt", "adapt")
    with pytest.raises(Refused, match="sites of kind linear or conv; got 0, a embedding"):
        attach(embedding(), LoHa(), Sites("0", kinds=("embedding",)))


# --------------------------------------------------------------- parity with peft
CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "llama": (llama, logits, ["q_proj", "down_proj"]),
    "convolutions": (lambda: nn.Sequential(*list(convolutions())[:2]), pixels, ["0"]),
    "one-dimensional": (lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 3, padding=2, dilation=2)), pixels, ["1"]),
}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_forward_gradient_and_merge_equal_peft(case: str):
    from peft import LoHaConfig, get_peft_model

    build, run, targets = CASES[case]
    model = build().double()
    other = copy.deepcopy(model)
    handle = attach(model, LoHa(rank=2, alpha=3.0), Sites(",".join(f"*{t}" for t in targets), kinds=("linear", "conv")))
    shaken(handle)
    twin = get_peft_model(other, LoHaConfig(r=2, alpha=3.0, target_modules=targets)).eval()
    names = {"b1": "hada_w1_a", "a1": "hada_w1_b", "b2": "hada_w2_a", "a2": "hada_w2_b"}
    state = handle.state()
    for site in handle.sites:
        layer = twin.base_model.model.get_submodule(site.name)
        for ours, theirs in names.items():
            getattr(layer, theirs)["default"].data = state[f"{site.name}.{ours}"].clone()
    out, want = run(model), run(twin)
    assert (out - want).abs().max() < 1e-12
    out.square().mean().backward()
    want.square().mean().backward()
    for name, p in handle.named_parameters():
        site, _, part = name.rpartition(".")
        grad = getattr(twin.base_model.model.get_submodule(site), names[part])["default"].grad
        assert (p.grad - grad).abs().max() < 1e-12
    plain = dict(twin.merge_and_unload().named_parameters())
    for name, weight in handle.merged().items():
        assert (weight - plain[name]).abs().max() < 1e-12


@pytest.mark.parity
@pytest.mark.parametrize("case", ["llama", "gpt2", "convolutions"])
def test_it_is_exported_as_a_lora_of_rank_r_squared(case: str, tmp_path: Path):
    from peft import PeftModel

    build, run, pattern = {"llama": (llama, logits, "*q_proj"), "gpt2": (gpt2, logits, "*c_attn"),
                           "convolutions": (lambda: convolutions()[:1], pixels, "0")}[case]  # fmt: skip
    model = build()
    handle = attach(model, LoHa(rank=2), Sites(pattern, kinds=("linear", "conv")))
    shaken(handle)
    export_lora(handle, tmp_path / "a", "somewhere/base")
    again = PeftModel.from_pretrained(build(), str(tmp_path / "a")).eval()
    assert again.peft_config["default"].r == 4
    same(run(again), run(model))


def test_half_precision_changes_too_small_for_the_weight_still_act():
    """W + dW would round them away; dW is applied to the input instead."""
    model = convolutions().bfloat16()[:2]
    x = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.bfloat16).view(2, 3, 8, 8)
    handle = attach(model, LoHa(rank=4, alpha=1e-3), Sites("0", kinds=("conv",)))
    shaken(handle)
    layer: Any = handle.modules["0"]
    assert layer.__dict__["_luthier_worn"].additive
    model(x).float().sum().backward()
    assert all(p.grad.abs().max() > 0 for _, p in handle.named_parameters())
