"""The command line. Heavy libraries load inside commands: --help, methods and check never import torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.core.errors import ConfigError, LuthierError

app = typer.Typer(
    name="luthier", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Fine-tuning in which every published technique is a small component to compose, compare and trust.",
)  # fmt: skip
lab_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tiny worlds with exact answers.")
app.add_typer(lab_app, name="lab")

RecipeFile = Annotated[Path, typer.Argument(help="A recipe in YAML or JSON.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override, as key.sub=value. Several pairs: repeat --set.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        import luthier

        typer.echo(f"luthier {luthier.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def methods(
    text: Annotated[str, typer.Argument(help="Free text to search for; empty lists everything.")] = "",
    papers: Annotated[bool, typer.Option("--papers", help="List the papers and what serves each.")] = False,
    as_json: AsJson = False,
    meaning: Annotated[bool, typer.Option("--meaning", help="Search by meaning too (needs the minilm extra).")] = False,
    count: Annotated[int, typer.Option(min=1, help="How many results.")] = 10,
) -> None:
    """Find techniques: by words, by meaning, or all of them."""
    from luthier.cli._methods import show_methods

    show_methods(text, papers, as_json, meaning, count)


@app.command()
def check(recipe: RecipeFile, sets: Sets = None) -> None:
    """Name every fault of a recipe at once; loads no weights and no torch."""
    from luthier.cli._check import check_recipe

    check_recipe(recipe, sets or [])


@app.command()
def preview(
    recipe: RecipeFile,
    sets: Sets = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    html: Annotated[Path | None, typer.Option(help="Write HTML here.")] = None,
) -> None:
    """Show the first rows as the model will see them: trained tokens coloured, truncations counted; images at noise levels."""
    from luthier.cli._inspect import show_preview

    show_preview(recipe, sets or [], rows, html)


@app.command()
def plan(
    recipe: RecipeFile,
    sets: Sets = None,
    as_json: AsJson = False,
    timed: Annotated[
        bool, typer.Option("--time", help="Make a few steps for real and say how long the run will take.")
    ] = False,
) -> None:
    """Say what a run will cost before it starts: memory, forward passes, tokens or images; with --time how long it takes."""
    from luthier.cli._inspect import show_plan

    show_plan(recipe, sets or [], as_json, timed)


@app.command()
def run(
    recipe: RecipeFile,
    out: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/NAME).")] = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last good checkpoint.")] = False,
) -> None:
    """Train, measure and save: adapter, merged model, manifest, model card."""
    from luthier.cli._run import run_recipe

    run_recipe(recipe, out, sets or [], resume)


@app.command()
def compare(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(help="Two or more recipes; the first is the baseline. With --suite one, or none."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="A number of seeds, or a list such as 0,1,7 (default: 3; with --suite 5).")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("comparison"),
    sets: Sets = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes; each gets its share of the cores.")] = 1,
    ray: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT, or auto (needs the ray extra).")
    ] = "",
    level: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Chance of any false verdict in the whole table.")
    ] = 0.05,
    first: Annotated[
        str, typer.Option(help="Readings that are the question, such as exact_match: half of --level is theirs alone.")
    ] = "",
    suite: Annotated[
        str, typer.Option(help="Race all components that fit: sft, preference, rl, forgetting or diversity.")
    ] = "",
    by: Annotated[str, typer.Option(help="Suite: judge by MEASURE or MEASURE:READING instead.")] = "",
    rates: Annotated[str, typer.Option(help="Suite: learning rates of every arm, such as 1e-4,1e-3.")] = "",
    cap: Annotated[float | None, typer.Option(help="Suite forgetting: the most that may be forgotten.")] = None,
    finalists: Annotated[int, typer.Option(min=2, help="Suite: arms in the last comparison.")] = 5,
    only: Annotated[
        str, typer.Option("--arms", help="Suite: race only these components, such as dft,lora,neftune.")
    ] = "",
    dry: Annotated[
        bool, typer.Option("--plan", help="Suite: print arms, what is left out, and the runs; run nothing.")
    ] = False,
) -> None:
    """Which recipe is better for this model and data? Paired seeds, intervals, an honest verdict, report.html."""
    if suite:
        if first:
            raise ConfigError("--first requires recipes; with --suite the readings that judge come first. Use --by.")
        from luthier.cli._suite import FINAL_SEEDS, compare_suite

        compare_suite(suite, recipes or [], seeds or FINAL_SEEDS, out, sets or [], processes, level, by, rates, cap,
                      finalists, only, dry, ray)  # fmt: skip
        return
    given = {"--by": by, "--rates": rates, "--cap": cap is not None, "--arms": only, "--plan": dry}
    if idle := [name for name, value in given.items() if value]:
        raise ConfigError(f"{idle[0]} requires --suite, which is not given; it would do nothing. Remove it.")
    from luthier.cli._compare import compare_recipes

    compare_recipes(recipes or [], seeds or "3", out, sets or [], processes, level, ray, first)


@app.command()
def merge(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(help="Folder of the merged model.")] = Path("merged"),
    sets: Sets = None,
) -> None:
    """Merge models shard by shard by a merge recipe (base, models, merge)."""
    from luthier.cli._artifacts import merge_recipe

    merge_recipe(recipe, out, sets or [])


@app.command()
def generate(
    model: Annotated[
        str, typer.Argument(help="A run's folder, a model folder, a hub name, lab:language or lab:image.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; repeat for several. Default: read lines from standard input.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    max_new: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 64,
    seed: int = 0,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Image models: the PNG that shows all images.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Image models: steps of the sampler (0: the run's own).")] = 0,
    guidance: Annotated[float, typer.Option(min=0.0, help="Image models: scale of guidance (0: the run's own).")] = 0.0,
    sampler: Annotated[str, typer.Option(help="Image models: a sampler, such as ddim or '{tcd: {gamma: 0.3}}'.")] = "",
) -> None:
    """Sample from a model or a run."""
    from luthier.cli._artifacts import generate_images, generate_text

    if out is not None:
        generate_images(model, prompt or [], samples, seed, out, steps, guidance, sampler)
        return
    if idle := [n for n, v in (("--steps", steps), ("--guidance", guidance), ("--sampler", sampler)) if v]:
        raise ConfigError(
            f"{idle[0]} requires --out FILE.png and an image model; got none. Add it, or remove {idle[0]}."
        )
    generate_text(model, prompt or [], samples, temperature, max_new, seed, as_json)


@app.command()
def measure(folder: Annotated[Path, typer.Argument(help="A run's folder.")], as_json: AsJson = False) -> None:
    """Print the readings of a finished run."""
    from luthier.cli._run import show_readings

    show_readings(folder, as_json)


@app.command()
def trace(folder: Annotated[Path, typer.Argument(help="A run's folder.")], as_json: AsJson = False) -> None:
    """What ran, when, and on how much."""
    from luthier.cli._run import show_trace

    show_trace(folder, as_json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    to: Annotated[str, typer.Option(help="peft or merged.")] = "merged",
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("exported"),
) -> None:
    """Write a run as a PEFT checkpoint (of an image model: the LoRA file of its pipeline) or as a plain merged model."""
    from luthier.cli._artifacts import export_run

    export_run(folder, to, out)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME at the hub.")],
    what: Annotated[str, typer.Option(help="model (merged) or adapter.")] = "model",
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it; private otherwise.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and what is missing.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload with Luthier",
) -> None:
    """Send a run's merged model or adapter to a hub, with its model card."""
    from luthier.cli._push import push_run

    push_run(folder, repo, what, public, dry_run, message)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="A claim's name.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run every claim.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="Run this many claims, another set each day.")] = 0,
    commit: Annotated[bool, typer.Option("--record", help="Record the verdicts in the package.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the claims with their verdicts.")] = False,
) -> None:
    """Run a paper's claim in its exact world: arms, seeds, verdict, time."""
    from luthier.cli._reproduce import reproduce_claims

    reproduce_claims(name, every, sample, commit, listing)


@lab_app.command("build")
def lab_build(
    world: Annotated[str, typer.Argument(help="The world's name.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    steps: Annotated[int, typer.Option(min=0, help="Training steps, for a trial (0: as recorded).")] = 0,
) -> None:
    """Train a world's base model again from its committed recipe."""
    from luthier.cli._artifacts import build_world

    build_world(world, out, steps)


@lab_app.command("check")
def lab_check(world: Annotated[str, typer.Argument(help="The world's name.")] = "language") -> None:
    """Verify a shipped world: hashes and measured accuracies."""
    from luthier.cli._artifacts import check_world

    check_world(world)


def _spread_sets(words: list[str]) -> list[str]:
    """`--set a=1 b=2` means `--set a=1 --set b=2`."""
    out: list[str] = []
    inside = False
    for word in words:
        pair = inside and (out[-1] == "--set" or re.match(r"[A-Za-z_][\w.]*=", word) is not None)
        if pair and out[-1] != "--set":
            out.append("--set")
        out.append(word)
        inside = word == "--set" or word.startswith("--set=") or pair
    return out


def main() -> None:
    """Entry point: errors meant for people are printed as sentences, with exit code 2; Ctrl-C gives 130."""
    try:
        app(args=_spread_sets(sys.argv[1:]), standalone_mode=True)
    except ConfigError as fault:
        count = len(fault.faults)
        lines = "\n".join(f"  {f}" for f in fault.faults) if count > 1 else str(fault)
        typer.echo(f"{count} faults:\n{lines}" if count > 1 else f"error: {lines}", err=True)
        sys.exit(2)
    except LuthierError as fault:
        typer.echo(f"error: {fault}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
