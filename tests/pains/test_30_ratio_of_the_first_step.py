"""trl #4159, #6789, #4772; open-instruct #1473: the sampler's log-probs ignored temperature, the ratio began at 2.0 and drifted."""

from __future__ import annotations

import pytest

from tests.pains.parts import REDNESS, trained


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("micro", [None, 4])
def test_the_ratio_is_one_until_the_policy_moves_whatever_the_temperature(place, temperature, micro):
    """At ratio one the loss of a group is minus the mean of its advantages, which is zero; with rate zero it stays there."""
    rollout = {"group": 4, "max_new": 6, "temperature": temperature, "reuse": 2}
    curves = {
        lr: trained(place, objective={"grpo": {"kl": 0.0}}, reward=REDNESS, rollout=rollout,
                    train={"steps": 4, "batch": 12, "lr": lr, "micro": micro, "clip": 0}).outcome.curves
        for lr in (0.0, 0.1)
    }  # fmt: skip
    assert max(c["grad_norm"] for c in curves[0.1]) > 0
    assert [c["loss"] for c in curves[0.0]] == pytest.approx([0.0] * 4, abs=1e-5)
    assert curves[0.1][0]["loss"] == pytest.approx(0.0, abs=1e-5)
    assert abs(curves[0.1][1]["loss"]) > 1e-4
