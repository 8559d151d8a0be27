"""What is wrong with the models that a recipe names, without torch and before any weight loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import ModelError, sentence, unknown
from luthier.models.folders import architecture, check_exists, check_folder, is_path
from luthier.models.pipelines import is_pipeline

WORLDS = ("lab:language", "lab:image", "lab:image/digits")
"""Worlds of the lab whose models recipes tune."""
NAMED = ("model", "teacher")


def world_faults(model: Any, at: str = "model") -> list[str]:
    """What is wrong with a lab world as a model; empty for folders and hub names."""
    if not isinstance(model, str) or not model.startswith("lab:") or model in WORLDS:
        return []
    if model == "lab:pairs":
        came = "lab:pairs, whose encoder is tuned from Python (luthier.lab.pairs)"
        return [sentence(at, f"one of {', '.join(WORLDS)}, a folder or a hub name", came, "Choose one of these")]
    return [f"{at}: {unknown('world', model, WORLDS)}"]


def place_faults(plain: Mapping[str, Any], text: bool) -> list[str]:
    """Folders that a recipe names as models and that hold none. text: the recipe tunes a language model."""
    faults: list[str] = []
    for key in NAMED:
        source = plain.get(key)
        if not isinstance(source, str) or source.startswith("lab:"):
            continue
        folder = Path(source).expanduser()
        try:
            check_exists(source)
            if text and folder.is_dir() and not is_pipeline(source):
                check_folder(folder)
        except ModelError as fault:
            faults.append(f"{key}: {fault}")
    return faults


def model_statement(model: str) -> str:
    """Which model a recipe names, and what was looked at to say so."""
    folder = Path(model).expanduser()
    if model.startswith("lab:"):
        return f"{model}, shipped with Luthier"
    if not folder.is_dir() and not is_path(model):
        return f"{model}, a hub name; whether it exists was not asked"
    said = architecture(folder)
    return f"{said} in {model}" if said else model
