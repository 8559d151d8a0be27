"""The plan of an embedding recipe: the encoder is built from its configuration, texts become tokens as for training."""

from __future__ import annotations

import torch

from luthier.models.encoder import EncoderView, load_encoder
from luthier.recipes.build import attach_all, build_parts
from luthier.recipes.embeddings import pair_feed
from luthier.recipes.pair_rows import paired, reading_pairs
from luthier.recipes.plan import Plan
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import load_splits
from luthier.recipes.walk import walk
from luthier.train.memory import fake_mode
from luthier.train.policy import Policy


def plan_pairs(recipe: Recipe) -> Plan:
    """Predict the cost of training a text encoder; no weights are loaded and nothing is computed but shapes."""
    parts, train, fake = build_parts(recipe), recipe.train, fake_mode()
    splits = load_splits(reading_pairs(recipe.data), recipe.seed)
    notes = [splits.train.statement, *paired(splits.train, recipe.seed, "train")]
    with fake:
        loaded = load_encoder(recipe.model, recipe.dtype, weights=False)
    encoded, feed = pair_feed(recipe, splits.train, loaded)
    width = int(loaded.module.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    guided = any(n.startswith("guide_") for n in parts.objective.needs.signals)
    feed.columns = {f"guide_{p}": torch.zeros(len(encoded.examples), width) for p in encoded.parts if guided}
    steps = train.total_steps(len(feed))
    batches = [feed.micros(s)[0] for s in range(min(max(steps, 1), 64))]
    biggest = max(batches, key=lambda b: b.inputs["input_ids"].numel())

    def make() -> tuple[Policy, tuple[()]]:
        model = loaded.module.model
        if train.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        attached = attach_all(model, parts.adapt, recipe.seed)
        loaded.module.train()
        return Policy(EncoderView(loaded.module), attached, None, loaded.tokenizer), ()

    found = walk(recipe, parts, make, biggest, several=False, shapes_only=False, fake=fake)
    tokens = sum(int((b.inputs["attention_mask"] != 0).sum()) for b in batches) / len(batches)
    return Plan(steps, len(feed), tokens, found.parameters, found.trained, found.forwards(steps, 1), found.peak, found.weights,
                found.optimiser, False, (*notes, *encoded.notes))  # fmt: skip
