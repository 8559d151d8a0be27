"""Facts of a model folder, read without torch: whether it can hold a model at all, and which."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.core.errors import ModelError, sentence

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def is_path(source: str) -> bool:
    """Whether a source can only be a folder here, and never a hub name."""
    return source.startswith((".", "/", "~"))


def check_exists(source: str) -> None:
    """Raise ModelError where a source that can only be a folder is none."""
    path = Path(source).expanduser()
    if path.is_dir() or (not is_path(source) and not path.is_file()):
        return
    came = "is a file" if path.is_file() else "does not exist"
    raise ModelError(sentence("model", "an existing folder", f"{source!r}, which {came}", "Check the path"))


def check_folder(folder: Path) -> None:
    """Raise ModelError unless the folder holds a config and safetensors weights (pickle files are never read)."""
    if not (folder / "config.json").is_file():
        present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ModelError(
            sentence(f"model folder {folder}", "config.json", present, "Give the folder that holds the model")
        )
    if not any(any(folder.glob(w)) for w in _WEIGHTS):
        pickled = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        came = f"only pickle files ({', '.join(pickled)})" if pickled else "no weights"
        do = "Convert them to safetensors" if pickled else "Download the weights, or give the folder that holds them"
        raise ModelError(sentence(f"model folder {folder}", "weights as *.safetensors", came, do))


def architecture(folder: Path) -> str:
    """What the folder says it holds, such as LlamaForCausalLM or PixArtAlphaPipeline; "" where it does not say."""
    for name in ("model_index.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        said = found.get("_class_name") or found.get("architectures") if isinstance(found, dict) else ""
        return str(said[0]) if isinstance(said, list) and said else said if isinstance(said, str) else ""
    return ""
