from __future__ import annotations

import math

import pytest
import torch

from luthier.core import MeasureContext
from luthier.core.errors import DataError
from luthier.measure.diversity.novelsum import NovelSum
from tests.measure.fakes import fixed

ROWS = [{"prompt": "p", "response": "a"}, {"prompt": "q", "response": "b"}]
ANGLE = {"a": 0.0, "b": 0.3, "c": 1.0, "d": 2.0}


def on_a_circle(texts):
    return torch.tensor([[math.cos(ANGLE[t]), math.sin(ANGLE[t])] for t in texts], dtype=torch.float64)


def by_hand(texts, reference, power, density, neighbours):
    """The formula in loops, with chords and cosines of angles."""

    def chord(s, t):
        return 2 - 2 * math.cos(ANGLE[s] - ANGLE[t])

    total = 0.0
    for t in texts:
        near = sorted(chord(t, r) for r in set(reference) if r != t)[:neighbours]
        sigma = (sum(near) / len(near) + 1e-9) ** -density
        far = sorted(1 - math.cos(ANGLE[t] - ANGLE[o]) for o in texts)
        weights = [(i + 1) ** -power for i in range(len(far))]
        total += sigma * sum(w * f for w, f in zip(weights, far, strict=True)) / sum(weights)
    return total / len(texts)


@pytest.mark.parametrize(("power", "density"), [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0)])
def test_equals_the_formula_on_known_samples(power, density):
    subject = fixed({"p": {"a": 0.5, "c": 0.5}, "q": {"b": 0.4, "c": 0.3, "d": 0.3}})
    ctx = MeasureContext(embed=on_a_circle)
    drawn = subject.generate(["p", "q"], samples=6, role="measure.samples/0")
    (per,) = NovelSum(scope="per_input", power=power, density=density, samples=6)(subject, ROWS, ctx)
    assert per.items == pytest.approx([by_hand(t, ["a", "b"], power, density, 10) for t in drawn], rel=1e-6)
    (across,) = NovelSum(power=power, density=density, samples=6)(subject, ROWS, ctx)
    pairs = [by_hand(t, ["a", "b"], power, density, 10) for t in zip(*drawn, strict=True)]
    assert across.value == pytest.approx(sum(pairs) / 6, rel=1e-6)
    assert (across.name, across.items) == ("novelsum_across_inputs", ())


def test_identical_outputs_have_none():
    subject = fixed({"p": {"c": 1.0}, "q": {"c": 1.0}})
    for ctx in (MeasureContext(), MeasureContext(embed=on_a_circle)):
        (one,) = NovelSum()(subject, ROWS, ctx)
        assert one.value == 0.0


def test_one_row_is_enough_per_input_only():
    subject = fixed({"p": {"a": 0.5, "c": 0.5}})
    assert len(list(NovelSum(scope="per_input")(subject, ROWS[:1], MeasureContext()))) == 1
    with pytest.raises(DataError, match="novelsum requires at least 2 rows; got 1"):
        list(NovelSum()(subject, ROWS[:1], MeasureContext()))
    with pytest.raises(DataError, match="row 1 requires the field 'response'"):
        list(NovelSum()(subject, [ROWS[0], {"prompt": "q"}], MeasureContext()))
