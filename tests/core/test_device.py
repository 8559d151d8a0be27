"""Where models go when nothing else says it."""

from __future__ import annotations

import pytest
import torch

from luthier.core.device import fastest


@pytest.mark.parametrize(("there", "goes"), [(None, "cpu"), ("cuda", "cuda"), ("xpu", "xpu"), ("mps", "cpu")])
def test_the_accelerator_unless_it_lacks_float64(monkeypatch: pytest.MonkeyPatch, there: str | None, goes: str):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(there) if there else None)
    assert fastest().type == goes
