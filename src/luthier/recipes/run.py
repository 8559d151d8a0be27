"""Run a recipe: train, measure, save; every run leaves a manifest and can be resumed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luthier.core import Reading
from luthier.core.config import as_dict
from luthier.core.errors import OutputError, Refused, sentence
from luthier.core.files import read_json, write_json, write_tensors, write_text
from luthier.recipes.build import Prepared, asks_for_base, cache_reference, prepare
from luthier.recipes.recipe import Recipe
from luthier.report.manifest import git_state, hardware, versions
from luthier.train.checkpoint import newest
from luthier.train.heap import peak_bytes, reset_peak
from luthier.train.loop import Event, Loop, Outcome

MANIFEST = "manifest.json"


@dataclass
class Finished:
    """A finished run: readings, curves, samples, cost, and where it lies (None: nothing was saved)."""

    recipe: Recipe
    readings: list[Reading]
    outcome: Outcome
    samples: list[dict[str, Any]]
    cost: dict[str, float]
    notes: list[str]
    out: Path | None = None
    prepared: Prepared | None = field(default=None, repr=False)


def claim_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Make sure that `out` is free, or holds this very run. Raises OutputError and touches nothing otherwise."""
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not place.is_dir():
        raise OutputError(sentence(f"output folder {out}", "a folder", f"the file {place}", "Choose another folder"))
    if not out.exists() or not any(out.iterdir()):
        return
    manifest = out / MANIFEST
    if not manifest.exists():
        raise OutputError(sentence(f"output folder {out}", "an empty or new folder", "one with other files in it",
                                   "Choose another folder"))  # fmt: skip
    found = read_json(manifest)
    if found.get("identity") != recipe.identity:
        raise OutputError(sentence(f"output folder {out}", "an empty folder or this same recipe", "another run",
                                   "Choose another folder, or delete it yourself"))  # fmt: skip
    if not resume:
        raise OutputError(sentence(f"output folder {out}", "an empty or new folder", f"this run, {found.get('status')}",
                                   "Add --resume to go on with it, or choose another folder"))  # fmt: skip


def manifest_of(prepared: Prepared, status: str, cost: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Everything that decided the result, as plain JSON."""
    recipe = prepared.recipe
    return {"luthier_run": 1, "status": status, "identity": recipe.identity, "recipe": recipe.as_dict(), "name": recipe.name,
            "components": {"objective": _plain(prepared.parts.objective), "adapt": [as_dict(a) for a, _ in prepared.parts.adapt],
                           "sites": [s.pattern for _, s in prepared.parts.adapt],
                           "hooks": [as_dict(h) for h in prepared.parts.hooks]},
            "data": {"statement": prepared.splits.train.statement, "fingerprint": prepared.splits.train.fingerprint,
                     "rows": len(prepared.encoded.examples), "notes": prepared.notes},
            "adaptation": dict(prepared.policy.attached.describe()), "versions": versions(), "hardware": hardware(),
            "git": git_state(Path.cwd()), "seed": recipe.seed, "cost": dict(cost or {})}  # fmt: skip


def _plain(objective: Any) -> Any:
    members = getattr(objective, "members", None)
    if members is not None:
        return [_plain(m) for m in members]
    if hasattr(objective, "inner") and hasattr(objective, "weight") and not objective.id:
        return {"weight": objective.weight, "of": _plain(objective.inner)}
    return as_dict(objective)


def subject_of(prepared: Prepared) -> Any:
    """The run's model as measures see it."""
    return prepared.kit.subject


def measure(prepared: Prepared, cost: Mapping[str, float]) -> list[Reading]:
    """All readings of the recipe's measures on its test rows."""
    return prepared.kit.measure(prepared, cost) if prepared.parts.measures else []


def check_measures(prepared: Prepared) -> list[str]:
    """What suites leave out, in sentences. Raises Refused where a measure could not run, so that no training is spent first."""
    return prepared.kit.faults(prepared) if prepared.parts.measures else []


def run(recipe: Recipe, out: Path | None = None, *, resume: bool = False, on_event: Event | None = None,
        accelerator: Any = None, keep_model: bool = True, keep_base: bool = True) -> Finished:  # fmt: skip
    """Train, measure and save a recipe.

    out: folder of the run (None: nothing is written; of several processes only the main one writes). resume: go on from the
    last good checkpoint. keep_base: False frees the copy of the base that training in place keeps, where nothing in the recipe
    asks for it; the finished model can then not be switched off. Raises Luthier's errors.
    """
    tell = on_event or (lambda event: None)
    main = accelerator is None or accelerator.is_main_process
    if out is not None and main:
        claim_folder(out, recipe, resume)
    reset_peak()
    began = time.perf_counter()
    prepared = prepare(recipe, out, on_event, accelerator)
    prepared.notes += check_measures(prepared)
    if out is not None and main:
        write_json(out / MANIFEST, manifest_of(prepared, "running"))
    for note in prepared.notes:
        tell({"kind": "note", "text": note})
    passes = cache_reference(prepared)
    if passes:
        tell({"kind": "note", "text": f"reference log-probs cached in {passes} forward passes"})
    if not keep_base and not asks_for_base(prepared):
        prepared.policy.attached.forget_base()
    loop = Loop(prepared.job)
    if resume and out is not None and newest(out) is None:
        tell({"kind": "note", "text": f"--resume: there is no checkpoint in {out}; the run starts at the beginning"})
    outcome = loop.run(resume)
    cost = {**outcome.cost, **_cost(prepared), "total_seconds": time.perf_counter() - began}
    if outcome.interrupted:
        if out is not None and main:
            write_json(out / MANIFEST, manifest_of(prepared, "stopped", cost))
        return Finished(recipe, [], outcome, [], cost, prepared.notes, out, prepared)
    loop.save(outcome.steps)
    tell({"kind": "note", "text": "measuring"})
    readings = measure(prepared, cost)
    samples = prepared.kit.samples(prepared) if out is not None or recipe.measure else []
    finished = Finished(recipe, readings, outcome, samples, cost, prepared.notes, out, prepared)
    if out is not None:
        save(finished, keep_model, main)
    if out is not None and main:
        write_json(out / MANIFEST, manifest_of(prepared, "finished", cost))
    return finished


def _cost(prepared: Prepared) -> dict[str, float]:
    described = prepared.policy.attached.describe()
    return {"trained_parameters": float(described["trained"]), "total_parameters": float(described["total"]),
            "peak_bytes": peak_bytes()}  # fmt: skip


def save(finished: Finished, keep_model: bool = True, main: bool = True) -> None:
    """Write adapter, merged model, results, trace and model card into the run's folder.

    Collective where weights are sharded; only the main process writes.
    """
    prepared, out = finished.prepared, finished.out
    assert prepared is not None and out is not None
    state = prepared.policy.attached.state()
    if main:
        _save_figures(finished, state)
    refusal = save_merged(prepared, out / "model", main) if keep_model else "the merged model was not asked for"
    if main:
        write_text(out / "README.md", _card(finished, refusal))
    if main and refusal is None:
        write_text(out / "model" / "README.md", _card(finished, None))


def _save_figures(finished: Finished, state: Mapping[str, torch.Tensor]) -> None:
    prepared, out = finished.prepared, finished.out
    assert prepared is not None and out is not None
    write_tensors(out / "adapter" / "adaptation.safetensors", state)
    write_json(out / "adapter" / "adaptation.json", {"adapt": [as_dict(a) for a, _ in prepared.parts.adapt],
               "sites": [s.pattern for _, s in prepared.parts.adapt], "model": finished.recipe.model})  # fmt: skip
    write_json(out / "result.json", {
        "readings": [_stored(r) for r in finished.readings], "samples": finished.samples,
        "curves": finished.outcome.curves, "cost": finished.cost, "notes": finished.notes})  # fmt: skip
    write_json(out / "trace.json", [vars(r) for r in finished.outcome.trace])


def _stored(reading: Reading) -> dict[str, Any]:
    """A reading as JSON; figures that are not finite are words ("nan", "inf")."""
    value, *items = (x if math.isfinite(x) else str(x) for x in (reading.value, *reading.items))
    return vars(reading) | {"value": value, "items": items}


def save_merged(prepared: Prepared, folder: Path, main: bool = True) -> str | None:
    """Write the merged model as the model's own library reads it; returns the reason where it cannot be merged."""
    never = [a.merge.why for a, _ in prepared.parts.adapt if a.merge.kind == "never"]
    if never:
        return never[0]
    try:
        prepared.kit.write_merged(prepared, folder, main)
    except Refused as fault:
        return str(fault)
    return None


def _card(finished: Finished, refusal: str | None) -> str:
    from luthier.report.modelcard import CardFacts, model_card

    prepared, recipe = finished.prepared, finished.recipe
    assert prepared is not None and finished.out is not None
    warnings = [] if refusal is None else [f"There is no merged model: {refusal}."]
    where = str(finished.out if refusal else finished.out / "model")
    return model_card(CardFacts(
        name=where, base_model=recipe.model, recipe=recipe.as_dict(), readings=finished.readings,
        cost=finished.cost, data=[prepared.splits.train.statement], saved="model" if refusal is None else "luthier",
        versions=versions(), seed=recipe.seed, samples=finished.samples, warnings=warnings))  # fmt: skip


def load_results(out: Path) -> Mapping[str, Any]:
    """The result file of a finished run."""
    return json.loads((out / "result.json").read_text(encoding="utf-8"))
