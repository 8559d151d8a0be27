"""One run of one arm, as the comparison's runner calls it (in this process or a spawned one)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.compare.results import RunResult
from luthier.core.device import fastest


def _accelerator(precision: str) -> Any:
    """Mixed precision and GPUs need one; a plain CPU run does not."""
    if precision == "fp32" and fastest().type == "cpu":
        return None
    from luthier.train.devices import make_accelerator

    return make_accelerator(precision)


def run_arm(arm: str, recipe: Mapping[str, Any], seed: int) -> RunResult:
    """Train and measure a plain recipe with this seed; nothing is written by the run itself."""
    from luthier.recipes.recipe import parse
    from luthier.recipes.run import run
    from luthier.report.manifest import hardware, versions

    typed = parse({**recipe, "seed": seed})
    finished = run(typed, None, accelerator=_accelerator(typed.train.precision))
    if finished.outcome.interrupted:
        raise KeyboardInterrupt
    names = {k for entry in finished.outcome.curves for k in entry} - {"step"}
    curves = {n: [(float(e["step"]), float(e[n])) for e in finished.outcome.curves if n in e] for n in sorted(names)}
    return RunResult(
        arm=arm,
        seed=seed,
        readings={r.name: r for r in finished.readings},
        curves=curves,
        samples=finished.samples,
        cost=finished.cost,
        versions={**versions(), **hardware()},
        recipe=typed.as_dict(),
    )
