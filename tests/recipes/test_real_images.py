"""Recipes on labelled images that users bring: folders of train.npz and test.npz, and the examples that use them."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from luthier.core.errors import ConfigError
from luthier.recipes.image_check import image_faults
from luthier.recipes.recipe import Data, parse, read
from luthier.recipes.run import run
from tests.recipes.image_parts import digits, dit_folder

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
IMAGES = ROOT / "examples" / "images"
SMALL = {"data.test_rows": 4, "data.drop_condition": 0.0, "sampling.steps": 2}


def prepared(data: Path, out: Path, subject: str) -> Path:
    runpy.run_path(str(IMAGES / "prepare.py"))["main"](data, out, subject)
    return out


def split(at: Path, **more: int) -> Path:
    at.mkdir(parents=True)
    digits(at / "train.npz", 120, **more)
    digits(at / "test.npz", 30, **more)
    return at


def test_a_folder_of_arrays_trains_on_one_file_and_is_tested_on_the_other(tmp_path):
    data, model = split(tmp_path / "data"), dit_folder(tmp_path / "model")
    plain = {"model": str(model), "data": {"train": str(data), "test_rows": 30}, "objective": "denoise",
             "train": {"steps": 1, "batch": 4, "lr": 1e-3}, "sampling": {"steps": 2}, "measure": ["denoising_error"]}  # fmt: skip
    made = run(parse(plain))
    assert (len(made.prepared.feed), len(made.prepared.kit.test.rows)) == (120, 30)
    assert "train.npz" in made.prepared.notes[0]
    assert image_faults(plain, Data(train=str(data)))[1] == []
    (data / "test.npz").unlink()
    assert Data(train=str(data)).image_test is None
    assert Data(train=str(data / "train.npz"), test=str(data)).image_test == str(data)


def test_times_and_weightings_are_no_fault_of_an_objective(tmp_path):
    plain = {"model": "lab:image", "objective": {"denoise": {"times": "logit_normal", "weighting": "min_snr"}}}
    assert image_faults(plain, Data(train="lab:image"))[1] == []
    assert "nll requires a language model" in image_faults({**plain, "objective": "nll"}, Data(train="lab:image"))[1][0]


def test_a_reward_that_only_a_measure_reads_is_not_idle():
    plain = {
        "model": "lab:image",
        "data": {"train": "lab:image"},
        "objective": "denoise",
        "reward": {"world_reward": {}},
    }
    with pytest.raises(ConfigError, match="image_reward"):
        parse(plain)
    assert parse({**plain, "measure": ["image_reward"]}).reward


def test_what_prepare_writes_is_what_the_examples_take(tmp_path):
    out = prepared(split(tmp_path / "data", size=8, channels=3), tmp_path / "out", "kind d")
    rest = np.load(out / "rest" / "train.npz")
    assert 3 not in rest["y"].tolist()
    assert rest["classes"][2] == "a kind c"
    assert len(list((out / "five").glob("*.png"))) == 5
    assert (out / "five" / "0000.txt").read_text() == "a <new>"
    with pytest.raises(SystemExit, match="--subject must be one of kind a"):
        prepared(tmp_path / "data", tmp_path / "again", "kind z")
    over = {"model": str(out / "untrained"), "data.train": str(out / "five"), "data.test": str(out / "unseen"), **SMALL}
    plain = read(IMAGES / "real_five.yaml", {**over, "data.test_rows": 3, "train.steps": 2, "train.batch": 2})
    made = run(parse(plain))
    assert {"energy_distance", "image_vendi", "denoising_error"} <= {r.name for r in made.readings}


def test_reward_tuning_trains_on_conditions_and_is_measured_on_images(tmp_path):
    out = prepared(split(tmp_path / "data", size=8, channels=3), tmp_path / "out", "kind d")
    over = {"model": str(out / "untrained"), "data.train": str(out / "rest"), **SMALL, **EXAMPLES["real_reward"]}
    made = run(parse(read(IMAGES / "real_reward.yaml", over)))
    found = {r.name: r.value for r in made.readings}
    assert np.isfinite(found["energy_distance"]) and np.isfinite(found["image_reward"])


EXAMPLES = {
    "real_base": {"train.steps": 2, "train.batch": 4},
    "real_untuned": {},
    "real_distil": {"train.steps": 2, "train.batch": 4},
    "real_reward": {"train.steps": 1, "train.batch": 4, "data.rows": 8},
    "real_reward_off": {"data.rows": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["cifar10", "fashion_mnist_900"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run_on_real_images(name, data, tmp_path):
    if not (REAL / data).is_dir():
        pytest.skip(f"needs shared/data/{data}, which is not part of the repository")
    out = prepared(REAL / data, tmp_path, str(np.load(REAL / data / "train.npz")["classes"][5]))
    over = {"model": str(out / "untrained"), "data.train": str(out / "rest"), **SMALL, **EXAMPLES[name]}
    made = run(parse(read(IMAGES / f"{name}.yaml", over)))
    assert all(np.isfinite(r.value) for r in made.readings)
    assert made.samples[0]["images"]
