"""diablo: loops, padding as released, and the gradient of a block."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from luthier.adapt.attach import attach
from luthier.adapt.export import export_lora
from luthier.adapt.sparse.diablo import DiaBlo, block_diagonal, block_map, block_shape
from luthier.core import Sites
from luthier.core.config import build_component
from luthier.core.errors import ConfigError, Refused
from tests.adapt.tiny import convolutions, llama
from tests.tolerance import same

F64 = torch.float64
SHAPES = [(8, 8, 4), (6, 9, 3), (10, 100, 6), (100, 10, 6), (5, 7, 3), (4, 4, 64), (3, 8, 64), (5, 7, 1)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("out", "inputs", "blocks"), SHAPES)
def test_delta_and_map_equal_the_loop(out: int, inputs: int, blocks: int):
    """Sizes as in the released code: each side rounded up, then as many blocks as cover the longer side."""
    rows, columns = math.ceil(out / blocks), math.ceil(inputs / blocks)
    number = max(math.ceil(out / rows), math.ceil(inputs / columns))
    assert block_shape(out, inputs, blocks) == (number, rows, columns)
    d = drawn(number, rows, columns)
    want = torch.zeros(out, inputs, dtype=F64)
    for n in range(number):
        for i in range(rows):
            for j in range(columns):
                if n * rows + i < out and n * columns + j < inputs:
                    want[n * rows + i, n * columns + j] = d[n, i, j]
    same(block_diagonal(d, out, inputs), want)
    x = drawn(2, 3, inputs, seed=1)
    same(block_map(x, d, out), x @ want.T)


def test_it_trains_one_nth_of_the_weights():
    handle = attach(llama(), DiaBlo(blocks=4), "*q_proj, *down_proj")
    assert {n: p.numel() for n, p in handle.named_parameters() if ".0." in n} == {
        "model.layers.0.self_attn.q_proj.blocks": 32 * 32 // 4,
        "model.layers.0.mlp.down_proj.blocks": 32 * 48 // 4,
    }


def test_the_gradient_of_a_block_is_that_block_of_the_dense_gradient():
    torch.manual_seed(0)
    layer = nn.Linear(9, 6, dtype=F64)
    x = drawn(20, 9)
    layer(x).square().mean().backward()
    dense = layer.weight.grad
    assert dense is not None
    handle = attach(nn.Sequential(layer), DiaBlo(blocks=3))
    ((_, blocks),) = handle.named_parameters()
    layer(x).square().mean().backward()
    for n in range(3):
        same(blocks.grad[n], dense[2 * n : 2 * n + 2, 3 * n : 3 * n + 3])


@pytest.mark.parametrize("rule", [torch.optim.SGD, torch.optim.Adam])
def test_one_block_is_full_fine_tuning_and_the_rest_never_changes(rule: type[torch.optim.Optimizer]):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4, dtype=F64), nn.Linear(5, 4, dtype=F64)
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    one = attach(nn.Sequential(ours), DiaBlo(blocks=1))
    x, y = drawn(30, 5), drawn(30, 4, seed=1)
    for layer, trained in ((ours, [p for _, p in one.named_parameters()]), (theirs, [theirs.weight])):
        search = rule(trained, lr=0.05)
        for _ in range(20):
            search.zero_grad()
            (layer(x) - y).square().mean().backward()
            search.step()
    same(one.merged()["0.weight"], theirs.weight.detach())
    one.detach()
    handle = attach(nn.Sequential(ours), DiaBlo(blocks=2))
    with torch.no_grad():
        next(iter(handle.named_parameters()))[1].add_(1.0)
    outside = ~torch.block_diag(torch.ones(2, 3), torch.ones(2, 3)).bool()[:, :5]
    assert torch.equal(handle.merged()["0.weight"][outside], start[outside])


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(Refused, match="sites of kind linear; got 0, a conv"):
        attach(convolutions(), DiaBlo(), Sites("0", kinds=("conv",)))
    with pytest.raises(Refused, match="is none"):
        export_lora(attach(llama(), DiaBlo(blocks=4), "*q_proj"), tmp_path / "x", "base")
    with pytest.raises(ConfigError, match="blocks"):
        build_component({"diablo": {"blocks": 0}}, "adapt", "adapt")
