"""A tiny real model folder and small data files, made in a temporary place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = [f"w{i}" for i in range(40)]
SYLLABLES = [f"{a}{b}" for a in "bcdfgh" for b in "aeiou"]
TEMPLATE = ("{% for m in messages %}<{{ m.role }}> {{ m.content }} <end>{% endfor %}"
            "{% if add_generation_prompt %}<assistant> {% endif %}")  # fmt: skip


def model_folder(at: Path, pad: bool = True, template: str | None = TEMPLATE, vocab_extra: int = 0) -> Path:
    """A two-layer Llama with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<end>", "<unk>", "<user>", "<assistant>", "<system>"]
    vocab = {w: i for i, w in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra: dict[str, Any] = {"pad_token": "<pad>"} if pad else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<end>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"], **extra)  # fmt: skip
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(vocab) + vocab_extra, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, eos_token_id=2,
                         bos_token_id=1, pad_token_id=0)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(at)
    tokenizer.save_pretrained(at)
    return at


def encoder_folder(at: Path) -> Path:
    """A sentence-transformers folder of a BERT of two layers and 16 coordinates, which knows SYLLABLES."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    at.mkdir(exist_ok=True)
    (at / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SYLLABLES]))
    BertTokenizerFast(str(at / "vocab.txt")).save_pretrained(at)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=35, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                        max_position_embeddings=32)  # fmt: skip
    BertModel(config).save_pretrained(at)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"}
        for i, (k, p) in enumerate(kinds)
    ]
    (at / "modules.json").write_text(json.dumps(modules))
    (at / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (at / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (at / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
    return at


def chat_rows(n: int = 24) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    out = []
    for _ in range(n):
        words = [
            WORDS[i] for i in torch.randint(40, (int(torch.randint(2, 6, (1,), generator=g)),), generator=g).tolist()
        ]
        out.append({"messages": [{"role": "user", "content": " ".join(words)},
                                 {"role": "assistant", "content": " ".join(reversed(words))}]})  # fmt: skip
    return out


def pair_rows(n: int = 24) -> list[dict[str, Any]]:
    return [{"prompt": r["messages"][0]["content"], "chosen": r["messages"][1]["content"], "rejected": WORDS[i % 40]}
            for i, r in enumerate(chat_rows(n))]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path
