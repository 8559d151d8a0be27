"""world_reward: the world's own figures, and a sentence where there is no world."""

from __future__ import annotations

import re

import pytest
import torch

from luthier.core.errors import Refused
from luthier.lab.image import World
from luthier.recipes.build import prepare
from luthier.recipes.image_world import world_rewards
from luthier.recipes.recipe import parse
from luthier.reward.models.world_reward import WORLD, WorldReward

ROWS = World().rows("test", 5)
IMAGES = World.stack(ROWS)


@pytest.mark.parametrize("which", ["templates", "redness", "brightness", "utility"])
def test_the_worlds_own_images_please_more_than_noise_where_that_is_the_point(which):
    reward = WorldReward(which=which).bound(world_rewards(), WORLD)
    mine, noise = reward(ROWS, IMAGES), reward(ROWS, torch.randn_like(IMAGES).clamp(-1, 1))
    assert mine.shape == (5,)
    if which in ("templates", "utility"):
        assert (mine > noise).all()


@pytest.mark.parametrize("which", ["templates", "redness", "brightness"])
def test_gradients_flow_through_all_but_the_utility(which):
    x = IMAGES.clone().requires_grad_(True)
    WorldReward(which=which).bound(world_rewards(), WORLD)(ROWS, x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("which", "shape", "told"),
    [
        ("redness", (1, 8, 8), "world_reward redness requires images with three channels; got 1 x 8 x 8."),
        ("reader", (3, 32, 32), "world_reward reader requires images of the world, 3 x 16 x 16; got 3 x 32 x 32."),
        ("templates", (1, 8, 8), "world_reward templates requires images of the world, 3 x 16 x 16; got 1 x 8 x 8."),
        ("utility", (4, 16, 16), "world_reward utility requires images of the world, 3 x 16 x 16; got 4 x 16 x 16."),
    ],
)
def test_images_it_cannot_read_are_refused_before_any_is_made(which, shape, told):
    with pytest.raises(Refused, match=re.escape(told)):
        WorldReward(which=which).bound(world_rewards(), shape)


def test_other_images_that_it_can_read():
    assert tuple(IMAGES.shape[1:]) == WORLD
    grey = WorldReward(which="brightness").bound(world_rewards(), (1, 8, 8))
    assert grey(ROWS, torch.full((5, 1, 8, 8), 0.25)).tolist() == [0.25] * 5
    red = WorldReward(which="redness").bound(world_rewards(), (3, 2, 2))
    assert red(ROWS[:1], torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)).tolist() == [1.5]


def test_a_recipe_of_digits_is_refused_before_training():
    plain = {"model": "lab:image/digits", "data": {"train": "lab:image/digits", "rows": 8, "test_rows": 4},
             "objective": "draft", "reward": {"world_reward": {"which": "redness"}}, "train": {"steps": 1, "batch": 2}}  # fmt: skip
    with pytest.raises(Refused, match="requires images with three channels; got 1 x 8 x 8"):
        prepare(parse(plain))


def test_without_a_world_it_says_so():
    with pytest.raises(Refused, match="image world"):
        WorldReward()(ROWS, IMAGES)
