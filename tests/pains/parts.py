"""What the tests of pains share: tiny model folders with real tokenizers and templates, recipes on them, what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from luthier.recipes.build import Prepared, prepare
from luthier.recipes.recipe import parse
from luthier.recipes.run import Finished, run
from tests.models.made import byte_level, template
from tests.recipes.parts import write

CHATML = ("<|im_start|>", "<|im_end|>")
REDNESS = {"format": {"pattern": "w[0-9]( .*)?"}}


def chatml(**extra: Any) -> Any:
    """A tokenizer of bytes with the template ChatML."""
    return byte_level(None, "<|im_end|>", CHATML, template("chatml"), **extra)


def folder(at: Path, tokenizer: Any, **config: Any) -> Path:
    """A two-layer Llama of width 16 with this tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    own = {"tie_word_embeddings": False, "vocab_size": len(tokenizer), "max_position_embeddings": 256, **config}
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, **own))  # fmt: skip
    model.save_pretrained(at)
    tokenizer.save_pretrained(at)
    return at


def plain(place: Path, rows: str = "chat", **more: Any) -> dict[str, Any]:
    """A recipe on a place with a model and rows; sections that are given are laid over its own."""
    data = {"train": str(place / f"{rows}.jsonl"), "holdout": 0, **more.pop("data", {})}
    train = {"steps": 3, "batch": 6, "lr": 1e-2, **more.pop("train", {})}
    return {"model": str(place / "model"), "data": data, "train": train, **more}


def trained(place: Path, rows: str = "chat", **more: Any) -> Finished:
    """The run of such a recipe; nothing is written."""
    return run(parse(plain(place, rows, **more)))


def ready(at: Path, tokenizer: Any, rows: list[dict[str, Any]], **more: Any) -> Prepared:
    """A recipe on a new model with this tokenizer and these rows, ready for its first step."""
    folder(at / "model", tokenizer)
    write(at / "rows.jsonl", rows)
    return prepare(parse(plain(at, "rows", **more)))


def turns(count: int, system: bool = False, off: tuple[int, ...] = ()) -> dict[str, Any]:
    """A conversation of so many questions and answers; the answers numbered in `off` are switched off."""
    out: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}] if system else []
    for i in range(count):
        answer = {"role": "assistant", "content": f"answer {i}", **({"train": False} if i in off else {})}
        out += [{"role": "user", "content": f"question {i}?"}, answer]
    return {"messages": out}


def texts(prepared: Prepared, row: int = 0, part: int = 0) -> list[str]:
    """The stretches of a row that train, as text, in order."""
    one, out = prepared.encoded.examples[row][part], list[list[int]]()
    before = 0
    for i, m in zip(one.ids, one.mask, strict=True):
        if m and not before:
            out.append([])
        if m:
            out[-1].append(i)
        before = m
    return [prepared.policy.tokenizer.decode(x) for x in out]


def answers(finished: Finished, prompts: list[Any], max_new: int) -> list[str]:
    """The run's model on these prompts, most probable words, until it stops."""
    from luthier.recipes.run import subject_of

    made = subject_of(finished.prepared).generate(prompts, temperature=0.0, max_new=max_new)  # type: ignore[arg-type]
    return [one[0] for one in made]


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a model says to these ids, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits
