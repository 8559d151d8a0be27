"""What an image model is conditioned on: labels, captions of known words, or text through a CLIP encoder.

A conditioner turns captions or labels into raw inputs (integers, cheap to store), and raw inputs into the keyword arguments
of the network. The second half runs inside the training forward, so that text encoders and word vectors can train.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core.errors import DataError, ModelError, sentence, unknown


class Conditioner(nn.Module):
    """Base: a model without conditions.

    raw: names of the raw inputs; encoded: names of what the network takes. All tensors have the batch first.
    """

    raw: tuple[str, ...] = ()
    encoded: tuple[str, ...] = ()

    def tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Raw inputs of rows. Raises DataError naming the row whose caption or label cannot be used."""
        return {}

    def null(self, n: int) -> dict[str, Tensor]:
        """Raw inputs of "no condition" for n rows. Raises ModelError where the model was not made for it."""
        return {}

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """Raw inputs -> keyword arguments of the network."""
        return {}

    def save(self, folder: Path) -> None:
        """Write what `load_conditioner` needs."""


class ClassLabels(Conditioner):
    """A class number per image; number `classes` means no condition where the model has a place for it."""

    raw = ("label",)
    encoded = ("class_labels",)

    def __init__(self, classes: int, unconditional: bool) -> None:
        """classes: how many; unconditional: whether one more number stands for none of them."""
        super().__init__()
        self.classes, self.unconditional = classes, unconditional

    def tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`label` of every row, 0 <= label < classes."""
        out = []
        for at, row in enumerate(rows):
            label = row.get("label")
            if not isinstance(label, int) or not 0 <= label < self.classes:
                raise DataError(sentence(f"row {at + 1}", f"a label from 0 to {self.classes - 1}", repr(label),
                                         "Correct the row, or name the column with data.fields"))  # fmt: skip
            out.append(label)
        return {"label": torch.tensor(out, dtype=torch.long)}

    def null(self, n: int) -> dict[str, Tensor]:
        """The number after the last class."""
        if not self.unconditional:
            raise ModelError(
                "guidance requires a model with a place for 'no class'; this one has none. Set guidance to 1."
            )
        return {"label": torch.full((n,), self.classes, dtype=torch.long)}

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """class_labels (B,)."""
        return {"class_labels": raw["label"]}


class WordCaptions(Conditioner):
    """Captions of a small closed vocabulary, a fixed number of words each: one trained vector per word.

    Word 0 is padding, and all padding is "no condition". New words (`add_word`) get vectors of their own.
    """

    raw = ("ids",)
    encoded = ("encoder_hidden_states",)

    def __init__(self, words: Sequence[str], length: int, dim: int, name: str = "encoder_hidden_states") -> None:
        """words: the vocabulary without padding; length: words per caption; dim: of their vectors."""
        super().__init__()
        self.words, self.length, self.encoded = list(words), length, (name,)
        self.embedding = nn.Embedding(len(self.words) + 1, dim)
        self.position = nn.Parameter(torch.zeros(length, dim))

    def tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`caption` of every row as word numbers, (B, length)."""
        known = {w: i + 1 for i, w in enumerate(self.words)}
        out = torch.zeros(len(rows), self.length, dtype=torch.long)
        for at, row in enumerate(rows):
            caption = row.get("caption")
            if not isinstance(caption, str) or not caption.strip():
                raise DataError(
                    sentence(
                        f"row {at + 1}", "a caption", repr(caption), "Add one, or name the column with data.fields"
                    )
                )
            split = caption.lower().split()
            foreign = [w for w in split if w not in known]
            if foreign:
                raise DataError(
                    f"row {at + 1}: {unknown('word', foreign[0], self.words)} The model knows {len(self.words)} words."
                )
            if len(split) > self.length:
                raise DataError(
                    sentence(f"row {at + 1}", f"at most {self.length} words", str(len(split)), "Shorten the caption")
                )
            out[at, : len(split)] = torch.tensor([known[w] for w in split])
        return {"ids": out}

    def null(self, n: int) -> dict[str, Tensor]:
        """Nothing but padding."""
        return {"ids": torch.zeros(n, self.length, dtype=torch.long)}

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """(B, length, dim)."""
        return {self.encoded[0]: self.embedding(raw["ids"]) + self.position}

    def add_word(self, word: str, like: str | None = None) -> int:
        """Teach a new word; its vector begins as that of `like` (zero without). Returns its number."""
        old = self.embedding
        new = nn.Embedding(old.num_embeddings + 1, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
        with torch.no_grad():
            new.weight[:-1] = old.weight
            new.weight[-1] = old.weight[self.words.index(like) + 1] if like else 0.0
        new.weight.requires_grad_(old.weight.requires_grad)
        self.embedding = new
        self.words.append(word)
        return len(self.words)

    def save(self, folder: Path) -> None:
        """conditioner.json and conditioner.safetensors."""
        facts = {
            "kind": "words",
            "words": self.words,
            "length": self.length,
            "dim": self.embedding.embedding_dim,
            "name": self.encoded[0],
        }
        (folder / "conditioner.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "conditioner.safetensors")


class ClipText(Conditioner):
    """Captions through a CLIP text encoder, as Stable Diffusion 1 and 2 have it."""

    raw = ("ids",)
    encoded = ("encoder_hidden_states",)

    def __init__(self, encoder: nn.Module, tokenizer: Any) -> None:
        """encoder: a CLIPTextModel; tokenizer: its own."""
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer

    def _ids(self, captions: Sequence[str]) -> Tensor:
        length = min(self.tokenizer.model_max_length, self.encoder.config.max_position_embeddings)  # type: ignore[union-attr]
        made = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return made["input_ids"]

    def tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`caption` of every row, (B, length); longer ones are cut as CLIP must."""
        for at, row in enumerate(rows):
            if not isinstance(row.get("caption"), str):
                raise DataError(sentence(f"row {at + 1}", "a caption", repr(row.get("caption")),
                                         "Add one, or name the column with data.fields"))  # fmt: skip
        return {"ids": self._ids([r["caption"] for r in rows])}

    def null(self, n: int) -> dict[str, Tensor]:
        """The empty caption."""
        return {"ids": self._ids([""] * n)}

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """(B, length, dim)."""
        return {"encoder_hidden_states": self.encoder(raw["ids"])[0]}


def load_conditioner(folder: Path) -> WordCaptions:
    """The saved word captions of a folder. Raises ModelError."""
    try:
        facts = json.loads((folder / "conditioner.json").read_text(encoding="utf-8"))
        made = WordCaptions(facts["words"], facts["length"], facts["dim"], facts["name"])
        made.load_state_dict({k: v.float() for k, v in load_file(folder / "conditioner.safetensors").items()})
    except (OSError, KeyError, ValueError, RuntimeError) as fault:
        raise ModelError(
            sentence(f"folder {folder}", "a readable conditioner", str(fault), "Build or download it again")
        ) from fault
    return made
