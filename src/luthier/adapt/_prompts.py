"""Prompt learning for causal models: virtual tokens or cached keys and values before the text, invisible from outside.

PEFT prepends prompts in a wrapper around the model. Here the model itself does it, so that whoever calls it (training,
a cache-based sampler) gets outputs for its own tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapt._surgery import Switch
from luthier.core.errors import Refused

ROUTE = "_luthier_route"


@dataclass
class Route:
    """PEFT's wrapper, which makes the prompts; how many virtual tokens; whether they come as a cache; the switch."""

    wrapper: Any
    count: int
    cached: bool
    switch: Switch


class Prompted:
    """Mixed in before a causal model's class: prepends the prompts and cuts them off the outputs."""

    def forward(self, *args: Any, **named: Any) -> Any:
        """As the model's own forward, under the prompts."""
        own: Callable[..., Any] = super().forward  # type: ignore[misc]
        route: Route = self.__dict__[ROUTE]
        if not route.switch.on:
            return own(*args, **named)
        if len(args) > 1:
            raise Refused("a model with learnt prompts requires inputs by name; got several by position.")
        if args:
            named["input_ids"] = args[0]
        return _prompted(self, own, route, named)


def install(model: nn.Module, route: Route) -> None:
    """Make `model` run under `route` until its class is restored."""
    model.__dict__[ROUTE] = route
    cls = type(model)
    model.__class__ = type(f"Prompted{cls.__name__}", (Prompted, cls), {"__module__": cls.__module__})


def uninstall(model: nn.Module) -> None:
    """Give the model its former class back."""
    order = type(model).__mro__
    model.__class__ = order[order.index(Prompted) + 1]
    del model.__dict__[ROUTE]


def _prompted(model: Any, own: Callable[..., Any], route: Route, named: dict[str, Any]) -> Any:
    if named.get("labels") is not None:
        raise Refused(
            "a model with learnt prompts gives logits of the given tokens; compute the loss from them, without labels."
        )
    if getattr(model, "is_gradient_checkpointing", False) and model.training and route.cached:
        raise Refused(
            "prefix tuning requires train.checkpointing = false; checkpointed layers ignore cached keys and values."
        )
    ids, embeds = named.get("input_ids"), named.get("inputs_embeds")
    given: Any = embeds if embeds is not None else ids
    rows, width = given.shape[:2]
    cache, mask = named.get("past_key_values"), named.get("attention_mask")
    seen = 0 if cache is None else int(cache.get_seq_length())
    device = given.device
    positions = _positions(named.get("position_ids"), mask, rows, width, seen, route.count, device)
    if mask is not None:
        mask = torch.cat([mask.new_ones(rows, route.count), mask], 1)
    if seen:
        return own(**{**named, "attention_mask": mask, "position_ids": positions + route.count})
    prompts = route.wrapper.get_prompt(batch_size=rows)
    if route.cached:
        if mask is None:
            mask = torch.ones(rows, route.count + width, dtype=torch.long, device=device)
        named["past_key_values"] = prompts if cache is None else _filled(cache, prompts)
        return own(**{**named, "attention_mask": mask, "position_ids": positions + route.count})
    if embeds is None:
        embeds = model.get_input_embeddings()(ids)
    front = torch.arange(route.count, device=device).expand(rows, -1)
    named = {**named, "input_ids": None, "inputs_embeds": torch.cat([prompts.to(embeds.dtype), embeds], 1)}
    out = own(**{**named, "attention_mask": mask, "position_ids": torch.cat([front, positions + route.count], 1)})
    return _cut(out, route.count, route.count + width)


def _positions(
    given: Tensor | None, mask: Tensor | None, rows: int, width: int, seen: int, count: int, device: Any
) -> Tensor:
    """Positions (rows, width) of the text without its prompts; packed rows are refused."""
    if given is None:
        if mask is not None:
            return (mask.cumsum(-1) - 1).clamp_min(0)[:, -width:]
        start = max(seen - count, 0)
        return torch.arange(start, start + width, device=device).expand(rows, -1)
    if bool((given[:, 1:] < given[:, :-1]).any()):
        raise Refused("learnt prompts require one text per row; got packed rows. Set train.packing to 0.")
    return given.expand(rows, -1)


def _filled(cache: Any, prompts: Any) -> Any:
    for at, layer in enumerate(prompts.layers):
        cache.update(layer.keys, layer.values, at)
    return cache


def _cut(out: Any, count: int, width: int) -> Any:
    """Leave the prompts out of everything that has one entry per token."""
    if getattr(out, "logits", None) is not None and out.logits.shape[1] == width:
        out["logits"] = out.logits[:, count:]
    if getattr(out, "hidden_states", None) is not None:
        out["hidden_states"] = tuple(h[:, count:] for h in out.hidden_states)
    return out
