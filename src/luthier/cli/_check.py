"""`luthier check`: recipe and data, without torch."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import typer

from luthier.core.config import build_section
from luthier.core.errors import ConfigError, LuthierError
from luthier.recipes.image_check import image_faults, is_image
from luthier.recipes.model_check import model_statement, place_faults
from luthier.recipes.pair_rows import is_pairs, reading_pairs
from luthier.recipes.recipe import Data, parse_sets, read, recipe_faults, slot_entries


def check_recipe(path: Path, sets: list[str]) -> None:
    """Print all faults and exit 2, or say that the recipe is sound and how its data was read."""
    plain = read(path, parse_sets(sets))
    faults = recipe_faults(plain)
    model, objective, statement = str(plain.get("model", "")), plain.get("objective", "nll"), ""
    faults += place_faults(plain, text=not is_image(model, objective) and not is_pairs(objective))
    if (data := _sound_part(plain.get("data"), faults)) is not None:
        statement = _data({**plain, "data": data}, faults)
    if faults:
        raise ConfigError(faults)
    typer.echo(f"{path}: sound")
    typer.echo(f"model: {model_statement(model)}")
    if statement:
        typer.echo(f"data: {statement}")


def _sound_part(given: Any, faults: list[str]) -> dict[str, Any] | None:
    """The data section without the keys that are faulty, so that its files are read all the same; None where `train` is."""
    data = {"train": given} if isinstance(given, str) else given
    if not isinstance(data, dict) or any(f.startswith("data: requires") for f in faults):
        return None
    known = {f.name for f in fields(Data)}
    kept = {k: v for k, v in data.items() if k in known and not any(f.startswith(f"data.{k}") for f in faults)}
    return kept if "train" in kept else None


def _data(plain: dict[str, Any], faults: list[str]) -> str:
    """Read all data that the recipe names; faults join the others. Returns how the training data was read."""
    from luthier.recipes.rows import advice, file_rows, is_world, kind_after, listed, load_splits, passes, world_rows

    data = build_section(Data, plain["data"])
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
    if not isinstance(data.train, str):
        try:
            read = load_splits(replace(data, old=None), 0).train
            found.append(read)
        except LuthierError as fault:
            faults.append(str(fault))
            return ""
    for key, source, rows in [
        ("train", data.train if isinstance(data.train, str) else None, data.rows or 512),
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
            faults.append(f"{entry.short} requires {' or '.join(wanted)} data; got {kind} data in {data.source}. "
                          f"{advice(wanted[0], train)}")  # fmt: skip
    return " ".join([train.statement, *(f"{n}." for n in (*train.notes, *passes(data, train)))])
