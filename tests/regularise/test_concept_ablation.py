"""concept_ablation: the projector, gradients in front of it, who sees it, and the direction finders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.core import Context
from luthier.core.errors import Refused
from luthier.core.files import write_tensors
from luthier.recipes.recipe import parse, recipe_faults
from luthier.recipes.run import run
from luthier.regularise.representation.concept_ablation import (
    ConceptAblation,
    basis,
    block_outputs,
    blocks,
    mean_difference,
    principal,
    without,
)
from tests.adapt.tiny import llama, logits
from tests.tolerance import same

F64 = torch.float64
G = torch.Generator().manual_seed(0)


def test_projector_is_symmetric_idempotent_and_equals_the_loop():
    d, h = torch.randn(2, 5, generator=G, dtype=F64), torch.randn(3, 5, generator=G, dtype=F64)
    q = basis(d)
    p = torch.eye(5, dtype=F64) - q @ q.T
    same(p, p.T)
    same(p @ p, p)
    first = d[0] / d[0].norm()
    second = d[1] - (d[1] @ first) * first
    second = second / second.norm()
    want = torch.stack([row - (row @ first) * first - (row @ second) * second for row in h])
    same(without(h, q), want)
    same(without(h, q) @ d.T, torch.zeros(3, 2, dtype=F64))


def test_the_gradient_in_front_has_no_part_along_the_directions():
    d, h = torch.randn(2, 5, generator=G, dtype=F64), torch.randn(3, 5, generator=G, dtype=F64, requires_grad=True)
    without(h, basis(d)).pow(3).sum().backward()
    same(h.grad @ d.T, torch.zeros(3, 2, dtype=F64))


def test_only_training_passes_are_projected_and_the_end_takes_it_off():
    model = llama()
    plain, d = logits(model), torch.randn(2, 32, generator=G)
    hook = ConceptAblation(directions="given here")
    assert hook.wear(model, {"block.0": d}) == 2
    assert torch.equal(logits(model), plain)
    model.train()
    (seen,) = list(block_outputs(model, [0], (logits(model) for _ in range(1))))
    torch.testing.assert_close(seen[0] @ d.T, torch.zeros(2, 7, 2), rtol=0, atol=1e-5)
    assert not torch.equal(logits(model), plain)
    hook.end(Context(0, 1, 0, model))
    assert torch.equal(logits(model), plain)
    assert all(not m._forward_hooks for m in model.modules())
    assert list(blocks(model)) == [0, 1]


def test_finders():
    rows = torch.randn(200, 6, generator=G, dtype=F64) * torch.tensor([5.0, 3, 1, 1, 1, 1], dtype=F64) + 7
    value, vector = torch.linalg.eigh(torch.cov(rows.T))
    same((principal(rows, 2) @ vector[:, -2:].flip(1)).abs(), torch.eye(2, dtype=F64))
    assert value[-1] > value[-2]
    one, other = torch.tensor([[3.0, 1.0], [3.0, 3.0]]), torch.tensor([[0.0, 2.0]])
    assert mean_difference(one, other).tolist() == [[1.0, 0.0]]


def test_in_a_recipe(tmp_path):
    recipe = {"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "seed": 3,
              "train": {"steps": 3, "batch": 4}}  # fmt: skip
    adapt = {"lora": {"rank": 2}}
    plain = run(parse({**recipe, "adapt": adapt}))
    state = plain.prepared.policy.attached.state()
    width = next(t.shape[1] for n, t in state.items() if n.endswith("q_proj.a"))
    file = tmp_path / "directions.safetensors"
    write_tensors(file, {"block.0": torch.randn(2, width, generator=G)})
    done = run(parse({**recipe, "adapt": adapt, "regularise": {"concept_ablation": {"directions": str(file)}}}))
    assert any(not torch.equal(t, state[n]) for n, t in done.prepared.policy.attached.state().items())
    assert all(not m._forward_hooks for m in done.prepared.policy.view.module.modules())


def test_a_recipe_without_directions_is_refused_by_the_check_of_its_keys():
    plain = {"model": "lab:language", "data": "lab:language/rotate"}
    told = "regularise.concept_ablation: requires the parameter 'directions', which is not given"
    assert told in recipe_faults({**plain, "regularise": "concept_ablation"})
    assert any(
        "at least 1" in f for f in recipe_faults({**plain, "regularise": {"concept_ablation": {"directions": ""}}})
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(Refused, match=r"a file of directions; got 'none\.safetensors', which is none"):
        ConceptAblation(directions="none.safetensors").start(Context(0, 1, 0, nn.Linear(1, 1)))
    with pytest.raises(Refused, match="2 independent directions"):
        basis(torch.ones(2, 3))
    with pytest.raises(Refused, match=r"n one of \[0, 1\]; got 'block.7'"):
        ConceptAblation(directions="given here").wear(llama(), {"block.7": torch.ones(1, 32)})
    model = llama().train()
    ConceptAblation(directions="given here").wear(model, {"block.0": torch.ones(1, 5)})
    with pytest.raises(Refused, match="directions of width 32; got width 5"):
        logits(model)
