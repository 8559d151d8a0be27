"""Bad input gives one sentence (who, what is required, what came, what to do), exit code 2, no traceback, and no loss."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.shell import copy_model, files, folder_with_data, luthier, refused, sound, write_recipe
from tests.recipes.parts import WORDS, chat_rows, model_folder, write

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = "adapter/adaptation.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return folder_with_data(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def tried(place, tmp_path):
    """Run a recipe that must be refused: nothing is written, nothing that was there is changed."""

    def attempt(*words, command="run", **changes):
        recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, **changes))
        before = files(place)
        ran = luthier(command, recipe, *(["--out", tmp_path / "out"] if command == "run" else []))
        refused(ran, *words)
        assert not (tmp_path / "out").exists()
        assert files(place) == before
        return ran

    return attempt


# ------------------------------------------------------------------ the recipe's keys and values
FAULTS = {
    "key of the recipe": ({"objectiv": "nll"}, "unknown key 'objectiv'; did you mean 'objective'?"),
    "key of another level": ({"lr": 1e-3}, "unknown key 'lr'; did you mean 'train.lr'?"),
    "key of data": (
        {"data": {"train": "x", "max_lenght": 9}},
        "data: unknown key 'max_lenght'; did you mean 'max_length'",
    ),
    "key of train": ({"train": {"step": 3}}, "train: unknown key 'step'; did you mean 'steps'"),
    "key of rollout": (
        {"objective": "grpo", "reward": "exact", "rollout": {"grup": 2}},
        "rollout: unknown key 'grup'; did you mean 'group'?",
    ),
    "parameter": ({"adapt": {"lora": {"rnak": 4}}}, "adapt.lora: unknown parameter 'rnak'; did you mean 'rank'?"),
    "parameter in a list": (
        {"regularise": [{"neftune": {"alhpa": 5}}]},
        "regularise[0].neftune: unknown parameter 'alhpa'; did you mean 'alpha'?",
    ),
    "parameter of a selector": (
        {"data": {"train": "x", "steps": [{"longest": {"kep": 5}}]}},
        "data.steps[0].longest: unknown parameter 'kep'; did you mean 'keep'?",
    ),
    "parameter of a component inside": (
        {"objective": {"mask": {"inner": {"nll": {"onn": "chosen"}}}}},
        "objective.mask.inner.nll: unknown parameter 'onn'",
    ),
    "slot key weight": (
        {"objective": [{"nll": {"wieght": 0.5}}]},
        "objective[0].nll: unknown parameter 'wieght'; did you mean 'weight'?",
    ),
    "slot key sites": (
        {"adapt": {"lora": {"site": "*"}}},
        "adapt.lora: unknown parameter 'site'; did you mean 'sites'?",
    ),
    "type of a value": ({"train": {"steps": "many"}}, "train.steps: input should be a valid integer; got 'many' (str)"),
    "words for a number": (
        {"train": {"steps": 3, "lr": "2e-4"}},
        "train.lr: input should be a valid number; got '2e-4' (str)",
    ),
    "truth for a number": ({"seed": True}, "seed: input should be a valid integer; got True (bool)"),
    "type of a parameter": ({"adapt": {"lora": {"rank": 2.5}}}, "adapt.lora.rank: input should be a valid integer"),
    "range of a parameter": (
        {"adapt": {"lora": {"rank": 0}}},
        "adapt.lora.rank: input should be greater than 0; got 0",
    ),
    "choice of a parameter": (
        {"objective": {"nll": {"per": "word"}}},
        "objective.nll.per: input should be 'token' or 'sequence'; got 'word'",
    ),
    "type of slot key weight": (
        {"objective": {"nll": {"weight": "half"}}},
        "objective.nll.weight: input should be a valid number; got 'half'",
    ),
    "type of slot key sites": (
        {"adapt": {"lora": {"sites": 5}}},
        "adapt.lora.sites: input should be a valid string; got 5",
    ),
    "not a number": ({"train": {"steps": 3, "lr": float("nan")}}, "train.lr: requires a finite number; got nan"),
    "infinite": (
        {"regularise": [{"clip_grad_norm": {"max_norm": float("inf")}}]},
        "regularise.0.clip_grad_norm.max_norm: requires a finite number; got inf",
    ),
    "no section": ({"train": 5}, "train: requires a mapping; got 5"),
    "steps and epochs": (
        {"train": {"steps": 3, "epochs": 2}},
        "train: requires exactly one of 'steps' and 'epochs'; got both",
    ),
    "selectors that are no list": (
        {"data": {"train": "x", "steps": "longest"}},
        "data.steps: requires a list of selectors; got 'longest'",
    ),
    "unknown component": ({"objective": "dop"}, "objective: unknown component 'dop'; did you mean 'dpo'"),
    "unknown suite": (
        {"measure": ["qualty"]},
        "measure[0]: unknown measure or suite 'qualty'; did you mean 'quality'?",
    ),
    "component of another room": (
        {"objective": "lora"},
        "'lora' is 'adapt.lowrank.lora', which is not in the room 'objectives'",
    ),
    "schedule as optimiser": (
        {"optimiser": "cosine"},
        "optimiser: requires one of adamw, muon, sgd; got optim.schedules.cosine",
    ),
    "optimiser as schedule": (
        {"schedule": "adamw"},
        "schedule: requires one of constant, cosine, linear, wsd; got optim.rules.adamw",
    ),
    "optimiser as regulariser": ({"regularise": ["adamw"]}, "regularise[0]: requires one of"),
    "several optimisers": ({"optimiser": ["adamw", "sgd"]}, "optimiser: requires one component; got a list of 2"),
    "two components in one entry": (
        {"adapt": {"lora": {}, "full": {}}},
        "adapt: requires one component per entry; got 2 (lora, full)",
    ),
    "no objective": ({"objective": []}, "objective: requires a component; got []"),
    "nothing that trains": ({"adapt": None}, "adapt: requires a component; got None"),
    "no reward": ({"objective": "grpo"}, "grpo learns from scored samples and requires `reward`"),
    "a reward that nothing reads": ({"reward": "exact"}, "reward: requires an objective or loop that asks for one"),
    "a teacher that nothing asks": ({"teacher": "x"}, "teacher: requires an objective that learns from a teacher"),
    "a warm-up that no schedule reads": (
        {"train": {"steps": 3, "warmup": 0.1}, "schedule": {"cosine": {}}},
        "train.warmup: requires a schedule given by its name alone",
    ),
    "noise on a file": ({"data": {"train": "x", "noise": 0.2}}, "data.noise: requires data of a lab world"),
    "no model": ({"model": ...}, "recipe: requires the key 'model', which is not given"),
    "no data": ({"data": ...}, "recipe: requires the key 'data', which is not given"),
    "no train in data": ({"data": {}}, "data: requires the key 'train', which is not given"),
}


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_fault_of_the_recipe_is_named_with_its_place(tried, what, command):
    changes, words = FAULTS[what]
    tried(words, command=command, **changes)


@pytest.mark.parametrize("command", ["check", "plan", "preview", "run"])
def test_all_faults_are_listed_at_once(tried, command):
    ran = tried(
        "5 faults:",
        "unknown key 'objectiv'",
        "train: unknown key 'step'",
        "adapt.lora.rank: input should be greater than 0",
        "adapt.lora: unknown parameter 'aplha'; did you mean 'alpha'",
        "unknown component 'neftun'; did you mean 'neftune'",
        command=command,
        objectiv="nll",
        train={"steps": 3, "step": 1},
        adapt={"lora": {"rank": 0, "aplha": 3}},
        regularise=["neftun"],
    )
    assert len(ran.err.strip().splitlines()) == 6


TEXTS = {
    "a list": ("- model\n- data\n", "recipe.yaml requires a mapping of keys; got list"),
    "empty": ("", "requires at least `model` and `data`; the file is empty"),
    "a key twice": ("model: a\ndata: b\nmodel: c\n", "recipe.yaml:3:1: requires valid YAML; duplicate key 'model'"),
    "a nested key twice": (
        "model: a\ntrain: {lr: 1, lr: 2}\n",
        "recipe.yaml:2:16: requires valid YAML; duplicate key 'lr'",
    ),
    "a tab": ("model: a\ndata:\n\ttrain: b\n", "recipe.yaml:3:1: requires valid YAML"),
    "an open bracket": ("model: [a\n", "recipe.yaml:2:1: requires valid YAML"),
    "code": (
        "model: !!python/object/apply:os.system [true]\n",
        "recipe.yaml:1:8: requires valid YAML; could not determine a constructor",
    ),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_recipe_file_that_is_none(tmp_path, what):
    text, words = TEXTS[what]
    refused(luthier("check", write_recipe(tmp_path / "recipe.yaml", text)), words)


def test_a_recipe_file_in_another_encoding(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes("name: caf\u00e9".encode("cp1252"))
    refused(luthier("check", tmp_path / "recipe.yaml"), "recipe.yaml requires readable UTF-8 text; got", "0xe9")


def test_a_missing_recipe_and_a_folder(tmp_path):
    for path, came in ((tmp_path / "none.yaml", "none. Check the path."), (tmp_path, "a folder. Give a file in it.")):
        for command in ("run", "check", "preview", "plan", "merge"):
            refused(luthier(command, path), f"recipe {path} requires an existing file; got {came}")


def test_numbers_and_words_of_yaml_mean_what_they_look_like(tmp_path, place):
    text = f"model: {place}/model\ndata: {place}/chat.jsonl\ntrain: {{steps: 1_0, lr: 2e-4, clip: 1., warmup: .5}}\nname: on\n"
    recipe = write_recipe(tmp_path / "recipe.yaml", text)
    assert luthier("check", recipe).code == 0
    from luthier.recipes.recipe import parse, read

    made = parse(read(recipe))
    assert (made.train.lr, made.train.clip, made.train.warmup, made.name) == (2e-4, 1.0, 0.5, "on")


# --------------------------------------------------------------------------------------- the data
def bad_data(tmp_path, name, raw):
    path = tmp_path / name
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return {"train": str(path)}


ROW = json.dumps({"prompt": "w1 w2", "response": "w3"}) + "\n"
DATA = {
    "empty": (
        "a.jsonl",
        "",
        ("a.jsonl requires at least one row; got an empty file", "Check that it was written completely"),
    ),
    "blank lines": ("a.jsonl", "\n \n", ("requires at least one row",)),
    "a header only": ("a.csv", "prompt,response\n", ("a.csv requires at least one row; got none",)),
    "broken JSON": (
        "a.jsonl",
        ROW * 3 + '{"prompt": "w1"\n' + ROW,
        ("1 of 5 do not", "a.jsonl line 4: broken JSON", "data.on_bad: drop"),
    ),
    "two broken lines": (
        "a.jsonl",
        "nonsense\n" + ROW + "{\n",
        ("2 of 3 do not", "line 1: broken JSON", "line 3: broken JSON"),
    ),
    "a broken list": (
        "a.json",
        '[{"prompt": "w1", "response": "w2"},\n {"prompt": ]',
        ("valid JSON", "line 2, column 13"),
    ),
    "missing columns": (
        "a.jsonl",
        '{"x": "w1", "y": "w2"}\n' * 3,
        ("requires columns that tell what is prompt and what is response", "got x, y", "data.fields"),
    ),
    "a row without a column": (
        "a.jsonl",
        ROW * 3 + '{"prompt": "w1"}\n',
        ("1 of 4 do not", "a.jsonl line 4", "'response' is missing"),
    ),
    "a null": ("a.jsonl", ROW * 2 + '{"prompt": "w1", "response": null}\n', ("line 3", "response")),
    "another encoding": (
        "a.jsonl",
        ROW.encode() + '{"prompt": "caf\u00e9", "response": "w"}\n'.encode("cp1252"),
        ("UTF-8 text; got byte 0xe9", "line 2", "iconv -f cp1252"),
    ),
    "UTF-16": ("a.jsonl", ROW.encode("utf-16"), ("bytes that look like UTF-16", "iconv")),
    "a short line of a table": ("a.csv", "prompt,response\nw1,w2\nw3\n", ("line 3: has 1 fields, the header has 2",)),
    "no known suffix": ("a.doc", ROW, ("one of .jsonl", "got '.doc'", "Convert or rename")),
    "a damaged archive": ("a.jsonl.gz", b"\x1f\x8b\x08\x00nonsense", ("a whole gzip file",)),
    "a damaged table": ("a.parquet", b"PAR1nonsensePAR1", ("a readable parquet file",)),
}


@pytest.mark.parametrize("what", DATA)
@pytest.mark.parametrize("command", ["check", "run"])
def test_data_that_cannot_be_read(tried, tmp_path, what, command):
    name, raw, words = DATA[what]
    tried(*words, command=command, data=bad_data(tmp_path, name, raw))


@pytest.mark.parametrize("command", ["check", "run"])
def test_missing_data_names_the_nearest_file(tried, place, command):
    tried(
        "chta.jsonl' requires an existing file or folder; got none. Did you mean chat.jsonl",
        command=command,
        data={"train": str(place / "chta.jsonl")},
    )


@pytest.mark.parametrize("command", ["check", "preview", "plan", "run"])
def test_an_objective_that_does_not_fit_the_data(tried, command):
    tried(
        "dpo requires preference data; got text data in",
        "has messages",
        "Map columns with data.fields, or choose an objective for text data",
        command=command,
        objective="dpo",
    )


def test_a_sum_of_objectives_that_read_different_batches(tried):
    tried(
        "nll requires text or preference data; got grpo, which requires group data",
        objective=["nll", "grpo"],
        reward="exact",
    )


def test_advice_can_be_followed(tried, place, tmp_path):
    pairs = {"train": str(place / "pairs.jsonl")}
    tried("nll requires text data; got preference data", "Set data.kind: text (the chosen side is kept)", data=pairs)
    recipe = write_recipe(tmp_path / "good.yaml", sound(place, data={**pairs, "kind": "text"}))
    assert luthier("run", recipe, "--out", tmp_path / "run").code == 0


def test_a_row_longer_than_the_context(tried, tmp_path, place):
    raw = ROW * 5 + json.dumps({"prompt": "w1", "response": " ".join(WORDS * 2)}) + "\n" + ROW * 5
    data = {**bad_data(tmp_path, "a.jsonl", raw), "holdout": 0}
    tried(
        "at most 64 tokens per row", "1 of 11 rows are longer: a.jsonl line 6 has 85", "set data.truncation", data=data
    )
    for how, rows in (("drop", 10), ("right", 11), ("prompt", 10)):
        recipe = write_recipe(tmp_path / "cut.yaml", sound(place, data={**data, "truncation": how}))
        ran = luthier("preview", recipe)
        assert f"11 rows gave {rows} examples" in " ".join(ran.out.split())


def test_no_trained_token_at_all(tried, tmp_path):
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", "train": False}]
    data = bad_data(tmp_path, "a.jsonl", (json.dumps({"messages": turns}) + "\n") * 4)
    tried(
        "training requires at least one trained token; none of 4 rows has one",
        "a.jsonl line 1",
        "Check data.train_on",
        data=data,
    )


def test_held_out_rows_must_leave_some(tried, place):
    tried(
        "data.holdout requires fewer than all 24 rows; got 24", data={"train": str(place / "chat.jsonl"), "holdout": 24}
    )


def test_a_measure_that_cannot_run_is_refused_before_training(tried):
    if find_spec("sentence_transformers"):
        tried(
            "the embedder 'none/such' requires a sentence-transformers folder or hub name",
            embedder="none/such",
            measure=["likelihood"],
        )
    tried(
        "measure exact_match requires answer or verify",
        "Add it to the test data, or leave this measure out",
        measure=["exact_match"],
    )
    tried("measure ngram requires prompt + max_new <= 64 tokens; got", "+ 64. Lower its max_new", measure=["ngram"])


# -------------------------------------------------------------------------------- model and tokenizer
def test_a_tokenizer_without_a_pad_token_works(tmp_path, place):
    folder = model_folder(tmp_path / "model", pad=False)
    assert "pad_token" not in json.loads((folder / "tokenizer_config.json").read_text())
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, model=str(folder)))
    assert luthier("run", recipe, "--out", tmp_path / "out").code == 0
    padded = write_recipe(tmp_path / "padded.yaml", sound(place))
    assert luthier("run", padded, "--out", tmp_path / "padded").code == 0
    assert (tmp_path / "out" / ADAPTER).read_bytes() == (tmp_path / "padded" / ADAPTER).read_bytes()


def test_a_model_folder_without_weights(tried, tmp_path, place):
    folder = copy_model(place, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    tried(
        f"model folder {folder} requires weights as *.safetensors; got no weights. Download the weights",
        model=str(folder),
    )
    torch.save({}, folder / "pytorch_model.bin")
    tried("got only pickle files (pytorch_model.bin). Convert them to safetensors", model=str(folder))
    (folder / "config.json").unlink()
    tried(f"model folder {folder} requires config.json; got", model=str(folder))


def test_a_model_folder_that_does_not_exist(tried, tmp_path):
    for command in ("run", "plan", "preview"):
        tried(
            f"model requires an existing folder; got '{tmp_path}/none', which does not exist",
            command=command,
            model=str(tmp_path / "none"),
        )


def test_a_model_with_half_of_its_weights(tried, tmp_path, place):
    folder = copy_model(place, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layers.1" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    tried("all weights of its architecture; got", "missing, first 'model.layers.1.", model=str(folder))


def test_a_model_whose_file_is_cut_short(tried, tmp_path, place):
    folder = copy_model(place, tmp_path / "model")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    tried(str(folder), model=str(folder))


def test_a_model_without_a_tokenizer(tried, tmp_path, place):
    folder = copy_model(place, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tried(f"tokenizer '{folder}' requires tokenizer files beside the model", "Set `tokenizer:`", model=str(folder))


def test_a_chat_without_a_chat_template(tried, tmp_path):
    folder = model_folder(tmp_path / "model", template=None)
    tried("chat messages require a chat template; there is none", "Set data.template to plain", model=str(folder))


def test_sites_that_match_nothing(tried):
    tried(
        "lora requires sites that exist; the pattern '*qproj' matches 0 of",
        "Nearest names:",
        "q_proj",
        adapt={"lora": {"sites": "*qproj"}},
    )
    tried("matches 0 of", adapt={"lora": {"sites": "q_proj,nothing"}})


def test_adaptations_on_the_same_sites(tried):
    tried("q_proj", adapt=[{"lora": {"sites": "q_proj"}}, {"neuroada": {"sites": "q_proj,k_proj"}}])


# ------------------------------------------------------------------------------------ the output folder
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
