"""The recipe that made the shipped dual encoder, and the check that it still is what `world.json` says.

A CLIPModel of half a million numbers learns from pairs of the image world's train split. Captions lose words, and every
image that shows what a caption asks is a right answer to it: the targets of a batch are spread evenly over all right ones.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import CLIPModel

from luthier.core.errors import ModelError, sentence
from luthier.core.streams import seed_of, stream
from luthier.lab.image import ATTRIBUTES
from luthier.lab.image._shapes import JITTERS, SIZE, SPLITS, draw, indices, keys, to_float
from luthier.lab.image._training import Muon
from luthier.lab.language._build import _resume, _save, file_hash
from luthier.lab.pairs._world import ASSETS, END, LENGTH, PAD, SPECIAL, START, World, ids_of

STEPS, EVERY, TOLERANCE = 350, 50, 0.05
WEIGHTS, WORLD = "model.safetensors", "world.json"
PARTIAL = 0.3  # share of captions with each word missing by a half


@dataclass(frozen=True)
class Build:
    """All that decides the dual encoder."""

    steps: int = STEPS
    batch: int = 256
    lr: float = 4e-3
    warmup: int = 40
    decay: float = 0.4
    weight_decay: float = 0.05
    hidden: int = 96
    heads: int = 3
    vision_layers: int = 3
    text_layers: int = 2
    projection: int = 64
    seed: int = 0


def build(out: Path, steps: int = STEPS, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Train the dual encoder into `out`, measure it, and return what `world.json` says. About five minutes on one core."""
    recipe, started = Build(steps=steps), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed_of(recipe.seed, "pairs.init") % 2**31)
    model, pixels, shown = make_model(recipe), *train_images()
    inside = {n: p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n}
    others = [p for n, p in model.named_parameters() if n not in inside]
    search = [Muon(list(inside.values()), recipe.lr, recipe.weight_decay),
              torch.optim.AdamW(others, lr=recipe.lr / 2, betas=(0.9, 0.99), weight_decay=0.0)]  # fmt: skip
    rates = [group["lr"] for optimiser in search for group in optimiser.param_groups]
    first, spent = _resume(out, cast(Any, recipe), cast(Any, model), search)
    for step in range(first, recipe.steps):
        loss = batch_loss(model, pixels, shown, recipe, step)
        for optimiser in search:
            optimiser.zero_grad(set_to_none=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        left = (recipe.steps - step) / (recipe.decay * recipe.steps)
        for optimiser, rate in zip(search, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / recipe.warmup, left)
            optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        done, seconds = step + 1, spent + time.monotonic() - started
        if done % EVERY == 0 or done == recipe.steps:
            _save(out, cast(Any, recipe), cast(Any, model), search, done, seconds)
            log(f"pairs step {done}/{recipe.steps} loss {loss.item():.4f} {seconds:.0f} s {figures(model, 'test', 95)}")
    return finish(out, model, recipe, spent + time.monotonic() - started)


def finish(out: Path, model: CLIPModel, recipe: Build, seconds: float) -> dict[str, Any]:
    """Write the folder in half precision, measure what was written, and write `world.json`."""
    import transformers

    model.half().save_pretrained(out)
    World().tokenizer().save_pretrained(out)
    processor = transformers.CLIPImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE},
    )  # fmt: skip
    processor.save_pretrained(out)
    config = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    facts = {
        "world": f"lab.pairs@{World.version}",
        "recipe": asdict(recipe),
        "seconds": round(seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "hashes": {"weights": file_hash(out / WEIGHTS), "generator": generator_hash()},
        "accuracy": measure(load(out)),
    }
    (out / WORLD).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for path in out.iterdir():
        if path.is_file():
            path.chmod(0o644)
    return facts


def check(folder: Path = ASSETS) -> dict[str, Any]:
    """Measure a built folder again: hashes and figures against its `world.json`.

    Returns `ok`, the `faults` in words, the figures `stated` and `measured`.
    """
    path = folder / WORLD
    if not path.is_file():
        do = "Build the world with `luthier lab build pairs`"
        raise ModelError(sentence("lab check", f"{WORLD} in {folder}", "none", do))
    stated, faults = json.loads(path.read_text(encoding="utf-8")), []
    if file_hash(folder / WEIGHTS) != stated["hashes"]["weights"]:
        faults.append(f"{WEIGHTS} is not the file that {WORLD} describes")
    if generator_hash() != stated["hashes"]["generator"]:
        faults.append("the generator or its words changed since the model was built; build the model again")
    measured = measure(load(folder))
    faults += [f"{split} {name}: stated {value:.3f}, measured {measured[split][name]:.3f}"
               for split, told in stated["accuracy"].items() for name, value in told.items()
               if abs(measured[split][name] - value) > TOLERANCE]  # fmt: skip
    return {"ok": not faults, "faults": faults, "stated": stated["accuracy"], "measured": measured}


# -- model and data ----------------------------------------------------------------------------------------------


def make_model(recipe: Build) -> CLIPModel:
    """An untrained dual encoder."""
    from transformers import CLIPConfig

    tokenizer = World().tokenizer()
    pad, start, end = (tokenizer.convert_tokens_to_ids(word) for word in (PAD, START, END))
    both = {"hidden_size": recipe.hidden, "intermediate_size": 4 * recipe.hidden, "num_attention_heads": recipe.heads,
            "projection_dim": recipe.projection}  # fmt: skip
    words = len(SPECIAL) + sum(len(values) for values in ATTRIBUTES.values())
    text = {**both, "num_hidden_layers": recipe.text_layers, "vocab_size": words, "max_position_embeddings": LENGTH,
            "pad_token_id": pad, "bos_token_id": start, "eos_token_id": end}  # fmt: skip
    vision = {**both, "num_hidden_layers": recipe.vision_layers, "image_size": SIZE, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.projection)).eval()


def load(folder: Path) -> CLIPModel:
    """The built model in single precision."""
    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()


def train_images() -> tuple[Tensor, Tensor]:
    """All images of the train split (T, 3, 16, 16) and their attribute numbers (T, 6)."""
    own = keys("train")
    pixels = to_float(torch.stack([draw(a, j) for a in own for j in range(len(JITTERS))]))
    return pixels, indices(own).repeat_interleave(len(JITTERS), 0)


def batch_loss(model: CLIPModel, pixels: Tensor, shown: Tensor, recipe: Build, step: int) -> Tensor:
    """Symmetric cross-entropy to even targets over all right answers of one batch."""
    g = stream(recipe.seed, "pairs.data", step)
    at = torch.randint(len(pixels), (recipe.batch,), generator=g)
    missing = (torch.rand(recipe.batch, len(ATTRIBUTES), generator=g) < 0.5) & (
        torch.rand(recipe.batch, 1, generator=g) < PARTIAL
    )
    asked = shown[at].masked_fill(missing, -1)
    noisy = pixels[at] + 0.1 * torch.randn(recipe.batch, 3, SIZE, SIZE, generator=g)
    scores = model(**_ids(asked), pixel_values=noisy).logits_per_image
    right = ((shown[at][:, None] == asked) | (asked < 0)).all(-1).float()
    rows, columns = right / right.sum(1, keepdim=True), right / right.sum(0, keepdim=True)
    return -(rows * scores.log_softmax(1)).sum(1).mean() / 2 - (columns * scores.log_softmax(0)).sum(0).mean() / 2


def _ids(asked: Tensor) -> dict[str, Tensor]:
    """Token numbers of attribute numbers (N, 6), as the tokenizer gives them."""
    sizes = torch.tensor([len(values) for values in ATTRIBUTES.values()])
    words = (asked + len(SPECIAL) + sizes.cumsum(0) - sizes).masked_fill(asked < 0, 0)
    order = (words == 0).to(torch.uint8).sort(dim=-1, stable=True).indices
    count = (words > 0).sum(-1, keepdim=True)
    ids = torch.zeros(len(asked), LENGTH, dtype=torch.long)
    ids[:, 0] = SPECIAL.index(START)
    ids[:, 1:-1] = words.gather(-1, order)
    ids.scatter_(1, count + 1, SPECIAL.index(END))
    return {"input_ids": ids, "attention_mask": (torch.arange(LENGTH) < count + 2).long()}


# -- measuring ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def figures(model: CLIPModel, split: str, n: int = 200) -> dict[str, float]:
    """Retrieval within n rows of a split, and zero-shot accuracy by attribute from captions of one word."""
    world, tokenizer = World(), World().tokenizer()
    rows = world.rows(split, n, seed=1234)
    x = world.stack(rows)
    scores = model(**ids_of(tokenizer, [r["caption"] for r in rows]), pixel_values=x).logits_per_image
    found = world.recall(scores, rows)
    for name in ATTRIBUTES:
        told = world.classes(name)
        guess = model(**ids_of(tokenizer, [c["caption"] for c in told]), pixel_values=x).logits_per_image.argmax(-1)
        right = [told[i]["caption"] == r["attributes"][name] for i, r in zip(guess.tolist(), rows, strict=True)]
        found[name] = sum(right) / n
    return {name: round(value, 4) for name, value in found.items()}


def measure(model: CLIPModel) -> dict[str, dict[str, float]]:
    """The figures on train, test and novel."""
    return {split: figures(model, split) for split in ("train", "test", "novel")}


def generator_hash() -> str:
    """SHA-256 of rows of every split and of the words of the tokenizer."""
    world, made = World(), hashlib.sha256(json.dumps(World().tokenizer().get_vocab(), sort_keys=True).encode())
    for split in SPLITS:
        for row in world.rows(split, 50, 7, partial=0.3, wrong=0.2):
            made.update(f"{row['caption']}|{row['clean']}".encode() + row["image"].numpy().tobytes())
    return made.hexdigest()


if __name__ == "__main__":
    json.dump(build(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS), sys.stdout, indent=1)
