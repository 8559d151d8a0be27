"""Merge whole models by a rule, tensor by tensor: in memory, or from folders to a folder without ever holding a model.

The rule sees one tensor of the base and the models' deltas at that site, in the recipe's order. Sums run one precision
step above the stored one and are rounded once, to the base's dtype or the one asked for. Integer tensors are copied
where all models agree. Everything that can be checked is checked before the first tensor is read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from luthier import __version__
from luthier.core.component import Component
from luthier.core.config import as_dict
from luthier.core.errors import ModelError, OutputError, Refused, sentence
from luthier.core.files import Digests, read_json, whole_folder, write_json
from luthier.core.protocols import MergeRule
from luthier.core.sites import Site
from luthier.merge import _checks
from luthier.merge._rule import Deltas, Given, MergeView, by_entries, finite, prepared, wide
from luthier.merge._sites import sites_of
from luthier.merge._sources import AdapterDelta, FolderTensors, index_name, stem_of
from luthier.merge._writer import Planned, ShardWriter, index_of, shards
from luthier.models.pipelines import is_pipeline

__all__ = ["AdapterDelta", "Report", "merge_folders", "merge_tensors"]
MANIFEST = "merge.json"
CONFIGS = ("config.json", "conditioner.json")
COPIED = (*CONFIGS, "generation_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
          "vocab.txt", "merges.txt", "*.model", "tokenizer*.json", "chat_template*",
          "*processor_config.json")  # fmt: skip
Model = Mapping[str, Tensor] | AdapterDelta
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BLOCK = 1 << 15
"""Entries of a tensor that are merged at a time, where the rule treats each entry by itself: few enough for the cache."""


@dataclass(frozen=True)
class Report:
    """What a merge did: tensors merged, copied as they are (integers), and changed against the base; size and files."""

    out: Path
    merged: int
    copied: int
    changed: int
    parameters: int
    bytes: int
    files: tuple[str, ...]
    rule: MergeRule


class _Merger:
    """Base and models by name, and the one way a tensor is merged; shared by memory and folders."""

    def __init__(
        self,
        rule: MergeRule,
        base: Mapping[str, Tensor],
        models: Sequence[Model],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype | None,
    ) -> None:
        self.base, self.models, self.dtype = base, models, dtype
        self.sites = sites_of(shapes)
        self.copied = self.changed = 0
        self._differs = False
        self.rule = prepared(rule, MergeView(tuple(self.sites.values()), len(models), self._all))

    def _given(self, model: Model, name: str, like: Tensor, dtype: torch.dtype) -> Given:
        if not isinstance(model, AdapterDelta):
            return Given(lambda: model[name].to(dtype))
        part = model.parts.get(name)
        if part is None:
            return Given(lambda: torch.zeros_like(like, dtype=dtype), full=False)
        return Given(lambda: part.read().to(dtype), part.full)

    def _at(self, name: str) -> tuple[Tensor, Tensor, Deltas]:
        """(stored base tensor, the same in the dtype of sums, deltas)."""
        stored = self.base[name]
        dtype = wide(stored.dtype)
        base = stored.to(dtype)
        return stored, base, Deltas(base, [self._given(m, name, stored, dtype) for m in self.models])

    def _all(self) -> Iterator[tuple[Tensor, Deltas, Site]]:
        for name, site in self.sites.items():
            stored, base, deltas = self._at(name)
            if stored.is_floating_point():
                yield base, deltas, site

    def merge(self, name: str) -> Tensor:
        """The merged tensor, whole."""
        pieces = list(self.pieces(name))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces).view(self.base[name].shape)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The merged tensor, rounded to its stored dtype: whole, or flat and block by block where the rule treats each
        entry by itself, so that a block stays in the processor's cache from reading to writing.

        Raises ModelError for results that are not finite or of another shape.
        """
        stored = self.base[name]
        if not stored.is_floating_point():
            yield self._copy(name, stored)
            return
        self._differs = False
        whole = [m for m in self.models if not isinstance(m, AdapterDelta)]
        if stored.numel() > BLOCK and len(whole) == len(self.models) and by_entries(self.rule):
            dtype, to = wide(stored.dtype), torch.Tensor.to
            for old, *others in zip(*(_blocks(t) for t in (stored, *(m[name] for m in whole))), strict=True):
                base = old.to(dtype)
                yield self._made(name, old, base, Deltas(base, [Given(partial(to, x, dtype)) for x in others]))
        else:
            yield self._made(name, *self._at(name))
        self.changed += self._differs

    def _made(self, name: str, stored: Tensor, base: Tensor, deltas: Deltas) -> Tensor:
        out = self.rule(base, deltas, self.sites[name])
        if out.shape != stored.shape:
            came = f"{tuple(stored.shape)} of {name!r}; it made {tuple(out.shape)}"
            raise ModelError(f"merge rule {self.rule!r} must keep the shape {came}")
        made = out.to(self.dtype or stored.dtype)
        if not finite(made) and finite(stored):
            came = f"NaN or infinity in {name!r} as {str(made.dtype).removeprefix('torch.')}"
            raise ModelError(sentence("the merge", "finite weights", came, "Check the models, or choose a wider dtype"))
        self._differs = self._differs or not torch.equal(made, stored.to(made.dtype))
        return made

    def _copy(self, name: str, stored: Tensor) -> Tensor:
        for i, model in enumerate(self.models):
            other = None if isinstance(model, AdapterDelta) else model[name]
            if other is not None and not torch.equal(other, stored):
                came = f"model {i + 1} with other values in {name!r} ({stored.dtype})"
                raise ModelError(
                    sentence("the merge", "integer tensors that agree", came, "Quantised weights cannot be merged")
                )
        self.copied += 1
        return stored.clone()


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.detach().reshape(-1).split(BLOCK)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return tensors.shapes if isinstance(tensors, FolderTensors) else {k: tuple(v.shape) for k, v in tensors.items()}


def _match(base: Mapping[str, tuple[int, ...]], models: Sequence[Model], labels: Sequence[str]) -> list[str]:
    faults: list[str] = []
    for model, label in zip(models, labels, strict=True):
        if isinstance(model, AdapterDelta):
            faults += _checks.part_faults(label, base, list(model.parts))
        else:
            faults += _checks.shape_faults(label, base, _shapes(model))
    return faults


def merge_tensors(
    rule: MergeRule,
    base: Mapping[str, Tensor],
    models: Sequence[Model],
    *,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Merge state dicts in memory: name -> merged tensor, in the base's order; inputs are left as they are.

    dtype: of floating results; None keeps the base's. Raises ModelError naming every tensor that does not fit.
    """
    shapes = _shapes(base)
    labels = [m.name if isinstance(m, AdapterDelta) else f"model {i + 1}" for i, m in enumerate(models)]
    if faults := _match(shapes, models, labels):
        raise ModelError("\n".join(faults))
    work = _Merger(rule, base, models, shapes, dtype)
    return {name: work.merge(name) for name in shapes}


def merge_folders(
    rule: MergeRule,
    base: Path,
    models: Sequence[Path | AdapterDelta],
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: float = 5e9,
    weights: Sequence[float] | None = None,
    tokenizer: Literal["same", "base"] = "same",
    progress: Callable[[int, int, str], None] | None = None,
    digests: Digests | None = None,
    note: Mapping[str, Any] | None = None,
) -> Report:
    """Merge model folders (or adapters on the base) into the new folder `out`, which appears whole or not at all.

    A base that is a pipeline of diffusers gives a pipeline: every part whose weights the models changed is merged by
    itself, all else is the base's.
    models: folders, PEFT LoRA folders, or deltas, in the order that the rule sees. dtype: of the result; None keeps the
    base's. weights: per model, for rules that take them. tokenizer: "same" refuses models with another tokenizer,
    "base" keeps the base's. progress(done, of, name) is called after each tensor. digests: of the files that are read, in
    case they were begun earlier; it is closed at the end. note: what the manifest says besides. Memory: about one tensor of the base,
    one of a model and the result, whatever the number and size of the models. Raises ModelError, Refused, OutputError.
    """
    base, out = Path(base), Path(out)
    rule = _weighted(rule, weights)
    if dtype is not None and dtype not in FLOATS:
        raise Refused(sentence("the merge", "a floating dtype", str(dtype), "Use float32, bfloat16 or float16"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            sentence("the merge", "a new or empty output folder", f"{out}, which holds files", "Choose another folder")
        )
    how = Settings(rule, dtype, shard_bytes, tokenizer, progress, digests or Digests())
    with how.read, whole_folder(out, how.written) as aside:
        if is_pipeline(str(base)):
            from luthier.merge.pipelines import merge_pipelines

            report, told = merge_pipelines(how, base, models, aside)
        else:
            report, told = merge_part(how, base, models, aside)
        write_json(aside / MANIFEST, {**told, **(note or {})})
    return replace(report, out=out)


@dataclass(frozen=True)
class Settings:
    """How parts are merged: the arguments of `merge_folders` that are not folders. read, written: digests of files."""

    rule: MergeRule
    dtype: torch.dtype | None
    shard_bytes: float
    tokenizer: str
    progress: Callable[[int, int, str], None] | None
    read: Digests
    written: dict[Path, str] = field(default_factory=dict[Path, str])


def merge_part(
    how: Settings, base: Path, models: Sequence[Path | AdapterDelta], aside: Path
) -> tuple[Report, dict[str, Any]]:
    """Merge one folder of weights into the existing, empty folder `aside`; what was done, and its manifest."""
    with ExitStack() as stack:
        opened = open_all(base, models, how.tokenizer, stack)
        work = _Merger(how.rule, opened[0], opened[1], opened[0].shapes, how.dtype)
        plan = [Planned(n, _result_dtype(opened[0], n, how.dtype), s) for n, s in opened[0].shapes.items()]
        stem = stem_of(base)
        files = shards(plan, how.shard_bytes, stem)
        _check_space(aside.parent, sum(p.bytes for p in plan))
        _copy_files(base, aside, how.dtype)
        how.read.start(opened[0].files)
        for model, one in zip(models, opened[1], strict=True):
            how.read.start(_read_from(model, one))
        _write(work, files, aside, how)
        if len(files) > 1:
            write_json(aside / index_name(stem), index_of(files))
        told = _manifest(how.rule, work.rule, opened, models, base, how.dtype, how.read)
    sizes = sum(torch.Size(p.shape).numel() for p in plan), sum(p.bytes for p in plan)
    report = Report(aside, len(plan) - work.copied, work.copied, work.changed, *sizes, tuple(files), work.rule)
    return report, told


def _weighted(rule: MergeRule, weights: Sequence[float] | None) -> MergeRule:
    if weights is None:
        return rule
    if "weights" not in getattr(rule, "__dataclass_fields__", {}):
        raise Refused(
            sentence("the merge", "a rule that takes weights", rule.name, "Leave `weights` out, or use linear")
        )
    changed: Any = rule
    return replace(changed, weights=tuple(float(w) for w in weights))


def _result_dtype(base: FolderTensors, name: str, dtype: torch.dtype | None) -> torch.dtype:
    stored = base.dtype(name) or torch.float32
    return (dtype or stored) if stored in FLOATS else stored


def open_all(base: Path, models: Sequence[Path | AdapterDelta], tokenizer: str, stack: ExitStack
              ) -> tuple[FolderTensors, list[FolderTensors | AdapterDelta]]:  # fmt: skip
    """Open the base and all models within `stack`; raises ModelError with every fault that names, shapes and settings show."""
    config = _config(base)
    first = stack.enter_context(FolderTensors(base))
    faults = _checks.config_faults(f"base {base}", config, config) + _dtype_faults(f"base {base}", first)
    is_tied = _checks.tied(config)
    if is_tied:
        first.forget(_checks.tied_heads(f"base {base}", first, first.shapes))
    opened: list[FolderTensors | AdapterDelta] = []
    for i, model in enumerate(models):
        label = f"model {i + 1} ({model.name if isinstance(model, AdapterDelta) else model})"
        if not isinstance(model, AdapterDelta) and (Path(model) / "adapter_config.json").is_file():
            model = AdapterDelta.from_lora(Path(model))
        if isinstance(model, AdapterDelta):
            faults += _checks.part_faults(label, first.shapes, list(model.parts))
            opened.append(model)
            continue
        theirs = _config(Path(model))
        one = stack.enter_context(FolderTensors(Path(model)))
        if is_tied:
            one.forget(_checks.tied_heads(label, one, one.shapes))
        faults += _checks.config_faults(label, config, theirs) + _dtype_faults(label, one)
        faults += _checks.tokenizer_faults(label, base, Path(model)) if tokenizer == "same" else []
        faults += _checks.shape_faults(label, first.shapes, one.shapes)
        opened.append(one)
    if faults:
        raise ModelError("\n".join(faults))
    return first, opened


def _config(folder: Path) -> dict[str, Any]:
    held = next((folder / c for c in CONFIGS if (folder / c).is_file()), None)
    if held is None:
        came = "no such folder" if not folder.is_dir() else "none"
        raise ModelError(
            sentence(f"model folder {folder}", "config.json", came, "Give the folder that holds the model")
        )
    return dict(read_json(held))


def _dtype_faults(label: str, tensors: FolderTensors) -> list[str]:
    strange = [n for n in tensors if tensors.dtype(n) is None]
    if not strange:
        return []
    came = f"{tensors.stored[strange[0]]} in {strange[0]!r}"
    return [sentence(label, "floating or integer tensors", came, "Use the unquantised model")]


def _check_space(out: Path, needed: int) -> None:
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < needed:
        came = f"{free / 1e9:.2f} GB free at {place}"
        raise OutputError(
            sentence("the merge", f"{needed / 1e9:.2f} GB of disk space", came, "Free space or choose another folder")
        )


def _copy_files(base: Path, aside: Path, dtype: torch.dtype | None) -> None:
    """Config, tokenizer and processor files of the base; the config states the new dtype."""
    for pattern in COPIED:
        for path in sorted(base.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, aside / path.name)
            else:
                shutil.copytree(path, aside / path.name, dirs_exist_ok=True)
    if (base / "additional_chat_templates").is_dir():
        shutil.copytree(base / "additional_chat_templates", aside / "additional_chat_templates")
    if dtype is not None and "_class_name" not in (config := _config(aside)) and (aside / CONFIGS[0]).is_file():
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        write_json(aside / "config.json", {**config, key: str(dtype).removeprefix("torch.")})


def _write(work: _Merger, files: Mapping[str, Sequence[Planned]], aside: Path, how: Settings) -> None:
    done, total = 0, sum(map(len, files.values()))
    for file, group in files.items():
        with ShardWriter(aside / file, group) as shard:
            for one in group:
                shard.write(one.name, work.pieces(one.name))
                done += 1
                if how.progress is not None:
                    how.progress(done, total, one.name)
        os.chmod(aside / file, 0o644)
        how.written[aside / file] = shard.digest


def _plain(rule: MergeRule) -> Any:
    return as_dict(rule) if isinstance(rule, Component) and rule.id else repr(rule)


def _read_from(path: Path | AdapterDelta, one: FolderTensors | AdapterDelta) -> Sequence[Path]:
    """The weight files behind a model."""
    if isinstance(path, AdapterDelta):
        return ()
    return one.files if isinstance(one, FolderTensors) else sorted(Path(path).glob("adapter_*"))


def _manifest(
    rule: MergeRule,
    fitted: MergeRule,
    opened: tuple[FolderTensors, list[FolderTensors | AdapterDelta]],
    models: Sequence[Path | AdapterDelta],
    base: Path,
    dtype: torch.dtype | None,
    digests: Digests,
) -> dict[str, Any]:
    """What was merged, by which rule: enough to do it again, with the hash of every file that was read."""

    def told(path: Path | AdapterDelta, one: FolderTensors | AdapterDelta) -> dict[str, Any]:
        if isinstance(path, AdapterDelta):
            return {"adapter": path.name, "tensors": sorted(path.parts)}
        return {"folder": str(path), "files": {f.name: digests[f] for f in _read_from(path, one)}}

    return {
        "rule": _plain(rule), "fitted": _plain(fitted), "base": told(base, opened[0]),
        "models": [told(m, o) for m, o in zip(models, opened[1], strict=True)],
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "versions": {"luthier": __version__, "torch": str(torch.__version__)},
    }  # fmt: skip
