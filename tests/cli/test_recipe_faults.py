"""A fault of a recipe's keys and values is named with its place, in one sentence, before anything is written."""

from __future__ import annotations

import pytest

from tests.cli.shell import luthier, refused, write_recipe

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
    "a reward that nothing reads": (
        {"reward": "exact"},
        "reward: requires an objective, loop or measure that asks for one",
    ),
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
    "a tab": (
        "model: a\ndata:\n\ttrain: b\n",
        "recipe.yaml:3:1: requires valid YAML",
        "in 'train: b'. Indent with spaces.",
    ),
    "an open bracket": ("model: [a\n", "recipe.yaml:2:1: requires valid YAML", "Close the bracket that opens at 1:8."),
    "an open quote": (
        'model: a\ndata: "b\n',
        "recipe.yaml:3:1: requires valid YAML",
        "Close the quote that opens at 2:7.",
    ),
    "a colon in a value": ("model: a\ndata: b: c\n", "recipe.yaml:2:8: ", "in 'data: b: c'", "quotes around a value"),
    "another indent": ("data:\n  train: a\n seed: 1\n", "recipe.yaml:3:2: ", "in 'seed: 1'", "keys of one level"),
    "a star": ("model: *best\n", "recipe.yaml:1:8: ", "Put a value that begins with * in quotes."),
    "two documents": ("model: a\n---\nmodel: b\n", "recipe.yaml:2:1: ", "Leave the line --- out."),
    "code": (
        "model: !!python/object/apply:os.system [true]\n",
        "recipe.yaml:1:8: requires valid YAML; could not determine a constructor",
        "Leave the tag out",
    ),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_recipe_file_that_is_none(tmp_path, what):
    text, *words = TEXTS[what]
    refused(luthier("check", write_recipe(tmp_path / "recipe.yaml", text)), *words)


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
