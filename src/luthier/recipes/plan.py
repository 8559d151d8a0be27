"""What a run will cost, before it starts: forwards exactly, tensor memory by walking through one step without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from luthier.core.batch import Batch
from luthier.core.config import build_component
from luthier.core.errors import counted
from luthier.models.language import LanguageModule, LanguageView
from luthier.models.loading import DTYPES, hidden_of, load_config, load_tokenizer
from luthier.recipes.build import (
    attach_all,
    build_parts,
    fit_kind,
    needs_reference,
    packing_of,
    select,
    words_asked,
)
from luthier.recipes.mixing import mixture_of
from luthier.recipes.places import model_source
from luthier.recipes.recipe import Recipe, samples
from luthier.recipes.rows import load_splits
from luthier.recipes.text import encode_training
from luthier.recipes.timing import Timing, time_steps
from luthier.recipes.walk import walk
from luthier.train.feed import RowFeed
from luthier.train.mixture import Mixture
from luthier.train.policy import Policy


@dataclass(frozen=True)
class Plan:
    """Predicted cost of a run.

    forwards: passes by kind over the whole run ("policy" with gradient, "reference", "teacher", "count"). memory_bytes: peak
    of live tensors (weights, gradients, optimiser state, activations); logits: whether full logits are kept. unit: of
    tokens_per_step, what a step is made of. time: of steps that were really made, if that was asked for.
    """

    steps: int
    rows: int
    tokens_per_step: float
    parameters: int
    trained: int
    forwards: dict[str, int]
    memory_bytes: int
    weights_bytes: int
    optimiser_bytes: int
    logits: bool
    notes: tuple[str, ...] = ()
    unit: str = "tokens"
    time: Timing | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"time": None if self.time is None else self.time.as_dict()}

    def lines(self) -> list[str]:
        """The plan in sentences."""
        passes = ", ".join(f"{v} {k}" for k, v in self.forwards.items() if v)
        return [
            f"{counted(self.steps, 'step')} over {counted(self.rows, 'row')}, {self.tokens_per_step:.0f} {self.unit} a step",
            f"{self.trained:,} of {self.parameters:,} parameters train ({100 * self.trained / max(self.parameters, 1):.3g} %)",
            f"forward passes: {passes}",
            f"peak tensor memory {_size(self.memory_bytes)}: weights {_size(self.weights_bytes)}, optimiser "
            f"{_size(self.optimiser_bytes)}, the rest gradients and activations",
            *(["full logits are kept because the objective asks for them"] if self.logits else []), *self.notes,
            *([] if self.time is None else [self.time.line()]),
        ]  # fmt: skip


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return ""


def plan(recipe: Recipe, timed: bool = False, accelerator: Any = None) -> Plan:
    """Predict a run's cost; no weights are loaded and nothing is computed but shapes.

    timed: also make a few steps for real, and tell how long the run will take.
    """
    from luthier.recipes.kits import kind_of

    found = kind_of(recipe).plan(recipe)
    return replace(found, time=time_steps(recipe, accelerator)) if timed else found


def plan_text(recipe: Recipe) -> Plan:
    """Predict the cost of training a language model."""
    parts = build_parts(recipe)
    splits = load_splits(recipe.data, recipe.seed)
    kind = "group" if samples(recipe.loop) else fit_kind(parts.objective, splits.train, recipe.data.steps)
    source = model_source(recipe.model)
    config, tokenizer = load_config(source), load_tokenizer(recipe.tokenizer or source)
    select(recipe, splits.train, tokenizer)
    encoded = encode_training(splits.train, kind, tokenizer, recipe.data, config)
    train = recipe.train
    mixture, told = mixture_of(recipe, splits.train, encoded, kind)
    told = [splits.train.statement, *splits.train.notes, *encoded.report.lines(), *told]
    if kind == "group":
        return _plan_group(recipe, parts, encoded, config, mixture, told)
    feed = RowFeed(encoded.examples, kind, encoded.parts, int(tokenizer.pad_token_id), train.batch, recipe.seed, train.micro,
                   packing_of(recipe, True), {k: torch.tensor(v) for k, v in encoded.columns.items()}, mixture=mixture,
                   hidden=hidden_of(config))  # fmt: skip
    if words := words_asked(parts.objective):
        sizes = [e[0].trained for e in encoded.examples]
        feed.tables = {"topk_id": [torch.zeros(n, words, dtype=torch.long) for n in sizes],
                       "topk_logp": [torch.zeros(n, words) for n in sizes]}  # fmt: skip
    procedure = None if recipe.loop is None else build_component(recipe.loop, "loops", "loop")
    steps = train.total_steps(len(feed) if procedure is None else procedure.count(len(feed)))
    micros = [feed.micros(s) for s in range(min(max(steps, 1), 64))]
    biggest = max((b for m in micros for b in m), key=lambda b: b.inputs["input_ids"].numel())
    several = len(micros[0]) > 1
    wants = needs_reference(parts.objective)
    cached = wants == ["token_logp"] and (
        steps * train.batch > len(feed) or any(getattr(a, "role", "") == "choose" for a, _ in parts.adapt)
    )
    if cached:
        shape = biggest.inputs["home" if "home" in biggest.inputs else "input_ids"].shape
        biggest = biggest.with_inputs(ref_token_logp=torch.zeros(shape))
    found = walk(recipe, parts, partial(_built, recipe, parts, config), biggest, several)
    forwards = found.forwards(steps, len(micros[0]))
    if cached:
        forwards["reference"] = -(-len(feed.examples) // (train.micro or train.batch))
    if procedure is not None:
        forwards["embed"] = procedure.rounds * -(-len(feed) // (train.micro or train.batch))
    if words and recipe.data.topk is None:
        forwards["teacher"] = len(feed.examples)
    tokens = sum(int((b.inputs["attention_mask"] != 0).sum()) for m in micros for b in m) / len(micros)
    return Plan(steps, len(feed), tokens, found.parameters, found.trained, forwards, found.peak, found.weights, found.optimiser,
                "logits" in parts.objective.needs.signals, tuple(told))  # fmt: skip


def _plan_group(
    recipe: Recipe, parts: Any, encoded: Any, config: Any, mixture: Mixture | None, told: list[str]
) -> Plan:
    """Sampled batches: every completion is taken at its full length."""
    train, roll = recipe.train, recipe.rollout
    rows = len(encoded.examples) if mixture is None else len(mixture)
    steps = train.total_steps(rows)
    longest = max(len(e[0].ids) for e in encoded.examples) + roll.max_new
    size = train.micro or train.batch
    pairs = recipe.loop is not None and build_component(recipe.loop, "loops", "loop").gives == "preference"
    ids = torch.zeros(2 * size if pairs else size, longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    mask[:, -roll.max_new :] = 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "loss_mask": mask,
              "trained": torch.stack(mask.nonzero(as_tuple=True))}  # fmt: skip
    columns = {
        "advantage": torch.zeros(size),
        "reward": torch.zeros(size),
        "group": torch.zeros(size, dtype=torch.long),
        **{name: torch.zeros(size) for name in ("weight", "gap", "consistency") if pairs},
    }
    batch = (
        Batch("preference", inputs, ("chosen", "rejected"), columns)
        if pairs
        else Batch("group", inputs, ("text",), columns)
    )
    several = size < train.batch
    found = walk(recipe, parts, partial(_built, recipe, parts, config), batch, several)
    each = -(-train.batch // size)
    forwards = {**found.forwards(steps, each), "rollout": -(-steps // roll.reuse)}
    if roll.reuse > 1:
        forwards["old"] = -(-steps // roll.reuse) * each
    return Plan(steps, rows, float(train.batch * longest), found.parameters, found.trained, forwards, found.peak,
                found.weights, found.optimiser, "logits" in parts.objective.needs.signals,
                (*told, "tokens and memory are upper bounds: samples may end early"))  # fmt: skip


def _built(recipe: Recipe, parts: Any, config: Any) -> tuple[Policy, Sequence[nn.Module]]:
    """The recipe's model with its adaptation, and its teacher, by their configurations alone."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=DTYPES[recipe.dtype])
    if recipe.train.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    attached = attach_all(model, parts.adapt, recipe.seed)
    policy = Policy(LanguageView(LanguageModule(model, probe=False).train()), attached)
    if recipe.teacher is None:
        return policy, ()
    teacher: nn.Module = AutoModelForCausalLM.from_config(load_config(recipe.teacher), dtype=DTYPES[recipe.dtype])
    policy.teacher = LanguageView(LanguageModule(teacher, probe=False).eval())
    return policy, (teacher,)
