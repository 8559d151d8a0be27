"""Run a recipe: train, measure, save; every run leaves a manifest and can be resumed."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luthier.core import MeasureContext, Reading
from luthier.core.config import as_dict
from luthier.core.errors import DataError, ModelError, OutputError, Refused, sentence
from luthier.core.files import read_json, write_json, write_tensors, write_text
from luthier.measure.suites import SUITES, have, lacks, split
from luthier.recipes.build import Prepared, build_decode, build_measures, cache_reference, embedder, prepare
from luthier.recipes.embeddings import PairKit, measure_pairs, pair_faults, write_merged_encoder
from luthier.recipes.image_runs import image_faults, image_samples, measure_images
from luthier.recipes.images import write_merged_images
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import measured
from luthier.recipes.text import renderer
from luthier.report.manifest import git_state, hardware, versions
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
    if prepared.kit is not None:
        return prepared.kit.subject
    from luthier.models.changes import changes_of
    from luthier.models.subject import LanguageSubject

    policy = prepared.policy
    text = renderer(policy.tokenizer, prepared.recipe.data, policy.view.module.model.config)
    return LanguageSubject(policy.view.module, policy.tokenizer, text.renders, text.pairs, text.stop, prepared.recipe.seed,
                           off=policy.attached.disabled, decode=build_decode(prepared.recipe.decode), helpers=prepared.helpers,
                           changed=changes_of(policy.view.module.model, policy.attached,
                                              [a for a, _ in prepared.parts.adapt]))  # fmt: skip


def measure(prepared: Prepared, cost: Mapping[str, float]) -> list[Reading]:
    """All readings of the recipe's measures on its test rows."""
    if not prepared.parts.measures:
        return []
    splits, recipe = prepared.splits, prepared.recipe
    if isinstance(prepared.kit, PairKit):
        return measure_pairs(prepared, cost)
    if prepared.kit is not None:
        return measure_images(prepared, cost)
    ctx = MeasureContext(recipe.seed, embedder(recipe), splits.verify, dict(cost), measured(splits.old), splits.truth)
    subject, rows = subject_of(prepared), measured(splits.test)
    chosen, _ = chosen_measures(recipe, have(rows, ctx, subject))
    readings: list[Reading] = []
    for one in chosen:
        readings += list(one(subject, rows, ctx))
    return readings


def check_measures(prepared: Prepared) -> list[str]:
    """What suites leave out, in sentences. Raises Refused where a measure could not run, so that no training is spent first."""
    if not prepared.parts.measures:
        return []
    if isinstance(prepared.kit, PairKit):
        return pair_faults(prepared)
    if prepared.kit is not None:
        return image_faults(prepared)
    splits, subject, rows = prepared.splits, subject_of(prepared), measured(prepared.splits.test)
    ctx = MeasureContext(0, embedder(prepared.recipe), splits.verify, {"steps": 0.0}, measured(splits.old), splits.truth)
    there = have(rows, ctx, subject)
    chosen, left = chosen_measures(prepared.recipe, there)
    came = f"{len(rows)} test rows with {', '.join(sorted(there - {'cost', 'tokens'})) or 'nothing'}"
    faults = [sentence(f"measure {m.name}", what, came, "Add it to the test data, or leave this measure out")
              for m in chosen if (what := lacks(m.id, there))]  # fmt: skip
    writing = [m for m in chosen if hasattr(m, "max_new") and m.name != "old_data"]
    context = getattr(prepared.policy.view.module.model.config.get_text_config(), "max_position_embeddings", None)
    if writing and context and not faults:
        asked = [r["prompt"] for r in rows]
        longest = {new: max(map(len, subject.renders(asked, new))) for new in {m.max_new for m in writing}}
        faults = [sentence(f"measure {m.name}", f"prompt + max_new <= {context} tokens", f"{longest[m.max_new]} + {m.max_new}",
                           "Lower its max_new, shorten the test prompts, or set data.truncation to prompt")
                  for m in writing if longest[m.max_new] + m.max_new > context]  # fmt: skip
    if faults:
        raise Refused("\n".join(dict.fromkeys(faults)))
    return left


def chosen_measures(recipe: Recipe, there: set[str]) -> tuple[list[Any], list[str]]:
    """Measures to run, and a sentence for each part of a suite that the data do not allow; named ones always run."""
    named = build_measures([m for m in recipe.measure if not (isinstance(m, str) and m in SUITES)])
    suites = build_measures([m for m in recipe.measure if isinstance(m, str) and m in SUITES])
    fine, missing = split(suites, there)
    told = [f"{ident} is left out: the test data have no {what}" for ident, what in missing.items()]
    seen = {repr(m) for m in named}
    return named + [m for m in fine if repr(m) not in seen], told


def sample(prepared: Prepared, count: int = 4, each: int = 2, max_new: int = 48) -> list[dict[str, Any]]:
    """A few generations for people to look at."""
    if isinstance(prepared.kit, PairKit):
        return []
    if prepared.kit is not None:
        return image_samples(prepared, each)
    rows = measured(prepared.splits.test[:count])
    if not rows or (prepared.splits.train.kind == "preference" and not rows[0].get("prompt")):
        return []
    try:
        made = subject_of(prepared).generate([r["prompt"] for r in rows], samples=each, max_new=max_new, role="samples")
    except (DataError, ModelError) as fault:
        prepared.notes.append(f"no samples are shown: {fault}")
        return []
    return [
        {"prompt": _shown(r["prompt"]), "reference": r["response"], "outputs": o}
        for r, o in zip(rows, made, strict=True)
    ]


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(m.get("content", "")) for m in prompt)


def run(recipe: Recipe, out: Path | None = None, *, resume: bool = False, on_event: Event | None = None,
        accelerator: Any = None, keep_model: bool = True) -> Finished:  # fmt: skip
    """Train, measure and save a recipe.

    out: folder of the run (None: nothing is written; of several processes only the main one writes). resume: go on from the
    last good checkpoint. Raises Luthier's errors.
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
    loop = Loop(prepared.job)
    outcome = loop.run(resume)
    cost = {**outcome.cost, **_cost(prepared), "total_seconds": time.perf_counter() - began}
    if outcome.interrupted:
        if out is not None and main:
            write_json(out / MANIFEST, manifest_of(prepared, "stopped", cost))
        return Finished(recipe, [], outcome, [], cost, prepared.notes, out, prepared)
    loop.save(outcome.steps)
    tell({"kind": "note", "text": "measuring"})
    readings = measure(prepared, cost)
    samples = sample(prepared) if out is not None or recipe.measure else []
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


def reset_peak() -> None:
    """Begin a new measurement of peak memory; earlier runs of the same process do not count."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> float:
    """Peak memory since `reset_peak`: of the accelerator where there is one, else of the process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


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
    """Write the merged model as transformers reads it; returns the reason where the adaptation cannot be merged."""
    from luthier.recipes.export import write_merged

    never = [a.merge.why for a, _ in prepared.parts.adapt if a.merge.kind == "never"]
    if never:
        return never[0]
    try:
        if isinstance(prepared.kit, PairKit):
            write_merged_encoder(prepared.kit.loaded, prepared.policy.attached, folder, main)
            return None
        if prepared.kit is not None:
            write_merged_images(prepared.kit.loaded, prepared.policy.attached, folder, main)
            return None
        write_merged(prepared, folder, main)
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
