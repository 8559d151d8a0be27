"""timestep_experts: denoise as a limit, the formula from parts, ranges, and a real network."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import ConfigError
from luthier.diffusion.schedules._path import Predictor
from luthier.diffusion.schedules.vp import VP
from luthier.diffusion.schedules.weights.min_snr import MinSNR
from luthier.diffusion.train.denoise import Denoise
from luthier.diffusion.train.timestep_experts import TimestepExperts, own_range
from tests.diffusion.align_parts import (
    check_rows_are_independent,
    drawn,
    gradient,
    pair_of,
    real_step,
    terms_of,
    values_of,
)
from tests.tolerance import same


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_the_whole_range_without_consistency_is_denoise(kind):
    policy, _ = pair_of(VP(), kind)
    values = drawn()
    got = values_of(TimestepExperts(consistency=0.0, weighting=MinSNR()), values, {"policy": policy})
    same(got, values_of(Denoise(weighting=MinSNR()), values, {"policy": policy}))


def test_equals_the_formula_in_a_loop():
    policy, base = pair_of()
    values = drawn()
    got = values_of(
        TimestepExperts(low=0.5, high=0.75, stray=0.4, consistency=0.3), values, {"policy": policy, "reference": base}
    )
    for i in range(5):
        u, chance = float(values["uniform"][i, 0]), float(values["uniform"][i, 2])
        u = u if chance < 0.4 else 0.5 + 0.25 * u
        t = policy.path.t_min + u * (policy.path.t_max - policy.path.t_min)
        x0, eps = values["image"][0][i : i + 1], values["noise"][i : i + 1]
        x, when = (1 - t) * x0 + t * eps, torch.tensor([t], dtype=torch.float64)
        out, start = policy(x, when).detach(), base(x, when)
        want = (out - (eps - x0)).square().mean() + 0.3 * (out - start).square().mean()
        assert float(got[i].detach()) == pytest.approx(float(want), rel=1e-9)


def test_at_the_start_the_tie_has_no_gradient():
    policy, base = pair_of(apart=0.0)
    tie = terms_of(TimestepExperts(high=0.25), drawn(), {"policy": policy, "reference": base})[1]
    assert tie.values.abs().max() == 0
    assert gradient(tie.values.sum(), policy).norm() == 0


def test_every_level_lies_in_the_range():
    seen = []
    path = VP()
    model = Predictor(lambda x, t, c: seen.append(t) or x, path, "v")
    terms_of(TimestepExperts(low=0.25, high=0.5, stray=0.0, consistency=0.0), drawn(200), {"policy": model})
    share = (seen[0] - path.t_min) / (path.t_max - path.t_min)
    assert share.min() >= 0.25
    assert share.max() <= 0.5
    assert share.min() < 0.27 < 0.48 < share.max()
    u = torch.rand(10_000)
    assert float((own_range(u, torch.rand(10_000), 0.9, 1.0, 0.2) < 0.9).double().mean()) == pytest.approx(
        0.18, abs=0.02
    )


def test_an_empty_range_is_refused():
    with pytest.raises(ConfigError, match="low < high"):
        TimestepExperts(low=0.5, high=0.5)


def test_rows_are_independent():
    policy, base = pair_of()
    check_rows_are_independent(TimestepExperts(low=0.5), {"policy": policy, "reference": base})


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(TimestepExperts(low=0.5), tmp_path)
    assert got.norm() > 0
    assert policy.forwards == {"policy": 1, "reference": 1}
