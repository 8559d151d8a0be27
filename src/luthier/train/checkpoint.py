"""Checkpoints: whole or absent, safetensors and JSON only, verified before they are trusted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import CheckpointError, sentence
from luthier.core.files import COMPLETE, damage, read_json, read_tensors, whole_folder, write_json, write_tensors

VERSION = 1


@dataclass
class Snapshot:
    """Everything that a run needs to go on as if it had never stopped.

    step: optimiser steps done. adaptation: tensors of what trains. optimiser: the optimiser's state_dict. hooks: state by
    hook id. curves: logged figures. identity: hash of the recipe that the run must match. trace: what hooks did so far. cost: seconds,
    tokens and forward passes so far.
    """

    step: int
    adaptation: Mapping[str, Tensor]
    optimiser: Mapping[str, Any]
    hooks: Mapping[str, Mapping[str, Any]]
    curves: list[dict[str, Any]]
    identity: str
    trace: list[list[Any]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)


def flatten(value: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    """Split nested state into tensors (moved into `tensors` under a path) and a JSON skeleton."""
    if isinstance(value, Tensor):
        tensors[at] = value
        return {"$tensor": at}
    if isinstance(value, Mapping):
        pairs = [[k, flatten(v, f"{at}.{k}", tensors)] for k, v in value.items()]
        return {"$map": pairs} if any(not isinstance(k, str) for k in value) else {str(k): v for k, v in pairs}
    if isinstance(value, tuple | list):
        kind = "$tuple" if isinstance(value, tuple) else "$list"
        return {kind: [flatten(v, f"{at}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise CheckpointError(sentence("a checkpoint", "state made of tensors, numbers, text, lists and maps",
                                   f"{type(value).__name__} at {at}", "Give the component plain state"))  # fmt: skip


def restore(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`."""
    if not isinstance(skeleton, dict):
        return skeleton
    if set(skeleton) == {"$tensor"}:
        return tensors[skeleton["$tensor"]]
    if set(skeleton) == {"$map"}:
        return {k: restore(v, tensors) for k, v in skeleton["$map"]}
    if set(skeleton) == {"$tuple"}:
        return tuple(restore(v, tensors) for v in skeleton["$tuple"])
    if set(skeleton) == {"$list"}:
        return [restore(v, tensors) for v in skeleton["$list"]]
    return {k: restore(v, tensors) for k, v in skeleton.items()}


def folder_of(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return out / "checkpoints" / f"step-{step:08d}"


def save(out: Path, snapshot: Snapshot, keep: int) -> Path:
    """Write a checkpoint; delete all but the newest `keep`, and what a killed process left half written.

    Raises OutputError; an older checkpoint stays then.
    """
    target = folder_of(out, snapshot.step)
    with whole_folder(target) as aside:
        tensors: dict[str, Tensor] = {}
        skeleton = flatten({"optimiser": snapshot.optimiser, "hooks": snapshot.hooks}, "state", tensors)
        write_tensors(aside / "adaptation.safetensors", snapshot.adaptation)
        write_tensors(aside / "state.safetensors", tensors)
        write_json(aside / "state.json", {"version": VERSION, "step": snapshot.step, "identity": snapshot.identity,
                                          "state": skeleton, "curves": snapshot.curves,
                                          "trace": snapshot.trace, "cost": snapshot.cost})  # fmt: skip
    for old in (*sorted(_all(out))[:-keep], *target.parent.glob(".step-*")):
        shutil.rmtree(old, ignore_errors=True)
    return target


def _all(out: Path) -> list[Path]:
    return [p for p in (out / "checkpoints").glob("step-*") if p.is_dir()]


def load(folder: Path, identity: str | None = None) -> Snapshot:
    """Read one checkpoint. Raises CheckpointError naming what is damaged, or the run that it belongs to."""
    if fault := damage(folder):
        raise CheckpointError(
            f"checkpoint {folder.name}: {fault}. It is not used; an older one or a new run is needed."
        )
    plain = read_json(folder / "state.json")
    if plain["version"] != VERSION:
        raise CheckpointError(sentence(f"checkpoint {folder.name}", f"version {VERSION}", f"version {plain['version']}",
                                       "Resume with the Luthier that wrote it"))  # fmt: skip
    if identity is not None and plain["identity"] != identity:
        raise CheckpointError(sentence(f"checkpoint {folder.name}", "the recipe and data it was written with", "others",
                                       "Resume with the same recipe, or choose another output folder"))  # fmt: skip
    state = restore(plain["state"], read_tensors(folder / "state.safetensors"))
    return Snapshot(plain["step"], read_tensors(folder / "adaptation.safetensors"), state["optimiser"], state["hooks"],
                    plain["curves"], plain["identity"], plain["trace"], plain["cost"])  # fmt: skip


def newest(out: Path) -> str | None:
    """Name of the newest checkpoint that was written to its end, or None; its bytes are not read."""
    done = [p.name for p in _all(out) if (p / COMPLETE).exists()]
    return max(done, default=None)


def latest(out: Path, identity: str | None = None) -> tuple[Snapshot | None, list[str]]:
    """The newest checkpoint that can be trusted, and a sentence for each newer one that was skipped."""
    skipped: list[str] = []
    for folder in sorted(_all(out), reverse=True):
        if fault := damage(folder):
            skipped.append(f"checkpoint {folder.name} is skipped: {fault}")
            continue
        return load(folder, identity), skipped
    return None, skipped


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two tensor maps agree in names, shapes, dtypes and every bit."""
    return a.keys() == b.keys() and all(x.dtype == b[k].dtype and torch.equal(x, b[k]) for k, x in a.items())
