"""Taken output folders and wrong words on the command line are answered in one sentence, and nothing is lost."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.cli.shell import files, luthier, refused, sound, write_recipe
from tests.recipes.parts import chat_rows, write

ADAPTER = "adapter/adaptation.safetensors"


def test_an_output_folder_that_holds_something_else(place, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    refused(
        luthier("run", recipe, "--out", out),
        f"output folder {out} requires an empty or new folder; got one with other files in it",
    )
    refused(luthier("run", recipe, "--out", out, "--resume"), "got one with other files in it. Choose another folder")
    assert files(out) == {"thesis.txt": b"years of work"}
    for target in (out / "thesis.txt", out / "thesis.txt" / "run"):
        refused(
            luthier("run", recipe, "--out", target),
            f"output folder {target} requires a folder; got the file {out}/thesis.txt",
        )


def test_an_output_folder_that_holds_a_run(place, tmp_path):
    recipe, out = write_recipe(tmp_path / "recipe.yaml", sound(place)), tmp_path / "out"
    assert luthier("run", recipe, "--out", out).code == 0
    before = files(out)
    refused(luthier("run", recipe, "--out", out), "got this run, finished. Add --resume to go on with it")
    other = ["--set", "train.lr=1e-2"]
    for words in (other, [*other, "--resume"]):
        refused(
            luthier("run", recipe, "--out", out, *words),
            "requires an empty folder or this same recipe; got another run",
        )
    assert files(out) == before
    assert luthier("run", recipe, "--out", out, "--resume").code == 0
    assert files(out)[ADAPTER] == before[ADAPTER]


def test_data_that_changed_since_the_checkpoint(place, tmp_path):
    rows = write(tmp_path / "rows.jsonl", chat_rows())
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, data={"train": str(rows)}))
    assert luthier("run", recipe, "--out", tmp_path / "out").code == 0
    write(rows, chat_rows()[1:])
    before = files(tmp_path / "out" / "checkpoints")
    refused(
        luthier("run", recipe, "--out", tmp_path / "out", "--resume"),
        "requires the recipe and data it was written with; got others",
    )
    assert files(tmp_path / "out" / "checkpoints") == before


# ----------------------------------------------------------------------------------- words on the command line
def test_wrong_words_on_the_command_line(place, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place))
    refused(luthier("rn", recipe), "No such command 'rn'", "run")
    refused(luthier("run", recipe, "--otu", "x"), "No such option: --otu", "--out")
    refused(luthier("check", recipe, "--set", "train.lr"), "--set requires key=value; got 'train.lr'")
    refused(luthier("check", recipe, "--set", "=3"), "--set requires key=value; got '=3'")
    refused(luthier("check", recipe, "--set", "train=["), "--set train:1:2: requires valid YAML")
    refused(
        luthier("check", recipe, "--set", "train.batch.x=2"),
        "--set train.batch.x requires a mapping at 'train.batch'; got int",
    )
    refused(luthier("check", recipe, "--set", "train.bacth=2"), "train: unknown key 'bacth'; did you mean 'batch'")


RAY = "--ray requires the address of a running Ray cluster; got 'nowhere'"
MISTAKES: dict[str, tuple[list[str], str]] = {
    "an option of images for a text model": (
        ["generate", "{model}", "--prompt", "a", "--steps", "3"],
        "--steps requires --out FILE.png and an image model; got none. Add it, or remove --steps.",
    ),
    "a text model drawn": (
        ["generate", "{model}", "--prompt", "a", "--out", "{out}/x.png"],
        "generate --out requires an image model; got '{model}', a model of text. Leave --out away.",
    ),
    "a world of text drawn": (
        ["generate", "lab:language", "--prompt", "a", "--out", "{out}/x.png"],
        "generate --out requires an image model; got 'lab:language', a model of text.",
    ),
    "images printed": (
        ["generate", "lab:image", "--prompt", "a"],
        "generate requires --out FILE.png for an image model",
    ),
    "a file for a model": (
        ["generate", "{file}", "--prompt", "a"],
        "model requires an existing folder; got '{file}', which is a file. Check the path.",
    ),
    "a file for a model in a recipe": (["plan", "{recipe}", "--set", "model={file}"], "'{file}', which is a file"),
    "a damaged manifest": (
        ["generate", "{broken}", "--prompt", "a"],
        "{broken}/manifest.json requires readable JSON; got: Expecting property name",
    ),
    "a damaged result": (
        ["measure", "{broken}"],
        "{broken}/result.json requires the form in which `luthier run` writes it; got another. Run again, or restore it.",
    ),
    "a damaged trace": (
        ["trace", "{broken}"],
        "{broken}/trace.json requires the form in which `luthier run` writes it",
    ),
    "two choices of claims": (
        ["reproduce", "dpo", "--all"],
        "reproduce requires one of NAME, --all, --sample N and --list; got dpo and --all.",
    ),
    "an unknown claim": (["reproduce", "dop"], "unknown claim 'dop'; did you mean 'dpo'"),
    "an unknown world": (["lab", "check", "langage"], "unknown world 'langage'; did you mean 'language'"),
    "a world into a file": (
        ["lab", "build", "language", "--out", "{file}"],
        "lab build --out {file} requires a new or empty folder; got a file. Choose another folder.",
    ),
    "a world into what is taken": (["lab", "build", "language", "--out", "{broken}"], "got one that holds files."),
    "an image model in a text recipe": (
        ["run", "{recipe}", "--out", "{out}", "--set", "model=lab:image"],
        "nll requires a model and data that it was made for; got an image model. Use an objective of luthier.diffusion",
    ),
    "a text model in an image recipe": (
        ["plan", "{recipe}", "--set", "objective=denoise"],
        "model folder {model} requires model_index.json; got none. Give a folder that holds a diffusers pipeline.",
    ),
    "an output that is a file": (
        ["run", "{recipe}", "--out", "{file}"],
        "output folder {file} requires a folder; got the file {file}. Choose another folder.",
    ),
    "a merge into what is taken": (
        ["merge", "{merge}", "--out", "{broken}"],
        "requires a new or empty output folder; got",
    ),
    "a merge by a recipe of a run": (
        ["merge", "{recipe}"],
        "merge recipe: unknown key 'model'; did you mean 'models'?",
    ),
    "a run by a recipe of a merge": (["run", "{merge}"], "recipe: requires the key 'data', which is not given"),
    "no cluster": (["compare", "{arm}", "{other}", "--ray", "nowhere", "--out", "{out}"], RAY),
    "a first reading for a suite": (["compare", "--suite", "sft", "--first", "nll"], "--first requires recipes"),
    "one arm": (["compare", "{arm}"], "compare requires two or more recipes; got 1."),
    "no seeds": (["compare", "{arm}", "{other}", "--seeds", "0"], "--seeds requires at least 1; got 0."),
    "a page into a folder": (
        ["preview", "{recipe}", "--html", "{broken}"],
        "requires a writable folder; got: Is a directory",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_of_a_newcomer_is_answered_and_writes_nothing(tmp_path, place, what):
    words, told = MISTAKES[what]
    if what == "no cluster" and not find_spec("ray"):
        pytest.skip("ray is not installed")
    base = {"base": str(place / "model"), "models": [str(place / "model")], "merge": "linear"}
    named = {"model": place / "model", "file": tmp_path / "file", "broken": tmp_path / "broken", "out": tmp_path / "out",
             "recipe": write_recipe(tmp_path / "recipe.yaml", sound(place)),
             "merge": write_recipe(tmp_path / "merge.yaml", base),
             "arm": write_recipe(tmp_path / "arm.yaml", sound(place, measure=["quality"])),
             "other": write_recipe(tmp_path / "other.yaml", sound(place, measure=["quality"], seed=1))}  # fmt: skip
    named["file"].write_text("x")
    named["broken"].mkdir()
    for name, text in (("manifest.json", "{"), ("result.json", "[]"), ("trace.json", "3")):
        (named["broken"] / name).write_text(text)
    before = files(tmp_path)
    refused(luthier(*(w.format(**named) for w in words)), told.format(**named))
    assert {k: v for k, v in files(tmp_path).items() if k != "out/runs/.lock"} == before


def test_folders_that_are_no_runs(tmp_path, place):
    for command in ("measure", "trace"):
        refused(luthier(command, tmp_path), f"folder {tmp_path} requires a finished run", "Run `luthier run` first")
    refused(luthier("export", tmp_path, "--out", tmp_path / "x"), f"folder {tmp_path} requires a finished run")
    refused(luthier("generate", tmp_path / "none", "--prompt", "a"), "model requires an existing folder")
    refused(luthier("generate", place / "model"), "generate requires at least one prompt; got none")
    refused(luthier("generate", place / "model", "--prompt", "w1"), "prompt + new tokens <= 64; got")
    for option, value in (("--samples", 0), ("--max-new", 0), ("--temperature", -1)):
        refused(luthier("generate", place / "model", "--prompt", "w1", option, value), f"Invalid value for '{option}'")
