"""`luthier generate`, `merge`, `export`, `lab`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import typer

from luthier.cli._run import quiet
from luthier.core.device import fastest
from luthier.core.errors import ConfigError, LuthierError, OutputError, sentence, unknown
from luthier.core.files import read_json


def draws_images(model: str) -> bool:
    """Whether a run, a folder or a world is an image model."""
    from luthier.models.pipelines import is_pipeline

    manifest = Path(model) / "manifest.json"
    if manifest.is_file():
        found = read_json(manifest)
        try:
            model = str(found["recipe"]["model"])
        except (KeyError, TypeError) as fault:
            raise OutputError(
                sentence(str(manifest), "the manifest of a run", "another file", "Give a run's folder")
            ) from fault
    return model.startswith("lab:image") or is_pipeline(model)


def _known(model: str) -> None:
    from luthier.recipes.model_check import world_faults

    if faults := world_faults(model):
        raise ConfigError(faults)


def generate_images(
    model: str, prompts: list[str], samples: int, seed: int, out: Path, steps: int, guidance: float, sampler: str
) -> None:
    """Sample images and write them as one grid, a row for each prompt."""
    quiet()
    _known(model)
    if not prompts and not sys.stdin.isatty():
        prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    from luthier.core.config import check_component, load_yaml
    from luthier.recipes.image_runs import asked, grid, subject_at
    from luthier.recipes.recipe import ImageSampling

    if (Path(model).is_dir() or model.startswith("lab:")) and not draws_images(model):
        raise ConfigError(f"generate --out requires an image model; got {model!r}, a model of text. Leave --out away.")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"generate --out requires a file that ends in .png; got {str(out)!r}. Rename it.")
    given = load_yaml(sampler, "--sampler") if sampler else None
    if given is not None and (faults := check_component(given, "diffusion", "--sampler")[1]):
        raise ConfigError(faults)
    told = bool(steps or guidance or sampler)
    chosen = ImageSampling(sampler=given or "euler", steps=steps or 20, guidance=guidance or 1.0) if told else None
    subject = subject_at(model, chosen, seed)
    made = subject.generate(asked(prompts, subject), samples=samples, role="generate")
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(made).save(out)
    typer.echo(f"{made.shape[0]} x {made.shape[1]} images written to {out}")


def generate_text(
    model: str, prompts: list[str], samples: int, temperature: float, max_new: int, seed: int, as_json: bool
) -> None:
    """Sample completions and print them."""
    quiet()
    _known(model)
    if not prompts:
        prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise ConfigError(
            "generate requires at least one prompt; got none. Give --prompt TEXT, or lines on standard input."
        )
    from luthier.recipes.export import LoadedRun, plain_subject

    folder = Path(model)
    if draws_images(model):
        raise ConfigError("generate requires --out FILE.png for an image model; got none. Add it.")
    subject = LoadedRun(folder).subject(seed) if (folder / "adapter").is_dir() else plain_subject(model, seed, fastest())
    made = subject.generate(prompts, samples=samples, temperature=temperature, max_new=max_new, role="generate")
    if as_json:
        print(
            json.dumps(
                [{"prompt": p, "outputs": o} for p, o in zip(prompts, made, strict=True)], indent=1, ensure_ascii=False
            )
        )
        return
    for prompt, outputs in zip(prompts, made, strict=True):
        if len(prompts) > 1 or samples > 1:
            typer.secho(prompt, bold=True)
        for text in outputs:
            typer.echo(text)


def export_run(folder: Path, to: str, out: Path) -> None:
    """Write a run for other tools."""
    quiet()
    from luthier.recipes.export import export

    export(folder, to, out)
    typer.echo(f"written to {out}")


def merge_recipe(path: Path, out: Path, sets: list[str]) -> None:
    """Merge by a recipe with the keys base, models, merge and optionally dtype."""
    quiet()
    from luthier.recipes.merging import merge_by_recipe
    from luthier.recipes.recipe import parse_sets, read

    told = merge_by_recipe(read(path, parse_sets(sets), "`base`, `models` and `merge`"), out)
    typer.echo(told)


WORLDS = ("language", "image", "pairs")


def _world(name: str, part: str) -> Any:
    """A module of a world."""
    if name not in WORLDS:
        raise ConfigError(unknown("world", name, WORLDS))
    quiet()
    return importlib.import_module(f"luthier.lab.{name}.{part}")


def build_world(name: str, out: Path | None, steps: int) -> None:
    """Train a world's base model anew."""
    target = out or Path(f"lab-{name}")
    if target.exists() and (target.is_file() or any(target.iterdir())):
        came = "a file" if target.is_file() else "one that holds files"
        raise OutputError(sentence(f"lab build --out {target}", "a new or empty folder", came, "Choose another folder"))
    _world(name, "_build").build(target, **({"steps": steps} if steps else {}))
    typer.echo(f"written to {target}")


def check_world(name: str) -> None:
    """Compare the shipped model with its record; exit code 2 when they differ."""
    found = _world(name, "_build").check(_world(name, "_world").ASSETS)
    for skill, accuracy in found["measured"].items():
        typer.echo(f"  {skill}: {accuracy}")
    if not found["ok"]:
        raise LuthierError(
            f"lab check requires the shipped model as recorded; got: {'; '.join(found['faults'])}. Install again."
        )
    typer.echo("the shipped model is as recorded")
