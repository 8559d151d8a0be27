"""The recipe as a value: it round-trips, overrides land where they say, and its identity is all that decides the result."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from luthier.cli.main import _spread_sets
from luthier.core.errors import ConfigError
from luthier.core.registry import entries
from luthier.recipes.composition import refusals, techniques
from luthier.recipes.merging import merge_faults
from luthier.recipes.recipe import Data, ImageSampling, Recipe, Rollout, parse, parse_sets, read, recipe_faults
from luthier.train.settings import Training

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
BASE = {"model": "m", "data": {"train": "x.jsonl"}, "train": {"steps": 5}}


def example(path: Path) -> dict:
    """An example with its model and data named, as its comment says."""
    plain = read(path)
    plain |= {"model": "m"} if plain.get("model") == "FOLDER" else {}
    if isinstance(plain.get("data"), dict) and plain["data"].get("train") == "FILE":
        plain["data"]["train"] = "x.jsonl"
    return plain


# --------------------------------------------------------------------------------------------- round trip
FORMS = {
    "least": {"model": "m", "data": "x.jsonl"},
    "data as text": {**BASE, "data": "x.jsonl"},
    "one epoch": {
        **BASE,
        "train": {"epochs": 0.5, "batch": 3, "micro": 2, "lr": 1, "precision": "bf16", "save_every": 3},
    },
    "lists": {
        **BASE,
        "objective": ["dpo", {"nll": {"on": "chosen", "weight": 0.1}}],
        "adapt": [{"lora": {"rank": 4, "sites": "q_proj"}}, "full"],
        "regularise": ["neftune"],
        "measure": ["quality", {"ngram": {"scope": "per_input"}}],
    },
    "single for lists": {**BASE, "regularise": "neftune", "measure": "likelihood"},
    "samples": {
        **BASE,
        "objective": {"grpo": {"kl": 0.1}},
        "reward": [{"exact": {"weight": 2}}, "format"],
        "rollout": {"group": 4},
    },
    "no schedule": {**BASE, "schedule": None, "reward": None, "teacher": None},
    "inner component": {**BASE, "objective": {"mask": {"inner": {"nll": {"per": "sequence"}}, "share": 0.5}}},
    "data with all": {
        **BASE,
        "data": {
            "train": "x",
            "test": "y",
            "old": ["a", "b"],
            "rows": 3,
            "fields": {"prompt": "q"},
            "holdout": 0,
            "steps": [{"longest": {"keep": 5}}],
            "max_length": 99,
            "truncation": "left",
        },
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_recipe_round_trips(form):
    made = parse(FORMS[form])
    again = parse(made.as_dict())
    assert again == made
    assert again.as_dict() == made.as_dict()
    assert again.identity == made.identity
    written = yaml.safe_load(yaml.safe_dump(made.as_dict()))
    assert parse(written).identity == made.identity


SLOTS = {
    "objectives": "objective",
    "adapt": "adapt",
    "regularise": "regularise",
    "reward": "reward",
    "measure": "measure",
    "loops": "loop",
}


def slot_of(entry) -> str | None:
    if entry.room == "optim":
        return {"rules": "optimiser", "schedules": "schedule", "gradients": "regularise", "averages": "regularise"}[
            entry.id.split(".")[1]
        ]
    return SLOTS.get(entry.room)


@pytest.mark.parametrize(
    "name", [e.id for e in entries().values() if slot_of(e) and all(p.default for p in e.parameters)]
)
def test_every_component_can_be_written_by_its_id_and_by_its_short_name(name):
    entry = entries()[name]
    slot = slot_of(entry)
    rewarded = slot == "loop" and "reward" in entry.card.needs.handles
    sampled = (slot == "objective" and "group" in entry.card.needs.batch) or slot == "reward"
    extra = {"reward": "exact", "objective": "nll"} if rewarded else {"reward": "exact"} if sampled else {}
    extra |= {"objective": "grpo"} if slot == "reward" else {}
    extra |= {"data": {"train": "rows.jsonl", "retain": "old.jsonl"}} if "retain" in entry.card.needs.handles else {}
    if entry.card.needs.adapt:
        extra |= {"adapt": next(e.id for e in entries().values() if {*entry.card.needs.adapt} <= {*e.card.tags})}
    if slot == "adapt" and entry.card.needs.batch:
        extra |= {"objective": next(o.id for o in techniques("objective")
                                   if not refusals([entry], [o]) and {*o.card.needs.handles} <= {"policy"})}  # fmt: skip
    for spec in (
        name,
        {name: {}},
        {name: None},
        *(
            [entry.short]
            if sum(e.short == entry.short and e.room == entry.room for e in entries().values()) == 1
            else []
        ),
    ):
        plain = {**BASE, **extra, slot: spec}
        assert recipe_faults(plain) == []
        made = parse(plain)
        assert parse(made.as_dict()) == made


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_example_is_sound_and_round_trips(path):
    plain = example(path)
    if "merge" in plain:
        assert merge_faults(plain) == []
        return
    assert recipe_faults(plain) == []
    made = parse(plain)
    assert parse(made.as_dict()) == made
    assert made.name == path.stem


def test_there_are_examples():
    assert len(EXAMPLES) >= 10


# ----------------------------------------------------------------------------------------------- identity
OTHER = {
    "recipe": {
        "model": "n",
        "objective": "dft",
        "adapt": "lora",
        "regularise": ["neftune"],
        "optimiser": "sgd",
        "schedule": "cosine",
        "measure": ["quality"],
        "decode": ["top_p"],
        "decode_models": {"base": "n"},
        "tokenizer": "t",
        "dtype": "bf16",
        "embedder": "minilm",
        "seed": 1,
        "reward": "exact",
        "teacher": "t",
        "loop": "raft",
    },
    "data": {
        "train": "y",
        "test": "t",
        "old": "o",
        "mix": "largest",
        "rows": 5,
        "test_rows": 5,
        "holdout": 0.2,
        "judge_on": "stop",
        "format": "text",
        "fields": {"prompt": "q"},
        "kind": "text",
        "split": "train",
        "on_bad": "drop",
        "max_length": 9,
        "truncation": "drop",
        "train_on": "last",
        "template": "plain",
        "system": "s",
        "noise": 0.5,
        "steps": [{"longest": {"keep": 3}}],
        "add_end": False,
        "retain": "r",
        "retain_rows": 3,
        "topk": "k.safetensors",
        "resize": "crop",
        "drop_condition": 0.3,
    },
    "train": {
        "steps": 6,
        "epochs": 2.0,
        "batch": 3,
        "micro": 1,
        "lr": 1.0,
        "warmup": 0.5,
        "clip": 0.5,
        "precision": "bf16",
        "packing": 9,
        "checkpointing": True,
        "save_every": 2,
        "keep": 3,
        "log_every": 2,
        "tracker": "wandb",
        "threads": 1,
        "shard": True,
    },
    "rollout": {"group": 2, "max_new": 3, "temperature": 0.5, "reuse": 2},
    "sampling": {"sampler": "ddim", "steps": 7, "spacing": "karras", "guidance": 2.0, "guides": ["nn_repulsion"]},
}
CLASSES = {"recipe": Recipe, "data": Data, "train": Training, "rollout": Rollout, "sampling": ImageSampling}


def made(section: str, key: str, value) -> Recipe:
    """The base recipe with one value changed; built without the checks that some values need company."""
    base = {
        "data": {"train": "x.jsonl"},
        "train": {"steps": 5},
        "rollout": {},
        "sampling": {},
        "recipe": {"model": "m"},
    }
    base[section] = {**base[section], key: value}
    return Recipe(
        **base["recipe"], data=Data(**base["data"]), train=Training(**base["train"]), rollout=Rollout(**base["rollout"]),
        sampling=ImageSampling(**base["sampling"]),
    )  # fmt: skip


@pytest.mark.parametrize("section", OTHER)
def test_the_table_below_knows_every_key(section):
    known = {f.name for f in fields(CLASSES[section])} - (
        {"data", "train", "rollout", "sampling", "name"} if section == "recipe" else set()
    )
    assert set(OTHER[section]) == known


def test_identity_changes_with_every_key_but_the_name():
    start = made("recipe", "seed", 0).identity
    seen = {start}
    for section, values in OTHER.items():
        for key, value in values.items():
            seen.add(made(section, key, value).identity)
    assert len(seen) == 1 + sum(map(len, OTHER.values()))
    assert made("recipe", "name", "other").identity == start
    assert made("train", "batch", 16).identity == start, "a default that is written out is the same recipe"


def test_the_same_recipe_in_two_spellings_has_one_identity():
    pairs = [({"data": "x"}, {"data": {"train": "x"}}), ({"regularise": "neftune"}, {"regularise": ["neftune"]}),
             ({"train": {"steps": 5, "lr": 1}}, {"train": {"steps": 5, "lr": 1.0}}), ({"measure": None}, {})]  # fmt: skip
    for one, other in pairs:
        assert parse({**BASE, **one}).identity == parse({**BASE, **other}).identity


# ----------------------------------------------------------------------------------------------- overrides
def read_with(tmp_path, text: str, *words: str) -> dict:
    (tmp_path / "r.yaml").write_text(text)
    spread = _spread_sets(["check", "r.yaml", *words])
    pairs = [spread[i + 1] for i, w in enumerate(spread) if w == "--set"] + [
        w.removeprefix("--set=") for w in spread if w.startswith("--set=")
    ]
    return read(tmp_path / "r.yaml", parse_sets(pairs))


SETS = {
    "a new key": (["seed=3"], {"seed": 3}),
    "a number in YAML's short form": (["train.lr=2e-4"], {"train": {"steps": 5, "lr": 2e-4}}),
    "several pairs after one --set": (
        ["train.lr=1", "train.batch=2", "seed=4"],
        {"train": {"steps": 5, "lr": 1, "batch": 2}, "seed": 4},
    ),
    "a list": (["measure=[quality, cost]"], {"measure": ["quality", "cost"]}),
    "a mapping": (["objective={dpo: {beta: 0.2}}"], {"objective": {"dpo": {"beta": 0.2}}}),
    "a file for data": (["data=y.jsonl"], {"data": "y.jsonl"}),
    "a key below data as text": (["data.test=y.jsonl"], {"data": {"train": "x.jsonl", "test": "y.jsonl"}}),
    "a parameter of a component named by text": (["adapt.lora.rank=4"], {"adapt": {"lora": {"rank": 4}}}),
    "a parameter of a component that is not there": (["objective.dpo.beta=1"], {"objective": {"dpo": {"beta": 1}}}),
    "words stay words": (["name=on", "tokenizer=no"], {"name": "on", "tokenizer": "no"}),
    "nothing": (["schedule=null"], {"schedule": None}),
    "an equals sign in the value": (["data.train=a=b.jsonl"], {"data": {"train": "a=b.jsonl"}}),
    "the last one wins": (["seed=1", "seed=2"], {"seed": 2}),
}


@pytest.mark.parametrize("what", SETS)
def test_overrides(tmp_path, what):
    words, want = SETS[what]
    text = "model: m\ndata: x.jsonl\nadapt: lora\ntrain: {steps: 5}\n"
    plain = {"model": "m", "data": "x.jsonl", "adapt": "lora", "train": {"steps": 5}, "name": "r"}
    assert read_with(tmp_path, text, "--set", *words) == {**plain, **want}
    assert read_with(tmp_path, text, *[w for pair in words for w in ("--set", pair)]) == {**plain, **want}
    assert read_with(tmp_path, text, *[f"--set={pair}" for pair in words]) == {**plain, **want}


def test_pairs_end_where_another_word_begins():
    assert _spread_sets(["run", "--set", "a=1", "b.c=2", "r.yaml", "c=3"]) == [
        "run",
        "--set",
        "a=1",
        "--set",
        "b.c=2",
        "r.yaml",
        "c=3",
    ]
    assert _spread_sets(["run", "--set", "a=1", "--out", "x=y", "b=1"]) == [
        "run",
        "--set",
        "a=1",
        "--out",
        "x=y",
        "b=1",
    ]
    assert _spread_sets(["run", "--set=a=1", "b=2"]) == ["run", "--set=a=1", "--set", "b=2"]
    assert _spread_sets(["compare", "--set", "a=1", "runs/lr=1.yaml", "x.yaml"]) == [
        "compare",
        "--set",
        "a=1",
        "runs/lr=1.yaml",
        "x.yaml",
    ]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train", "--set requires key=value; got 'train'"),
        ("=5", "--set requires key=value; got '=5'"),
        ("train=[", "--set train:1:2: requires valid YAML"),
        ("train.steps.x=1", "--set train.steps.x requires a mapping at 'train.steps'; got int"),
        ("measure.x=1", "--set measure.x requires a mapping at 'measure'; got list"),
    ],
)
def test_overrides_that_cannot_be(tmp_path, word, said):
    (tmp_path / "r.yaml").write_text("model: m\ndata: x.jsonl\nmeasure: [cost]\ntrain: {steps: 5}\n")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "r.yaml", parse_sets([word]))
    assert said in str(caught.value)


def test_json_is_a_recipe_too(tmp_path):
    (tmp_path / "r.json").write_text('{"model": "m", "data": {"train": "x"}, "train": {"steps": 3, "lr": 1e-4}}')
    assert parse(read(tmp_path / "r.json")).train.lr == 1e-4
