"""Merge recipes: base, models, and the rule that merges them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.config import build_component, check_component, value_faults
from luthier.core.errors import ConfigError, counted, unknown
from luthier.core.files import Digests
from luthier.core.registry import Entry
from luthier.recipes.image_check import IMAGE_WORLD
from luthier.recipes.places import denoiser_source, model_source
from luthier.recipes.recipe import Recipe, recipe_faults

KEYS = ("base", "models", "merge", "dtype", "name", "judge")
REQUIRED, JUDGE = KEYS[:3], ("data", "measure", "seed")


def merge_faults(plain: Mapping[str, Any]) -> list[str]:
    """Every fault of a merge recipe."""
    faults = [f"merge recipe: {unknown('key', str(k), KEYS)}" for k in plain if k not in KEYS]
    faults += [f"merge recipe: requires the key {k!r}, which is not given" for k in REQUIRED if k not in plain]
    models = plain.get("models")
    if models is not None and not (isinstance(models, list) and models and all(isinstance(m, str) for m in models)):
        faults.append(f"models: requires a list of folders; got {models!r}")
    if plain.get("dtype") is not None:
        faults += value_faults(Recipe.__annotations__["dtype"], plain["dtype"], "dtype")
    if "merge" in plain:
        entry, own = check_component(plain["merge"], "merge", "merge")
        faults += own + _judge_faults(entry, plain)
    return faults


def _judge_faults(entry: Entry | None, plain: Mapping[str, Any]) -> list[str]:
    """entry: the merge, None where its name is unknown."""
    judge = plain.get("judge")
    if entry is not None and (judge is None) == bool(entry.card.needs.handles):
        short, odd = entry.short, f"judge: requires a merge that searches; {entry.short} does not. Leave `judge` out."
        return [odd if judge is not None else
                f"judge: {short} requires rows to search by, which are not given. Write judge: {{data: FILE}}, or use soup."]  # fmt: skip
    if judge is None:
        return []
    if not isinstance(judge, Mapping) or "data" not in judge:
        return [f"judge: requires a mapping with the key 'data'; got {judge!r}"]
    unknowns = [f"judge: {unknown('key', str(k), JUDGE)}" for k in judge if k not in JUDGE]
    return unknowns + [f"judge: {fault}" for fault in recipe_faults(judge_recipe(str(plain.get("base")), judge))]


def judge_recipe(base: str, judge: Mapping[str, Any]) -> dict[str, Any]:
    """The section `judge` as a recipe that measures the base, so that its keys are checked and read as everywhere."""
    own = {k: judge[k] for k in ("data", "seed") if k in judge}
    return {"model": base, **own, "measure": [judge.get("measure", "likelihood")]}


def folder_of(source: str) -> Path:
    """The model folder behind a source: a run's merged model, a plain folder or pipeline, or a lab world's base."""
    where = Path((denoiser_source if source.startswith(IMAGE_WORLD) else model_source)(source)).expanduser()
    merged = where / "model"
    return merged if any((merged / n).is_file() for n in ("config.json", "model_index.json")) else where


def merge_by_recipe(plain: Mapping[str, Any], out: Path) -> str:
    """Merge and say what was written. Raises ConfigError with all faults at once."""
    if faults := merge_faults(plain):
        raise ConfigError(faults)
    base, *models = (folder_of(m) for m in (plain["base"], *plain["models"]))
    with Digests() as digests:  # begins while the libraries are imported
        for folder in (base, *models):
            digests.start(sorted(folder.glob("*.safetensors")))
        from luthier.merge.executor import merge_folders
        from luthier.models import loading

        rule = build_component(plain["merge"], "merge", "merge")
        dtype = None if plain.get("dtype") is None else loading.DTYPES[plain["dtype"]]
        name, note, told = rule.id, None, ""
        if plain.get("judge") is not None:
            from luthier.recipes.merge_search import in_words, search

            found, note = search(rule, plain["judge"], base, models)
            rule, told = found.rule, f": {in_words(note)}"
        merge_folders(rule, base, models, out, dtype=dtype, digests=digests, note=note)
    return f"{counted(len(models), 'model')} merged by {name} into {out}{told}"
