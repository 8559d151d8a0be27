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
from luthier.measure.images.image_drift import ImageDrift
from luthier.measure.images.image_vendi import ImageVendi, vendi_of

image = pytest.importorskip("luthier.lab.image")
WORLD = image.World()
ROWS = WORLD.rows("test", 6)


class Painter:
    """Draws the world's own images; `shift` moves them, `same` repeats one jitter, `swap` draws another caption's image."""

    def __init__(self, shift=0.0, same=True, swap=False, other=None):
        self.shift, self.same, self.swap, self.other = shift, same, swap, other
        self.path, self.kind = Flow(), "velocity"

    def generate(self, rows, *, samples=1, role="measure"):
        rows = [*rows[1:], rows[0]] if self.swap else rows
        drawn = [[WORLD.row(r["attributes"], 0 if self.same else k % 4)["image"] for k in range(samples)] for r in rows]
        return torch.stack([torch.stack(d) for d in drawn]).float() / 127.5 - 1 + self.shift

    def base(self):
        return self.other or self

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
