"""Suites: arms from the index on the world's data, what is left out and why, wrong input, and one race through the CLI."""

from __future__ import annotations

import json

import pytest

from luthier.compare.suite import SUITES, build_field
from luthier.core.errors import ConfigError
from luthier.core.registry import entries
from luthier.recipes.recipe import recipe_faults
from tests.cli.shell import files, folder_with_data, luthier, refused, write_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return folder_with_data(tmp_path_factory.mktemp("suite"))


def changed(base, arm):
    """Keys in which two plain recipes differ."""
    return {k for k in {*base, *arm} if base.get(k) != arm.get(k)}


@pytest.mark.parametrize("name", SUITES)
def test_arms_pass_check_and_differ_from_the_baseline_in_one_slot(name):
    field = build_field(name)
    base = field.arms[field.baseline]
    assert len(field.arms) > 20
    for arm, plain in list(field.arms.items())[1:]:
        assert recipe_faults(field.configure(plain, 1e-3, 0.5)) == [], arm
        keys = changed(base, plain)
        if keys & {"data"}:
            own = changed(base["data"], plain["data"])
            assert own in ({"steps"}, {"retain"}), arm
        slots = keys - {"data"} or {"steps"}
        assert slots in (
            {"objective"},
            {"adapt"},
            {"regularise"},
            {"steps"},
            {"reward"},
            {"loop"},
            {"loop", "objective"},
        ), arm
    raced = {n.rsplit(".", 1)[-1] for n in field.arms}
    left = {c.rsplit(".", 1)[-1] for c, _ in field.left_out}
    rooms = ("objectives.", "adapt.", "regularise.", *(("reward.combine.", "loops.") if name == "rl" else ()))
    assert {e.short for e in entries().values() if e.id.startswith(rooms)} <= raced | left
    assert all(why for _, why in field.left_out)


def test_every_suite_has_its_own_arms():
    left = {name: dict(build_field(name).left_out) for name in ("sft", "preference", "rl", "forgetting")}
    assert left["sft"]["objectives.preference.dpo"] == "it reads preference data; these are text data"
    assert left["preference"]["objectives.preference.cream"] == "it needs the column 'consistency' in every row"
    assert left["sft"]["regularise.forgetting.replay"].startswith(
        "it needs data.retain, which the recipe does not name"
    )
    assert left["sft"]["data.select.kcenter"].startswith("it needs embedder")
    assert left["sft"]["adapt.full"] == "the baseline has it"
    assert left["rl"]["loops.iterated_pairs"].startswith("it has no default for its parameter 'builder'")
    rl, forgetting = build_field("rl").arms, build_field("forgetting").arms
    assert rl["dra"]["reward"] == {"reward.combine.dra": {"reward": "exact"}}
    assert build_field("sft").arms["diverse_evol"]["loop"] == {"loops.diverse_evol": {}}
    assert (rl["raft"]["objective"], rl["raft"]["reward"]) == ("nll", "exact")
    assert forgetting["replay"]["data"]["retain"]
    assert "retain" not in forgetting["nll"]["data"]
    assert build_field("preference").arms["mask"]["objective"] == {"objectives.wrap.mask": {"inner": "dpo"}}
    assert build_field("sft").arms["kl_reference"]["objective"] == [
        "nll",
        {"objectives.policy.kl_reference": {"weight": 0.1}},
    ]


def test_what_the_recipe_names_makes_more_arms(place):
    got = build_field("sft", None, {"adapt": "lora", "embedder": "minilm", "data.retain": "lab:language/sort",
                                    "data.train": "lab:language/rotate", "data.rows": 64})  # fmt: skip
    assert {"full", "lora_pro", "kcenter", "qdit", "replay"} <= set(got.arms)
    assert got.arms["kcenter"]["data"]["steps"] == [{"data.select.kcenter": {"keep": 0.5}}]
    assert "lora" not in got.arms
    own = build_field("preference", None, {"model": str(place / "model"), "data.train": str(place / "pairs.jsonl")})
    assert own.arms["dpo"]["data"] == {"train": str(place / "pairs.jsonl")}
    assert own.arms["dpo"]["train"] == {"steps": 240, "batch": 16, "lr": 2e-4}
    assert own.rates() == (4e-5, 2e-4, 1e-3)


def test_choosing_rungs_take_fewer_steps_and_other_rows_and_measure_less():
    field = build_field("sft")
    base = field.arms["nll"]
    first, last = field.configure(base, 0.01, 0.25), field.configure(base, 0.01, None)
    assert (first["train"]["steps"], first["train"]["lr"], first["measure"]) == (15, 0.01, ["likelihood"])
    assert first["data"]["judge_on"] == "stop"
    assert (last["train"]["steps"], last["measure"]) == (60, list(SUITES["sft"].measure))
    assert "judge_on" not in last["data"]
    assert base["train"]["lr"] == 1e-3


def test_rows_for_choosing_are_neither_trained_on_nor_test_rows(place):
    from luthier.recipes.recipe import Data
    from luthier.recipes.rows import load_splits

    def texts(rows):
        return {json.dumps(r, sort_keys=True) for r in rows}

    for given in (
        {"train": str(place / "chat.jsonl"), "holdout": 0.25},
        {"train": "lab:language/pick", "rows": 40, "test_rows": 8},
    ):
        last, first = load_splits(Data(**given), 0), load_splits(Data(**given, judge_on="stop"), 0)
        assert not texts(first.test) & (texts(last.test) | texts(first.train.rows))
        assert not texts(last.test) & texts(first.train.rows)
        assert first.test
    own = Data(train=str(place / "chat.jsonl"), test=str(place / "pairs.jsonl"), judge_on="stop")
    assert "chosen" not in load_splits(own, 0).test[0]


def test_another_judge_and_only_some_arms():
    field = build_field("sft", by="exact_match", only=["dft", "lora"])
    assert (list(field.arms), field.looked, field.judge.by) == (["nll", "dft", "lora"], ("exact_match",), ())
    assert ("neftune", "it was not asked for (--arms)") in field.left_out
    assert field.configure(field.arms["nll"], 1e-3, None)["measure"][0] == "exact_match"
    assert build_field("sft", by="likelihood:perplexity").judge.by == ("perplexity",)
    capped = build_field("forgetting", by="exact_match", cap=0.2)
    assert (capped.judge.cap, capped.looked) == (
        ("forgetting_nll", 0.2),
        ("exact_match", {"old_data": {"accuracy": False}}),
    )


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("sftt", {}, r"--suite: unknown suite 'sftt'; did you mean 'sft'"),
        ("preference", {"sets": {"data.train": "lab:language/rotate"}},
         r"suite preference requires preference data; got text data in lab:language/rotate. Use --suite sft or rl"),
        ("sft", {"sets": {"data.train": "lab:language/preferences"}}, r"Use --suite preference or forgetting or diversity"),
        ("forgetting", {"sets": {"data.train": "lab:language/rotate"}}, r"suite forgetting requires data.old; got none"),
        ("sft", {"sets": {"data.rowz": 3}}, r"unknown key 'rowz'; did you mean 'rows'"),
        ("sft", {"sets": {"train.lr": -1.0}}, r"the baseline of suite sft: train.lr"),
        ("sft", {"by": "likelyhood"}, r"--by: unknown measure 'likelyhood'; did you mean 'likelihood'"),
        ("sft", {"cap": 0.1}, r"--cap requires --suite forgetting"),
        ("sft", {"only": ["dftt", "kcenter"]}, r"unknown arm 'dftt'; did you mean 'dft'.*\n--arms: kcenter is left out: it needs"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_in_one_sentence(name, more, said):
    with pytest.raises(ConfigError, match=said):
        build_field(name, **more)


def test_the_plan_prints_arms_what_is_left_out_and_the_runs_and_writes_nothing(place):
    before = files(place)
    ran = luthier("compare", "--suite", "sft", "--plan", "--set", f"model={place / 'model'}", f"data.train={place / 'chat.jsonl'}",
                  "--rates", "1e-3,1e-2", "--out", place / "plan")  # fmt: skip
    assert ran.code == 0, ran.err
    arms = len(build_field("sft", None, {"model": str(place / "model"), "data.train": str(place / "chat.jsonl")}).arms)
    assert f"rung 1: {2 * arms} configurations x 1 seed, 60 steps" in ran.out
    assert "last comparison: 5 arms x 8 seeds, 240 steps" in ran.out
    assert "neftune                  regularise: NEFTune" in ran.out
    assert "it needs data.topk: objectives.distil.logit_targets" in ran.out
    assert files(place) == before


def test_a_race_through_the_command_line_reports_and_goes_on(place):
    recipe = write_recipe(place / "base.yaml", {"model": str(place / "model"), "data": {"train": str(place / "chat.jsonl")},
                                                "train": {"steps": 4, "batch": 4}, "measure": ["likelihood"]})  # fmt: skip
    words = ("compare", recipe, "--suite", "sft", "--arms", "dft,diverse_evol", "--rates", "1e-3,1e-1", "--seeds", "2",
             "--finalists", "2", "--out", place / "race")  # fmt: skip
    ran = luthier(*words)
    assert ran.code == 0, ran.err
    assert "rung 1 of 2: 6 configurations, 25% of the steps, 1 seed" in ran.err
    said = " ".join(ran.out.split())
    assert "3 arms at learning rates 0.001, 0.1 made 6 configurations, judged by nll" in said
    assert "failed in rung 1" in said
    assert "At the edge of the rates that were tried" in said
    page = (place / "race" / "report.html").read_text()
    for words_ in (
        "How the arms were chosen",
        "All 6 configurations of rung 1",
        "it was not asked for (--arms)",
        "Configurations tried",
    ):
        assert words_ in page
    run = json.loads(next((place / "race" / "rungs" / "1" / "runs").glob("nll*.json")).read_text())
    assert run["result"]["recipe"]["data"]["judge_on"] == "stop"
    written = files(place / "race" / "runs")
    again = luthier(*words)
    assert again.code == 0
    assert "done in" not in "".join(line for line in again.err.splitlines() if "diverse_evol" not in line)
    assert files(place / "race" / "runs") == written
    assert again.out == ran.out


def test_options_of_suites_need_one(place):
    recipe = write_recipe(
        place / "one.yaml", {"model": str(place / "model"), "data": str(place / "chat.jsonl"), "measure": ["cost"]}
    )
    refused(luthier("compare", recipe, recipe, "--plan"), "--plan requires --suite, which is not given")
    refused(
        luthier("compare", recipe, recipe, "--suite", "sft"), "--suite takes one recipe, its baseline, or none; got 2"
    )
    refused(
        luthier("compare", "--suite", "sft", "--rates", "fast"),
        "--rates requires numbers such as 1e-4,1e-3; got 'fast'",
    )
    refused(luthier("compare"), "compare requires two or more recipes; got 0")
