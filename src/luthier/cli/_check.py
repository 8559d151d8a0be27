"""`luthier check`: recipe and data, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from luthier.core.config import build_section
from luthier.core.errors import ConfigError, LuthierError
from luthier.recipes.recipe import Data, parse_sets, read, recipe_faults, slot_entries


def check_recipe(path: Path, sets: list[str]) -> None:
    """Print all faults and exit 2, or say that the recipe is sound and how its data was read."""
    plain = read(path, parse_sets(sets))
    faults = recipe_faults(plain)
    statement = ""
    if isinstance(plain.get("data"), dict | str) and not any(f.startswith("data") for f in faults):
        statement = _data(plain, faults)
    if faults:
        raise ConfigError(faults)
    typer.echo(f"{path}: sound")
    if statement:
        typer.echo(f"data: {statement}")


def _data(plain: dict[str, Any], faults: list[str]) -> str:
    """Read all data that the recipe names; faults join the others. Returns how the training data was read."""
    from luthier.recipes.image_check import image_faults, is_image
    from luthier.recipes.pair_rows import is_pairs, reading_pairs
    from luthier.recipes.rows import advice, file_rows, is_world, kind_after, listed, world_rows

    data = build_section(Data, plain["data"] if isinstance(plain["data"], dict) else {"train": plain["data"]})
    if is_image(str(plain.get("model", "")), plain.get("objective", "nll")):
        statement, found = image_faults(plain, data)
        faults += found
        return statement
    if is_pairs(plain.get("objective", "nll")):
        try:
            data = reading_pairs(data)
        except LuthierError as fault:
            faults.append(str(fault))
            return ""
    found: list[Any] = []
    for key, source, rows in [
        ("train", data.train, data.rows or 512),
        ("test", data.test, 1),
        *(("old", s, 1) for s in listed(data.old)),
    ]:
        try:
            if source is not None and is_world(source):
                found.append(world_rows(source, "train" if key == "train" else "test", rows, 0, data.noise))
            elif source is not None:
                found.append(file_rows(source, data))
        except LuthierError as fault:
            faults.append(f"data.{key}: {fault}")
            if key == "train":
                return ""
    train = found[0]
    try:
        kind = kind_after(train, data.steps)
    except LuthierError as fault:
        faults.append(str(fault))
        return ""
    for entry in [] if plain.get("loop") else slot_entries("objective", plain.get("objective", "nll"), []):
        wanted = entry.card.needs.batch
        if wanted and kind not in wanted and not ("group" in wanted and kind in ("prompts", "text")):
            faults.append(f"{entry.short} requires {' or '.join(wanted)} data; got {kind} data in {data.train}. "
                          f"{advice(wanted[0], train)}")  # fmt: skip
    return train.statement
