"""Named randomness: known numbers stay, roles and steps are independent, nothing else has a say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.streams import numpy_stream, python_stream, seed_of, stream

# Results stored by earlier versions were drawn with these; they may never change.
KNOWN = {
    (0, "data.shuffle", 0): 7_720_122_385_272_592_071,
    (7, "data.shuffle", 3): 1_674_102_112_941_408_964,
    (2**31, "measure", 10**6): 2_931_815_262_616_538_127,
    (0, "Übung", 0): 4_830_360_983_805_418_564,
}
PLACE = st.tuples(st.integers(0, 2**40), st.text(st.characters(codec="utf-8"), max_size=12), st.integers(0, 2**40))


@pytest.mark.parametrize("place", KNOWN)
def test_seeds_are_those_of_earlier_versions(place):
    assert seed_of(*place) == KNOWN[place]


def test_first_numbers_are_those_of_earlier_versions():
    chance = python_stream(7, "measure", 3)
    assert torch.rand(2, generator=stream(7, "measure", 3), dtype=torch.float64).tolist() == [
        0.3600391129341366,
        0.8503815785363433,
    ]
    assert torch.randperm(6, generator=stream(7, "data.shuffle")).tolist() == [4, 2, 3, 0, 1, 5]
    assert numpy_stream(7, "measure", 3).random(2).tolist() == [0.880756762819201, 0.3115449397977089]
    assert [chance.random() for _ in range(2)] == [0.5619518992112277, 0.3794445276746793]


@given(st.lists(PLACE, unique=True, min_size=2, max_size=40))
def test_different_places_have_different_seeds_that_every_generator_takes(places):
    seeds = [seed_of(*p) for p in places]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_stream_does_not_care_what_else_is_drawn():
    alone = torch.rand(5, generator=stream(1, "a", 4))
    torch.manual_seed(99)
    state, other = torch.get_rng_state(), stream(1, "b", 4)
    torch.rand(1000, generator=other)
    assert torch.equal(torch.rand(5, generator=stream(1, "a", 4)), alone)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"


@pytest.mark.parametrize("vary", ["seed", "role", "step"])
def test_neighbouring_streams_are_uncorrelated_and_uniform(vary):
    """64 neighbours, 4,096 numbers each: the largest of 2,016 correlations stays below 5.5 standard errors."""
    places = [{"seed": (i, "r", 0), "role": (0, f"r{i}", 0), "step": (0, "r", i)}[vary] for i in range(64)]
    for draw in (
        lambda p: torch.rand(4096, generator=stream(*p), dtype=torch.float64).numpy(),
        lambda p: numpy_stream(*p).random(4096),
    ):
        drawn = np.stack([draw(p) for p in places])
        off = np.corrcoef(drawn)[np.triu_indices(64, 1)]
        assert np.abs(off).max() < 5.5 / 4096**0.5
        assert abs(drawn.mean() - 0.5) < 5.5 * (1 / 12 / drawn.size) ** 0.5
