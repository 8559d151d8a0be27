"""Text encoders as a kind: a recipe of pairs made ready, its measures, faults told before training, the written folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.core import MeasureContext, Reading
from luthier.core.errors import Refused, sentence
from luthier.models.encoder import EncoderView, LoadedEncoder, copy_beside, load_encoder
from luthier.recipes.build import Prepared, attach_all, build_parts, named_measures
from luthier.recipes.embeddings import EmbeddingSubject, guide_columns, limit_of, pair_feed
from luthier.recipes.pair_rows import paired, reading_pairs
from luthier.recipes.plan import Plan
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import Rows, load_splits
from luthier.train.loop import Job
from luthier.train.policy import Policy


class Pairs:
    """Recipes of text encoders, trained on pairs of texts."""

    exports: tuple[str, ...] = ("merged", "peft")

    def prepare(self, recipe: Recipe, out: Path | None, on_event: Any, accelerator: Any) -> Prepared:
        """Load, encode, attach: everything up to the first step."""
        parts = build_parts(recipe)
        _check(recipe, accelerator)
        splits = load_splits(reading_pairs(recipe.data), recipe.seed)
        test = Rows(list(splits.test), "pairs", "", "", recipe.data.test or recipe.data.source)
        notes = [
            splits.train.statement,
            *splits.train.notes,
            *paired(splits.train, recipe.seed, "train"),
            *paired(test, 0, "test"),
        ]
        splits.test = test.rows
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        loaded = load_encoder(recipe.model, recipe.dtype)
        model: Any = loaded.module.model
        if recipe.train.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        encoded, feed = pair_feed(recipe, splits.train, loaded)
        notes += encoded.notes
        if len(encoded.examples) < recipe.train.batch:
            raise Refused(sentence("train.batch", f"at most the {len(encoded.examples)} rows, so that no row is its own negative",
                                   str(recipe.train.batch), "Lower it"))  # fmt: skip
        feed.columns = guide_columns(splits.train.rows, encoded.parts, recipe, parts.objective.needs.signals)
        attached = attach_all(model, parts.adapt, recipe.seed)
        if accelerator is not None:
            model.to(accelerator.device)
        policy = Policy(EncoderView(loaded.module), attached, None, loaded.tokenizer)
        job = Job(policy, parts.objective, feed, recipe.train, parts.optimiser, parts.schedule, parts.hooks, recipe.seed, out,
                  f"{recipe.identity}:{splits.train.fingerprint}", accelerator, on_event)  # fmt: skip
        subject = EmbeddingSubject(loaded.module, loaded.tokenizer, limit_of(recipe, loaded), attached.disabled)
        return Prepared(recipe, parts, splits, encoded, policy, feed, job, notes, PairKit(loaded, subject))

    def plan(self, recipe: Recipe) -> Plan:
        """Predict the run's cost."""
        from luthier.recipes.pair_plan import plan_pairs

        return plan_pairs(recipe)

    def export(self, recipe: Recipe, run: Path, to: str, out: Path) -> None:
        """A sentence-transformers folder, or a PEFT checkpoint of its transformer."""
        from luthier.recipes.export import export_pairs

        export_pairs(recipe, run, to, out)


@dataclass
class PairKit:
    """What a prepared embedding recipe has beside the common parts."""

    loaded: LoadedEncoder
    subject: EmbeddingSubject

    def measure(self, prepared: Prepared, cost: Mapping[str, float]) -> list[Reading]:
        """All readings of the recipe's measures on its test rows."""
        ctx = MeasureContext(prepared.recipe.seed, cost=dict(cost))
        return [r for one in prepared.parts.measures for r in one(self.subject, prepared.splits.test, ctx)]

    def faults(self, prepared: Prepared) -> list[str]:
        """Sentences on parts of suites that are left out. Raises Refused for a measure of other models that was named."""
        short = named_measures(prepared.recipe)
        other = [
            m for m in prepared.parts.measures if "pairs" not in m.needs.batch and not m.id.startswith("measure.cost.")
        ]
        if faults := [sentence(f"measure {m.name}", "a language model", "a text encoder", "Leave it out; use retrieval")
                      for m in other if short & {m.name, m.id}]:  # fmt: skip
            raise Refused("\n".join(dict.fromkeys(faults)))
        if len(prepared.splits.test) < 2 and any("pairs" in m.needs.batch for m in prepared.parts.measures):
            raise Refused(
                sentence(
                    "measure retrieval", "at least two test rows", str(len(prepared.splits.test)), "Raise data.holdout"
                )
            )
        prepared.parts.measures[:] = [m for m in prepared.parts.measures if m not in other]
        return [f"{m.id} is left out: it does not fit a text encoder" for m in other]

    def samples(self, prepared: Prepared) -> list[dict[str, Any]]:
        """None: vectors are nothing to look at."""
        return []

    def write_merged(self, prepared: Prepared, folder: Path, main: bool = True) -> None:
        """The adapted weights folded into the encoder, as a folder that sentence-transformers loads with the same modules."""
        write_merged_encoder(self.loaded, prepared.policy.attached, folder, main)


def _check(recipe: Recipe, accelerator: Any) -> None:
    """Raise Refused for what would change the loss, or would be ignored."""
    train = recipe.train
    if train.micro is not None and train.micro < train.batch:
        raise Refused(sentence("train.micro", f"the whole batch ({train.batch}), since its rows are one another's negatives",
                               str(train.micro), "Leave it out, or lower train.batch; train.checkpointing saves memory"))  # fmt: skip
    if accelerator is not None and accelerator.num_processes > 1:
        raise Refused(sentence("an in-batch loss", "one process, since the rows of a batch are one another's negatives",
                               str(accelerator.num_processes), "Start one process"))  # fmt: skip
    data = recipe.data
    idle = {"data.steps": data.steps, "data.old": data.old, "data.retain": data.retain, "teacher": recipe.teacher,
            "loop": recipe.loop, "tokenizer": recipe.tokenizer}  # fmt: skip
    if given := [k for k, v in idle.items() if v]:
        raise Refused(sentence("training on pairs of texts", "only keys that it reads", given[0], "Remove it"))


def write_merged_encoder(loaded: LoadedEncoder, attached: Any, folder: Path, main: bool = True) -> None:
    """The adapted weights folded into the encoder, as a folder that sentence-transformers loads with the same modules."""
    from luthier.recipes.export import write_folded

    write_folded(loaded.module.model, attached, loaded.tokenizer, folder / loaded.part, main)
    if main:
        copy_beside(loaded, folder)
