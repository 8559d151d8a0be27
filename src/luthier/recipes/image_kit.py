"""Image models as a kind: a recipe made ready, its measures, faults told before training, sample grids, the written pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from luthier.core import MeasureContext, Reading
from luthier.core.errors import Refused, counted, sentence
from luthier.models.denoiser import LoadedDenoiser, load_denoiser
from luthier.models.pipelines import pixel_shape
from luthier.recipes.build import Prepared, attach_all, build_parts, named_measures
from luthier.recipes.image_check import IMAGE_WORLD as WORLD
from luthier.recipes.image_check import PROMPT_FILES
from luthier.recipes.image_runs import png
from luthier.recipes.images import (
    ImageReward,
    ImageSubject,
    Pictures,
    as_floats,
    batch_kind,
    brought,
    codec_of,
    draw_prior,
    drawer,
    feed_of,
    pictures,
    view_of,
)
from luthier.recipes.places import denoiser_source
from luthier.recipes.plan import Plan
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import Splits, holdout
from luthier.train.loop import Job
from luthier.train.policy import Policy, averaged

IMAGE_TAG = "image"
"""Measures whose card needs this kind of batch read images; all others read text."""


class Images:
    """Recipes of image models."""

    exports: tuple[str, ...] = ("merged", "peft")

    def prepare(self, recipe: Recipe, out: Path | None, on_event: Any, accelerator: Any) -> Prepared:
        """Load, encode, attach: everything up to the first step."""
        parts = build_parts(recipe)
        kind, source = batch_kind(parts.objective), recipe.data.image_source
        loaded = load_denoiser(denoiser_source(recipe.model), recipe.dtype)
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        if accelerator is not None and loaded.codec is not None:
            loaded.codec.vae.to(accelerator.device)
        data = recipe.data
        beside = brought(recipe, parts.objective, loaded)
        attached = attach_all(
            loaded.module, parts.adapt, recipe.seed, beside
        )  # before captions are read: it may add words
        train, test = training_pictures(recipe, loaded, kind)
        if test is None:
            where = data.image_test or source
            test = pictures(recipe, where, "test", data.test_rows or 100, loaded, tested_kind(where, kind), 0)
        if accelerator is not None:
            loaded.module.to(accelerator.device)
        view = view_of(loaded)
        teacher = teacher_of(recipe)
        if accelerator is not None and teacher is not None:
            teacher.module.to(accelerator.device)
        policy = Policy(view, attached, None if teacher is None else view_of(teacher))
        policy.handles = {**handles_of(recipe, parts, policy, loaded), **beside}
        draw = drawer(recipe, view.path, loaded, {"reference": policy.handle("reference"), **beside})
        subject = ImageSubject(view, draw, loaded.module.conditioner.tokens, *codec_of(loaded), read=_reader(data.image_test or source),
                               off=attached.disabled)  # fmt: skip
        feed = feed_of(recipe, train, loaded, parts.objective)
        train.notes += draw_prior(feed, subject, next(loaded.module.parameters()).device)
        job = Job(policy, parts.objective, feed, recipe.train, parts.optimiser, parts.schedule, parts.hooks, recipe.seed, out,
                  f"{recipe.identity}:{train.fingerprint}", accelerator, on_event, policy.handles)  # fmt: skip
        splits: Any = Splits(train, test.rows, [])  # type: ignore[arg-type]
        return Prepared(recipe, parts, splits, train, policy, feed, job, [train.statement, *train.notes],
                        ImageKit(loaded, subject, test))  # fmt: skip

    def plan(self, recipe: Recipe) -> Plan:
        """Predict the run's cost."""
        from luthier.recipes.image_plan import plan_images

        return plan_images(recipe)

    def export(self, recipe: Recipe, run: Path, to: str, out: Path) -> None:
        """A pipeline folder, or a LoRA file for one."""
        from luthier.recipes.export import export_images

        export_images(recipe, run, to, out)


@dataclass
class ImageKit:
    """What a prepared image recipe has beside the common parts."""

    loaded: LoadedDenoiser
    subject: ImageSubject
    test: Pictures

    def measure(self, prepared: Prepared, cost: Mapping[str, float]) -> list[Reading]:
        """All readings of the recipe's measures on its test conditions."""
        ctx, subject = self.context(prepared, cost), prepared.kit.subject
        out: list[Reading] = []
        for one in prepared.parts.measures:
            if fits(one):
                out += list(one(subject, self.test.rows, ctx))
        return out

    def context(self, prepared: Prepared, cost: Mapping[str, float]) -> MeasureContext:
        """Handles of image measures: the world's reader and the recipe's reward where there are such, test images, the cost."""
        images = tuple(as_floats(part) for part in self.test.images)
        reward = prepared.policy.handles.get("reward")
        handles = {"images": images, "read": self.subject.read, "reward": getattr(reward, "reward", None)}
        return MeasureContext(prepared.recipe.seed, cost=dict(cost), handles=handles)

    def faults(self, prepared: Prepared) -> list[str]:
        """Sentences on parts of suites that are left out. Raises Refused for a measure of text that was named."""
        short = named_measures(prepared.recipe)
        faults = [sentence(f"measure {m.name}", "a language model", "an image model", "Leave it out")
                  for m in prepared.parts.measures if not fits(m) and short & {m.name, m.id}]  # fmt: skip
        reader = self.subject.read
        unread = [m for m in prepared.parts.measures if "read" in m.needs.handles and reader is None]
        faults += [sentence(f"measure {m.name}", "a world that reads its images exactly (lab:image)", "other data", "Leave it out")
                   for m in unread if short & {m.name, m.id}]  # fmt: skip
        if faults:
            raise Refused("\n".join(dict.fromkeys(faults)))
        left = [m.id for m in prepared.parts.measures if not fits(m) or m in unread]
        prepared.parts.measures[:] = [m for m in prepared.parts.measures if m.id not in left]
        return [f"{ident} is left out: it does not fit these data" for ident in left]

    def samples(self, prepared: Prepared, each: int = 2, count: int = 8) -> list[dict[str, Any]]:
        """Images of a few test conditions, as data that a report can show."""
        rows = self.test.rows[:count]
        if not rows:
            return []
        made = self.subject.generate(rows, samples=each, role="samples")
        told = [str(r.get("caption", r.get("label", "image"))) for r in rows]
        return [{"prompt": t, "reference": "", "outputs": [], "images": [png(x) for x in images]}
                for t, images in zip(told, made, strict=True)]  # fmt: skip

    def write_merged(self, prepared: Prepared, folder: Path, main: bool = True) -> None:
        """The pipeline with the adapted weights folded in; the live model is left as it is."""
        write_merged_images(self.loaded, prepared.policy.attached, folder, main)


def fits(measure: Any) -> bool:
    """Whether a measure reads images, or costs, which everything has."""
    return IMAGE_TAG in measure.needs.batch or measure.id.startswith("measure.cost.")


def tested_kind(source: str, kind: str) -> str:
    """What is read of the test data: measures want images even where training wants conditions alone, unless these are prompts.

    >>> tested_kind("photos/", "image_prompts"), tested_kind("prompts.txt", "image_prompts"), tested_kind("a/", "image_preference")
    ('image', 'image_prompts', 'image_preference')
    """
    return IMAGE_TAG if kind == "image_prompts" and Path(source).suffix not in PROMPT_FILES else kind


def training_pictures(recipe: Recipe, loaded: LoadedDenoiser, kind: str) -> tuple[Pictures, Pictures | None]:
    """(training images, the share of them held out for testing); None where a test source or the world gives others."""
    data, source = recipe.data, recipe.data.image_source
    train = pictures(recipe, source, "train", data.rows, loaded, kind, recipe.seed)
    elsewhere = data.image_test is not None or source.startswith(WORLD)
    return train, None if elsewhere else _held_out(recipe, train)


def _held_out(recipe: Recipe, train: Pictures) -> Pictures:
    """Take a share of the training images out for testing."""
    data = recipe.data
    kept, out = holdout(len(train.rows), data.holdout)
    test = replace(train, rows=list(train.rows), notes=[])
    test.keep(out[: data.test_rows or len(out)])
    train.keep(kept)
    train.notes.append(f"no test data given: {counted(len(out), 'image')} held out of training (data.holdout)")
    return test


def _reader(source: str) -> Any:
    if not source.startswith(WORLD):
        return None
    from luthier.recipes.image_world import reader

    return reader(source)


def teacher_of(recipe: Recipe, weights: bool = True) -> LoadedDenoiser | None:
    """The recipe's other pipeline as the teacher, None without; weights: whether they are loaded."""
    if recipe.teacher is None:
        return None
    return load_denoiser(denoiser_source(recipe.teacher), recipe.dtype, weights=weights)


def handles_of(recipe: Recipe, parts: Any, policy: Any, loaded: LoadedDenoiser) -> dict[str, Any]:
    """What objectives may ask for beside policy, reference and teacher: "ema" and "reward"."""
    out: dict[str, Any] = {}
    average = next((h for h in parts.hooks if hasattr(h, "average")), None)
    if average is not None:
        out["ema"] = policy.view.runner(partial(averaged, policy, average), partial(policy.count, "ema"))
    if parts.reward is not None:
        reward = parts.reward
        if hasattr(reward, "bound"):
            from luthier.recipes.image_world import world_rewards

            reward = reward.bound(world_rewards(), pixel_shape(loaded.folder))
        out["reward"] = ImageReward(reward, codec_of(loaded)[0])
    return out


def write_merged_images(loaded: LoadedDenoiser, attached: Any, folder: Path, main: bool = True) -> None:
    """The pipeline with the adapted weights folded in; the live model is left as it is."""
    from luthier.core.files import whole_folder
    from luthier.models.denoiser import save_denoiser

    if not main:
        return
    with torch.no_grad(), attached.folding() as changed, whole_folder(folder) as aside:
        save_denoiser(loaded, changed, loaded.module.conditioner, aside)
