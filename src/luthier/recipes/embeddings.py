"""Recipes of text encoders: pairs of texts to tokens, the guide's vectors, vectors as measures see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from luthier.core.errors import DataError, Refused, counted, sentence
from luthier.models.encode import Encoded
from luthier.models.encoder import EncoderModule, LoadedEncoder
from luthier.recipes.mixing import mixture_of
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import Row, Rows
from luthier.train.feed import RowFeed

BATCH = 64
"""Texts in one pass while measuring."""


@dataclass
class EmbeddingSubject:
    """The encoder as measures see it: texts to vectors. off: the context in which its adaptation is switched off."""

    module: EncoderModule
    tokenizer: Any
    limit: int
    off: Callable[[], AbstractContextManager[Any]] = nullcontext
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    @torch.no_grad()
    def embed(self, texts: Sequence[str], layer: int = 0) -> Tensor:
        """Texts -> (n, d) float32; layer counts from 1, 0 is the whole model. Texts that are too long are cut, as in use."""
        was, device = self.module.training, next(self.module.parameters()).device
        self.module.eval()
        out = []
        with self.around():
            for at in range(0, len(texts), BATCH):
                got = self.tokenizer(
                    list(texts[at : at + BATCH]),
                    padding=True,
                    truncation=True,
                    max_length=self.limit,
                    return_tensors="pt",
                )
                made = self.module(got["input_ids"].to(device), got["attention_mask"].to(device), layers=layer > 0)
                if layer and layer >= made.shape[1]:
                    raise DataError(sentence("retrieval", f"a layer up to {made.shape[1] - 1}", str(layer), "Lower it"))
                out.append((made[:, layer] if layer else made).float().cpu())
        self.module.train(was)
        return torch.cat(out)

    def base(self) -> EmbeddingSubject:
        """The encoder before training."""
        return EmbeddingSubject(self.module, self.tokenizer, self.limit, around=self.off)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise DataError(sentence("this measure", "a language model", "a text encoder", "Leave it out"))

    generate = logp = _refuse


@dataclass
class EncodedPairs:
    """Tokens of all training rows, a sequence for each part."""

    examples: list[tuple[Encoded, ...]]
    parts: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def encode_pairs(rows: Rows, tokenizer: Any, limit: int, truncation: str) -> EncodedPairs:
    """Rows as tokens. Raises DataError naming the first text that is too long, unless `truncation` is "right" or "drop"."""
    parts = ("query", "positive", *(["negative"] if rows.rows and all("negative" in r for r in rows.rows) else []))
    ids = {p: tokenizer([r[p] for r in rows.rows])["input_ids"] for p in parts}
    long = [i for i in range(len(rows.rows)) if max(len(ids[p][i]) for p in parts) > limit]
    if long and truncation not in ("right", "drop"):
        raise DataError(sentence(f"{rows.path}, {rows.where(long[0])}", f"texts of at most {limit} tokens",
                                 f"{max(len(ids[p][long[0]]) for p in parts)} (and {counted(len(long) - 1, 'more row')})",
                                 "Set data.truncation to right or drop"))  # fmt: skip
    if truncation == "right" and long:
        ids = {p: tokenizer([r[p] for r in rows.rows], truncation=True, max_length=limit)["input_ids"] for p in parts}
    out = set(long) if truncation == "drop" else set[int]()
    keep = [i for i in range(len(rows.rows)) if i not in out]
    rows.keep(keep)
    examples = [tuple(Encoded(tuple(ids[p][i]), (1,) * len(ids[p][i]), n) for p in parts) for n, i in enumerate(keep)]
    how = f"{'is' if len(long) == 1 else 'are'} {'left out' if truncation == 'drop' else 'cut'}"
    told = [f"{counted(len(long), 'row has', 'rows have')} texts of more than {limit} tokens and {how}"]
    return EncodedPairs(examples, parts, told if long else [])


def limit_of(recipe: Recipe, loaded: LoadedEncoder) -> int:
    """Tokens that a text may have: the encoder's limit, or the recipe's where it is lower."""
    return min(loaded.limit, recipe.data.max_length or loaded.limit)


def pair_feed(recipe: Recipe, train: Rows, loaded: LoadedEncoder) -> tuple[EncodedPairs, RowFeed]:
    """Training rows as tokens and as batches, without a guide's columns. Raises DataError as `encode_pairs` does."""
    encoded = encode_pairs(train, loaded.tokenizer, limit_of(recipe, loaded), recipe.data.truncation)
    mixture, told = mixture_of(recipe, train, encoded, "pairs")
    encoded.notes += told
    feed = RowFeed(encoded.examples, "pairs", encoded.parts, int(loaded.tokenizer.pad_token_id), recipe.train.batch,
                   recipe.seed, mixture=mixture)  # fmt: skip
    return encoded, feed


def guide_columns(rows: Sequence[Row], parts: Sequence[str], recipe: Recipe, needs: Sequence[str]) -> dict[str, Tensor]:
    """Vectors of the recipe's `embedder` for every text, where the objective asks for a guide's."""
    from luthier.recipes.build import embedder

    if not any(n.startswith("guide_") for n in needs):
        return {}
    embed = embedder(recipe)
    if embed is None:
        raise Refused(sentence("this objective", "a guide model", "a recipe that names none", "Add `embedder: minilm`"))
    return {f"guide_{p}": embed([r[p] for r in rows]) for p in parts}
