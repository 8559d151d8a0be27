"""What must hold before models are merged: the same tensors, tokenizer and architecture. All faults are found at
once."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError, nearest, sentence
from luthier.core.files import read_json
from luthier.merge._sites import HEADS, kind_of

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")
# Settings that must agree wherever both configs state them; others (names, dtypes, lengths) may differ.
SAME = ("model_type", "hidden_act", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers",
        "head_dim", "intermediate_size", "rms_norm_eps", "layer_norm_eps", "rope_theta", "rope_parameters",
        "rope_scaling", "partial_rotary_factor", "sliding_window", "attention_bias", "final_logit_softcapping",
        "attn_logit_softcapping", "logit_scale", "num_experts", "num_local_experts", "num_experts_per_tok")  # fmt: skip
SHOWN = 6


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def shape_faults(label: str, base: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors that are missing, extra, or of another shape; vocabulary sizes are named as such."""
    faults = []
    if missing := [n for n in base if n not in other]:
        head = any(n.removesuffix(".weight").rsplit(".", 1)[-1] in HEADS for n in missing)
        do = "Tie or untie the heads alike" if head and len(missing) == 1 else "Give models of one architecture"
        faults.append(sentence(label, "the base's tensors", f"{len(missing)} missing: {_listed(missing)}", do))
    if extra := [n for n in other if n not in base]:
        head = any(n.removesuffix(".weight").rsplit(".", 1)[-1] in HEADS for n in extra)
        do = (
            "Its own head would be lost; untie the base's head too"
            if head and len(extra) == 1
            else "Give models of one architecture"
        )
        faults.append(sentence(label, "only tensors that the base has", f"{len(extra)} more: {_listed(extra)}", do))
    for name in [n for n in base if n in other and tuple(base[n]) != tuple(other[n])]:
        mine, theirs = tuple(base[name]), tuple(other[name])
        if mine[1:] == theirs[1:] and (
            kind_of(name, mine) == "embedding" or name.removesuffix(".weight").endswith(HEADS)
        ):
            came = f"{theirs[0]} against {mine[0]} tokens in {name!r} (shapes {theirs} and {mine})"
            faults.append(
                sentence(label, "the base's vocabulary", came, "Bring all models to one tokenizer and vocabulary first")
            )
        else:
            faults.append(
                sentence(label, f"the shape {mine} at {name!r}", str(theirs), "Give models of one architecture")
            )
    return faults


def part_faults(label: str, base: Mapping[str, tuple[int, ...]], names: Sequence[str]) -> list[str]:
    """Names of an adapter that the base does not have, with the nearest one."""
    faults = []
    for name in [n for n in names if n not in base]:
        near = nearest(name, list(base), 1)
        do = f"Nearest name: {near[0]!r}" if near else "Give the adapter's own base"
        faults.append(sentence(label, "only tensors that the base has", repr(name), do))
    return faults


def _same_content(name: str, one: Path, other: Path) -> bool:
    """Whether two tokenizer files say the same; settings of padding and truncation, which callers change, are left out."""
    if filecmp.cmp(one, other, shallow=False):
        return True
    if name != "tokenizer.json":
        return False
    mine, theirs = ({k: v for k, v in read_json(p).items() if k not in ("padding", "truncation")} for p in (one, other))
    return mine == theirs


def tokenizer_faults(label: str, base: Path, other: Path) -> list[str]:
    """Tokenizer files that both folders have and that differ in content."""
    both = [n for n in TOKENIZERS if (base / n).is_file() and (other / n).is_file()]
    if differ := [n for n in both if not _same_content(n, base / n, other / n)]:
        do = "Merge models of one tokenizer, or state tokenizer='base' to keep the base's"
        return [sentence(label, "the base's tokenizer", f"another {', '.join(differ)}", do)]
    return []


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config") or {}
    return {**inner, **{k: v for k, v in config.items() if k != "text_config"}}


def config_faults(label: str, base: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Settings that decide what the weights mean and that differ; quantised models."""
    if "quantization_config" in other:
        came = f"quantised weights ({other['quantization_config'].get('quant_method', 'unknown method')})"
        return [
            sentence(
                label, "plain floating weights", came, "Use the unquantised model; merging packed numbers makes noise"
            )
        ]
    mine, theirs = _flat(base), _flat(other)
    differ = [k for k in SAME if k in mine and k in theirs and mine[k] != theirs[k]]
    if not differ:
        return []
    came = "; ".join(f"{k} = {theirs[k]!r} against {mine[k]!r}" for k in differ[:SHOWN])
    return [sentence(label, "the base's architecture", came, "Give models tuned from one base")]


def tied(config: Mapping[str, Any]) -> bool:
    """Whether the head shares the embedding's weights."""
    return bool(_flat(config).get("tie_word_embeddings", False))


def tied_heads(label: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Stored heads of a model whose head is tied: copies of the embedding, to be left out.

    Raises ModelError where a stored head differs from the embedding: it would be lost when the merged model is loaded.
    """
    out = []
    for head in [
        n for n in shapes if n.removesuffix(".weight").rsplit(".", 1)[-1] in HEADS and kind_of(n, shapes[n]) == "linear"
    ]:
        same = [n for n in shapes if kind_of(n, shapes[n]) == "embedding" and shapes[n] == shapes[head]]
        if any(torch.equal(tensors[n], tensors[head]) for n in same):
            out.append(head)
        elif same:
            came = f"{head!r} that differs from {same[0]!r} though its config ties them"
            raise ModelError(
                sentence(
                    label, "a tied head equal to its embedding", came, "Set tie_word_embeddings to false in its config"
                )
            )
    return out
