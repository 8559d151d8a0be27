"""The recipe that made the shipped models of the image world, and the check that they still are what `world.json` says.

Three parts, each of which goes on from its last checkpoint when a build was cut: the learnt reader, the base (a PixArt
transformer on 4x4 patches of pixels, told captions by cross-attention), and the digits' base (a class-conditional DiT).
The base learns in two phases: from mostly whole captions, then from mostly open ones, which leave more to chance.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from luthier.core.errors import ModelError, sentence
from luthier.core.streams import seed_of, stream
from luthier.lab.image._digits import CLASSES, Digits
from luthier.lab.image._oracle import read
from luthier.lab.image._reader import load_reader, save_reader, train_reader, worn
from luthier.lab.image._shapes import (
    ATTRIBUTES,
    CONCEPTS,
    JITTERS,
    SIZE,
    SPLITS,
    combinations,
    draw,
    indices,
    keys,
    to_float,
)
from luthier.lab.image._training import Training, euler, fit, write
from luthier.lab.image._world import BASE, DIGITS, READER, World
from luthier.lab.language._build import file_hash
from luthier.models.conditioning import ClassLabels, WordCaptions
from luthier.models.denoiser import DenoiserModule, load_denoiser

STEPS, OPEN_STEPS, DIGIT_STEPS, READER_STEPS = 1400, 2000, 600, 2500
SHARES = {"told": (0.2, 0.1), "open": (0.55, 0.2)}  # of captions with each word missing by a half, and of none at all
UNTOLD = 0.1  # share of digits without label
TOLERANCE = 0.05  # of an accuracy, when it is measured again on another machine
WEIGHTS, WORLD = "transformer/diffusion_pytorch_model.safetensors", "world.json"
Log = Callable[[str], None]


def build(out: Path, steps: int = STEPS, log: Log = print) -> dict[str, Any]:
    """Train reader, base and digits into `out`, measure them, and return what `world.json` says.

    About half an hour on one core. steps: of the base, for a trial; the others shrink in proportion.
    """
    share, started = steps / STEPS, time.monotonic()
    out.mkdir(parents=True, exist_ok=True)

    def some(number: int) -> int:
        return max(1, round(number * share))

    told, free_ = Training(steps=steps), Training(steps=some(OPEN_STEPS), seed=1)
    digits = Training(steps=some(DIGIT_STEPS), patch=2)
    if not (out / READER).is_file():
        save_reader(train_reader(some(READER_STEPS), seed_of(0, "image.reader") % 2**31), out / READER)
        log(f"reader {time.monotonic() - started:.0f} s {reader_agreement(out)}")
    first, one = fit(lambda: base_module(told), captioned("told"), told, out, BASE, log)
    module, two = fit(lambda: copy.deepcopy(first), captioned("open"), free_, out, "open", log, probe)
    write(module, out / BASE)
    module, three = fit(lambda: digit_module(digits), labelled(), digits, out, DIGITS, log)
    write(module, out / DIGITS)
    recipes = {"told": told, "open": free_, "digits": digits}
    return finish(out, recipes, {"told": round(one), "open": round(two), "digits": round(three)})


def finish(out: Path, recipes: dict[str, Training], seconds: dict[str, int]) -> dict[str, Any]:
    """Measure what was written and write `world.json`."""
    import diffusers

    facts: dict[str, Any] = {
        "world": f"lab.image@{World.version}",
        "recipe": {name: asdict(how) for name, how in recipes.items()},
        "seconds": seconds,
        "parameters": {name: sum(p.numel() for p in load(out / name).parameters()) for name in (BASE, DIGITS)},
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "hashes": {**{name: file_hash(out / name / WEIGHTS) for name in (BASE, DIGITS)}, "reader": file_hash(out / READER),
                   "generator": generator_hash()},
        "accuracy": measure(out),
        "trade_off": trade_off(load(out / BASE)),
    }  # fmt: skip
    (out / WORLD).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def check(folder: Path, n: int = 192) -> dict[str, Any]:
    """Measure a built folder again: hashes and accuracies against its `world.json`.

    Returns `ok`, the `faults` in words, the accuracies `stated` and `measured`.
    """
    path = folder / WORLD
    if not path.is_file():
        do = "Build the world with `luthier lab build image`"
        raise ModelError(sentence("lab check", f"{WORLD} in {folder}", "none", do))
    stated = json.loads(path.read_text(encoding="utf-8"))
    faults = [f"{name} is not the file that {WORLD} describes" for name in (BASE, DIGITS)
              if file_hash(folder / name / WEIGHTS) != stated["hashes"][name]]  # fmt: skip
    if file_hash(folder / READER) != stated["hashes"]["reader"]:
        faults.append(f"{READER} is not the file that {WORLD} describes")
    if generator_hash() != stated["hashes"]["generator"]:
        faults.append("the generator or its words changed since the models were built; build them again")
    measured = measure(folder, n)
    for part, figures in stated["accuracy"].items():
        for name, value in figures.items():
            if abs(measured[part][name] - value) > TOLERANCE:
                faults.append(f"{part} {name}: stated {value:.3f}, measured {measured[part][name]:.3f}")
    return {"ok": not faults, "faults": faults, "stated": stated["accuracy"], "measured": measured}


# -- models and data ---------------------------------------------------------------------------------------------


def base_module(how: Training) -> DenoiserModule:
    """An untrained base with its caption words."""
    from diffusers import PixArtTransformer2DModel  # type: ignore[reportPrivateImportUsage]

    network = PixArtTransformer2DModel(
        num_attention_heads=how.heads, attention_head_dim=how.hidden // how.heads, in_channels=3, out_channels=3,
        num_layers=how.layers, cross_attention_dim=how.hidden, sample_size=SIZE, patch_size=how.patch,
        use_additional_conditions=False,
    )  # fmt: skip
    torch.nn.init.zeros_(network.proj_out.weight)
    words = [word for values in ATTRIBUTES.values() for word in values]
    return DenoiserModule(network, WordCaptions(words, len(ATTRIBUTES), how.hidden))


def digit_module(how: Training) -> DenoiserModule:
    """An untrained model of digits; label 10 stands for no label."""
    from diffusers import DiTTransformer2DModel  # type: ignore[reportPrivateImportUsage]

    network = DiTTransformer2DModel(
        num_attention_heads=how.heads, attention_head_dim=how.hidden // how.heads, in_channels=1, out_channels=1,
        num_layers=how.layers, sample_size=8, patch_size=how.patch, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip
    torch.nn.init.zeros_(network.proj_out_2.weight)
    return DenoiserModule(network, ClassLabels(CLASSES, unconditional=True))


def captioned(phase: str) -> Callable[[Generator, int], tuple[Tensor, dict[str, Tensor]]]:
    """Batches of the train split: every jitter, captions with words missing or none at all, by the phase."""
    own, (left_out, untold) = keys("train"), SHARES[phase]
    pixels = to_float(torch.stack([draw(a, j) for a in own for j in range(len(JITTERS))]))
    sizes = torch.tensor([len(values) for values in ATTRIBUTES.values()])
    ids = (indices(own) + 1 + sizes.cumsum(0) - sizes).repeat_interleave(len(JITTERS), 0)

    def batch(g: Generator, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        at, u = torch.randint(len(pixels), (n,), generator=g), torch.rand(n, 1, generator=g)
        missing = torch.rand(n, len(ATTRIBUTES), generator=g) < 0.5
        told = ids[at].masked_fill((missing & (u < left_out + untold)) | (u < untold), 0)
        order = (told == 0).to(torch.uint8).sort(dim=-1, stable=True).indices  # words first, then padding
        return pixels[at], {"ids": told.gather(-1, order)}

    return batch


def labelled() -> Callable[[Generator, int], tuple[Tensor, dict[str, Tensor]]]:
    """Batches of the digits' train split, a tenth without label."""
    rows = Digits().rows("train", len(Digits().indices("train")))
    pixels, labels = Digits.stack(rows), torch.tensor([row["label"] for row in rows])

    def batch(g: Generator, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        at = torch.randint(len(pixels), (n,), generator=g)
        return pixels[at], {"label": labels[at].masked_fill(torch.rand(n, generator=g) < UNTOLD, CLASSES)}

    return batch


def load(folder: Path) -> DenoiserModule:
    """A built model in single precision."""
    return load_denoiser(str(folder)).module


# -- measuring ---------------------------------------------------------------------------------------------------


def samples(module: DenoiserModule, split: str, n: int, steps: int = 20, cfg: float = 2.0) -> tuple[Tensor, list[str]]:
    """Images for n captions of a split, and the captions; the same noise every time."""
    captions = [row["caption"] for row in World().rows(split, n, seed=1234)]
    noise = torch.randn(n, 3, SIZE, SIZE, generator=stream(1234, f"image.measure.{split}"))
    return euler(module, module.conditioner.tokens([{"caption": c} for c in captions]), noise, steps, cfg), captions


def attributes(module: DenoiserModule, split: str, n: int, steps: int = 20, cfg: float = 2.0) -> dict[str, float]:
    """Accuracy by attribute and of `all`, and the mean distance `rmse` to the nearest image that can be drawn."""
    images, captions = samples(module, split, n, steps, cfg)
    seen = read(images)
    figures = {**seen.accuracy(captions), "rmse": float(seen.rmse.mean())}
    return {name: round(value, 4) for name, value in figures.items()}


def probe(module: DenoiserModule) -> str:
    """A glance at a module in training."""
    return f"{attributes(module, 'test', 48)} free {free(module, 48)['rmse']}"


def free(module: DenoiserModule, n: int) -> dict[str, float]:
    """How far the shares of unconditional samples are from the truth, by attribute (total variation), and the rmse."""
    noise = torch.randn(n, 3, SIZE, SIZE, generator=stream(1234, "image.measure.free"))
    seen, world = read(euler(module, module.conditioner.null(n), noise, cfg=1.0)), World()
    far = {name: round(world.total_variation(seen, "", name), 4) for name in (*ATTRIBUTES, "jitter")}
    return {**far, "rmse": round(float(seen.rmse.mean()), 4)}


def digit_figures(module: DenoiserModule, n: int) -> dict[str, float]:
    """Accuracy by the judge in 20 steps, the judge's own on held-out digits, median distance to the training images."""
    world, labels = Digits(), torch.arange(n) % CLASSES
    noise = torch.randn(n, 1, 8, 8, generator=stream(1234, "image.measure.digits"))
    made = world.oracle(euler(module, {"label": labels}, noise))
    held = world.rows("test", len(world.indices("test")))
    true = world.oracle(world.stack(held))
    figures = {"digit": made.accuracy(labels.tolist()), "judge": true.accuracy([r["label"] for r in held]),
               "copy": float(made.copy.median()), "held_out_copy": float(true.copy.median())}  # fmt: skip
    return {name: round(value, 4) for name, value in figures.items()}


def reader_agreement(folder: Path, n: int = 400) -> dict[str, float]:
    """Share of images on which the learnt reader says of all attributes what the oracle says: clean, noisy, worn, concepts."""
    world, reader = World(), load_reader(folder / READER)
    x, g = (
        world.stack([row for split in SPLITS for row in world.rows(split, n // 4, seed=1234)]),
        stream(1234, "image.measure.reader"),
    )
    own = world.stack([row for name in CONCEPTS for row in world.concept_rows(name, "test", n // 3, seed=1234)])
    shown = {"clean": x, "noisy": x + 0.3 * torch.randn(x.shape, generator=g), "worn": worn(x, g), "concepts": own}
    return {
        name: round(float((reader.index(y) == read(y).index).all(-1).float().mean()), 4) for name, y in shown.items()
    }


def measure(folder: Path, n: int = 192) -> dict[str, dict[str, float]]:
    """The figures of a built folder: 20 Euler steps at guidance 2, n images each; `free` without caption or guidance."""
    base = load(folder / BASE)
    found = {split: attributes(base, split, n) for split in ("train", "test", "novel")}
    shown = samples(base, "train", n)[0]
    agree = (load_reader(folder / READER).index(shown) == read(shown).index).all(-1).float().mean()
    return {**found, "free": free(base, n), "reader": {**reader_agreement(folder), "base": round(float(agree), 4)},
            "digits": digit_figures(load(folder / DIGITS), n)}  # fmt: skip


def trade_off(base: DenoiserModule, n: int = 96) -> dict[str, dict[str, float]]:
    """Accuracy of all attributes and rmse on the train split by number of steps and guidance."""
    grid = [(1, 2.0), (2, 2.0), (4, 2.0), (8, 2.0), (20, 2.0), (50, 2.0), (20, 1.0), (20, 1.5), (20, 3.0), (20, 5.0)]
    found = {f"{steps} steps, guidance {cfg:g}": attributes(base, "train", n, steps, cfg) for steps, cfg in grid}
    return {name: {k: figures[k] for k in ("all", "rmse")} for name, figures in found.items()}


def generator_hash() -> str:
    """SHA-256 of what the generator makes: all images, and rows of every split and concept."""
    world, made = World(), hashlib.sha256()
    for a in combinations():
        for jitter in range(len(JITTERS)):
            made.update(draw(a, jitter).numpy().tobytes())
    rows = [row for split in SPLITS for row in world.rows(split, 100, 7, partial=0.3)]
    rows += [row for name in CONCEPTS for split in SPLITS[:3] for row in world.concept_rows(name, split, 30, 7)]
    made.update("\n".join(f"{r['caption']}|{r['key']}|{r['jitter']}" for r in rows).encode())
    for row in rows:
        made.update(row["image"].numpy().tobytes())
    return made.hexdigest()


if __name__ == "__main__":
    json.dump(build(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS), sys.stdout, indent=1)
