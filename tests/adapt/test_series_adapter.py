"""series_adapter: the formula in loops, the linear map it is without a curve, and where it stands."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from luthier.adapt._bottleneck import CURVES, bottleneck
from luthier.adapt.attach import attach
from luthier.adapt.modules.series_adapter import SeriesAdapter
from luthier.core.errors import NoEffect, Refused
from tests.adapt.tiny import bert, gpt2, llama, logits, shaken
from tests.tolerance import same

F64 = torch.float64
LOOPS = {
    "relu": lambda v: max(v, 0.0),
    "tanh": math.tanh,
    "gelu": lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))),
    "silu": lambda v: v / (1 + math.exp(-v)),
    "identity": lambda v: v,
}


@pytest.mark.parametrize("curve", CURVES)
def test_equals_the_loop(curve):
    g = torch.Generator().manual_seed(0)
    sizes = {"down": (3, 5), "up": (4, 3), "down_bias": (3,), "up_bias": (4,), "scale": (1,)}
    p = {k: torch.randn(*size, generator=g, dtype=F64) for k, size in sizes.items()}
    r = torch.randn(2, 5, generator=g, dtype=F64)
    want = torch.zeros(2, 4, dtype=F64)
    for n in range(2):
        hidden = [
            LOOPS[curve](sum(float(p["down"][j, i] * r[n, i]) for i in range(5)) + float(p["down_bias"][j]))
            for j in range(3)
        ]
        for o in range(4):
            total = sum(float(p["up"][o, j]) * hidden[j] for j in range(3)) + float(p["up_bias"][o])
            want[n, o] = 2.0 * float(p["scale"]) * total
    same(bottleneck(r, p, curve, 2.0), want)


def test_the_layer_with_a_series_adapter_is_h_plus_the_bottleneck_of_h():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).double()
    x = torch.randn(3, 6, dtype=F64)
    h = model(x).detach()
    handle = attach(model, SeriesAdapter(bottleneck=2, scaling=0.5, placement="linear"), "0")
    shaken(handle)
    p = {k.rpartition(".")[2]: v for k, v in handle.state().items()}
    same(model(x), h + 0.5 * torch.relu(h @ p["down"].T) @ p["up"].T)


def test_without_a_curve_it_is_a_map_before_the_weight_and_the_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).double()
    w, b = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    handle = attach(model, SeriesAdapter(bottleneck=2, scaling=3.0, activation="identity", placement="linear"), "0")
    shaken(handle)
    p = {k.rpartition(".")[2]: v for k, v in handle.state().items()}
    change = torch.eye(5, dtype=F64) + 3.0 * p["up"] @ p["down"]
    same(handle.merged()["0.weight"], change @ w)
    same(handle.merged()["0.bias"], change @ b)


@pytest.mark.parametrize(
    ("build", "placement", "want"),
    [
        (llama, "mlp", ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]),
        (llama, "attention", ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"]),
        (gpt2, "both", [f"transformer.h.{i}.{n}.c_proj" for i in range(2) for n in ("attn", "mlp")]),
        (bert, "both", [f"encoder.layer.{i}.{n}output.dense" for i in range(2) for n in ("attention.", "")]),
    ],
)
def test_it_stands_on_the_output_projections(build, placement, want):
    assert [s.name for s in attach(build(), SeriesAdapter(placement=placement)).sites] == want


def test_sites_narrow_the_placement_and_seeds_differ_by_place():
    handle = attach(llama(), SeriesAdapter(), "*.1.*")
    assert [s.name for s in handle.sites] == ["model.layers.1.mlp.down_proj"]
    state = attach(llama(), SeriesAdapter()).state()
    downs = [t for n, t in state.items() if n.endswith("down")]
    assert not torch.equal(downs[0], downs[1])


def test_what_cannot_be_is_refused():
    with pytest.raises(NoEffect, match="output projections of mlp sublayers; it found 0 among 2 chosen"):
        attach(llama(), SeriesAdapter(), "*q_proj")
    with pytest.raises(Refused, match="the bottleneck bends its input by relu"):
        attach(model := llama(), SeriesAdapter()).merged()
    assert torch.isfinite(logits(model)).all()
    assert SeriesAdapter(activation="identity").merge.kind == "exact"
    assert "set bias to false" in SeriesAdapter(activation="identity", bias=True).merge.why
