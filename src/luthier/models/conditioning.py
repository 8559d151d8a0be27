"""What an image model is conditioned on: labels, captions of known words, or text through a CLIP encoder.

A conditioner turns captions or labels into raw inputs (integers, cheap to store), and raw inputs into the keyword arguments
of the network. The second half runs inside the training forward, so that text encoders and word vectors can train.
"""

from __future__ import annotations

import copy
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

    def told(self, raw: Mapping[str, Tensor]) -> str:
        """One row's raw inputs in words, as the model reads them; padding is left out."""
        return "; ".join(f"{k} {' '.join(map(str, v.flatten().tolist()))}" for k, v in raw.items())

    def add_word(self, word: str, like: str) -> tuple[str, int]:
        """Teach a new word, whose vector is that of `like`. Returns the name of the table of word vectors, and its row there.

        Raises ModelError where the word is known or `like` is not, or where the model is not conditioned on words.
        """
        raise ModelError(sentence("a new word", "a model that is conditioned on captions by one table of words", type(self).__name__,
                                  "Use another model, or train without new words"))  # fmt: skip

    def drop_word(self) -> None:
        """Forget the word that was added last; all is as it was before."""
        raise ModelError("dropping a word requires one that was added; there is none.")

    def save(self, folder: Path, changed: Mapping[str, Tensor] | None = None) -> None:
        """Write what `load_conditioner` needs, with `changed` tensors in the place of its own."""


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
        self.before: list[nn.Embedding] = []
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
                told = unknown("word", foreign[0], self.words)
                raise DataError(
                    f"row {at + 1}: {told}{'' if told.endswith('?') else '.'} The model knows {len(self.words)} words; "
                    "the adaptation textual_inversion teaches a new one."
                )
            if len(split) > self.length:
                raise DataError(
                    sentence(f"row {at + 1}", f"at most {self.length} words", str(len(split)), "Shorten the caption")
                )
            out[at, : len(split)] = torch.tensor([known[w] for w in split])
        return {"ids": out}

    def told(self, raw: Mapping[str, Tensor]) -> str:
        return " · ".join(self.words[i - 1] for i in raw["ids"].flatten().tolist() if i)

    def null(self, n: int) -> dict[str, Tensor]:
        """Nothing but padding."""
        return {"ids": torch.zeros(n, self.length, dtype=torch.long)}

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """(B, length, dim)."""
        return {self.encoded[0]: self.embedding(raw["ids"]) + self.position}

    def add_word(self, word: str, like: str) -> tuple[str, int]:
        """Teach a new word, whose vector is that of `like`. Raises ModelError where it is known, or `like` is not."""
        if word in self.words or word.split() != [word.lower()]:
            raise ModelError(
                sentence("a new word", "one lower-case word that the model does not know", repr(word), "Choose another")
            )
        if like not in self.words:
            raise ModelError(f"{unknown('word', like, self.words)} A new word begins as one that the model knows.")
        self.before.append(self.embedding)
        row = self.embedding.num_embeddings
        self.embedding = grown(self.embedding, self.words.index(like) + 1, row)
        self.words.append(word)
        return "embedding", row

    def drop_word(self) -> None:
        """Forget the word that was added last."""
        self.embedding = self.before.pop()
        self.words.pop()

    def save(self, folder: Path, changed: Mapping[str, Tensor] | None = None) -> None:
        """conditioner.json and conditioner.safetensors."""
        facts = {
            "kind": "words",
            "words": self.words,
            "length": self.length,
            "dim": self.embedding.embedding_dim,
            "name": self.encoded[0],
        }
        (folder / "conditioner.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        state = {**{k: v for k, v in self.state_dict().items() if ".adapted." not in k}, **(changed or {})}
        save_file({k: v.detach().contiguous() for k, v in state.items()}, folder / "conditioner.safetensors")


class ClipText(Conditioner):
    """Captions through a CLIP text encoder, as Stable Diffusion 1 and 2 have it."""

    raw = ("ids",)
    encoded = ("encoder_hidden_states",)

    def __init__(self, encoder: nn.Module, tokenizer: Any) -> None:
        """encoder: a CLIPTextModel; tokenizer: its own."""
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.before: list[tuple[nn.Module, Any]] = []

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

    def told(self, raw: Mapping[str, Tensor]) -> str:
        ids, pad = raw["ids"].flatten().tolist(), self.tokenizer.pad_token_id
        while len(ids) > 1 and ids[-1] == pad == ids[-2]:
            ids.pop()
        return " · ".join(self.tokenizer.convert_ids_to_tokens(ids))

    def null(self, n: int) -> dict[str, Tensor]:
        """The empty caption."""
        return {"ids": self._ids([""] * n)}

    def forward(self, **raw: Tensor) -> dict[str, Tensor]:
        """(B, length, dim)."""
        return {"encoder_hidden_states": self.encoder(raw["ids"])[0]}

    def add_word(self, word: str, like: str) -> tuple[str, int]:
        """Teach the tokenizer and the encoder a new word, whose vector is that of `like`, which must be a single token."""
        encoder: Any = self.encoder
        single = self.tokenizer(like, add_special_tokens=False)["input_ids"]
        if len(single) != 1:
            raise ModelError(
                sentence(
                    "a new word", "to begin as a word of one token", f"{like!r} of {len(single)}", "Choose another"
                )
            )
        taught = copy.deepcopy(self.tokenizer)
        if word != word.strip() or word in taught.get_vocab() or not taught.add_tokens(word):
            raise ModelError(
                sentence(
                    "a new word", "one that the tokenizer does not know", repr(word), "Choose another, such as <new>"
                )
            )
        old = encoder.get_input_embeddings()
        self.before.append((old, self.tokenizer))
        self.tokenizer = taught
        row = taught.convert_tokens_to_ids(word)
        table = grown(old, single[0], row)
        encoder.set_input_embeddings(table)
        encoder.config.vocab_size = table.num_embeddings
        return next(name for name, module in self.named_modules() if module is table), row

    def drop_word(self) -> None:
        """Forget the word that was added last."""
        encoder: Any = self.encoder
        old, self.tokenizer = self.before.pop()
        encoder.set_input_embeddings(old)
        encoder.config.vocab_size = old.num_embeddings  # type: ignore[union-attr]


def grown(table: nn.Embedding, like: int, row: int) -> nn.Embedding:
    """The table of word vectors with row `like` once more as row `row`, longer where it must be; it does not train."""
    made = nn.Embedding(max(table.num_embeddings, row + 1), table.embedding_dim, table.padding_idx, device=table.weight.device,
                        dtype=table.weight.dtype)  # fmt: skip
    with torch.no_grad():
        made.weight[: table.num_embeddings] = table.weight
        made.weight[row] = table.weight[like]
    made.weight.requires_grad_(False)
    return made


def load_conditioner(folder: Path, weights: bool = True) -> WordCaptions:
    """The saved word captions of a folder; weights False reads the words alone. Raises ModelError."""
    try:
        facts = json.loads((folder / "conditioner.json").read_text(encoding="utf-8"))
        made = WordCaptions(facts["words"], facts["length"], facts["dim"], facts["name"])
        if weights:
            made.load_state_dict({k: v.float() for k, v in load_file(folder / "conditioner.safetensors").items()})
    except (OSError, KeyError, ValueError, RuntimeError) as fault:
        raise ModelError(
            sentence(f"folder {folder}", "a readable conditioner", str(fault), "Build or download it again")
        ) from fault
    return made
