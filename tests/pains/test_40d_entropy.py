"""ms-swift #7331: entropy regularisation asked for."""

from __future__ import annotations

import pytest

from tests.pains.parts import trained


@pytest.mark.parametrize("objective", ["nll", "dft"])
def test_a_weight_on_the_entropy_of_any_objective_keeps_predictions_wider(place, objective):
    ends = {}
    for weight in (0.0, 1.0):
        both = [objective, {"entropy_bonus": {"weight": weight}}]
        curve = trained(place, objective=both, train={"steps": 12, "batch": 12, "lr": 3e-2}).outcome.curves
        ends[weight] = -curve[-1]["term/entropy_bonus"]
    assert ends[1.0] > ends[0.0] + 0.1
