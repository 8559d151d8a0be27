"""The command line. Heavy libraries load inside commands: --help, methods and check never import torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.core.errors import ConfigError, LuthierError

app = typer.Typer(
    name="luthier", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Fine-tuning in which every published technique is a small component to compose, compare and trust.",
)  # fmt: skip
lab_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tiny worlds with exact answers.")
app.add_typer(lab_app, name="lab")


def _home(value: Any) -> Any:
    """`~` is the home folder, also where no shell has written it out, as in --out=~/runs."""
    if isinstance(value, list | tuple):
        return [_home(v) for v in value]
    if isinstance(value, Path):
        return value.expanduser()
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value


RecipeFile = Annotated[Path, typer.Argument(help="A recipe in YAML or JSON.", metavar="RECIPE", callback=_home)]
RecipeFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RECIPES",
        help="Two or more recipes; the first is the baseline. With --suite one, or none.",
        callback=_home,
    ),
]
OutFolder = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write.", callback=_home)]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN", callback=_home)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override keys of the recipe: --set train.lr=1e-4 model=FOLDER."),
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


@app.command(short_help="Find techniques by words or by meaning, or list them all.")
def methods(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="Free text to search for; without it everything is listed.")
    ] = "",
    papers: Annotated[bool, typer.Option("--papers", help="List the papers and what serves each.")] = False,
    as_json: AsJson = False,
    meaning: Annotated[bool, typer.Option("--meaning", help="Search by meaning too (needs the minilm extra).")] = False,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="How many results.")] = 10,
) -> None:
    """Find techniques: by words, by meaning, or all of them."""
    from luthier.cli._methods import show_methods

    show_methods(text, papers, as_json, meaning, count)


@app.command(short_help="Name every fault of a recipe at once, before weights load.")
def check(recipe: RecipeFile, sets: Sets = None) -> None:
    """Name every fault of a recipe at once; loads no weights and no torch."""
    from luthier.cli._check import check_recipe

    check_recipe(recipe, sets or [])


@app.command(short_help="Show the first rows as the model will see them.")
def preview(
    recipe: RecipeFile,
    sets: Sets = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="How many rows.")] = 3,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page instead of printing.", callback=_home)
    ] = None,
) -> None:
    """Show the first rows as the model will see them: trained tokens coloured, truncations counted; images at noise levels."""
    from luthier.cli._inspect import show_preview

    show_preview(recipe, sets or [], rows, html)


@app.command(short_help="Say what a run will cost: memory, passes, tokens, time.")
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


@app.command(short_help="Train, measure and save.")
def run(
    recipe: RecipeFile,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the run (default: runs/NAME).", callback=_home)
    ] = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last good checkpoint.")] = False,
) -> None:
    """Train, measure and save: adapter, merged model, manifest, model card."""
    from luthier.cli._run import run_recipe

    run_recipe(recipe, out, sets or [], resume)


@app.command(short_help="Say which recipe is better, over paired seeds; report.html.")
def compare(
    recipes: RecipeFiles = None,
    seeds: Annotated[
        str, typer.Option(metavar="N", help="A number of seeds, or a list such as 0,1,7 (default: 3; with --suite 8).")
    ] = "",
    out: OutFolder = Path("comparison"),
    sets: Sets = None,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Worker processes; each gets its share of the cores.")
    ] = 1,
    ray: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: HOST:PORT, or auto (needs the ray extra).")
    ] = "",
    level: Annotated[
        float, typer.Option(min=1e-6, max=0.5, metavar="P", help="Chance of any false verdict in the whole table.")
    ] = 0.05,
    first: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="Readings that are the question, such as exact_match: half of --level is theirs."
        ),
    ] = "",
    suite: Annotated[
        str, typer.Option(metavar="NAME", help="Race all that fits: sft, preference, rl, forgetting or diversity.")
    ] = "",
    by: Annotated[
        str, typer.Option(metavar="MEASURE", help="Suite: judge by MEASURE or MEASURE:READING instead.")
    ] = "",
    rates: Annotated[
        str, typer.Option(metavar="LIST", help="Suite: learning rates of every arm, such as 1e-4,1e-3.")
    ] = "",
    cap: Annotated[
        float | None, typer.Option(metavar="X", help="Suite forgetting: the most that may be forgotten.")
    ] = None,
    finalists: Annotated[int, typer.Option(min=2, metavar="N", help="Suite: arms in the last comparison.")] = 5,
    only: Annotated[
        str,
        typer.Option("--arms", metavar="NAMES", help="Suite: race only these components, such as dft,lora,neftune."),
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


@app.command(short_help="Merge models shard by shard.")
def merge(
    recipe: RecipeFile,
    out: OutFolder = Path("merged"),
    sets: Sets = None,
) -> None:
    """Merge models shard by shard by a merge recipe (base, models, merge)."""
    from luthier.cli._artifacts import merge_recipe

    merge_recipe(recipe, out, sets or [])


@app.command(short_help="Sample from a model or a run.")
def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run's folder, a model folder, a hub name, lab:language or lab:image.",
            callback=_home,
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A prompt; repeat for several. Default: read lines from standard input."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Completions of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, metavar="X", help="0 is greedy.")] = 1.0,
    max_new: Annotated[int, typer.Option(min=1, metavar="N", help="New tokens at most.")] = 64,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed, other samples.")] = 0,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Image models: the PNG that shows all images.", callback=_home)
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="Image models: steps of the sampler (0: the run's own).")
    ] = 0,
    guidance: Annotated[
        float, typer.Option(min=0.0, metavar="X", help="Image models: scale of guidance (0: the run's own).")
    ] = 0.0,
    sampler: Annotated[
        str, typer.Option(metavar="SAMPLER", help="Image models: a sampler, such as ddim or '{tcd: {gamma: 0.3}}'.")
    ] = "",
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


@app.command(short_help="Print the readings of a finished run.")
def measure(folder: RunFolder, as_json: AsJson = False) -> None:
    """Print the readings of a finished run."""
    from luthier.cli._run import show_readings

    show_readings(folder, as_json)


@app.command(short_help="Show what ran in a run, when, and on how much.")
def trace(folder: RunFolder, as_json: AsJson = False) -> None:
    """What ran, when, and on how much."""
    from luthier.cli._run import show_trace

    show_trace(folder, as_json)


@app.command(short_help="Write a run for other tools: PEFT, or a merged model.")
def export(
    folder: RunFolder,
    to: Annotated[str, typer.Option(metavar="FORM", help="peft or merged.")] = "merged",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write.", callback=_home)] = Path("exported"),
) -> None:
    """Write a run as a PEFT checkpoint (of an image model: the LoRA file of its pipeline) or as a plain merged model."""
    from luthier.cli._artifacts import export_run

    export_run(folder, to, out)


@app.command(short_help="Send a run to a model hub, with its model card.")
def push(
    folder: RunFolder,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to send it.")],
    what: Annotated[str, typer.Option(metavar="WHAT", help="model (merged) or adapter.")] = "model",
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it; private otherwise.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and what is missing.")] = False,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Message of the commit.")] = "Upload with Luthier",
) -> None:
    """Send a run's merged model or adapter to a hub, with its model card."""
    from luthier.cli._push import push_run

    push_run(folder, repo, what, public, dry_run, message)


@app.command(short_help="Try a paper's claim in its exact world.")
def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A claim's name, such as dpo.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run every claim.")] = False,
    sample: Annotated[int, typer.Option(min=0, metavar="N", help="Run this many claims, another set each day.")] = 0,
    commit: Annotated[bool, typer.Option("--record", help="Record the verdicts in the package.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the claims with their verdicts.")] = False,
) -> None:
    """Run a paper's claim in its exact world: arms, seeds, verdict, time."""
    from luthier.cli._reproduce import reproduce_claims

    reproduce_claims(name, every, sample, commit, listing)


@lab_app.command("build")
def lab_build(
    world: Annotated[str, typer.Argument(metavar="WORLD", help="language, image or pairs.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write.", callback=_home)],
    steps: Annotated[int, typer.Option(min=0, metavar="N", help="Training steps, for a trial (0: as recorded).")] = 0,
) -> None:
    """Train a world's base model again from its committed recipe."""
    from luthier.cli._artifacts import build_world

    build_world(world, out, steps)


@lab_app.command("check")
def lab_check(
    world: Annotated[str, typer.Argument(metavar="WORLD", help="language, image or pairs.")] = "language",
) -> None:
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
