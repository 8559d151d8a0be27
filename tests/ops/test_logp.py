from __future__ import annotations

import pytest
import torch

from luthier.ops.logp import Head, linear_logp, logp_and_entropy
from tests.tolerance import TOL, same


def case(dtype=torch.float64, n=7, h=5, v=11, bias=True):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, h, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(v, h, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    b = torch.randn(v, generator=g, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    return hidden, weight, b, torch.randint(v, (n,), generator=g)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("keep", [0, 1 << 20])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.5, 0.0), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("entropy", [False, True])
def test_values_and_gradients_equal_the_full_logits(dtype, keep, scale, softcap, entropy):
    hidden, weight, bias, target = case(dtype)
    head = Head(weight, bias, scale, softcap)
    logp, ent = linear_logp(hidden, head, target, entropy=entropy, chunk=33, keep=keep)
    want_logp, want_ent = logp_and_entropy(head.logits(hidden), target)
    same(logp, want_logp)
    mix = torch.linspace(-1, 2, 7, dtype=dtype)
    got, want = (logp * mix).sum(), (want_logp * mix).sum()
    if entropy:
        same(ent, want_ent)
        got, want = got + (ent * mix.flip(0)).sum(), want + (want_ent * mix.flip(0)).sum()
    leaves = (hidden, weight, bias)
    for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(a, b, **{k: 10 * x for k, x in TOL[dtype].items()})


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("chunk", [1, 9, 33])
@pytest.mark.parametrize("entropy", [False, True])
def test_any_division_into_rows_and_words_gives_the_same_gradients(monkeypatch, rows, chunk, entropy):
    monkeypatch.setattr("luthier.ops.logp.ROWS", rows)
    hidden, weight, bias, target = case(torch.float64)
    head = Head(weight, bias, 0.7, 4.0)
    found = []
    for logp, ent in (linear_logp(hidden, head, target, entropy=entropy, chunk=chunk, keep=0),
                      logp_and_entropy(head.logits(hidden), target)):  # fmt: skip
        total = logp.square().sum() + (ent.exp().sum() if entropy else 0)
        found.append(torch.autograd.grad(total, (hidden, weight, bias)))
    for a, b in zip(*found, strict=True):
        same(a, b)


@pytest.mark.parametrize("rows", [3, 7])
@pytest.mark.parametrize("keep", [0, 1 << 20])
def test_half_precision_is_summed_in_single(monkeypatch, rows, keep):
    """Within two roundings to bfloat16 of the gradients in float64, however many chunks they are summed over."""
    monkeypatch.setattr("luthier.ops.logp.ROWS", rows)
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [t.detach().to(torch.bfloat16).to(dtype).requires_grad_() for t in case(torch.float64)[:3]]
        logp, ent = linear_logp(leaves[0], Head(*leaves[1:]), case()[3], entropy=True, chunk=9, keep=keep)
        assert logp.dtype == torch.promote_types(dtype, torch.float32)
        found.append(torch.autograd.grad(logp.sum() + ent.sum(), leaves))
    for a, b in zip(*found, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=2**-6, atol=2**-5)


def test_no_rows_and_no_bias():
    hidden, weight, _, _ = case(bias=False)
    logp, _ = linear_logp(hidden[:0], Head(weight), torch.zeros(0, dtype=torch.long))
    assert logp.shape == (0,)
    logp.sum().backward()
    assert weight.grad is not None and weight.grad.abs().max() == 0


def test_extreme_logits_stay_finite():
    hidden, weight, bias, target = case(torch.float32)
    logp, ent = linear_logp(hidden * 1e4, Head(weight, bias), target, entropy=True)
    assert torch.isfinite(logp).all() and torch.isfinite(ent).all()
    (logp.sum() + ent.sum()).backward()
    assert torch.isfinite(hidden.grad).all()


def test_chunks_never_hold_the_full_logits():
    """The largest tensor made is a chunk: 300 rows x 2000 words are never in memory together."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and func is not torch.ops.aten.detach.default:
                largest = max(largest, out.numel())
            return out

    hidden, weight = torch.randn(300, 4, requires_grad=True), torch.randn(2000, 4, requires_grad=True)
    with Watch():
        logp, _ = linear_logp(hidden, Head(weight), torch.randint(2000, (300,)), chunk=20_000, keep=0)
        logp.sum().backward()
    assert largest <= 20_000
