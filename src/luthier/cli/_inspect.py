"""`luthier preview` and `luthier plan`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from luthier.cli._run import accelerator_for, quiet
from luthier.core.files import write_text
from luthier.recipes.recipe import Recipe, parse, parse_sets, read


def show_preview(path: Path, sets: list[str], rows: int, html: Path | None) -> None:
    """The first rows as the model will see them."""
    quiet()
    recipe = parse(read(path, parse_sets(sets)))
    from luthier.recipes.image_check import is_image

    if is_image(recipe.model, recipe.objective):
        _show_images(recipe, rows, html)
        return
    from luthier.recipes.preview import encode_for_preview
    from luthier.report.preview import preview_html, preview_terminal

    encoded, tokenizer, statement = encode_for_preview(recipe)
    if html is not None:
        write_text(html, preview_html(encoded, tokenizer, rows, statement))
        typer.echo(f"written to {html}")
    else:
        from rich.console import Console

        Console().print(preview_terminal(encoded, tokenizer, rows, statement))


def _show_images(recipe: Recipe, rows: int, html: Path | None) -> None:
    from luthier.recipes.preview import images_for_preview
    from luthier.report.image_preview import image_preview_html, image_preview_terminal

    shown = images_for_preview(recipe, rows)
    if html is not None:
        write_text(html, image_preview_html(shown))
        typer.echo(f"written to {html}")
    else:
        from rich.console import Console

        console = Console()
        console.print(image_preview_terminal(shown, console.color_system is not None))


def show_plan(path: Path, sets: list[str], as_json: bool, timed: bool = False) -> None:
    """What the run will cost. timed: make a few steps of it and tell how long it will take."""
    quiet()
    recipe = parse(read(path, parse_sets(sets)))
    from luthier.recipes.plan import plan

    found = plan(recipe, timed, accelerator_for(recipe.train.precision) if timed else None)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
        return
    for line in found.lines():
        typer.echo(line)
