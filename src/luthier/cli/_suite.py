"""`luthier compare --suite`: the arms come from the index, and a race chooses the few that are compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from luthier.cli._compare import listed, seeds_of, show
from luthier.cli._run import quiet
from luthier.core.errors import ConfigError, counted
from luthier.recipes.recipe import parse_sets, read

if TYPE_CHECKING:
    from luthier.compare.race import Ladder, Raced
    from luthier.compare.suite import Field
    from luthier.report.content import Race

FINAL_SEEDS = "8"


def rates_of(text: str) -> tuple[float, ...]:
    """`1e-4,1e-3` as numbers.

    >>> rates_of("1e-4, 0.01")
    (0.0001, 0.01)
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as fault:
        raise ConfigError(f"--rates requires numbers such as 1e-4,1e-3; got {text!r}.") from fault
    if not all(0 < r < float("inf") for r in found) or len(set(found)) < len(found):
        raise ConfigError(f"--rates requires different numbers above 0; got {text!r}.")
    return found


def compare_suite(suite: str, paths: list[Path], seeds: str, out: Path, sets: list[str], processes: int, level: float,
                  by: str, rates: str, cap: float | None, finalists: int, only: str, dry: bool, ray: str = "") -> None:  # fmt: skip
    """Build the arms, race them, compare the last ones, and show it; dry: show what would be run."""
    if len(paths) > 1:
        raise ConfigError(f"--suite takes one recipe, its baseline, or none; got {len(paths)}.")
    quiet()
    from luthier.compare.arms import run_arm
    from luthier.compare.race import Ladder, race
    from luthier.compare.suite import build_field
    from luthier.compare.verdicts import Design

    grid, ladder = rates_of(rates) if rates else None, Ladder(seeds=tuple(seeds_of(seeds)), finalists=finalists)
    field = build_field(suite, read(paths[0]) if paths else None, parse_sets(sets), by, cap,
                        listed(only))  # fmt: skip
    grid = grid or field.rates()
    for line in planned(field, ladder, grid, dry):
        typer.echo(line, err=not dry)
    if dry:
        return

    def tell(event: Any) -> None:
        typer.echo(str(event), err=True)

    raced = race(
        field.arms, grid, ladder, field.judge, field.configure, run_arm, out, processes, tell, tell, ray or None
    )
    if raced.interrupted:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(130)
    design = Design(alpha=level, first=raced.judge.by)
    show(raced.outcome, [c.arm for c in raced.finalists], ladder.seeds, design, out, f"suite {field.suite}",
         "all of the last comparison failed", race_of(field, raced, grid))  # fmt: skip


def race_of(field: Field, raced: Raced, grid: tuple[float, ...]) -> Race:
    """What the report shows of the race."""
    from luthier.report.content import Race

    notes = []
    if edge := [str(c) for c in raced.finalists if c.rate in (min(grid), max(grid))]:
        notes.append(
            f"At the edge of the rates that were tried: {', '.join(edge)}. A wider grid (--rates) may find better ones."
        )
    notes.append(
        "Rungs judge after few steps: an arm that starts slowly can be dropped although it would win in the end."
    )
    return Race(
        judged=raced.judge.words(), rates=grid, rungs=tuple(raced.rungs), left_out=field.left_out, notes=tuple(notes)
    )


def planned(field: Field, ladder: Ladder, grid: tuple[float, ...], whole: bool) -> list[str]:
    """What will be run, in lines; whole: the arms and what is left out too."""
    train = field.arms[field.baseline]["train"]
    full, unit = (train["epochs"], "epochs") if "epochs" in train else (train["steps"], "steps")
    sizes = ladder.sizes(len(field.arms), len(grid))
    rates = counted(len(grid), "learning rate")
    said = [f"suite {field.suite}: {counted(len(field.arms), 'arm')}, {rates} ({', '.join(f'{r:g}' for r in grid)}), "
            f"judged by {field.judge.words()}", f"data: {field.statement}"]  # fmt: skip
    for n, (share, count) in enumerate(zip(ladder.shares, ladder.counts, strict=True), 1):
        said.append(
            f"rung {n}: {counted(sizes[n - 1], 'configuration')} x {counted(count, 'seed')}, {full * share:g} {unit}"
        )
    said.append(f"last comparison: {counted(sizes[-1], 'arm')} x {counted(len(ladder.seeds), 'seed')}, {full:g} {unit}")
    said.append(f"{ladder.runs(len(field.arms), len(grid))} runs in all")
    if whole:
        from luthier.report.content import Race
        from luthier.report.race import left_out

        said += ["arms:", *(f"  {name:<24} {about}" for name, about in field.about.items()), "left out:"]
        said += [
            f"  {why}: {names}"
            for why, names in left_out(Race(judged="", rates=grid, rungs=(), left_out=field.left_out))
        ]
    return said
