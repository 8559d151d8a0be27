"""Batched sampling with a key-value cache, per-row stopping and paired randomness.

The random number of row r at step t depends on (seed, role) and (r, t) only, and tokens are drawn by inverting the
distribution function, so that two nearly equal models give nearly equal samples: comparisons are paired down to the token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from luthier.core.errors import ModelError, sentence
from luthier.core.protocols import Decode, DecodeView
from luthier.models.decoder import LlamaDecoder


class Stepper(Protocol):
    """Feeds tokens and returns next-token logits (B, V); rows can be dropped as they finish."""

    def prefill(self, ids: Tensor, mask: Tensor, room: int) -> Tensor: ...
    def step(self, tokens: Tensor) -> Tensor: ...
    def keep(self, rows: Tensor) -> None: ...


class CacheStepper:
    """Any causal LM of transformers, through its own forward and DynamicCache."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.cache: Any = None
        self.mask = torch.empty(0)

    def prefill(self, ids: Tensor, mask: Tensor, room: int) -> Tensor:
        """ids, mask (B, T) left-padded -> logits of the next token (B, V)."""
        from transformers import DynamicCache

        self.cache, self.mask = DynamicCache(config=self.model.config), mask
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        return self._run(ids, positions)

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (B,) -> logits (B, V)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        return self._run(tokens[:, None], self.mask.sum(-1, keepdim=True) - 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        padded = not bool(self.mask.all())
        out = self.model(input_ids=ids, attention_mask=self.mask if padded else None, position_ids=positions,
                         past_key_values=self.cache, use_cache=True, logits_to_keep=1)  # fmt: skip
        logits = out.logits[:, -1]
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def stepper(model: nn.Module) -> Stepper:
    """The fastest stepper that is known to equal the model: a plain Llama-family loop if the probe agrees."""
    fast = LlamaDecoder.fit(model)
    return fast if fast is not None else CacheStepper(model)


@dataclass(frozen=True)
class Helper:
    """A model that runs beside the main one, with a cache of its own; decoding components see its logits.

    around: context of each of its forward passes, for example with an adaptation switched off. prompts: what it reads in
    place of each prompt of the main model (None: the same); the tokens drawn are fed to all models alike.
    """

    model: nn.Module
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    prompts: Sequence[Sequence[int]] | None = None


class _Within:
    """A stepper whose forward passes all run in a context."""

    def __init__(self, model: nn.Module, around: Callable[[], AbstractContextManager[None]]) -> None:
        self.around = around
        with around():
            self.inner = stepper(model)

    def prefill(self, ids: Tensor, mask: Tensor, room: int) -> Tensor:
        with self.around():
            return self.inner.prefill(ids, mask, room)

    def step(self, tokens: Tensor) -> Tensor:
        with self.around():
            return self.inner.step(tokens)

    def keep(self, rows: Tensor) -> None:
        self.inner.keep(rows)


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature (0 is greedy), length, stop tokens, decoding components in order, helper models by name.

    text: tokens -> text, for components that read what was drawn.
    """

    max_new: int = 64
    temperature: float = 1.0
    stop: tuple[int, ...] = ()
    decode: tuple[Decode, ...] = ()
    helpers: Mapping[str, nn.Module | Helper] = field(default_factory=dict)
    text: Callable[[Sequence[int]], str] | None = None


@dataclass(frozen=True)
class Completions:
    """Sampled tokens per row (stop token included if it came), and whether each row ended by itself."""

    tokens: list[list[int]]
    ended: list[bool]


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Next tokens (B,) from logits (B, V): arg-max at temperature 0, else the inverse distribution function at `uniform`."""
    if temperature == 0:
        return logits.argmax(-1)
    mass = (logits.double() / temperature).softmax(-1).cumsum(-1)
    at = torch.searchsorted(mass, (uniform.double() * mass[:, -1])[:, None], right=True)
    return at[:, 0].clamp_max(logits.shape[-1] - 1)


@torch.inference_mode()
def generate(
    model: nn.Module, prompts: Sequence[Sequence[int]], sampling: Sampling, generator: Generator, batch: int = 256,
    uniform: Tensor | None = None,
) -> Completions:  # fmt: skip
    """Complete token prompts. Rows are grouped by length so that little is padded; results keep the given order.

    uniform: the random numbers (rows, max_new) to use in place of the generator's. Raises ModelError for an empty prompt or
    one that leaves no room in the model's context, also among the prompts that a helper reads.
    """
    helpers = {k: h if isinstance(h, Helper) else Helper(h) for k, h in sampling.helpers.items()}
    _check_prompts(model, prompts, sampling.max_new, "prompt")
    for name, helper in helpers.items():
        read = prompts if helper.prompts is None else helper.prompts
        if len(read) != len(prompts):
            raise ModelError(
                sentence(f"helper {name}", f"{len(prompts)} prompts", str(len(read)), "Give one for each row")
            )
        _check_prompts(helper.model, read, sampling.max_new, f"prompt of {name}")
    was, _ = model.training, model.eval()
    device = next(model.parameters()).device
    tokens: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    if uniform is None:
        uniform = torch.rand(len(prompts), sampling.max_new, generator=generator)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    try:
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            beside = {k: Helper(h.model, h.around, None if h.prompts is None else [h.prompts[r] for r in rows])
                      for k, h in helpers.items()}  # fmt: skip
            made = _complete(model, [prompts[r] for r in rows], sampling, uniform[rows].to(device), device, beside)
            for row, (text, end) in zip(rows, made, strict=True):
                tokens[row], ended[row] = text, end
    finally:
        model.train(was)
    return Completions(tokens, ended)


def _check_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], max_new: int, who: str) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr]
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ModelError(sentence(f"{who} {i}", "at least one token", "none", "Add a begin token or some text"))
        if context and len(prompt) + max_new > context:
            raise ModelError(sentence(f"{who} {i}", f"prompt + new tokens <= {context}", f"{len(prompt)} + {max_new}",
                                      "Shorten it or lower max_new"))  # fmt: skip


def _roll(helpers: Mapping[str, Helper], stop: tuple[int, ...], name: str, prompts: Sequence[Sequence[int]],
          uniform: Tensor) -> list[list[int]]:  # fmt: skip
    """Completions of token prompts by a helper, end tokens left out."""
    if not uniform.shape[1]:
        return [[] for _ in prompts]
    helper, how = helpers[name], Sampling(uniform.shape[1], stop=stop)
    with helper.around():
        made = generate(helper.model, prompts, how, Generator(), uniform=uniform)
    return [tokens[:-1] if end else tokens for tokens, end in zip(made.tokens, made.ended, strict=True)]


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), each (B, T), padded on the left with token 0."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _complete(model: nn.Module, prompts: Sequence[Sequence[int]], sampling: Sampling, uniform: Tensor,
              device: torch.device, helpers: Mapping[str, Helper] | None = None) -> list[tuple[list[int], bool]]:  # fmt: skip
    helpers = helpers or {}
    ids, mask = left_pad(prompts, device)
    steppers: dict[str, Stepper] = {"": stepper(model)}
    steppers.update({name: _Within(h.model, h.around) for name, h in helpers.items()})
    read = {k: left_pad(h.prompts, device) for k, h in helpers.items() if h.prompts is not None}
    logits = {name: s.prefill(*read.get(name, (ids, mask)), sampling.max_new) for name, s in steppers.items()}
    roll = functools.partial(_roll, helpers, sampling.stop)
    alive = torch.arange(len(prompts), device=device)
    stop = torch.tensor(sampling.stop, dtype=torch.long, device=device)
    made = torch.full((len(prompts), sampling.max_new), -1, dtype=torch.long, device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for t in range(sampling.max_new):
        z = logits[""]
        if sampling.decode:
            outs = {k: v for k, v in logits.items() if k}
            now = torch.cat([ids[alive], made[alive, :t].clamp_min(0)], 1)
            seen = torch.cat([mask[alive], mask.new_ones(len(alive), t)], 1)
            view = DecodeView(now, seen, t, outs, roll, sampling.text, sampling.stop)
            for part in sampling.decode:
                z = part(z, view)
        chosen = draw(z, sampling.temperature, uniform[alive, t])
        made[alive, t] = chosen
        if len(stop):
            finished = torch.isin(chosen, stop)
            if bool(finished.any()):
                done[alive[finished]] = True
                left = (~finished).nonzero()[:, 0]
                alive, chosen = alive[left], chosen[left]
                if len(alive) == 0:
                    break
                for s in steppers.values():
                    s.keep(left)
        if t + 1 < sampling.max_new:
            logits = {name: s.step(chosen) for name, s in steppers.items()}
    return [([t for t in row if t >= 0], end) for row, end in zip(made.tolist(), done.tolist(), strict=True)]
