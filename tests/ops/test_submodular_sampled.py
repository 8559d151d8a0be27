"""Facility location over large pools: the exact greedy where nothing is drawn, its value where it is, and its memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from luthier.data.select.qdit import qdit
from luthier.ops.submodular import cosine_columns, facility_location, facility_location_greedy
from luthier.ops.submodular_sampled import facility_location_sampled, values_alone, witness_rows
from tests.ops.test_submodular import loop_greedy, points
from tests.tolerance import same

F64 = torch.float64


def clusters(n: int, d: int, seed: int) -> torch.Tensor:
    """Points around sixteen directions."""
    g = Generator().manual_seed(seed)
    centres = torch.randn(16, d, generator=g)
    return centres[torch.randint(16, (n,), generator=g)] + 0.5 * torch.randn(n, d, generator=g)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_without_draws_it_is_the_slow_greedy(seed: int, weight: float):
    x = points(14, 3, seed)
    modular = torch.rand(14, generator=Generator().manual_seed(seed + 100), dtype=F64)
    got = facility_location_sampled(x, 6, Generator(), miss=0.0, modular=modular, weight=weight, limit=40)
    similarity = cosine_columns(x)(torch.arange(14))
    assert got.index.tolist() == loop_greedy(similarity, 6, modular.tolist(), weight)
    same(got.gain.sum(), weight * facility_location(cosine_columns(x), got.index) + modular[got.index].sum())


@pytest.mark.parametrize(("witnesses", "least"), [(300, 0.6), (2000, 0.8)])
def test_with_draws_it_reaches_nearly_the_value_of_the_greedy(witnesses: int, least: float):
    x = clusters(2000, 16, 0)
    columns = cosine_columns(x)
    best = float(facility_location(columns, facility_location_greedy(columns, 2000, 40).index))
    by_lot = float(facility_location(columns, torch.randperm(2000, generator=Generator().manual_seed(7))[:40]))
    for seed in range(3):
        picks = facility_location_sampled(x, 40, Generator().manual_seed(seed), witnesses=witnesses)
        assert len(picks.index.unique()) == 40
        reached = float(facility_location(columns, picks.index))
        assert reached > by_lot + least * (best - by_lot)
        assert abs(float(picks.gain.sum()) - reached) <= 2000 * math.sqrt(math.log(2 / 1e-6) / (2 * witnesses))


def test_values_alone_are_those_of_the_witnesses():
    x = points(50, 4, 1)
    columns = cosine_columns(x)
    want = torch.stack([facility_location(columns, torch.tensor([a])) for a in range(50)])
    same(values_alone(x, witness_rows(x, 50, Generator()), limit=60), want)
    seen = witness_rows(x, 10, Generator().manual_seed(0))
    same(values_alone(x, seen), 5 * torch.stack([(seen @ (r / r.norm())).clamp_min(0).sum() for r in x]))


def test_all_rows_in_the_end_each_once_and_the_same_draws_the_same_choice():
    x = clusters(60, 4, 3)
    one = facility_location_sampled(x, 100, Generator().manual_seed(1), witnesses=20)
    assert sorted(one.index.tolist()) == list(range(60))
    two = facility_location_sampled(x, 100, Generator().manual_seed(1), witnesses=20)
    assert torch.equal(one.index, two.index)
    assert facility_location_sampled(x, 0, Generator()).index.tolist() == []


def test_no_block_is_larger_than_the_bound(monkeypatch):
    from luthier.ops import submodular_sampled

    sizes = []
    kept = submodular_sampled._gain

    def watched(rows, seen, best, share):
        sizes.append(rows.shape[0] * seen.shape[0])
        return kept(rows, seen, best, share)

    monkeypatch.setattr(submodular_sampled, "_gain", watched)
    facility_location_sampled(clusters(3000, 8, 0), 30, Generator(), witnesses=100, limit=5000)
    assert max(sizes) <= 5000
    assert sum(sizes) < 1.2 * 3000 * math.log(10) * 100  # n ln(1 / miss) m, not n k m


@pytest.mark.parametrize("bad", [{"witnesses": 0}, {"miss": 1.0}, {"weight": -1.0}])
def test_what_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="witnesses >= 1, miss in"):
        facility_location_sampled(torch.eye(3), 1, Generator(), **bad)


def test_the_selector_is_exact_up_to_its_witnesses_and_says_nothing_else():
    x, quality = clusters(200, 8, 5), torch.rand(200, generator=Generator().manual_seed(0))
    exact = qdit(x, quality, 20, 0.5)
    assert torch.equal(qdit(x, quality, 20, 0.5, witnesses=200).index, exact.index)
    rough = qdit(x, quality, 20, 0.5, witnesses=60, g=Generator().manual_seed(2))
    assert not torch.equal(rough.index, exact.index)
    assert float(rough.gain.sum()) > 0.9 * float(exact.gain.sum())
    assert rough.alone.shape == (200,)
