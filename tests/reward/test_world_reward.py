"""world_reward: the world's own figures, and a sentence where there is no world."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import Refused
from luthier.lab.image import World
from luthier.recipes.image_world import world_rewards
from luthier.reward.models.world_reward import WorldReward

ROWS = World().rows("test", 5)
IMAGES = World.stack(ROWS)


@pytest.mark.parametrize("which", ["templates", "redness", "brightness", "utility"])
def test_the_worlds_own_images_please_more_than_noise_where_that_is_the_point(which):
    reward = WorldReward(which=which).bound(world_rewards())
    mine, noise = reward(ROWS, IMAGES), reward(ROWS, torch.randn_like(IMAGES).clamp(-1, 1))
    assert mine.shape == (5,)
    if which in ("templates", "utility"):
        assert (mine > noise).all()


@pytest.mark.parametrize("which", ["templates", "redness", "brightness"])
def test_gradients_flow_through_all_but_the_utility(which):
    x = IMAGES.clone().requires_grad_(True)
    WorldReward(which=which).bound(world_rewards())(ROWS, x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_without_a_world_it_says_so():
    with pytest.raises(Refused, match="image world"):
        WorldReward()(ROWS, IMAGES)
