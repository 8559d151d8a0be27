"""`luthier compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from luthier.cli._run import quiet
from luthier.core.errors import ConfigError, LuthierError
from luthier.recipes.recipe import parse_sets, read, recipe_faults

if TYPE_CHECKING:
    from luthier.compare.runner import Outcome
    from luthier.compare.verdicts import Design
    from luthier.report.content import Race


def seeds_of(text: str) -> list[int]:
    """`5` is five seeds from 0; `0,3,7` are these.

    >>> seeds_of("3"), seeds_of("4,9")
    ([0, 1, 2], [4, 9])
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as fault:
        raise ConfigError(f"--seeds requires a number or a list such as 0,1,7; got {text!r}.") from fault
    if "," in text:
        return numbers
    if numbers[0] < 1:
        raise ConfigError(f"--seeds requires at least 1; got {numbers[0]}.")
    return list(range(numbers[0]))


def listed(text: str) -> list[str]:
    """Names between commas.

    >>> listed("dft, lora,")
    ['dft', 'lora']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def arms_of(paths: list[Path], sets: list[str]) -> dict[str, dict[str, Any]]:
    """Plain recipes by arm name; every fault of every recipe at once."""
    if len(paths) < 2:
        raise ConfigError(f"compare requires two or more recipes; got {len(paths)}. The first is the baseline.")
    overrides, arms, faults = parse_sets(sets), {}, []
    for path in paths:
        plain = read(path, overrides)
        name = str(plain.pop("name", path.stem))
        if name in arms:
            faults.append(f"{path}: the arm name {name!r} is taken; give the recipe another `name`")
        faults += [f"{path}: {f}" for f in recipe_faults(plain)]
        if not plain.get("measure"):
            faults.append(
                f"{path}: a comparison requires `measure`; the recipe names none. Add for example [quality, cost]"
            )
        plain.pop("seed", None)
        arms[name] = plain
    if faults:
        raise ConfigError(faults)
    return arms


def compare_recipes(
    paths: list[Path],
    seeds: str,
    out: Path,
    sets: list[str],
    processes: int,
    level: float,
    ray: str = "",
    first: str = "",
) -> None:
    """Run arms x seeds, then write and show the comparison."""
    arms, numbers = arms_of(paths, sets), seeds_of(seeds)
    quiet()
    from luthier.compare.arms import run_arm
    from luthier.compare.runner import Event, run_all
    from luthier.compare.verdicts import Design

    def tell(event: Event) -> None:
        typer.echo(str(event), err=True)

    asked: int | Literal["auto"] = "auto" if processes == 1 else processes
    outcome = run_all(arms, numbers, run_arm, out, asked, tell, ray=ray or None)
    if outcome.interrupted:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(130)
    show(
        outcome,
        list(arms),
        numbers,
        Design(alpha=level, first=tuple(listed(first))),
        out,
        ", ".join(arms),
        "all failed",
    )


def show(outcome: Outcome, arms: list[str], seeds: Sequence[int], design: Design, out: Path, title: str, failed: str,
         race: Race | None = None) -> None:  # fmt: skip
    """Compare what was run, print it, write the report. Raises LuthierError where no run ended; failed: these runs, in words."""
    from luthier.compare.summary import compare
    from luthier.report.html import write_report
    from luthier.report.tables import print_summary

    if not outcome.results:
        raise LuthierError(f"compare requires at least one run that ends; {failed}:\n"
                           + "\n".join(f"  {f.arm}, seed {f.seed}: {f.why}" for f in outcome.failures))  # fmt: skip
    command = " ".join(["luthier", *sys.argv[1:]])
    found = replace(
        compare(outcome.results, arms, seeds, design, failures=outcome.failures, command=command, title=title),
        race=race,
    )
    print_summary(found)
    typer.echo(f"report: {write_report(found, out / 'report.html')}")
