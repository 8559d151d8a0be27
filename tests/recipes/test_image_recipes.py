"""Recipes of image models on real diffusers classes: trained, resumed, sampled, merged, read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.core.files import read_tensors
from luthier.models.denoiser import load_denoiser
from luthier.recipes.images import pictures
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.recipes.image_parts import ddpm_folder, digits, dit_folder, stable_folder


def recipe(model: Path, data: Path, **more: object) -> dict[str, object]:
    return {"model": str(model), "data": {"train": str(data), "holdout": 4}, "objective": "denoise",
            "train": {"steps": 4, "batch": 8, "lr": 1e-3}, "sampling": {"steps": 3}, **more}  # fmt: skip


@pytest.mark.parametrize("adapt", ["full", {"lora": {"rank": 2, "sites": "*to_q"}}])
@pytest.mark.parametrize("kind", ["ddpm", "dit", "stable"])
def test_a_pipeline_trains_samples_and_is_written_back(tmp_path, kind, adapt):
    made = {"ddpm": ddpm_folder, "dit": dit_folder, "stable": stable_folder}[kind](tmp_path / "model")
    data = digits(tmp_path / "x.npz", size=16 if kind == "stable" else 8, channels=3 if kind == "stable" else 1)
    plain = recipe(made, data, adapt=adapt)
    if kind == "ddpm":
        plain["data"] |= {"drop_condition": 0.0}
    finished = run(parse(plain), tmp_path / "run")
    assert all(c["loss"] > 0 for c in finished.outcome.curves)
    assert finished.outcome.curves[0]["images"] == 8
    assert finished.outcome.cost["train_images"] == 32
    again = load_denoiser(str(tmp_path / "run" / "model"))
    x, t = torch.randn(2, *again.shape), torch.tensor([0.3, 0.9])
    live, condition = (
        finished.prepared.policy.view,
        {k: v[:2] for k, v in finished.prepared.kit.test.conditions.items()},
    )
    with torch.no_grad():
        torch.testing.assert_close(
            again.module(x, live.time(t), condition), live.run(x, t, condition), rtol=1e-4, atol=1e-5
        )
    assert finished.samples[0]["images"]


def test_any_split_gives_the_same_step(tmp_path):
    model, data = dit_folder(tmp_path / "model"), digits(tmp_path / "x.npz")
    losses = []
    for micro in (None, 3):
        plain = recipe(model, data)
        plain["train"] |= {"micro": micro}
        losses.append([c["loss"] for c in run(parse(plain)).outcome.curves])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_resumed_run_with_an_average_ends_with_the_same_bytes(tmp_path):
    model, data = dit_folder(tmp_path / "model"), digits(tmp_path / "x.npz")
    plain = recipe(model, data, regularise=["ema"])
    plain["train"] |= {"save_every": 2}
    run(parse(plain), tmp_path / "whole")
    import shutil

    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000004")
    run(parse(plain), tmp_path / "half", resume=True)
    a, b = (read_tensors(tmp_path / n / "adapter" / "adaptation.safetensors") for n in ("whole", "half"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_pairs_of_files_and_bare_prompts_are_read(tmp_path):
    import json

    import numpy as np
    from PIL import Image

    model = stable_folder(tmp_path / "model")
    rows = []
    for i in range(8):
        for side in ("a", "b"):
            Image.fromarray(np.full((16, 16, 3), 20 * i + (side == "b"), np.uint8)).save(tmp_path / f"{side}{i}.png")
        rows.append({"caption": f"kind {i}", "chosen": f"a{i}.png", "rejected": f"b{i}.png"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    plain = recipe(model, tmp_path / "pairs.jsonl", objective="diffusion_dpo")
    plain["train"] |= {"steps": 2, "batch": 2}
    plain["data"] |= {"holdout": 2}
    first = run(parse(plain)).outcome.curves[0]
    assert first["term/diffusion_dpo"] == pytest.approx(0.6931, abs=1e-3)
    (tmp_path / "prompts.txt").write_text("kind a\nkind b\nkind c\nkind d\n")
    source = str(tmp_path / "prompts.txt")
    made = pictures(
        parse(recipe(model, tmp_path / "prompts.txt")),
        source,
        "train",
        0,
        load_denoiser(str(model)),
        "image_prompts",
        0,
    )
    assert len(made.rows) == 4
    assert made.conditions["ids"].shape[0] == 4
    assert made.images == ()
