"""Measures of images: their limits, on subjects whose images are known."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from luthier.core import MeasureContext
from luthier.core.errors import DataError
from luthier.diffusion.schedules.flow import Flow
from luthier.measure.images.attribute_accuracy import AttributeAccuracy
from luthier.measure.images.attribute_entropy import AttributeEntropy, entropy
from luthier.measure.images.denoising_error import DenoisingError
from luthier.measure.images.energy_distance import EnergyDistance, energy_items
from luthier.measure.images.image_drift import ImageDrift
from luthier.measure.images.image_reward import ImageReward
from luthier.measure.images.image_vendi import ImageVendi, vendi_of

image = pytest.importorskip("luthier.lab.image")
WORLD = image.World()
ROWS = WORLD.rows("test", 6)


class Painter:
    """Draws the world's own images; `shift` moves them, `same` repeats one jitter, `swap` draws another caption's image."""

    def __init__(self, shift=0.0, same=True, swap=False, other=None):
        self.shift, self.same, self.swap, self.other = shift, same, swap, other
        self.path, self.kind, self.device = Flow(), "velocity", torch.device("cpu")

    def generate(self, rows, *, samples=1, role="measure"):
        rows = [*rows[1:], rows[0]] if self.swap else rows
        drawn = [[WORLD.row(r["attributes"], 0 if self.same else k % 4)["image"] for k in range(samples)] for r in rows]
        return torch.stack([torch.stack(d) for d in drawn]).float() / 127.5 - 1 + self.shift

    def base(self):
        return self.other or self

    def decode(self, x):
        return x

    def tokens(self, rows):
        return {}

    def runner(self):
        return self

    def __call__(self, x, t, condition=None):
        return (x - self.knows) / t.view(-1, 1, 1, 1)


def values(measure, subject, ctx=None):
    ctx = ctx or MeasureContext(handles={"read": WORLD.oracle})
    return {r.name: r for r in measure(subject, ROWS, ctx)}


def test_the_worlds_own_images_are_right_and_near():
    got = values(AttributeAccuracy(samples=2), Painter())
    assert got["attribute_accuracy"].value == 1.0
    assert got["distance_to_world"].value == pytest.approx(0.0, abs=1e-6)
    assert len(got["attribute_accuracy"].items) == 6


def test_images_of_other_captions_are_wrong_and_noise_is_far():
    assert values(AttributeAccuracy(), Painter(swap=True))["attribute_accuracy"].value == 0.0
    assert values(AttributeAccuracy(), Painter(shift=0.1))["distance_to_world"].value == pytest.approx(0.1, rel=0.01)


def test_entropy_counts_different_images():
    assert values(AttributeEntropy(samples=4), Painter(same=True))["attribute_entropy"].value == 0.0
    assert values(AttributeEntropy(samples=4), Painter(same=False))["attribute_entropy"].value == pytest.approx(
        math.log(4)
    )
    assert entropy(torch.arange(4)) == pytest.approx(math.log(4))
    assert values(AttributeEntropy(samples=4), Painter(same=False))["variation_from_truth"].value == pytest.approx(
        0.0, abs=1e-6
    )


def test_vendi_is_one_for_copies_and_n_for_images_far_apart():
    assert vendi_of(torch.zeros(4, 1, 2, 2), 0.25) == pytest.approx(1.0)
    assert vendi_of(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2) * 50, 0.25) == pytest.approx(4.0)
    assert values(ImageVendi(samples=4), Painter())["image_vendi"].value == pytest.approx(1.0)


def test_a_model_does_not_drift_from_itself_and_a_shift_is_its_size():
    assert values(ImageDrift(), Painter())["image_drift"].value == 0.0
    assert values(ImageDrift(), Painter(shift=0.2, other=Painter()))["image_drift"].value == pytest.approx(
        0.2, rel=1e-5
    )


def test_a_network_that_knows_the_images_has_no_error():
    held = torch.randn(6, 3, 16, 16)
    painter = Painter()
    painter.knows = held
    ctx = MeasureContext(handles={"images": (held,), "read": None})
    assert values(DenoisingError(levels=3), painter, ctx)["denoising_error"].value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("measure", [AttributeAccuracy(), AttributeEntropy(), DenoisingError()])
def test_what_is_missing_is_said(measure):
    with nullcontext(), pytest.raises(DataError, match="requires"):
        list(measure(Painter(), ROWS, MeasureContext()))
    with pytest.raises(DataError, match="at least one test row"):
        list(
            measure(
                Painter(), [], MeasureContext(handles={"read": WORLD.oracle, "images": (torch.zeros(1, 3, 16, 16),)})
            )
        )


def test_drift_may_be_read_on_captions_of_its_own():
    class Told(Painter):
        def generate(self, rows, *, samples=1, role="measure"):
            self.asked = [r["caption"] for r in rows]
            return torch.full((len(rows), samples, 3, 2, 2), self.shift)

    subject = Told(shift=0.5, other=Told())
    got = values(ImageDrift(samples=2, captions=("one", "two", "three")), subject)["image_drift"]
    assert (got.value, len(got.items)) == (0.5, 3)
    assert subject.asked == subject.other.asked == ["one", "two", "three"]


def energy_by_loops(drawn, held):
    """The unbiased estimate, pair by pair of different rows."""

    def d(a, b):
        return float((a.double() - b.double()).square().mean().sqrt())

    n, s = drawn.shape[:2]
    pairs = [(i, k) for i in range(n) for k in range(n) if i != k]
    across = sum(d(drawn[i, a], held[k]) for i, k in pairs for a in range(s)) / (len(pairs) * s)
    own = sum(d(drawn[i, a], drawn[k, b]) for i, k in pairs for a in range(s) for b in range(s)) / (len(pairs) * s * s)
    return 2 * across - own - sum(d(held[i], held[k]) for i, k in pairs) / len(pairs)


def test_energy_distance_is_the_mean_over_pairs_of_rows_and_zero_for_the_images_themselves():
    g = torch.Generator().manual_seed(0)
    drawn, held = torch.rand(5, 3, 1, 2, 2, generator=g), torch.rand(5, 1, 2, 2, generator=g)
    assert float(energy_items(drawn, held).mean()) == pytest.approx(energy_by_loops(drawn, held), abs=1e-12)
    assert energy_items(held[:, None], held).abs().max() < 1e-12
    apart = energy_items(torch.zeros(4, 2, 1, 3, 3), torch.full((4, 1, 3, 3), 0.7))
    assert apart.tolist() == pytest.approx([1.4] * 4, abs=1e-6)


def test_energy_distance_tells_the_worlds_images_from_moved_ones():
    ctx = MeasureContext(handles={"images": (WORLD.stack(ROWS),)})
    own, moved = (values(EnergyDistance(samples=1), Painter(shift=s), ctx)["energy_distance"] for s in (0.0, 0.4))
    assert moved.value > own.value + 0.1
    assert (len(own.items), own.better) == (6, -1)
    with pytest.raises(DataError, match="energy_distance requires at least two test images"):
        list(EnergyDistance()(Painter(), ROWS[:1], ctx))


def test_the_recipes_reward_is_asked_of_every_sample_with_its_own_row():
    def sided(rows, images):
        return images.flatten(1).mean(1) + 10 * torch.tensor([[id(x) for x in ROWS].index(id(r)) for r in rows])

    got = values(ImageReward(samples=2), Painter(), MeasureContext(handles={"reward": sided}))["image_reward"]
    plain = Painter().generate(ROWS, samples=2).flatten(2).mean((1, 2))
    assert got.items == pytest.approx([float(p) + 10 * i for i, p in enumerate(plain)], abs=1e-5)
    with pytest.raises(DataError, match="image_reward requires a recipe with a reward"):
        list(ImageReward()(Painter(), ROWS, MeasureContext()))
