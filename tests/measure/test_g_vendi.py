from __future__ import annotations

import math

import pytest
import torch

from luthier.core import MeasureContext
from luthier.core.errors import DataError
from luthier.measure.diversity.g_vendi import GVendi, g_vendi
from tests.measure.fakes import fixed
from tests.tolerance import same

ROWS = [{"prompt": "p"}, {"prompt": "q"}]
F64 = torch.float64


def gradients(n=6, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loop(g):
    """The definition with an eigenvalue decomposition of the kernel, entry by entry."""
    n = len(g)
    kernel = torch.tensor([[float(a @ b / (a.norm() * b.norm())) for b in g] for a in g], dtype=F64)
    values = torch.linalg.eigvalsh(kernel / n).clamp(min=0).tolist()
    return math.exp(-sum(v * math.log(v) for v in values if v > 1e-15))


@pytest.mark.parametrize(("n", "d"), [(6, 4), (4, 9)])
def test_equals_the_loop_by_either_route_and_at_any_length(n, d):
    g = gradients(n, d)
    assert g_vendi(g).item() == pytest.approx(loop(g), rel=1e-9)
    unit = g / g.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(unit.T @ unit / n).clamp(min=0)
    assert g_vendi(g).item() == pytest.approx(
        math.exp(-sum(v * math.log(v) for v in values.tolist() if v > 1e-15)), rel=1e-9
    )
    same(g_vendi(g * torch.linspace(0.1, 50, n, dtype=F64)[:, None]), g_vendi(g))


def test_limits():
    assert g_vendi(gradients(1).repeat(7, 1)).item() == pytest.approx(1.0)
    assert g_vendi(3 * torch.eye(5)).item() == pytest.approx(5.0)
    with pytest.raises(ValueError, match="row 1 of zeros"):
        g_vendi(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_it_reads_what_the_outputs_would_teach_the_base():
    base = fixed({"p": {"a": 1.0}, "q": {"b": 1.0}})
    subject = fixed({"p": {"a": 0.5, "b c": 0.5}, "q": {"b": 0.4, "c": 0.6}}, base)
    asked = []
    real = base.gradients
    base.gradients = lambda ps, rs, **how: asked.append((list(ps), list(rs), how)) or real(ps, rs, **how)
    drawn = subject.generate(["p", "q"], samples=3, role="measure.samples/0")
    (across,) = GVendi(samples=3, dim=32)(subject, ROWS, MeasureContext())
    assert asked == [(["p"] * 3 + ["q"] * 3, [*drawn[0], *drawn[1]], {"dim": 32})]
    sets = [g_vendi(real(["p", "q"], list(texts), dim=32)).item() for texts in zip(*drawn, strict=True)]
    assert across.value == pytest.approx(sum(sets) / 3)
    (per,) = GVendi(scope="per_input", samples=3, dim=32)(subject, ROWS, MeasureContext())
    want = [g_vendi(real([p] * 3, texts, dim=32)).item() for p, texts in zip("pq", drawn, strict=True)]
    assert per.items == pytest.approx(want)


def test_an_output_without_gradient_is_named():
    subject = fixed({"p": {"a": 1.0}, "q": {"b": 1.0}})
    subject.gradients = lambda ps, rs, **how: torch.zeros(len(ps), 4)
    with pytest.raises(DataError, match="none for 'a'"):
        list(GVendi()(subject, ROWS, MeasureContext()))
