"""sentence-transformers #2648, diffusers #5840, open-r1 #450: resumed runs trained nothing, or began with an untrained part."""

from __future__ import annotations

import torch

from luthier.core.files import read_tensors
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import plain
from tests.recipes.image_parts import digits, dit_folder
from tests.trust.resuming import cut_after, same_end


def check(recipe, tmp_path):
    """Cut after two of four steps, the resumed run begins with what was trained, moves it, and ends as the whole one did."""
    recipe["train"] |= {"steps": 4, "save_every": 1, "keep": 9}
    whole = run(parse(recipe), tmp_path / "whole")
    cut_after(tmp_path / "whole", tmp_path / "cut", 2)
    again = run(parse(recipe), tmp_path / "cut", resume=True)
    assert [c["loss"] for c in again.outcome.curves] == [c["loss"] for c in whole.outcome.curves]
    at = {s: read_tensors(tmp_path / "cut" / f"checkpoints/step-{s:08d}/adaptation.safetensors") for s in (2, 3, 4)}
    assert all(not torch.equal(at[2][k], at[3][k]) for k in at[2] if at[4][k].any())
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_language_model(place, tmp_path):
    check(plain(place, adapt={"lora": {"rank": 2}}, regularise=["neftune"]), tmp_path)


def test_an_adapter_of_an_image_model(tmp_path):
    model, data = dit_folder(tmp_path / "model"), digits(tmp_path / "x.npz")
    check({"model": str(model), "data": {"train": str(data), "holdout": 4}, "objective": "denoise", "regularise": ["ema"],
           "adapt": {"lora": {"rank": 2, "sites": "*to_q"}}, "train": {"batch": 8, "lr": 1e-2}, "sampling": {"steps": 2}},
          tmp_path)  # fmt: skip
