"""Merge pipelines of diffusers: each part whose weights the models changed is merged, all else is copied from the base.

Parts are judged by the bytes of their weight files, so a text encoder that nobody trained is not read as tensors, and one
that somebody trained is merged with the denoiser.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core.errors import ModelError, Refused, sentence
from luthier.core.files import read_json
from luthier.merge import _checks
from luthier.merge._sources import AdapterDelta, weight_files
from luthier.merge.executor import CONFIGS, MANIFEST, Report, Settings, merge_part
from luthier.models.pipelines import read_index

SCHEDULER = ("prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas",
             "rescale_betas_zero_snr")  # fmt: skip
"""Settings that decide what a denoiser's output means; samplers of one noise schedule may differ."""
FREE = ("sample_size", "dtype", "torch_dtype", "transformers_version", "architectures")
LEFT = (MANIFEST, "COMPLETE.json")


def merge_pipelines(
    how: Settings, base: Path, models: Sequence[Path | AdapterDelta], aside: Path
) -> tuple[Report, dict[str, Any]]:
    """Merge pipeline folders into the existing, empty folder `aside`; what was done in all, and the manifest.

    Raises ModelError with every part that does not fit, Refused for adapters.
    """
    folders = [_folder(m) for m in models]
    names, denoiser = _parts(base), read_index(base)[1]
    if faults := [f for i, m in enumerate(folders) for f in _faults(f"model {i + 1} ({m})", base, m, names, how)]:
        raise ModelError("\n".join(faults))
    merged = [p for p in names if p == denoiser or _changed(p, base, folders)]
    for item in sorted(base.iterdir()):
        if item.name not in (*merged, *LEFT):
            shutil.copytree(item, aside / item.name) if item.is_dir() else shutil.copyfile(item, aside / item.name)
    reports: dict[str, Report] = {}
    told: dict[str, Any] = {}
    for part in merged:
        (aside / part).mkdir()
        report, manifest = merge_part(_named(how, part), base / part, [m / part for m in folders], aside / part)
        reports[part] = replace(report, files=tuple(f"{part}/{f}" for f in report.files))
        told[part] = manifest
    return _summed(reports, denoiser), {"base": str(base), "models": [str(m) for m in folders], "parts": told,
                              "copied": [p for p in names if p not in merged]}  # fmt: skip


def _folder(model: Path | AdapterDelta) -> Path:
    if isinstance(model, AdapterDelta) or not (Path(model) / "model_index.json").is_file():
        came = f"an adapter ({model.name})" if isinstance(model, AdapterDelta) else f"{model} without model_index.json"
        do = "Write it as a pipeline first: luthier export RUN --to merged --out FOLDER"
        raise Refused(sentence("a merge of pipelines", "pipeline folders", came, do))
    return Path(model)


def _parts(folder: Path) -> list[str]:
    """Sub-folders with weights, by name."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and any(p.glob("*.safetensors")))


def _files(folder: Path) -> list[Path]:
    found = weight_files(folder)
    return sorted(set(found.values()) if isinstance(found, dict) else found)


def _changed(part: str, base: Path, models: Sequence[Path]) -> bool:
    """Whether any model has other weights there than the base."""
    own = _files(base / part)
    return any(not _same_bytes(own, _files(m / part)) for m in models)


def _same_bytes(one: Sequence[Path], other: Sequence[Path]) -> bool:
    return len(one) == len(other) and all(filecmp.cmp(a, b, shallow=False) for a, b in zip(one, other, strict=True))


def _faults(label: str, base: Path, model: Path, parts: Sequence[str], how: Settings) -> list[str]:
    """What keeps a pipeline from being merged onto the base."""
    if absent := [p for p in parts if not (model / p).is_dir() or p not in _parts(model)]:
        return [sentence(label, f"weights of {', '.join(parts)}, as the base has", f"none of {', '.join(absent)}",
                         "Give pipelines tuned from one base")]  # fmt: skip
    faults = []
    for part in parts:
        mine, theirs = _config(base / part), _config(model / part)
        faults += _differ(f"{label}, {part}", mine, theirs, [k for k in mine if k == "_class_name" or k[0] != "_"])
    faults += _differ(f"{label}, scheduler", _scheduler(base), _scheduler(model), SCHEDULER)
    tokenizers = sorted(p.name for p in base.glob("tokenizer*")) if how.tokenizer == "same" else []
    for name in tokenizers:
        faults += _checks.tokenizer_faults(f"{label}, {name}", base / name, model / name)
    return faults


def _differ(label: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    keys = [k for k in keys if k not in FREE and k in mine and k in theirs and mine[k] != theirs[k]]
    if not keys:
        return []
    came = "; ".join(f"{k} = {theirs[k]!r:.80} against {mine[k]!r:.80}" for k in keys[:4])
    return [sentence(label, "the base's settings", came, "Give pipelines tuned from one base")]


def _config(part: Path) -> dict[str, Any]:
    held = next((part / c for c in CONFIGS if (part / c).is_file()), None)
    return dict(read_json(held)) if held else {}


def _scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler" / "scheduler_config.json"
    return dict(read_json(path)) if path.is_file() else {}


def _named(how: Settings, part: str) -> Settings:
    tell = how.progress
    return how if tell is None else replace(how, progress=lambda done, of, name: tell(done, of, f"{part}.{name}"))


def _summed(reports: Mapping[str, Report], denoiser: str) -> Report:
    """One report of all parts, with the rule as it was fitted to the denoiser."""
    every = reports.values()
    total = {k: sum(getattr(r, k) for r in every) for k in ("merged", "copied", "changed", "parameters", "bytes")}
    return replace(reports[denoiser], **total, files=tuple(f for r in every for f in r.files))
