"""How denoising networks of diffusers want to be called: what they name their inputs, and how they lay out an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Form = Callable[[Any, Tensor, Tensor, Mapping[str, Any]], Tensor]
"""(network, x (B, C, H, W), time (B,) in thousandths of the path or table rows, its conditions) -> prediction (B, C, H, W)."""

ADDED = ("text_embeds", "time_ids")
"""Conditions that SDXL's network takes apart from the others."""


def plain(network: Any, x: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """Image, time, and conditions by name; predicted variances, where there are, are cut off."""
    return network(x, timestep=time, **condition, return_dict=False)[0][:, : x.shape[1]]


def pixart(network: Any, x: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """PixArt requires a word on resolution and aspect ratio, which may say nothing."""
    return plain(network, x, time, {**condition, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}})


def added(network: Any, x: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """SDXL: the pooled text and the six numbers of size and crop go in a mapping of their own."""
    own = {k: condition[k] for k in ADDED}
    rest = {k: v for k, v in condition.items() if k not in own}
    return plain(network, x, time, {**rest, "added_cond_kwargs": own})


def pack(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W / 4, 4 C): every square of two by two places is one token."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`."""
    b, _, c = tokens.shape
    return (
        tokens.view(b, height // 2, width // 2, c // 4, 2, 2)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(b, c // 4, height, width)
    )


def places(height: int, width: int, like: Tensor) -> Tensor:
    """(height width, 3): 0, row and column of each token of an image."""
    rows, columns = torch.arange(height), torch.arange(width)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return nn.functional.pad(grid, (1, 0)).to(like)


def packed(network: Any, x: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """Flux: packed latents with their places, text at place zero, time from 0 to 1."""
    height, width = x.shape[-2:]
    text = torch.zeros(condition["encoder_hidden_states"].shape[1], 3).to(x)
    out = network(hidden_states=pack(x), timestep=time / 1000, img_ids=places(height // 2, width // 2, x), txt_ids=text,
                  **condition, return_dict=False)[0]  # fmt: skip
    return unpack(out, height, width)


def form_of(network: nn.Module) -> Form:
    """How this network is called."""
    config: Any = getattr(network, "config", None)
    if getattr(config, "addition_embed_type", None) == "text_time":
        return added
    return {"PixArtTransformer2DModel": pixart, "FluxTransformer2DModel": packed}.get(type(network).__name__, plain)
