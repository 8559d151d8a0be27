"""Protocols: what they promise by default, and that knowing them costs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import luthier.core
from luthier.core import EXACT, LOSSY, NEVER, Batch, Component, Context, Hook, Signals, protocols
from luthier.core.moment import at_moment, moment
from luthier.core.registry import ROOMS
from luthier.core.streams import stream

KINDS = [v for v in vars(protocols).values() if isinstance(v, type) and issubclass(v, Component) and v is not Component]


def test_importing_all_of_core_loads_no_torch_and_no_room():
    code = (
        "import importlib, pkgutil, sys, luthier.core as c\n"
        "[importlib.import_module(f'luthier.core.{m.name}') for m in pkgutil.iter_modules(c.__path__)]\n"
        "heavy = [m for m in sys.modules if m in ('torch', 'numpy', 'pydantic', 'yaml', 'safetensors')]\n"
        "rooms = [m for m in sys.modules if m.startswith('luthier.') and not m.startswith('luthier.core')]\n"
        "assert not heavy + rooms, heavy + rooms"
    )
    source = str(Path(luthier.core.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": source})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", luthier.core.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(luthier.core, name) is not None


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_kind_of_part_has_a_room_and_must_be_written(kind: Any):
    assert kind.room in ROOMS
    calls = [n for n in ("__call__", "build", "feed", "factor", "level", "step", "attach") if n in vars(kind)]
    for name in calls:
        names = [a for a in vars(kind)[name].__annotations__ if a != "return"]
        with pytest.raises(NotImplementedError):
            getattr(kind(), name)(*[None] * len(names))


def test_what_a_merge_says():
    assert (EXACT.kind, EXACT.why) == ("exact", "")
    assert LOSSY("rounds") == ("lossy", "rounds")
    assert NEVER("has a branch") == ("never", "has a branch")


def test_a_hook_holds_nothing_and_a_context_counts_and_draws_by_name():
    assert Hook().state() == {}
    assert Hook().load({}) is None
    assert Hook.may_idle is False
    ctx = Context(step=3, steps=9, seed=7)
    ctx.note(2)
    ctx.note(torch.tensor(5))  # type: ignore[arg-type]
    assert ctx.changed == 7
    drawn = torch.rand(3, generator=ctx.generator("noise"))
    assert torch.equal(drawn, torch.rand(3, generator=stream(7, "noise", 3)))
    assert not torch.equal(drawn, torch.rand(3, generator=Context(4, 9, 7).generator("noise")))


def test_guidance_does_nothing_by_default():
    guide, x = protocols.Guidance(), torch.zeros(2, 1)
    assert guide.condition(None, None) is None
    assert guide.start(x, x, None, None) is x  # type: ignore[arg-type]
    assert guide.guide("net", {}) == "net"  # type: ignore[arg-type, comparison-overlap]
    assert guide.choose(x) is None


def test_annotations_of_the_engine_can_be_resolved():
    """Every name in an annotation exists, so that editors and type checkers can follow it."""
    names = {**vars(torch), "nn": torch.nn, "torch": torch, "Generator": torch.Generator, "Tensor": torch.Tensor}
    for made in [
        *KINDS,
        Batch,
        Signals,
        Context,
        protocols.DecodeView,
        protocols.MeasureContext,
        protocols.DataContext,
    ]:
        for member in vars(made).values():
            if callable(member) and hasattr(member, "__annotations__"):
                get_type_hints(member, {**vars(sys.modules[made.__module__]), **names})


def test_the_moment_ends_with_its_block_even_if_that_fails():
    outer, inner = torch.tensor([0.1]), torch.tensor([0.9])
    assert moment() is None

    def fails() -> None:
        with at_moment(inner):
            assert moment() is inner
            raise RuntimeError

    with at_moment(outer):
        with pytest.raises(RuntimeError):
            fails()
        assert moment() is outer
    assert moment() is None
