"""Write low-rank deltas as a PEFT LoRA checkpoint, which every tool of the field reads.

The scale is folded into B (lora_alpha = r), so that the reader needs to know nothing of how the delta was scaled.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.adapt._delta import Delta, DeltaHandle
from luthier.adapt._sites import CONV, CONV1D, EMBEDDING, geometry
from luthier.adapt._surgery import parts
from luthier.adapt._weights import dequantised, whole, wide
from luthier.core.errors import Refused
from luthier.core.files import whole_folder, write_json, write_tensors


def lora_tensors(handle: DeltaHandle) -> dict[str, Tensor]:
    """PEFT's names and tensors of a live low-rank delta, its scale inside B.

    Raises Refused for a delta that is not low-rank.
    """
    out: dict[str, Tensor] = {}
    for site, module in handle.modules.items():
        made = _factors(handle.adaptation, module) if isinstance(handle.adaptation, Delta) else None
        if made is None:
            raise Refused(
                f"a PEFT LoRA checkpoint requires a low-rank delta; {handle.adaptation.id} is none. "
                "Export the merged model."
            )
        left, right = made
        if left.shape[1] == 0:
            continue
        shape, name = geometry(module), f"base_model.model.{site}"
        if shape is EMBEDDING:
            out[f"{name}.lora_embedding_A"], out[f"{name}.lora_embedding_B"] = right, left
        elif shape is CONV:
            kernel: Any = module.weight.shape[1:]  # type: ignore[union-attr]
            out[f"{name}.lora_A.weight"] = right.reshape(-1, *kernel)
            out[f"{name}.lora_B.weight"] = left.reshape(*left.shape, *([1] * (len(kernel) - 1)))
        else:
            out[f"{name}.lora_A.weight"], out[f"{name}.lora_B.weight"] = right, left
    return out


@torch.no_grad()
def _factors(delta: Delta, module: Any) -> tuple[Tensor, Tensor] | None:
    live = {k: whole(t).detach() for k, t in parts(module).items()}
    dtype = next(t.dtype for t in live.values() if t.is_floating_point())
    exact = {k: t.to(wide(dtype)) if t.is_floating_point() else t for k, t in live.items()}
    made = delta.factors(geometry(module).matrix(dequantised(module)), exact)  # type: ignore[union-attr, arg-type]
    return None if made is None else (made[0].to(dtype), made[1].to(dtype))


def lora_config(handle: DeltaHandle, ranks: dict[str, int], base: str) -> dict[str, Any]:
    """The adapter_config.json of a live low-rank delta. ranks: by site."""
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    other = {re.escape(site): r for site, r in ranks.items() if r != common}
    transposed = [geometry(handle.modules[site]) is CONV1D for site in ranks]
    causal = getattr(handle.model, "can_generate", None)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal is not None and causal() else None,
        "base_model_name_or_path": base,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": all(transposed),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def export_lora(handle: DeltaHandle, folder: Path, base: str | None = None) -> None:
    """Write `folder` with adapter_config.json and adapter_model.safetensors, whole or not at all.

    base: the name under which PEFT finds the base model; taken from the model's configuration by default.
    Raises Refused for a delta that is not low-rank or a base without a name.
    """
    config: Any = getattr(handle.model, "config", None)
    name = base or getattr(config, "_name_or_path", None)
    if not name:
        raise Refused(
            "a PEFT checkpoint requires the name of its base model; the model does not know it. Give it with base."
        )
    tensors = lora_tensors(handle)
    ranks = {_site(k): v.shape[0] for k, v in tensors.items() if k.endswith((".lora_A.weight", ".lora_embedding_A"))}
    with whole_folder(folder) as made:
        write_tensors(made / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(made / "adapter_config.json", lora_config(handle, ranks, name))


def _site(key: str) -> str:
    return key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").removesuffix(".lora_embedding_A")
