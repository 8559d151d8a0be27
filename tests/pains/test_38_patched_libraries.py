"""unsloth #3081, #3852, #2775, #1144, #7376: each release of a dependency broke a tool that replaces its methods."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

from tests.pains.parts import trained

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets")


def ours(value: Any) -> bool:
    """Whether a function was written in Luthier."""
    inner = value.__func__ if type(value) in (classmethod, staticmethod) else value
    return type(inner) is FunctionType and inner.__globals__.get("__name__", "").startswith("luthier.")


def patched() -> list[str]:
    """Functions and methods of other libraries that lead into Luthier."""
    found = []
    for name, module in list(sys.modules.items()):
        if not name.startswith(LIBRARIES):
            continue
        for key, value in list(vars(module).items()):
            if ours(value):
                found.append(f"{name}.{key}")
            if issubclass(type(value), type) and value.__module__ == name:
                found += [f"{name}.{key}.{k}" for k, v in list(vars(value).items()) if ours(v)]
    return found


def test_a_run_with_all_kinds_of_parts_replaces_no_function_of_another_library(place):
    trained(place, adapt=[{"lora": {"rank": 2, "sites": "q_proj"}}, {"neuroada": {"k": 1, "sites": "mlp"}}],
            regularise=["neftune"], train={"packing": 48, "checkpointing": True}, measure=["likelihood"],
            data={"holdout": 4})  # fmt: skip
    assert patched() == []


def test_the_search_would_find_a_patch(monkeypatch):
    import torch

    from luthier.ops.logp import logp_and_entropy

    monkeypatch.setattr(torch.nn.Linear, "forward", logp_and_entropy)
    assert patched() == ["torch.nn.modules.linear.Linear.forward"]
