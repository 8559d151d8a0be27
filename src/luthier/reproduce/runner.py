"""Run claims, judge them, record verdicts with versions and hashes."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import ConfigError, unknown
from luthier.core.files import write_json
from luthier.core.registry import PACKAGE, entries, find
from luthier.report.manifest import hardware, versions
from luthier.reproduce.claim import AXES, TUNING_SEED, Claim, Judged, judge, parse_expectation

CLAIMS = PACKAGE / "reproduce" / "claims"
VERDICTS = PACKAGE / "reproduce" / "verdicts"


def names() -> list[str]:
    """All claims, found by walking the folder."""
    return sorted(p.stem for p in CLAIMS.glob("*.py") if not p.stem.startswith("_"))


def load(name: str) -> Claim:
    """The claim of this name. Raises ConfigError with the nearest names."""
    if name not in names():
        raise ConfigError(unknown("claim", name, names()))
    return importlib.import_module(f"luthier.reproduce.claims.{name}").CLAIM


def figures(claim: Claim, arm: str, seed: int, overrides: Mapping[str, Any], split: str = "test") -> dict[str, float]:
    """All readings of one arm at one seed, through the ordinary recipe."""
    from copy import deepcopy

    from luthier.recipes.recipe import _assign, parse
    from luthier.recipes.run import run

    plain = deepcopy(dict(claim.recipe or {}))
    for key, value in {**claim.arms[arm], **overrides, "seed": seed}.items():
        _assign(plain, key, value)
    finished = run(parse(plain), None)
    return {r.name: r.value for r in finished.readings} | {f"cost/{k}": v for k, v in finished.cost.items()}


def tuned(claim: Claim, arm: str) -> dict[str, Any]:
    """The grid point that is best for this arm on the claim's measure, at a seed that no reported figure uses."""
    if not claim.grid:
        return {}
    expected = parse_expectation(claim.expect, claim.measure)
    best: tuple[float, dict[str, Any]] | None = None
    for values in itertools.product(*claim.grid.values()):
        point = dict(zip(claim.grid, values, strict=True))
        value = expected.sign * figures(claim, arm, TUNING_SEED, point)[claim.measure]
        if best is None or value > best[0]:
            best = (value, point)
    assert best is not None
    return best[1]


def reproduce(name: str, tell: Any = print) -> dict[str, Any]:
    """Run a claim over all its seeds and judge it; returns the record that `record` writes."""
    claim, began = load(name), time.perf_counter()
    values: dict[str, dict[str, list[float]]] = {}
    chosen: dict[str, dict[str, Any]] = {}
    if claim.run is None:
        chosen = {arm: tuned(claim, arm) for arm in claim.arms}
    for seed in claim.seeds:
        made = claim.run(seed) if claim.run else {a: figures(claim, a, seed, chosen[a]) for a in claim.arms}
        for arm, got in made.items():
            for key, value in got.items():
                values.setdefault(arm, {}).setdefault(key, []).append(float(value))
        told = [f"{arm} {claim.measure} {got[claim.measure]:.4g}" for arm, got in made.items() if claim.measure in got]
        tell(f"  {name} seed {seed}: " + ", ".join(told))
    main, *also = [_judged(text, claim.measure, values) for text in (claim.expect, *claim.also)]
    named = {k for m in values.values() for k in m} if claim.run else set()
    kept = {m.measure for m in (main, *also)} | {"cost/train_seconds"}
    kept |= {k for k in named if k.startswith(tuple(f"{axis}/" for axis in AXES))}
    return {
        "claim": name, "papers": list(claim.papers), "source": claim.source, "says": claim.says, "world": claim.world,
        "expect": claim.expect, "measure": claim.measure, "verdict": main.verdict, "result": vars(main),
        "also": [vars(j) for j in also], "seeds": list(claim.seeds), "chosen": chosen, "note": claim.note,
        "absent": dict(claim.absent),
        "arms": {a: {k: v for k, v in m.items() if k in kept} for a, m in values.items()},
        "seconds": round(time.perf_counter() - began, 1), "versions": versions(), "hardware": hardware(),
        "hashes": _hashes(name, claim),
    }  # fmt: skip


def _judged(text: str, measure: str, values: Mapping[str, Mapping[str, list[float]]]) -> Judged:
    e = parse_expectation(text, measure)
    for arm in (e.arm, e.other):
        if arm not in values or e.measure not in values[arm]:
            known = list(values) if arm not in values else list(values[arm])
            raise ConfigError(
                f"expectation {text!r}: {unknown('arm or measure', e.measure if arm in values else arm, known)}"
            )
    differences = [e.sign * (a - b) for a, b in zip(values[e.arm][e.measure], values[e.other][e.measure], strict=True)]
    return Judged(text, e.measure, *judge(differences))


def _hashes(name: str, claim: Claim) -> dict[str, str]:
    files = {"claim": CLAIMS / f"{name}.py"}
    if any(e.short == claim.component for e in entries().values()):
        files["component"] = find(claim.component).path
    return {k: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for k, p in files.items()}


def record(result: Mapping[str, Any], folder: Path = VERDICTS) -> Path:
    """Write a verdict file."""
    path = folder / f"{result['claim']}.json"
    write_json(path, _rounded(result))
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
