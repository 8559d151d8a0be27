"""intruder_dimensions: the authors' count in loops, its exact limits, and a real run."""

from __future__ import annotations

import pytest
import torch

from luthier.adapt.attach import attach
from luthier.adapt.full import Full
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import MeasureContext
from luthier.core.errors import DataError
from luthier.measure.diagnose.intruder_dimensions import IntruderDimensions, intruders
from luthier.models.changes import changed_matrices, changes_of
from tests.adapt.tiny import llama
from tests.measure.fakes import Fake

F64 = torch.float64
D = 64


def spread_spectrum(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W (D, D) with singular values D, D - 1, ..., 1, and its singular vectors as columns."""
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(D, D, generator=g, dtype=F64)).Q for _ in "ab")
    return (left * torch.arange(D, 0, -1, dtype=F64)) @ right.T, left, right


def by_loop(base, tuned, k, epsilon):
    u, v = (torch.linalg.svd(w, full_matrices=False).U for w in (tuned, base))
    found = []
    for j in range(k):
        best = 0.0
        for i in range(v.shape[1]):
            best = max(best, abs(sum(float(a) * float(b) for a, b in zip(u[:, j], v[:, i], strict=True))))
        found.append(best < epsilon)
    return found


@pytest.mark.parametrize("epsilon", [0.3, 0.5, 0.9])
def test_equals_the_loop(epsilon):
    base = torch.randn(12, 9, dtype=F64)
    tuned = base + 0.4 * torch.randn(12, 9, dtype=F64)
    assert intruders(base, tuned, 9, epsilon).tolist() == by_loop(base, tuned, 9, epsilon)


@pytest.mark.parametrize("factor", [1.0, 0.01, 30.0])
def test_a_multiple_of_the_base_has_none(factor):
    base, _, _ = spread_spectrum()
    assert not intruders(base, factor * base, top=D, threshold=0.99).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_one_strong_direction_spread_over_all_is_exactly_one_intruder(sign):
    base, left, right = spread_spectrum()
    even = left.sum(1) / D**0.5
    found = intruders(base, base + sign * 1e4 * torch.outer(even, right[:, 3]), top=10)
    assert found.tolist() == [True] + [False] * 9


@pytest.mark.parametrize("which", [0, 20, D - 1])
def test_a_strong_direction_that_the_base_has_is_none(which):
    base, left, right = spread_spectrum()
    assert not intruders(base, base + 1e4 * torch.outer(left[:, which], right[:, which]), top=10).any()


def test_directions_without_strength_do_not_count():
    base = torch.randn(8, 5, dtype=F64)
    thin = torch.outer(base[:, 0], torch.ones(5, dtype=F64))
    assert len(intruders(base, thin, top=5)) == 1
    assert intruders(torch.zeros(8, 5), base, top=5).tolist() == [True] * 5
    assert len(intruders(base, torch.zeros(8, 5), top=5)) == 0


def test_a_tuned_model_shows_its_changed_matrices_and_only_them():
    model = llama()
    with attach(model, LoRA(rank=1), "*q_proj") as handle:
        assert list(changed_matrices(model, handle)) == []
        with torch.no_grad():
            for _, p in handle.named_parameters():
                p.copy_(torch.randn_like(p))
        before = {k: v.clone() for k, v in model.named_parameters()}
        found = list(changed_matrices(model, handle))
        assert [n.rsplit(".", 1)[1] for n, _, _ in found] == ["q_proj"] * len(found)
        assert all(torch.equal(base, before[f"{n}.weight"]) for n, base, _ in found)
        for _, base, tuned in found:
            assert torch.linalg.matrix_rank((tuned - base).double(), rtol=1e-4) == 1
    with attach(model, Full()) as handle:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        names = [n for n, _, _ in changed_matrices(model, handle)]
        assert len(names) == 7 * model.config.num_hidden_layers
        assert not any("embed" in n or "head" in n for n in names)


def test_readings_count_over_all_matrices():
    base, left, right = spread_spectrum()
    even = left.sum(1) / D**0.5
    pairs = [("a", base, base + 1e4 * torch.outer(even, right[:, 3])), ("b", base, 2 * base)]
    subject = Fake(lambda prompt: {"x": 1.0}, changed=lambda: iter(pairs))
    first, second = IntruderDimensions().report(subject)
    assert (first.name, first.intruders, first.looked_at, first.ranks) == ("a", 1, 10, (1,))
    assert (second.intruders, second.ranks) == (0, ())
    got = {r.name: r.value for r in IntruderDimensions()(subject, [], MeasureContext())}
    assert got == {"intruder_dimensions": 1.0, "intruder_share": 1 / 20}


def test_without_weights_it_says_so():
    subject = Fake(lambda prompt: {"x": 1.0})
    with pytest.raises(DataError, match=r"intruder_dimensions requires a subject that shows its changed matrices"):
        list(IntruderDimensions()(subject, [], MeasureContext()))
    never = type("Never", (LoRA,), {"merge": LoRA.merge._replace(kind="never")})()
    assert changes_of(llama(), None, [never]) is None  # type: ignore[arg-type]
