"""Checks that every adaptation must pass, on real models. `make()` gives a fresh component.

A component is excused from a check only in EXCUSED, with its reason.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.adapt.attach import attach, handles_of
from luthier.core import Adaptation, Sites
from luthier.core.config import as_dict, build_component
from luthier.core.errors import Refused
from tests.adapt.tiny import bits, shaken

Make = Callable[[], Adaptation]
Run = Callable[[nn.Module], Tensor]
EXCUSED: dict[tuple[str, str], str] = {}
EXACT: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
}


def weighted(out: Tensor) -> Tensor:
    """A scalar that depends on every output with another weight."""
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum()


def check_config_round_trips(make: Make) -> None:
    """The component is rebuilt from its plain form, which JSON can hold."""
    import json

    one = make()
    plain = json.loads(json.dumps(as_dict(one)))
    assert build_component(plain, "adapt", "adapt") == one
    assert one.card.faults() == []


def check_starts_at_base(make: Make, model: nn.Module, run: Run, sites: Sites | None) -> None:
    """Attaching changes no output bit, and something trains."""
    before = run(model)
    with attach(model, make(), sites) as handle:
        assert torch.equal(run(model), before)
        assert handle.describe()["trained"] == sum(p.numel() for _, p in handle.named_parameters()) > 0


def check_frozen_base_gets_no_gradient(make: Make, model: nn.Module, run: Run, sites: Sites | None) -> None:
    """What trains is what the handle names, nothing else; every part of it can be reached by a gradient.

    Two steps, since a factor behind a zero has no gradient in the first.
    """
    with attach(model, make(), sites) as handle:
        named = dict(handle.named_parameters())
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in named.values()}
        optimiser, reached = torch.optim.SGD(named.values(), lr=0.05), set()
        for _ in range(2):
            optimiser.zero_grad()
            weighted(run(model)).backward()
            assert all(p.grad is not None for p in named.values())
            reached |= {n for n, p in named.items() if p.grad.any()}
            optimiser.step()
        assert reached == named.keys(), named.keys() - reached


def check_disabled_is_base(make: Make, model: nn.Module, run: Run, sites: Sites | None) -> None:
    """Switched off, the outputs are the base's bit for bit; on again, those of the adaptation; blocks may be nested."""
    before = run(model)
    with attach(model, make(), sites) as handle, torch.no_grad():
        shaken(handle)
        moved = run(model)
        assert not torch.equal(moved, before)
        with handle.disabled():
            assert torch.equal(run(model), before)
            with handle.disabled():
                assert torch.equal(run(model), before)
            assert torch.equal(run(model), before)
        assert torch.equal(run(model), moved)


def check_detach_restores_bits(make: Make, model: nn.Module, run: Run, sites: Sites | None) -> None:
    """After detaching: same modules, classes, attributes, values and gradient flags as before."""
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 != 0)
    shape = [(n, type(m), sorted(m.__dict__)) for n, m in model.named_modules()]
    flags = [(n, p.requires_grad) for n, p in model.named_parameters()]
    values, objects = bits(model), {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    handle = attach(model, make(), sites)
    shaken(handle)
    handle.detach()
    handle.detach()
    assert [(n, type(m), sorted(m.__dict__)) for n, m in model.named_modules()] == shape
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == flags
    assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == objects
    after = bits(model)
    assert after.keys() == values.keys()
    assert all(torch.equal(after[n], values[n]) for n in values)


def check_merge_equals_adapter(make: Make, model: nn.Module, run: Run, sites: Sites | None) -> None:
    """Merged weights in a plain copy give the adapter's outputs; only base weights are given, tied ones once.

    One that can never be merged says so.
    """
    if make().merge.kind == "never":
        with attach(model, make(), sites) as handle, pytest.raises(Refused, match=re.escape(make().merge.why)):
            handle.merged()
        return
    plain = copy.deepcopy(model)
    handle = attach(model, make(), sites)
    shaken(handle)
    with torch.no_grad():
        want = run(model)
        merged, changes = handle.merged(), handle.config_changes()
        assert merged
        assert handle.live
        handle.merge_into_model()
        tolerance = EXACT[want.dtype]
        torch.testing.assert_close(run(model), want, **tolerance)
        assert handles_of(model) == []
        assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
        if not changes:
            base = {n for n, _ in plain.named_parameters()}
            assert merged.keys() <= base
            plain.load_state_dict(merged, strict=False)
            torch.testing.assert_close(run(plain), want, **tolerance)


def check_state_round_trips(make: Make, model: nn.Module, run: Run, sites: Sites | None) -> None:
    """The state, through the bytes of a safetensors file, gives the same outputs in a fresh model."""
    from safetensors.torch import load, save

    fresh = copy.deepcopy(model)
    handle = attach(model, make(), sites, seed=1)
    again = attach(fresh, make(), sites, seed=1)
    shaken(handle)
    state = handle.state()
    again.load(load(save({k: v.contiguous().clone() for k, v in state.items()})))
    with torch.no_grad():
        assert torch.equal(run(fresh), run(model))
    other = again.state()
    assert other.keys() == state.keys()
    assert all(torch.equal(other[k], state[k]) for k in state)


def check_copies_are_apart(make: Make, model: nn.Module, run: Run, sites: Sites | None) -> None:
    """A deep copy has an adaptation of its own; a pickled one gives the same outputs."""
    handle = attach(model, make(), sites)
    shaken(handle)
    with torch.no_grad():
        want = run(model)
        twin = copy.deepcopy(model)
        assert torch.equal(run(twin), want)
        (own,) = handles_of(twin)
        assert own is not handle
        shaken(own)
        assert not torch.equal(run(twin), want)
        assert torch.equal(run(model), want)
        own.detach()
        with handle.disabled():
            base = run(model)
        assert torch.equal(run(twin), base)
        stored = io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        assert torch.equal(run(torch.load(stored, weights_only=False)), want)


def check_fast_form_equals_delta(make: Make, model: nn.Module, run: Run, sites: Sites | None) -> None:
    """Running a delta's fast form equals running the weight W + dW, in value and in every gradient."""
    from luthier.adapt._surgery import WORN

    handle = attach(model, make(), sites)
    shaken(handle)
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for dense in (False, True):
        for module in handle.modules.values():
            module.__dict__[WORN].additive = module.__dict__[WORN].additive and not dense
        out = run(model)
        named = dict(handle.named_parameters())
        grads = torch.autograd.grad(weighted(out), list(named.values()))
        found.append((out.detach(), dict(zip(named, grads, strict=True))))
    (fast, fast_grads), (slow, slow_grads) = found
    torch.testing.assert_close(fast, slow, **EXACT[fast.dtype])
    scale = max(float(g.abs().max()) for g in slow_grads.values())
    for name, grad in fast_grads.items():
        tolerance = EXACT[grad.dtype]
        torch.testing.assert_close(grad, slow_grads[name], rtol=tolerance["rtol"], atol=scale * tolerance["rtol"])


CHECKS: dict[str, Callable[..., Any]] = {
    name: check
    for name, check in list(globals().items())
    if name.startswith("check_") and name != "check_config_round_trips"
}
