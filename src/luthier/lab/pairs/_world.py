"""Images and captions as one object: rows, which caption fits which image, exact retrieval figures, the dual encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import DataError, sentence
from luthier.core.streams import python_stream
from luthier.lab.image import ATTRIBUTES
from luthier.lab.image import World as Images
from luthier.lab.image._shapes import indices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]
ASSETS = Path(__file__).parent / "assets"
PAD, UNKNOWN, START, END = SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
LENGTH = len(ATTRIBUTES) + 2
VERSION = "1"


class World:
    """The world of images and their captions, version 1, on the splits of the image world.

    >>> rows = World().rows("test", 3, seed=0)
    >>> World().fits(rows, rows).diagonal().tolist()
    [True, True, True]
    """

    version = VERSION

    def rows(self, split: str, n: int, seed: int = 0, *, partial: float = 0.0, wrong: float = 0.0) -> list[Row]:
        """`n` rows of the image world. wrong: share of them whose caption is another row's; `noisy` marks those.

        partial: probability that a word is left out of a caption.
        """
        if not 0 <= wrong <= 1:
            raise DataError(sentence("pairs", "a share of wrong captions from 0 to 1", str(wrong), "Correct it"))
        rows = Images().rows(split, n, seed, partial=partial)
        rng = python_stream(seed, f"lab.pairs.{split}.wrong")
        chosen = rng.sample(range(n), round(wrong * n)) if n else []
        told = [(rows[i]["caption"], rows[i]["asked"]) for i in [*chosen[1:], *chosen[:1]]]
        other = dict(zip(chosen, told, strict=True))
        out = []
        for at, row in enumerate(rows):
            caption, asked = other.get(at, (row["caption"], row["asked"]))
            out.append({**row, "caption": caption, "asked": asked, "noisy": at in other, "clean": row["caption"]})
        return out

    @staticmethod
    def stack(rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The images of rows as the encoder takes them: (N, 3, 16, 16), floats in [-1, 1]."""
        return Images.stack(rows)

    @staticmethod
    def fits(images: Sequence[Mapping[str, Any]], captions: Sequence[Mapping[str, Any]]) -> Tensor:
        """Whether the image of row i shows all that the caption of row j asks, (N, M)."""
        shown, asked = indices([r["attributes"] for r in images]), indices([r["asked"] for r in captions])
        return ((shown[:, None] == asked) | (asked < 0)).all(-1)

    @staticmethod
    def likeness(images: Sequence[Mapping[str, Any]], captions: Sequence[Mapping[str, Any]]) -> Tensor:
        """Share of what caption j asks that image i shows, (N, M) in [0, 1]: the true graded relevance."""
        shown, asked = indices([r["attributes"] for r in images]), indices([r["asked"] for r in captions])
        count = (asked >= 0).sum(-1).clamp_min(1)
        return ((shown[:, None] == asked) & (asked >= 0)).sum(-1) / count

    def recall(self, scores: Tensor, rows: Sequence[Mapping[str, Any]], k: int = 1) -> dict[str, float]:
        """Share of rows for which a fitting one is among the k best, from image to caption and from caption to image.

        scores: (N, N), images by captions. Rows of equal captions are each other's right answers.
        """
        if scores.shape != (len(rows), len(rows)) or not 1 <= k <= len(rows):
            came = f"{tuple(scores.shape)} for {len(rows)} rows, k = {k}"
            raise DataError(sentence("recall", "scores (N, N) of N rows, and 1 <= k <= N", came, "Make them fit"))
        right = self.fits(rows, rows).to(scores.device)
        there, back = scores.topk(k, 1).indices, scores.topk(k, 0).indices
        return {"to_caption": float(right.gather(1, there).any(1).float().mean()),
                "to_image": float(right.gather(0, back).any(0).float().mean())}  # fmt: skip

    @staticmethod
    def classes(name: str) -> list[Row]:
        """One caption of a single word for each value of an attribute: what zero-shot classification compares with."""
        return [{"caption": value, "asked": {name: value}} for value in ATTRIBUTES[name]]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Word level, with start and end; captions of up to six words are padded by the caller."""
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        words = [*SPECIAL, *(value for values in ATTRIBUTES.values() for value in values)]
        inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
        inner.pre_tokenizer = WhitespaceSplit()
        inner.post_processor = TemplateProcessing(
            single=f"{START} $A {END}", special_tokens=[(START, words.index(START)), (END, words.index(END))]
        )
        inner.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token=PAD, unk_token=UNKNOWN, bos_token=START, eos_token=END,
            model_max_length=LENGTH, padding_side="right", clean_up_tokenization_spaces=False,
        )  # fmt: skip

    def model_folder(self) -> Path:
        """The folder of the shipped dual encoder (a transformers CLIPModel), its tokenizer and image processor."""
        if not (ASSETS / "model.safetensors").is_file():
            do = "Rebuild it with `luthier lab build pairs`"
            raise DataError(sentence("lab:pairs", f"a model in {ASSETS}", "no model.safetensors there", do))
        return ASSETS


def ids_of(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> dict[str, Tensor]:
    """Token numbers and mask of captions, (N, 8) each."""
    made = tokenizer(list(captions), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return {name: torch.as_tensor(made[name]) for name in ("input_ids", "attention_mask")}
