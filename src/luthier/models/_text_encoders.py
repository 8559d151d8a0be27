"""Captions through several text encoders, as Stable Diffusion XL, Stable Diffusion 3 and Flux have them.

Each does what the pipeline of diffusers does with the same prompt for all of its encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import DataError, ModelError, sentence
from luthier.models.conditioning import ClipText, Conditioner

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
GUIDANCE = 3.5
"""Scale that guidance-distilled networks are told, in training and sampling, as diffusers' scripts do by default."""


class TextEncoders(Conditioner):
    """Captions as token numbers for each encoder: "ids" for `text_encoder`, "ids_2" for `text_encoder_2`, and so on."""

    def __init__(
        self, encoders: Mapping[str, nn.Module], tokenizers: Mapping[str, Any], long: Mapping[str, int]
    ) -> None:
        """encoders, tokenizers: by the pipeline's names. long: tokens of encoders that read more than CLIP does."""
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.tokenizers, self.long = dict(tokenizers), dict(long)
        self.raw = tuple(_ids(part) for part in encoders)

    def _numbers(self, captions: Sequence[str]) -> dict[str, Tensor]:
        out = {}
        for part, encoder in self.encoders.items():
            tokenizer, config = self.tokenizers[part], encoder.config
            length = self.long.get(part) or min(tokenizer.model_max_length, config.max_position_embeddings)  # type: ignore[union-attr]
            made = tokenizer(
                list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            out[_ids(part)] = made["input_ids"]
        return out

    def tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`caption` of every row, (B, length) for each encoder; longer ones are cut."""
        for at, row in enumerate(rows):
            if not isinstance(row.get("caption"), str):
                raise DataError(sentence(f"row {at + 1}", "a caption", repr(row.get("caption")),
                                         "Add one, or name the column with data.fields"))  # fmt: skip
        return self._numbers([r["caption"] for r in rows])

    def null(self, n: int) -> dict[str, Tensor]:
        """The empty caption."""
        return self._numbers([""] * n)

    def told(self, raw: Mapping[str, Tensor]) -> str:
        """The tokens of the first encoder, padding left out; all encoders read the same caption."""
        part = next(iter(self.encoders))
        tokenizer, ids = self.tokenizers[part], raw[_ids(part)].flatten().clamp_min(0).tolist()
        while len(ids) > 1 and ids[-1] == tokenizer.pad_token_id == ids[-2]:
            ids.pop()
        return " · ".join(tokenizer.convert_ids_to_tokens(ids))

    def clip(self, part: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(states before the last layer (B, length, d), the first output: pooled and projected where it is (B, p))."""
        out = self.encoders[part](ids, output_hidden_states=True)
        return out.hidden_states[-2], out[0]


def _ids(part: str) -> str:
    return "ids" + part.removeprefix("text_encoder")


class XLText(TextEncoders):
    """Stable Diffusion XL: two CLIP encoders side by side, the pooled text of the second, and six numbers of size and crop."""

    encoded = ("encoder_hidden_states", "text_embeds", "time_ids")

    def __init__(
        self, encoders: Mapping[str, nn.Module], tokenizers: Mapping[str, Any], size: tuple[int, int], zeros: bool
    ) -> None:
        """size: (height, width) in pixels, said to be original and target, uncropped. zeros: no caption is zeros, not ""."""
        super().__init__(encoders, tokenizers, {})
        self.size, self.zeros = size, zeros

    def null(self, n: int) -> dict[str, Tensor]:
        """The empty caption, or numbers below zero where the pipeline has zeros for it."""
        made = super().null(n)
        return {k: torch.full_like(v, -1) for k, v in made.items()} if self.zeros else made

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """encoder_hidden_states (B, length, d1 + d2), text_embeds (B, p), time_ids (B, 6)."""
        known = (raw["ids"][:, 0] >= 0).view(-1, 1)
        one, _ = self.clip("text_encoder", raw["ids"].clamp_min(0))
        two, pooled = self.clip("text_encoder_2", raw["ids_2"].clamp_min(0))
        states = torch.cat([one, two], -1)
        height, width = self.size
        said = torch.tensor([[height, width, 0, 0, height, width]]).to(states).expand(len(states), -1)
        states = torch.where(known[..., None], states, torch.zeros_like(states))
        return {
            "encoder_hidden_states": states,
            "text_embeds": torch.where(known, pooled, torch.zeros_like(pooled)),
            "time_ids": said,
        }


class SD3Text(TextEncoders):
    """Stable Diffusion 3: two CLIP encoders side by side, widened with zeros, then the states of T5 (zeros without it)."""

    encoded = ("encoder_hidden_states", "pooled_projections")
    length = 256

    def __init__(self, encoders: Mapping[str, nn.Module], tokenizers: Mapping[str, Any], width: int) -> None:
        """width: of the network's text states."""
        super().__init__(encoders, tokenizers, {"text_encoder_3": self.length})
        self.width = width

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """encoder_hidden_states (B, length + 256, width), pooled_projections (B, p1 + p2)."""
        one, first = self.clip("text_encoder", raw["ids"])
        two, second = self.clip("text_encoder_2", raw["ids_2"])
        short = torch.cat([one, two], -1)
        short = nn.functional.pad(short, (0, self.width - short.shape[-1]))
        long = (
            self.encoders["text_encoder_3"](raw["ids_3"])[0]
            if "ids_3" in raw
            else short.new_zeros(len(short), self.length, self.width)
        )
        return {
            "encoder_hidden_states": torch.cat([short, long], 1),
            "pooled_projections": torch.cat([first, second], -1),
        }


class FluxText(TextEncoders):
    """Flux: the states of T5, the pooled text of CLIP, and the guidance scale where the network was distilled with one."""

    def __init__(self, encoders: Mapping[str, nn.Module], tokenizers: Mapping[str, Any], guided: bool) -> None:
        """guided: whether the network embeds a guidance scale; such networks read 512 tokens, others 256."""
        super().__init__(encoders, tokenizers, {"text_encoder_2": 512 if guided else 256})
        self.guided = guided
        self.encoded = ("encoder_hidden_states", "pooled_projections", *(["guidance"] if guided else []))

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """encoder_hidden_states (B, length, d), pooled_projections (B, p), guidance (B,)."""
        pooled = self.encoders["text_encoder"](raw["ids"]).pooler_output
        long = self.encoders["text_encoder_2"](raw["ids_2"])[0]
        said = {"guidance": pooled.new_full((len(pooled),), GUIDANCE)} if self.guided else {}
        return {"encoder_hidden_states": long, "pooled_projections": pooled, **said}


def text_conditioner(
    folder: Path, network: nn.Module, index: Mapping[str, Any], size: tuple[int, int], load: Callable[[str], nn.Module]
) -> Conditioner:
    """The text encoders of a pipeline. load: one of its parts by name. Raises ModelError for combinations not known."""
    from transformers import AutoTokenizer

    config: Any = network.config
    there = tuple(p for p in ENCODERS if index.get(p, [None])[0])
    name, wide = type(network).__name__, getattr(config, "addition_embed_type", None) == "text_time"
    known = {
        ("UNet2DConditionModel", False): (ENCODERS[:1],),
        ("UNet2DConditionModel", True): (ENCODERS[:2],),
        ("SD3Transformer2DModel", False): (ENCODERS[:2], ENCODERS),
        ("FluxTransformer2DModel", False): (ENCODERS[:2],),
    }
    if there not in known.get((name, wide), ()):
        known_kinds = (
            "the network and text encoders of Stable Diffusion 1, 2, XL or 3 or of Flux, class labels, or no condition"
        )
        raise ModelError(
            sentence(f"model {folder}", known_kinds, f"{name} with {', '.join(there)}", "Use another pipeline")
        )
    encoders = {p: load(p) for p in there}
    at = {p: str(folder / p.replace("text_encoder", "tokenizer")) for p in there}
    tokenizers = {p: AutoTokenizer.from_pretrained(at[p]) for p in there}
    if name == "SD3Transformer2DModel":
        return SD3Text(encoders, tokenizers, int(config.joint_attention_dim))
    if name == "FluxTransformer2DModel":
        return FluxText(encoders, tokenizers, bool(config.guidance_embeds))
    if wide:
        return XLText(encoders, tokenizers, size, bool(index.get("force_zeros_for_empty_prompt", True)))
    return ClipText(encoders["text_encoder"], tokenizers["text_encoder"])
