"""`luthier reproduce`."""

from __future__ import annotations

import datetime

import typer

from luthier.catalogue.index import verdicts
from luthier.cli._run import quiet
from luthier.core.errors import ConfigError, counted
from luthier.core.streams import python_stream


def reproduce_claims(name: str | None, every: bool, sample: int, commit: bool, listing: bool) -> None:
    """Run one, some or all claims and print their verdicts; a verdict is never an error."""
    from luthier.reproduce.runner import load, names, record, reproduce

    known = names()
    asked = [w for w, v in ((name, name), ("--all", every), (f"--sample {sample}", sample), ("--list", listing)) if v]
    if len(asked) > 1:
        raise ConfigError(
            f"reproduce requires one of NAME, --all, --sample N and --list; got {' and '.join(map(str, asked))}."
        )
    if listing:
        for one in known:
            found = verdicts().get(one)
            typer.echo(
                f"{one:<24} {found['verdict'] if found else 'not run yet':<12} {found['expect'] if found else ''}"
            )
        return
    if name:
        load(name)  # an unknown one is named before anything is printed
        chosen = [name]
    elif every:
        chosen = known
    elif sample:
        today = datetime.date.today().toordinal()
        chosen = python_stream(today, "reproduce.sample").sample(known, min(sample, len(known)))
    else:
        raise ConfigError(f"reproduce requires a claim's name, --all, --sample N or --list; known: {', '.join(known)}")
    quiet()
    counts: dict[str, int] = {}
    for one in chosen:
        typer.echo(f"{one}:")
        result = reproduce(one, typer.echo)
        r, seeds = result["result"], counted(len(result["seeds"]), "seed")
        typer.secho(f"  {result['verdict'].upper()}: {result['expect']} on {result['measure']}: {r['difference']:+.4g} "
                    f"[{r['low']:+.4g}, {r['high']:+.4g}] over {seeds}, {result['seconds']} s", bold=True)  # fmt: skip
        for also in result["also"]:
            typer.echo(
                f"  also {also['expect']}: {also['verdict']} {also['difference']:+.4g} [{also['low']:+.4g}, {also['high']:+.4g}]"
            )
        counts[result["verdict"]] = counts.get(result["verdict"], 0) + 1
        if commit:
            typer.echo(f"  recorded in {record(result).name}")
    typer.echo(", ".join(f"{n} {v}" for v, n in sorted(counts.items())))
