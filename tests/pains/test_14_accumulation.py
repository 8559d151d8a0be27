"""LLaMA-Factory #7443, #7743, #6639: one batch, first loss 6.4 at accumulation 2 and 138 at accumulation 32."""

from __future__ import annotations

import pytest

from tests.pains.parts import trained


@pytest.mark.parametrize("objective", ["nll", "dpo"])
def test_the_first_loss_and_gradient_do_not_depend_on_the_accumulation(place, objective):
    rows = "pairs" if objective == "dpo" else "chat"
    first = [
        trained(place, rows, objective=objective, train={"steps": 1, "batch": 24, "micro": micro}).outcome.curves[0]
        for micro in (24, 12, 5, 1)
    ]
    for other in first[1:]:
        assert other["loss"] == pytest.approx(first[0]["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(first[0]["grad_norm"], rel=1e-4)
