from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from luthier.core.errors import NonFinite, Refused
from luthier.merge.executor import merge_tensors
from luthier.merge.search.atlas import ATLAS, Scaled, atlas, factor_gradient, places, scaled
from luthier.merge.task_vectors.task_arithmetic import TaskArithmetic
from tests.merge.tiny import F64, close, equal, near, state
from tests.tolerance import same


def networks(count=3):
    """A small network, fine-tunes of it by hand, and a loss of weights through functional_call."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    g = torch.Generator().manual_seed(1)
    base = {k: v.detach().clone() for k, v in net.state_dict().items()}
    models = [
        {k: v + 0.5 * torch.randn(v.shape, generator=g, dtype=F64) for k, v in base.items()} for _ in range(count)
    ]
    x, y = torch.randn(40, 3, generator=g, dtype=F64), torch.randint(2, (40,), generator=g)
    return base, models, lambda weights: nn.functional.cross_entropy(functional_call(net, dict(weights), (x,)), y)


def test_scaling_equals_the_loop():
    base, models, _ = networks(2)
    name, parts = "0.weight", 3
    part = places(base[name].shape, parts, name, seed=5)
    factors = torch.rand(2, parts, dtype=F64, generator=torch.Generator().manual_seed(2))
    got = scaled(base[name], [m[name] - base[name] for m in models], factors, part)
    for r in range(4):
        for c in range(3):
            p = int(part[r, c])
            own = float(base[name][r, c])
            want = own + sum(float(factors[i, p]) * (float(m[name][r, c]) - own) for i, m in enumerate(models))
            assert float(got[r, c]) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_gradient_equals_autograd_through_the_merge(parts):
    base, models, loss = networks()
    names = list(base)
    part = {n: places(base[n].shape, parts, n, 0) for n in names}
    factors = torch.rand(len(names), 3, parts, generator=torch.Generator().manual_seed(2), dtype=F64).requires_grad_()
    deltas = {n: [m[n] - base[n] for m in models] for n in names}
    through = {n: scaled(base[n], deltas[n], factors[i], part[n]) for i, n in enumerate(names)}
    (want,) = torch.autograd.grad(loss(through), factors)
    leaves = {n: v.detach().requires_grad_() for n, v in through.items()}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for i, (n, g) in enumerate(zip(names, gradients, strict=True)):
        same(factor_gradient(g, deltas[n], part[n], parts), want[i])


def test_no_step_is_the_base_and_equal_factors_are_task_arithmetic():
    base, models, loss = networks()
    found = atlas(base, models, loss, steps=0)
    assert found.weights == (0.0, 0.0, 0.0)
    assert found.score == float(loss(base))
    assert equal(merge_tensors(found.rule, base, models), base)
    for parts in (1, 3):
        even = Scaled(factors={n.removesuffix(".weight"): ((0.3,) * parts,) * 3 for n in base})
        close(merge_tensors(even, base, models), merge_tensors(TaskArithmetic(scale=0.3), base, models), 1e-9, 1e-12)


@pytest.mark.parametrize("parts", [1, 5])
def test_the_loss_falls_and_the_rule_reproduces_it(parts):
    base, models, loss = networks()
    found = atlas(base, models, loss, steps=60, lr=0.05, parts=parts, seed=3)
    assert found.score < float(loss(base)) - 1e-2
    assert found.score < atlas(base, models, loss, steps=60, lr=0.05, parts=1).score + (1e-9 if parts == 1 else 0)
    assert float(loss(merge_tensors(found.rule, base, models))) == pytest.approx(found.score, rel=1e-9)


def test_it_finds_the_factors_of_a_quadratic_for_each_tensor():
    base = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([0.0])}
    models = [
        {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([4.0])},
        {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0])},
    ]
    target = {"a": torch.tensor([1.25, 2.0]), "b": torch.tensor([3.0])}
    found = atlas(
        base, models, lambda w: sum((w[n] - target[n]).square().sum() for n in w), steps=800, lr=0.01, decay=0.0
    )
    factors = {n: torch.tensor(f)[:, 0].tolist() for n, f in found.rule.factors.items()}
    assert factors["a"] == pytest.approx([0.25, 0.5], abs=1e-3)
    assert factors["b"] == pytest.approx([0.75, 0.0], abs=1e-3)


def test_it_works_without_labels():
    """Entropy of the answers as the loss, on a model with integer buffers."""
    base, models, _ = networks()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(5), dtype=F64)

    def entropy(weights):
        p = functional_call(net, {k: v for k, v in weights.items() if k != "count"}, (x,)).softmax(-1)
        return -(p * p.log()).sum(-1).mean()

    count = {"count": torch.arange(3)}
    found = atlas({**base, **count}, [{**m, **count} for m in models], entropy, steps=30, lr=0.05)
    assert found.score < found.trials[0].score
    assert torch.equal(
        merge_tensors(found.rule, {**base, **count}, [{**m, **count} for m in models])["count"], count["count"]
    )


def test_component_and_faults():
    base, models, loss = networks()
    assert ATLAS(steps=2, parts=2)(base, models, loss).weights == atlas(base, models, loss, steps=2, parts=2).weights
    with pytest.raises(NonFinite, match="finite loss; got nan at step 0"):
        atlas(base, models, lambda w: loss(w) * float("nan"), steps=2)
    with pytest.raises(Refused, match="at least one model"):
        atlas(base, [], loss)
    found = atlas(base, models, loss, steps=1)
    with pytest.raises(Refused, match="each of the 2 models"):
        merge_tensors(found.rule, base, models[:2])
    other = state(0)
    with pytest.raises(Refused, match="the tensors it learned on"):
        merge_tensors(found.rule, other, [near(other, i) for i in range(3)])
