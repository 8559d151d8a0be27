"""The plan of an image recipe: networks are built from their configurations, images are only counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from luthier.models.denoiser import LoadedDenoiser, load_denoiser
from luthier.recipes.build import attach_all, build_parts
from luthier.recipes.image_kit import handles_of, teacher_of, training_pictures
from luthier.recipes.images import batch_kind, brought, codec_of, feed_of, view_of
from luthier.recipes.places import denoiser_source
from luthier.recipes.plan import Plan
from luthier.recipes.recipe import Recipe
from luthier.recipes.walk import walk
from luthier.train.memory import fake_mode
from luthier.train.policy import Policy


def plan_images(recipe: Recipe) -> Plan:
    """Predict the cost of training an image model; no weights are loaded and no image goes through a network."""
    parts, fake = build_parts(recipe), fake_mode()
    kind = batch_kind(parts.objective)
    with fake:
        loaded = load_denoiser(denoiser_source(recipe.model), recipe.dtype, weights=False)
        own = brought(recipe, parts.objective, loaded)
        attached = attach_all(loaded.module, parts.adapt, recipe.seed, own)  # before captions: it may add words
    bare = replace(loaded, codec=None)
    train, _ = training_pictures(recipe, bare, kind)
    train.images = tuple(torch.zeros(()).expand(len(train.rows), *loaded.shape) for _ in train.images)
    feed = feed_of(recipe, train, loaded, parts.objective)
    micros = feed.micros(0)

    def make() -> tuple[Policy, tuple[nn.Module, ...]]:
        beside = [loaded.codec.vae] if loaded.codec is not None else []
        teacher = teacher_of(recipe, weights=False)
        with unset_fake_temporarily():
            policy = Policy(view_of(loaded), attached, None if teacher is None else view_of(teacher))
            policy.handles = {**handles_of(recipe, replace(parts, reward=None), policy, loaded), **own}
        if parts.reward is not None:
            policy.handles = {**policy.handles, "reward": _SomeReward(loaded)}
        loaded.module.train()
        return policy, (*beside, *([] if teacher is None else [teacher.module]))

    found = walk(recipe, parts, make, micros[0], len(micros) > 1, shapes_only=False, fake=fake)
    steps = recipe.train.total_steps(len(feed))
    notes = [train.statement, *train.notes]
    if parts.reward is not None:
        notes.append("what the reward itself keeps in memory is not counted")
    return Plan(steps, len(feed), float(recipe.train.batch), found.parameters, found.trained, found.forwards(steps, len(micros)),
                found.peak, found.weights, found.optimiser, False, tuple(notes), "images")  # fmt: skip


class _SomeReward:
    """In place of a reward: decodes what was made, and gives a number that depends on it."""

    def __init__(self, loaded: LoadedDenoiser) -> None:
        self.decode = codec_of(loaded)[0]

    def __call__(self, x: Tensor, rows: Any) -> Tensor:
        """(B,)."""
        return self.decode(x).flatten(1).mean(1)
