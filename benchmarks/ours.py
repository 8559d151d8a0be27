"""Luthier's side of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.clock import Clock
from benchmarks.work import Cell, encoded, model_of, texts, tokenizer_of
from luthier.core.config import build_component
from luthier.core.protocols import Reward
from luthier.core.sites import Sites
from luthier.models.language import LanguageModule, LanguageView
from luthier.train.feed import RowFeed
from luthier.train.loop import Job, Loop
from luthier.train.policy import Policy
from luthier.train.rollout import RolloutFeed
from luthier.train.settings import Training


class Length(Reward):
    """The share of tokens in an answer that are even words; any cheap reward does."""

    def __call__(self, rows: Any, completions: Any) -> torch.Tensor:
        return torch.tensor([sum(w.endswith("2") for w in c.split()) / (len(c.split()) or 1) for c in completions])


def measure(cell: Cell) -> Clock:
    """Train."""
    clock, seen, adapt = Clock(), 0, cell.adapt
    model, tokenizer = model_of(cell.model), tokenizer_of(cell.model)
    clock.ready()
    adaptation = build_component(adapt, "adapt", "adapt")
    needs_base = cell.kind == "dpo"
    from luthier.adapt.attach import attach

    attached = attach(
        model, adaptation, Sites("") if adapt == "full" else None, 0, keep_base=needs_base or adapt != "full"
    )
    policy = Policy(LanguageView(LanguageModule(model)), attached, tokenizer=tokenizer)
    objective = build_component({"sft": "nll", "dpo": "dpo", "grpo": "grpo"}[cell.kind], "objectives", "objective")
    rows = texts(cell, cell.batch * 8)
    if cell.kind == "grpo":
        prompts = [tokenizer(r["prompt"])["input_ids"] for r in rows]
        feed: Any = RolloutFeed(
            policy, prompts, rows, Length(), objective.advantage, 8, cell.batch, 0, cell.tokens, stop=(2,)
        )
    else:
        parts = ("chosen", "rejected") if cell.kind == "dpo" else ("text",)
        kind = "preference" if cell.kind == "dpo" else "text"
        feed = RowFeed(encoded(cell, tokenizer, rows), kind, parts, 0, cell.batch, None, width=cell.width,
                       hidden=model.config.hidden_size)  # fmt: skip
        if cell.kind == "dpo":
            _cache(feed, policy, cell.batch)
            attached.forget_base()  # as `luthier run` does

    def ended(event: Mapping[str, Any]) -> None:
        nonlocal seen
        if event["kind"] == "step":
            seen += event["tokens"] if cell.packed else 0
            clock.tick(seen)

    settings = Training(steps=cell.steps + 2, batch=cell.batch, lr=1e-4, clip=1.0)
    clip = build_component({"clip_grad_norm": {"max_norm": 1.0}}, "optim", "clip")
    job = Job(policy, objective, feed, settings, build_component("adamw", "optim", "optimiser"),
              build_component("linear", "optim", "schedule"), (clip,), on_event=ended)  # fmt: skip
    Loop(job).run()
    return clock


def _cache(feed: RowFeed, policy: Policy, size: int) -> None:
    """The frozen reference's log-probs, once; the peer does the same with precompute_ref_log_probs."""
    held: list[tuple[torch.Tensor, ...]] = []
    for at in range(0, len(feed), size):
        rows = list(range(at, min(at + size, len(feed))))
        batch = feed.collate(rows)
        got = policy.reference_signals(batch, ["token_logp"])["token_logp"]
        for i, row in enumerate(rows):
            masks = [torch.tensor(p.mask, dtype=torch.bool) for p in feed.examples[row]]
            held.append(tuple(got[p][i, : len(m)][m] for p, m in enumerate(masks)))
    feed.reference = held
