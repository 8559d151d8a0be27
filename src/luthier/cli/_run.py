"""`luthier run`, `measure`, `trace`."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import typer

from luthier.core.device import fastest
from luthier.core.errors import OutputError, counted, sentence
from luthier.core.files import read_json
from luthier.recipes.recipe import parse, parse_sets, read
from luthier.report.words import quantity

COUNTS = ("tokens", "images", "parameters", "forward passes")
"""Units of whole numbers."""


def quiet() -> None:
    """Keep the libraries below from printing bars and advice over ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for library in ("transformers", "diffusers"):
        name = f"{library.upper()}_VERBOSITY"
        os.environ.setdefault(name, "error")
        if library in sys.modules and os.environ[name] == "error":  # each reads its variable when it is imported
            importlib.import_module(f"{library}.utils.logging").set_verbosity_error()


def run_recipe(path: Path, out: Path | None, sets: list[str], resume: bool) -> None:
    """Run one recipe and print its readings; exit code 3 when it was interrupted."""
    quiet()
    plain = read(path, parse_sets(sets))
    recipe = parse(plain)
    target = out or Path("runs") / (recipe.name or path.stem)
    from luthier.cli._progress import Progress
    from luthier.recipes.run import run

    accelerator = accelerator_for(recipe.train.precision, recipe.train.tracker, target)
    main = accelerator is None or accelerator.is_main_process
    with Progress(recipe.name) as progress:
        finished = run(recipe, target, resume=resume, on_event=progress if main else None, accelerator=accelerator,
                       keep_base=False)  # fmt: skip
    if not main:
        return
    if finished.outcome.interrupted:
        typer.echo(
            f"stopped after step {finished.outcome.steps} and saved; go on with: luthier run {path} --out {target} --resume"
        )
        raise typer.Exit(3)
    _readings([{"name": r.name, "value": r.value, "unit": r.unit, "axis": r.axis} for r in finished.readings])
    typer.echo(
        f"{counted(finished.outcome.steps, 'step')} in {finished.cost['train_seconds']:.1f} s; everything is in {target}"
    )


def accelerator_for(precision: str, tracker: str = "none", out: Path = Path()) -> Any:
    """An accelerator when launched with several processes, with mixed precision, with a tracker, or on a GPU; else None."""
    from luthier.train.devices import launched_alone, make_accelerator, started

    if (
        precision == "fp32"
        and tracker == "none"
        and started(os.environ) == 1
        and not launched_alone(os.environ)
        and fastest().type == "cpu"
    ):
        return None
    return make_accelerator(precision, tracker, f"{out}-tracker")


def _finished(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise OutputError(sentence(f"folder {folder}", f"a finished run ({name})", "none", "Run `luthier run` first"))
    return path


def _check_rows(path: Path, rows: Any, keys: set[str]) -> None:
    if not isinstance(rows, list) or not all(isinstance(r, dict) and keys <= r.keys() for r in rows):
        raise OutputError(
            sentence(str(path), "the form in which `luthier run` writes it", "another", "Run again, or restore it")
        )


def show_readings(folder: Path, as_json: bool) -> None:
    """Readings of a finished run."""
    found = read_json(path := _finished(folder, "result.json"))
    _check_rows(path, found.get("readings") if isinstance(found, dict) else None, {"axis", "name", "value", "unit"})
    if as_json:
        print(json.dumps(found["readings"], indent=1, ensure_ascii=False))
    else:
        _readings(found["readings"])


def _readings(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        typer.echo(f"  {r['axis']!s:<13} {r['name']!s:<36} {_figure(float(r['value']), str(r['unit']))}".rstrip())


def _figure(value: float, unit: str) -> str:
    """A reading as it stands in the table: counts whole, bytes in units that people read, all else with four decimals."""
    if unit == "bytes":
        told, _, unit = quantity(value, unit).partition(" ")
    else:
        told = f"{value:,.0f}" if unit in COUNTS and math.isfinite(value) else f"{value:,.4f}"
    return f"{told:>10} {unit}"


def show_trace(folder: Path, as_json: bool) -> None:
    """What ran at which point, how often, on how much."""
    rows = read_json(path := _finished(folder, "trace.json"))
    _check_rows(path, rows, {"point", "hook", "changed"})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    runs: Counter[tuple[str, str]] = Counter()
    changed: Counter[tuple[str, str]] = Counter()
    for r in rows:
        runs[r["point"], r["hook"]] += 1
        changed[r["point"], r["hook"]] += r["changed"]
    for (point, hook), n in runs.items():
        typer.echo(f"  {point:<11} {hook:<40} ran {n} times, changed {changed[point, hook]} in all")
    if not runs:
        typer.echo("  no regulariser or gradient transform ran")
