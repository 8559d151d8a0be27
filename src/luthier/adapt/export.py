"""Write adaptations as PEFT checkpoints, which every tool of the field reads: low-rank deltas as LoRA, PEFT's own as they are.

The scale is folded into B (lora_alpha = r), so that the reader needs to know nothing of how the delta was scaled.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.adapt._delta import Delta, DeltaHandle
from luthier.adapt._handle import Handle
from luthier.adapt._peft import PeftHandle
from luthier.adapt._sites import CONV, CONV1D, EMBEDDING, geometry
from luthier.adapt._surgery import parts
from luthier.adapt._weights import dequantised, whole, wide
from luthier.core.errors import Refused
from luthier.core.files import whole_folder, write_json, write_tensors


def lora_tensors(handle: DeltaHandle) -> dict[str, Tensor]:
    """PEFT's names and tensors of a live low-rank delta, its scale inside B.

    A grouped convolution with g groups gets g times the rank: PEFT gives each group rows of its own.
    Raises Refused for what is not low-rank.
    """
    out: dict[str, Tensor] = {}
    for site, (left, right) in _factored(handle).items():
        module = handle.modules[site]
        if left.shape[1] == 0:
            continue
        shape, name = geometry(module), f"base_model.model.{site}"
        if shape is EMBEDDING:
            out[f"{name}.lora_embedding_A"], out[f"{name}.lora_embedding_B"] = right, left
        elif shape is CONV:
            kernel: Any = module.weight.shape[1:]  # type: ignore[union-attr]
            out[f"{name}.lora_A.weight"] = _ungrouped(site, module, right.reshape(-1, *kernel))
            out[f"{name}.lora_B.weight"] = left.reshape(*left.shape, *([1] * (len(kernel) - 1)))
        else:
            out[f"{name}.lora_A.weight"], out[f"{name}.lora_B.weight"] = right, left
    return out


def _ungrouped(site: str, module: Any, right: Tensor) -> Tensor:
    """(r, channels / g, *kernel) -> (r g, channels, *kernel): PEFT groups B alone, so that each group has rows of A."""
    if module.padding_mode != "zeros" or any(d != 1 for d in module.dilation):
        raise Refused(
            f"a PEFT LoRA checkpoint requires convolutions without dilation and padded by zeros, as PEFT runs its own; "
            f"{site} has dilation {module.dilation} and padding {module.padding_mode!r}. Export the merged model."
        )
    g, (r, channels, *kernel) = module.groups, right.shape
    out = right.new_zeros(g, r, g, channels, *kernel)
    for at in range(g):
        out[at, :, at] = right
    return out.reshape(g * r, g * channels, *kernel)


@torch.no_grad()
def _factored(handle: Handle) -> dict[str, tuple[Tensor, Tensor]]:
    """left (out, r) and right (r, in) with dW = left @ right, by site."""
    delta, out = handle.adaptation, {}
    if isinstance(delta, Delta) and isinstance(handle, DeltaHandle):
        for site, module in handle.modules.items():
            live = {k: whole(t).detach() for k, t in parts(module).items()}
            dtype = next(t.dtype for t in live.values() if t.is_floating_point())
            exact = {k: t.to(wide(dtype)) if t.is_floating_point() else t for k, t in live.items()}
            made = delta.factors(geometry(module).matrix(dequantised(module)), exact)  # type: ignore[union-attr, arg-type]
            if made is not None:
                out[site] = made[0].to(dtype), made[1].to(dtype)
    else:
        out = {site: (s * whole(b).detach(), whole(a).detach()) for site, a, b, s in handle.low_rank()}
    if delta.merge.kind == "never" or len(out) < len(getattr(handle, "modules", "?")):
        raise Refused(
            f"a PEFT LoRA checkpoint requires a low-rank delta; {delta.id} is none. Export the merged model if it merges."
        )
    return out


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


def export_lora(handle: Handle, folder: Path, base: str | None = None) -> None:
    """Write `folder` with adapter_config.json and adapter_model.safetensors, whole or not at all.

    base: the name under which PEFT finds the base model; taken from the model's configuration by default.
    What PEFT made is written by PEFT, whatever its method. Raises Refused for what is not low-rank, for a start of PEFT's
    that changed base weights (the reader's are unchanged), or a base without a name.
    """
    config: Any = getattr(handle.model, "config", None)
    name = base or getattr(config, "_name_or_path", None)
    if not name:
        raise Refused(
            "a PEFT checkpoint requires the name of its base model; the model does not know it. Give it with base."
        )
    if isinstance(handle, PeftHandle):
        _peft_itself(handle, folder, name)
        return
    tensors = lora_tensors(handle)  # type: ignore[arg-type]
    ranks = {_site(k): v.shape[0] for k, v in tensors.items() if k.endswith((".lora_A.weight", ".lora_embedding_A"))}
    with whole_folder(folder) as made:
        write_tensors(made / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(made / "adapter_config.json", lora_config(handle, ranks, name))  # type: ignore[arg-type]


def _peft_itself(handle: PeftHandle, folder: Path, base: str) -> None:
    trained = {id(m._parameters[k]) for m, k in handle.trained_places()}
    if moved := [n for n in handle.base if id(handle._live(n)) not in trained]:
        raise Refused(
            f"a PEFT checkpoint requires base weights as they were; the method changed {moved[0]}. Export the merged model."
        )
    own = handle.wrapper.peft_config["default"]
    with whole_folder(folder) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was, own.base_model_name_or_path = own.base_model_name_or_path, base
        try:
            handle.wrapper.save_pretrained(str(made), save_embedding_layers=False)
        finally:
            own.base_model_name_or_path = was


def _site(key: str) -> str:
    return key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").removesuffix(".lora_embedding_A")
