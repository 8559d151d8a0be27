from __future__ import annotations

import math

import pytest
import torch

from luthier.ops.novelty import local_density, novelselect, novelsum, novelty
from tests.tolerance import same

F64 = torch.float64


def points(n=10, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def cosine(a, b):
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def loop_density(x, reference, neighbours, power):
    """Slow reference of the density."""
    kept = {tuple(r) for r in reference.tolist()}
    out = []
    for row in x.tolist():
        far = sorted(
            sum((p - q) ** 2 for p, q in zip(row, other, strict=True)) for other in kept if other != tuple(row)
        )
        near = far[:neighbours]
        out.append((sum(near) / len(near) + 1e-9) ** -power)
    return out


def loop_novelty(x, sigma, power):
    """Slow reference of each row's novelty."""
    out = []
    for row, s in zip(x.tolist(), sigma, strict=True):
        far = sorted(s * cosine(row, other) for other in x.tolist())
        weights = [(r + 1) ** -power for r in range(len(far))]
        out.append(sum(w * f for w, f in zip(weights, far, strict=True)) / sum(weights))
    return out


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_density_equals_the_loop(power):
    x, other = points(), torch.cat([points(25, seed=1), points(10)[:4], points(10)[:2]])
    for reference in (x, other):
        want = loop_density(x, reference, 5, power)
        same(local_density(x, reference, 5, power), torch.tensor(want, dtype=F64))
    same(local_density(x, other, 5, power, limit=7), local_density(x, other, 5, power))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_novelty_equals_the_loop(power):
    x = points()
    sigma = loop_density(x, x, 3, 0.5)
    want = torch.tensor(loop_novelty(x, sigma, power), dtype=F64)
    got = novelty(x, local_density(x, None, 3, 0.5), power)
    same(got, want)
    same(novelsum(x, local_density(x, None, 3, 0.5), power), want.mean())
    same(novelty(x, local_density(x, None, 3, 0.5), power, limit=3), want)


def test_without_powers_it_is_the_mean_of_the_cosine_distance_matrix():
    x = points()
    matrix = torch.tensor([[cosine(a, b) for b in x.tolist()] for a in x.tolist()], dtype=F64)
    same(novelsum(x, local_density(x, power=0.0), power=0.0), matrix.mean())


def test_copies_have_no_diversity():
    x = points(1).repeat(6, 1)
    assert novelsum(x).item() == 0.0
    assert novelsum(x, local_density(x)).item() == 0.0
    assert novelsum(x, local_density(x, points(20, seed=3))).item() == 0.0


def test_the_order_does_not_matter():
    x = points(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    same(novelsum(x[order], local_density(x[order], None, 4)), novelsum(x, local_density(x, None, 4)))


def test_near_items_count_most():
    """A growing power takes more from a set of near pairs than from one that is spread evenly."""
    angles = torch.tensor([0.0, 0.01, 1.0, 1.01], dtype=F64)
    even = torch.linspace(0, 1.01, 4, dtype=F64)
    pairs, spread = (torch.stack([a.cos(), a.sin()], 1) for a in (angles, even))
    left = [(novelsum(x, power=4.0) / novelsum(x, power=0.0)).item() for x in (pairs, spread)]
    assert left[0] < 0.8 * left[1]


def loop_select(x, sigma, k, power, first):
    """Slow reference: sorts anew for every candidate at every step."""
    chosen = [first]
    while len(chosen) < k:
        gains = {}
        for i in range(len(x)):
            if i not in chosen:
                far = sorted((sigma[i] + sigma[c]) * cosine(x[i].tolist(), x[c].tolist()) for c in chosen)
                gains[i] = sum(f * (r + 1) ** -power for r, f in enumerate(far))
        chosen.append(max(gains, key=lambda i: (gains[i], -i)))
    return chosen


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_greedy_choice_equals_the_loop(power, seed):
    x = points(14, seed=seed)
    sigma = local_density(x, None, 3)
    index, gain = novelselect(x, 8, sigma, power, start=4)
    assert index.tolist() == loop_select(x, sigma.tolist(), 8, power, 4)
    assert gain[0] == 0.0
    assert (gain[1:] > 0).all()


def test_no_row_is_chosen_twice_and_copies_come_last():
    x = torch.cat([points(5), points(5)])
    assert sorted(novelselect(x, 10, start=0)[0].tolist()) == list(range(10))
    first = {i % 5 for i in novelselect(x, 5, start=0, power=3.0)[0].tolist()}
    assert first == set(range(5))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="neighbours >= 1"):
        local_density(points(), neighbours=0)
    with pytest.raises(ValueError, match="power = -1"):
        novelty(points(), power=-1)
    with pytest.raises(ValueError, match=r"10 densities; got \(3,\)"):
        novelty(points(), torch.ones(3))
    with pytest.raises(ValueError, match="at least one row"):
        novelsum(points(0))
    with pytest.raises(ValueError, match="k = 0"):
        novelselect(points(), 0)
    with pytest.raises(ValueError, match="finite vectors"):
        novelsum(torch.full((2, 2), torch.nan))
