"""The bare loop of a cell: transformers' own forward, the loss, backward, clipping, AdamW, and nothing else.

Same model, rows and batches as Luthier's side, as tensors made before the clock starts, padded or packed alike; logits at
trained positions only; dpo with the reference's log-probs at hand; grpo draws its completions with Luthier's sampler, the
fastest here; freed memory is kept as in Luthier's loop. What a framework takes beside this is its own; no framework that runs
transformers' model can take less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clock import Clock
from benchmarks.work import Cell, encoded, model_of, texts, tokenizer_of

Loss = Callable[[Tensor, dict[str, Tensor]], Tensor]


def measure(cell: Cell) -> Clock:
    """Run the loop."""
    from luthier.train.feed import RowFeed
    from luthier.train.heap import keep_freed

    keep_freed()
    clock, model, tokenizer = Clock(), model_of(cell.model).train(), tokenizer_of(cell.model)
    rows = texts(cell, cell.batch * 8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if cell.kind == "grpo":
        prompts = [tokenizer(r["prompt"])["input_ids"] for r in rows]
        batches: Callable[[int], dict[str, Tensor]] = lambda step: _sampled(model, prompts, cell, step)  # noqa: E731
    else:
        parts = ("chosen", "rejected") if cell.kind == "dpo" else ("text",)
        feed = RowFeed(encoded(cell, tokenizer, rows), "text", parts, 0, cell.batch, None, width=cell.width,
                       hidden=model.config.hidden_size)  # fmt: skip
        made = [dict(feed.micros(s)[0].inputs) for s in range(cell.steps + 2)]
        if cell.kind == "dpo":
            for inputs in made:
                inputs["reference"] = torch.zeros(2 * cell.batch)
        batches = made.__getitem__
    clock.ready()
    loss = {"sft": _nll, "dpo": _dpo, "grpo": _grpo}[cell.kind]
    for step in range(cell.steps + 2):
        inputs = batches(step)
        loss(_logp(model, inputs), inputs).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        clock.tick()
    return clock


def _logp(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Log-probs of the trained tokens, (N,)."""
    row, column = inputs["trained"]
    hidden = model.base_model(inputs["input_ids"], position_ids=inputs.get("position_ids"), use_cache=False)
    logits = model.lm_head(hidden.last_hidden_state[row, column - 1])
    return -F.cross_entropy(logits, inputs["input_ids"][row, column], reduction="none")


def _nll(logp: Tensor, _: dict[str, Tensor]) -> Tensor:
    return -logp.mean()


def _dpo(logp: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    summed = torch.zeros_like(inputs["reference"]).index_add(0, _sequence(inputs), logp) - inputs["reference"]
    chosen, rejected = summed.chunk(2)
    return -F.logsigmoid(0.1 * (chosen - rejected)).mean()


def _sequence(inputs: dict[str, Tensor]) -> Tensor:
    """Which sequence each trained token belongs to, (N,)."""
    row, column = inputs["trained"]
    if "home" not in inputs:
        return row
    home, width = inputs["home"], inputs["input_ids"].shape[1]
    owner = torch.zeros(inputs["input_ids"].numel(), dtype=torch.long)
    for i, places in enumerate(home):
        owner[places[places >= 0]] = i
    return owner[row * width + column]


def _grpo(logp: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return -(torch.exp(logp - logp.detach()) * inputs["advantage"][inputs["trained"][0]]).mean()


@torch.no_grad()
def _sampled(model: Any, prompts: list[list[int]], cell: Cell, step: int) -> dict[str, Tensor]:
    """Eight completions for each of the step's prompts, and their advantages within the group."""
    from types import SimpleNamespace

    from luthier.models.collate import pad
    from luthier.models.generation import Sampling, generate

    at = [(step * cell.batch // 8 + i) % len(prompts) for i in range(cell.batch // 8)]
    asked = [prompts[i] for i in at for _ in range(8)]
    model.eval()
    drawn = generate(model, asked, Sampling(max_new=cell.tokens, stop=(2,)), torch.Generator().manual_seed(step)).tokens
    model.train()
    rows = [SimpleNamespace(ids=[*p, *t], mask=[0] * len(p) + [1] * len(t)) for p, t in zip(asked, drawn, strict=True)]
    reward = torch.tensor([sum(w % 10 == 2 for w in t) / max(1, len(t)) for t in drawn]).view(-1, 8)
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    return {**pad(rows, 0), "advantage": advantage.flatten()}
