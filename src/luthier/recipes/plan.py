"""What a run will cost, before it starts: forwards exactly, tensor memory by walking through one step without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from luthier.core.batch import Batch
from luthier.core.config import build_component
from luthier.core.protocols import Context
from luthier.models.language import LanguageModule, LanguageView
from luthier.models.loading import DTYPES, load_config, load_tokenizer
from luthier.recipes.build import (
    attach_all,
    build_parts,
    fit_kind,
    model_source,
    needs_reference,
    packing_of,
    select,
    words_asked,
)
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import load_splits
from luthier.recipes.text import encode_training
from luthier.train.feed import RowFeed
from luthier.train.memory import PeakMemory, bytes_of, fake_mode
from luthier.train.policy import Policy


@dataclass(frozen=True)
class Plan:
    """Predicted cost of a run.

    forwards: passes by kind over the whole run ("policy" with gradient, "reference", "teacher", "count"). memory_bytes: peak
    of live tensors (weights, gradients, optimiser state, activations); logits: whether full logits are kept.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan in sentences."""
        passes = ", ".join(f"{v} {k}" for k, v in self.forwards.items() if v)
        return [
            f"{self.steps} steps over {self.rows} rows, {self.tokens_per_step:.0f} tokens a step",
            f"{self.trained:,} of {self.parameters:,} parameters train ({100 * self.trained / max(self.parameters, 1):.3g} %)",
            f"forward passes: {passes}",
            f"peak tensor memory {_size(self.memory_bytes)}: weights {_size(self.weights_bytes)}, optimiser "
            f"{_size(self.optimiser_bytes)}, the rest gradients and activations",
            *(["full logits are kept because the objective asks for them"] if self.logits else []), *self.notes,
        ]  # fmt: skip


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return ""


def plan(recipe: Recipe) -> Plan:
    """Predict a run's cost; no weights are loaded and nothing is computed but shapes."""
    parts = build_parts(recipe)
    splits = load_splits(recipe.data, recipe.seed)
    kind = "group" if recipe.loop is not None else fit_kind(parts.objective, splits.train, recipe.data.steps)
    source = model_source(recipe)
    config, tokenizer = load_config(source), load_tokenizer(recipe.tokenizer or source)
    select(recipe, splits.train, tokenizer)
    encoded = encode_training(splits.train, kind, tokenizer, recipe.data, config)
    train = recipe.train
    if kind == "group":
        return _plan_group(recipe, parts, encoded, config, tokenizer)
    feed = RowFeed(encoded.examples, kind, encoded.parts, int(tokenizer.pad_token_id), train.batch, recipe.seed, train.micro,
                   packing_of(recipe, True), {k: torch.tensor(v) for k, v in encoded.columns.items()})  # fmt: skip
    if words := words_asked(parts.objective):
        sizes = [e[0].trained for e in encoded.examples]
        feed.tables = {"topk_id": [torch.zeros(n, words, dtype=torch.long) for n in sizes],
                       "topk_logp": [torch.zeros(n, words) for n in sizes]}  # fmt: skip
    steps = train.total_steps(len(feed))
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
    walk = _walk(recipe, parts, config, biggest, several)
    forwards = {"policy": sum(len(feed.micros(s)) for s in range(steps)) if train.micro else steps}
    if several and walk.terms > 1:
        forwards["count"] = forwards["policy"] - steps
    if wants:
        size = train.micro or train.batch
        forwards["reference"] = -(-len(feed) // size) if cached else forwards["policy"]
    tokens = sum(int((b.inputs["attention_mask"] != 0).sum()) for m in micros for b in m) / len(micros)
    return Plan(steps, len(feed), tokens, walk.parameters, walk.trained, forwards, walk.peak, walk.weights, walk.optimiser,
                "logits" in parts.objective.needs.signals, tuple(encoded.report.lines()))  # fmt: skip


def _plan_group(recipe: Recipe, parts: Any, encoded: Any, config: Any, tokenizer: Any) -> Plan:
    """Sampled batches: every completion is taken at its full length."""
    train, roll = recipe.train, recipe.rollout
    steps = train.total_steps(len(encoded.examples))
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
    batch = Batch("preference", inputs, ("chosen", "rejected"), columns) if pairs else Batch("group", inputs, ("text",), columns)
    several = size < train.batch
    walk = _walk(recipe, parts, config, batch, several)
    each = -(-train.batch // size)
    forwards = {"policy": steps * each, "rollout": -(-steps // roll.reuse)}
    if several and walk.terms > 1:
        forwards["count"] = steps * (each - 1)
    if needs_reference(parts.objective):
        forwards["reference"] = steps * each
    if roll.reuse > 1:
        forwards["old"] = -(-steps // roll.reuse) * each
    return Plan(steps, len(encoded.examples), float(train.batch * longest), walk.parameters, walk.trained, forwards, walk.peak,
                walk.weights, walk.optimiser, "logits" in parts.objective.needs.signals,
                ("tokens and memory are upper bounds: samples may end early",))  # fmt: skip


@dataclass(frozen=True)
class Walk:
    """What one step without numbers showed, in bytes; terms: number of loss terms."""

    peak: int
    weights: int
    optimiser: int
    parameters: int
    trained: int
    terms: int


def _walk(recipe: Recipe, parts: Any, config: Any, batch: Batch, accumulates: bool) -> Walk:
    """Forward, backward and optimiser step on shapes alone, counting live bytes."""
    from transformers import AutoModelForCausalLM

    with fake_mode() as fake:
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=DTYPES[recipe.dtype])
        if recipe.train.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        attached = attach_all(model, parts.adapt, recipe.seed)
        module = LanguageModule(model, probe=False).train()
        policy = Policy(LanguageView(module), attached)
        inputs = {k: fake.from_tensor(v) for k, v in batch.inputs.items()}
        columns = {k: fake.from_tensor(v) for k, v in batch.columns.items()}
        shaped = Batch(batch.kind, inputs, batch.parts, columns, batch.rows, batch.meta)
        trained = [p for _, p in attached.named_parameters()]
        weights, grads = bytes_of(model.parameters()), sum(p.numel() * p.element_size() for p in trained)
        state = _state_bytes(parts.optimiser, trained)
        with PeakMemory() as memory:
            memory.track(model.parameters())
            base = memory.live
            terms, loss = _loss(recipe, parts, policy, shaped)
            loss.backward()
        extra = grads if accumulates else 0
        keep = (
            sum(t.numel() * t.element_size() for t in trained)
            if getattr(parts.adapt[0][0], "role", "") == "choose"
            else 0
        )
        peak = memory.peak + state + extra + keep
        return Walk(max(peak, base + 2 * grads + state + keep), weights, state, sum(p.numel() for p in model.parameters()),
                    sum(p.numel() for p in trained), terms)  # fmt: skip


@dataclass(frozen=True)
class _AsNew:
    """Old rows for hooks: as many and as long as the new ones of a step, which is the most that they can be."""

    policy: Policy
    new: Batch

    def __len__(self) -> int:
        return len(self.new)

    def batch(self, rows: Sequence[int], step: int) -> Batch:
        """The new rows."""
        return self.new

    def signals(self, batch: Batch, names: Sequence[str]) -> Any:
        """Signals under the policy."""
        return self.policy.signals(batch, names, "retain")


def _loss(recipe: Recipe, parts: Any, policy: Policy, batch: Batch) -> tuple[int, torch.Tensor]:
    from luthier.core.terms import as_terms

    handles = {"retain": _AsNew(policy, batch)} if recipe.data.retain else {}
    context = Context(0, 1, recipe.seed, policy.view.module, policy.attached, handles)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16"):
        s = policy.signals(batch, parts.objective.needs.signals)
        terms = as_terms(parts.objective(batch, s))
        for hook in parts.hooks:
            if "terms" in hook.points:
                terms += as_terms(hook.terms(batch, s, context) or ())
    total = sum((t.scale * t.sums()[0] for t in terms), start=torch.zeros(()))
    return len(terms), total


def _state_bytes(optimiser: Any, trained: Sequence[torch.Tensor]) -> int:
    """Bytes that the optimiser keeps per trained parameter, read from a step on one small tensor."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        probe = nn.Parameter(torch.zeros(8, 8))
        probe.grad = torch.zeros(8, 8)
        made = optimiser.build([("probe.weight", probe)], 0.0)
        made.step()
        kept = sum(
            v.numel() for s in made.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.numel() > 1
        )
    return int(sum(p.numel() * p.element_size() for p in trained) * kept / 64)
