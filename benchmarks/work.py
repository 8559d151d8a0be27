"""The same model, rows and batch for both sides of a benchmark; everything is made here, nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

SIZES: dict[str, dict[str, int]] = {
    "lab": {
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 414,
    },
    "30m": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 8000,
    },
    "120m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 14,
        "num_attention_heads": 12,
        "vocab_size": 16000,
    },
    "vocab128k": {
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 128000,
    },
}
SHAPES: dict[tuple[str, str], tuple[int, int, int]] = {
    ("sft", "lab"): (32, 24, 40), ("sft", "30m"): (8, 100, 5), ("sft", "120m"): (4, 100, 5), ("sft", "vocab128k"): (1, 2048, 2),
    ("dpo", "lab"): (16, 24, 40), ("dpo", "30m"): (4, 100, 4), ("dpo", "120m"): (2, 100, 4), ("dpo", "vocab128k"): (1, 1024, 2),
    ("grpo", "lab"): (128, 12, 12), ("grpo", "30m"): (16, 24, 4), ("grpo", "120m"): (8, 24, 3), ("grpo", "vocab128k"): (8, 64, 3),
    ("sft", "lab-long"): (4, 1024, 8), ("sft", "30m-long"): (2, 1024, 4),
    ("sft", "lab-packed"): (32, 24, 40), ("sft", "30m-packed"): (8, 100, 5), ("sft", "30m-long-packed"): (4, 1024, 3),
}  # fmt: skip
"""(kind, size) -> rows per step, tokens of an answer at most, timed steps."""


@dataclass(frozen=True)
class Cell:
    """One cell of the table: KIND/SIZE[+ADAPT], SIZE the model and, behind dashes, "long" and "packed".

    adapt: what trains on our side; the peer trains all weights where it is "full", else peft's LoRA. limit: steps at most,
    for runs that look at memory only.
    """

    kind: str
    size: str
    adapt: str = "full"
    limit: int = 1000

    @classmethod
    def of(cls, name: str, limit: int = 1000) -> Cell:
        """From the name in the table."""
        kind, _, rest = name.partition("/")
        size, _, adapt = rest.partition("+")
        return cls(kind, size, adapt or "full", limit)

    @property
    def model(self) -> str:
        """The model, one of SIZES."""
        return self.size.partition("-")[0]

    @property
    def packed(self) -> bool:
        """Whether both sides put several sequences into a row."""
        return self.size.endswith("-packed")

    @property
    def width(self) -> int | None:
        """Tokens of a packed row on both sides; None: ours packs where that saves tokens, the peer pads."""
        return 2 * (self.tokens + 17) if self.packed else None

    @property
    def batch(self) -> int:
        return SHAPES[self.kind, self.size][0]

    @property
    def tokens(self) -> int:
        return SHAPES[self.kind, self.size][1]

    @property
    def steps(self) -> int:
        return min(self.limit, SHAPES[self.kind, self.size][2])


def model_of(size: str) -> Any:
    """A Llama of this size with random weights, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(SIZES[size])
    config = LlamaConfig(**sizes, num_key_value_heads=sizes["num_attention_heads"], max_position_embeddings=4096,
                         tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    return LlamaForCausalLM(config)


def tokenizer_of(size: str) -> Any:
    """A word-level tokenizer with one word per token id, so that ids are ours to choose."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<begin>", "<end>", "<unk>"]
    words = [*special, *(f"t{i}" for i in range(4, SIZES[size]["vocab_size"]))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<begin>", eos_token="<end>", unk_token="<unk>"
    )


def texts(cell: Cell, n: int) -> list[dict[str, str]]:
    """Rows of words: prompts of 8 to 16 tokens, answers of half to the full length, so that there is real padding."""
    g = torch.Generator().manual_seed(1)
    top = SIZES[cell.model]["vocab_size"]

    def words(low: int, high: int) -> str:
        size = int(torch.randint(low, high + 1, (1,), generator=g))
        return " ".join(f"t{i}" for i in torch.randint(4, top, (size,), generator=g).tolist())

    full = cell.size == "vocab128k" and cell.kind == "sft"
    low, high = (cell.tokens, cell.tokens - 16) if full else (cell.tokens // 2, cell.tokens)
    rows = []
    for _ in range(n):
        row = {"prompt": words(8, 16), "completion": " " + words(min(low, high), high)}
        if cell.kind == "dpo":
            row = {"prompt": row["prompt"], "chosen": row["completion"], "rejected": " " + words(low, cell.tokens)}
        rows.append(row if cell.kind != "grpo" else {"prompt": row["prompt"]})
    return rows


def encoded(cell: Cell, tokenizer: Any, rows: list[dict[str, str]]) -> list[tuple[Any, ...]]:
    """The rows as Luthier's feeds take them: prompt not trained, answer and end token trained."""
    end = tokenizer.eos_token_id
    out = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answers = [row["chosen"], row["rejected"]] if cell.kind == "dpo" else [row["completion"]]
        tokens = [[*tokenizer(a)["input_ids"], end] for a in answers]
        out.append(tuple(SimpleNamespace(ids=[*prompt, *t], mask=[0] * len(prompt) + [1] * len(t)) for t in tokens))
    return out
