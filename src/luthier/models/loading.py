"""Load models and tokenizers of transformers from a folder or a hub name, with errors a person can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.core.errors import ModelError, sentence
from luthier.core.hub import hub
from luthier.models.folders import check_exists, check_folder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def snapshot(source: str) -> Path:
    """The local folder of a model that is given as a folder or a hub name, downloaded if it is not here. Raises ModelError."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    check_exists(source)
    from huggingface_hub import snapshot_download

    why = ""
    try:
        with hub(source) as why:
            return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as fault:  # the hub's client raises many kinds; each means that there is no such folder
        raise ModelError(_explain(source, fault, why)) from fault


def load_config(source: str) -> Any:
    """The transformers config of a folder or hub name; nothing else is loaded."""
    from transformers import AutoConfig

    path = Path(source).expanduser()
    if path.is_dir():
        check_folder(path)
    check_exists(source)
    why = ""
    try:
        with hub(source) as why:
            return AutoConfig.from_pretrained(str(path) if path.is_dir() else source, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise ModelError(_explain(source, fault, why)) from fault


def _explain(source: str, fault: Exception, why: str = "") -> str:
    """The sentence for a model that cannot be had. why: the hub cannot be reached, in words."""
    first = str(fault).strip().splitlines()[0].rstrip(".")
    if why and isinstance(fault, OSError):
        first = f"no such folder here, and {why}, with none downloaded before"
    if "trust_remote_code" in str(fault):
        return sentence(f"model {source!r}", "an architecture that transformers knows", "one that ships its own code",
                        "Luthier runs no remote code; use a converted model")  # fmt: skip
    if isinstance(fault, ImportError):
        return sentence(f"model {source!r}", "a package that reads its weights", first, "Install it, or name the model before "
                        "it was quantised")  # fmt: skip
    return sentence(
        f"model {source!r}", "a model folder or a reachable hub name", first, "Check the name or the network"
    )


def load_causal_lm(source: str, dtype: str = "fp32", attention: str | None = None, device: str = "cpu") -> nn.Module:
    """A causal language model in evaluation mode.

    dtype: fp32, bf16, fp16 or fp64. device "meta" gives shapes without weights. Raises ModelError.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    extra: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if device == "meta":
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], **extra).eval()
    path = Path(source).expanduser()
    transformers.utils.logging.disable_progress_bar()
    why = ""
    try:
        with hub(source) as why:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path) if path.is_dir() else source, config=config, dtype=DTYPES[dtype], output_loading_info=True,
                use_safetensors=True, **extra)  # fmt: skip
        model, info = loaded
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as fault:
        raise ModelError(_explain(source, fault, why)) from fault
    if missing := sorted(info["missing_keys"]):
        raise ModelError(sentence(f"model {source!r}", "all weights of its architecture", f"{len(missing)} missing, first "
                                  f"{missing[0]!r}", "Check that config and weights belong together"))  # fmt: skip
    return model.eval()


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub name; a missing pad token is filled by the end token (masks never use its id)."""
    from transformers import AutoTokenizer

    path, why = Path(source).expanduser(), ""
    try:
        with hub(source) as why:
            tokenizer = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else source, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise ModelError(sentence(f"tokenizer {source!r}", "tokenizer files beside the model", why or str(fault).splitlines()[0],
                                  "Set `tokenizer:` to a folder that has them")) from fault  # fmt: skip
    return with_pad(tokenizer)


def with_pad(tokenizer: Any) -> Any:
    """The tokenizer with a pad token: its own, else the end token, else token 0's text."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def save_model(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer as transformers reads them; weights as safetensors, modes 0644."""
    model.save_pretrained(str(folder), safe_serialization=True)  # type: ignore[operator]
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def fingerprint(source: str) -> str:
    """Short hash of a folder's config and weight files' names, sizes and headers, or the hub name itself."""
    import hashlib

    path = Path(source).expanduser()
    if not path.is_dir():
        return source
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), path / "config.json", *path.glob("tokenizer.json")]):
        if file.is_file():
            digest.update(f"{file.name}:{file.stat().st_size}".encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def hidden_of(config: Any) -> int:
    """Width of a language model, 0 where its configuration does not say."""
    return int(getattr(config.get_text_config(), "hidden_size", 0) or 0)


def describe_config(config: Any) -> str:
    """One line about an architecture, for statements and model cards."""
    text = json.loads(config.to_json_string(use_diff=False))
    sizes = {k: text[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size") if k in text}
    return f"{(text.get('architectures') or [text.get('model_type')])[0]} {sizes}"
