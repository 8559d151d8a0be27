"""Everything that tables and the report show, gathered from the results of the runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.compare.results import RunResult
from luthier.compare.statistics import MIN_SEEDS
from luthier.compare.verdicts import Design, Runs, differences, readings_of
from luthier.core.errors import ConfigError
from luthier.report.content import Comparison, Failure, Sample

SAMPLES = 8


def samples_of(table: Runs, arms: Sequence[str], seeds: Sequence[int]) -> tuple[tuple[Sample, ...], int]:
    """Samples by prompt of the first seed that has any; and how many prompts stay in the result files only."""
    for seed in seeds:
        by_prompt: dict[str, dict[str, tuple[str, ...]]] = {}
        drawn: dict[str, dict[str, tuple[str, ...]]] = {}
        for arm in arms:
            for sample in table[arm, seed].samples if (arm, seed) in table else ():
                by_prompt.setdefault(str(sample["prompt"]), {})[arm] = tuple(map(str, sample["outputs"]))
                if images := [i for i in sample.get("images", ()) if re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", str(i))]:
                    drawn.setdefault(str(sample["prompt"]), {})[arm] = tuple(images)
        if by_prompt:
            whole = [Sample(prompt=p, seed=seed, outputs=o, images=drawn.get(p, {})) for p, o in by_prompt.items()]
            return tuple(whole[:SAMPLES]), max(0, len(whole) - SAMPLES)
    return (), 0


def versions_of(table: Runs) -> tuple[dict[str, Any], list[str]]:
    """Versions and machine of the runs; where runs differ, all values and a note."""
    seen: dict[str, list[Any]] = {}
    for run in table.values():
        for name, value in run.versions.items():
            if value not in seen.setdefault(name, []):
                seen[name].append(value)
    mixed = [n for n, v in seen.items() if len(v) > 1]
    notes = [f"The runs were made with different {n}: {', '.join(map(str, seen[n]))}." for n in mixed]
    return {n: v[0] if len(v) == 1 else " | ".join(map(str, v)) for n, v in seen.items()}, notes


def cautions(n: int, about: str) -> list[str]:
    """What n paired seeds allow to be said."""
    if about == "models":
        return ["One seed: verdicts speak of these models on these items, not of the recipes that made them."]
    if n < MIN_SEEDS:
        return ["Run three seeds at least, better five; finished runs are taken over."]
    if n < 5:
        return [
            f"With {n} seeds, a reading that jumps between two levels by luck of the seed (a run collapses or not) "
            f"can look decided by chance, in up to {2 * 0.25**n:.1%} of such readings. Five seeds bring this to 0.2%."
        ]
    return []


def _by_arm(table: Runs, arms: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Values, curves and cost, each keyed as `Comparison` wants them."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    curves: dict[str, dict[str, dict[int, Any]]] = {}
    cost: dict[str, dict[str, list[float]]] = {a: {} for a in arms}
    for (arm, seed), run in table.items():
        for name, reading in run.readings.items():
            values.setdefault(name, {a: {} for a in arms})[arm][seed] = reading.value
        for name, points in run.curves.items():
            curves.setdefault(name, {}).setdefault(arm, {})[seed] = points
        for name, value in {"seconds": run.seconds, **run.cost}.items():
            cost[arm].setdefault(name, []).append(float(value))
    return values, curves, cost


def _table(runs: Sequence[RunResult], arms: Sequence[str], seeds: Sequence[int]) -> Runs:
    """Runs by arm and seed, in the order of the arms. Raises ConfigError where there is nothing to compare."""
    if len(set(arms)) < len(arms) or len(arms) < 2:
        raise ConfigError(
            f"a comparison requires two or more different arms; got {', '.join(arms) or 'none'}. Name them."
        )
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ConfigError(f"a comparison requires different seeds; got {list(seeds)}. Name each seed once.")
    found = {(r.arm, r.seed): r for r in runs}
    return {(a, s): found[a, s] for a in arms for s in seeds if (a, s) in found}


def compare(
    runs: Sequence[RunResult],
    arms: Sequence[str],
    seeds: Sequence[int],
    design: Design | None = None,
    *,
    failures: Sequence[Failure] = (),
    command: str = "",
    title: str = "",
) -> Comparison:
    """Everything that tables and the report show of these runs; the first arm is the baseline.

    failures: runs that ended in an error; runs that are simply not there are listed as absent. command: how to repeat
    it.
    """
    design = design or Design()
    table = _table(runs, arms, seeds)
    found, family = differences(runs, arms, seeds, design, failures)
    pairs = max((len(d.seeds) for d in found), default=0)
    samples, left = samples_of(table, arms, seeds)
    versions, notes = versions_of(table)
    values, curves, cost = _by_arm(table, arms)
    lost = [
        Failure(arm=a, seed=s, reading=n, why=f"the reading is {r.value}")
        for (a, s), run in table.items()
        for n, r in run.readings.items()
        if not math.isfinite(r.value)
    ]
    failed = {(f.arm, f.seed) for f in failures}
    more = [f"{left} more prompts with samples are in the result files."] if left else []
    recipes: dict[str, Mapping[str, Any]] = {a: {} for a in arms}
    for (arm, _), run in table.items():
        recipes[arm] = recipes[arm] or run.recipe
    return Comparison(
        arms=tuple(arms),
        seeds=tuple(seeds),
        readings=readings_of(table.values()),
        differences=found,
        values=values,
        level=1 - design.alpha,
        power=design.power,
        family=family,
        first=design.first,
        about=design.about,
        curves=curves,
        cost=cost,
        samples=samples,
        recipes=recipes,
        versions=versions,
        failures=(*failures, *lost),
        absent=tuple((a, s) for s in seeds for a in arms if (a, s) not in table and (a, s) not in failed),
        notes=(*cautions(pairs, design.about), *notes, *more),
        command=command,
        title=title,
    )
