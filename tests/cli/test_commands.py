"""Every command as a user calls it, on a tiny model folder: what it prints, what it writes, what comes back the second time."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.cli.main import app, lab_app
from luthier.core.registry import entries
from tests.cli.shell import files, folder_with_data, luthier, refused, sound, write_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return folder_with_data(tmp_path_factory.mktemp("commands"))


def plain(place, **changes):
    rows = {"data": {"train": str(place / "chat.jsonl"), "test_rows": 2}}
    return sound(place, **{**rows, "train": {"steps": 3, "batch": 8, "lr": 1e-2}, **changes})


@pytest.fixture(scope="module")
def done(place):
    """Two finished runs on one base, lora and full."""
    for name, own in (("one", {"adapt": {"lora": {"rank": 2}}}), ("two", {"regularise": ["neftune"]})):
        recipe = write_recipe(place / f"{name}.yaml", plain(place, measure=["likelihood", "cost"], **own))
        ran = luthier("run", recipe, "--out", place / name)
        assert ran.code == 0, ran.err
    return place


def words_of(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------- finding techniques
def test_methods_lists_every_component():
    ran = luthier("methods")
    assert ran.code == 0
    for entry in entries().values():
        assert f"  {entry.short} " in ran.out


def test_methods_as_json():
    found = json.loads(luthier("methods", "--json").out)
    assert {f["id"] for f in found} == set(entries())
    keys = {
        "id",
        "short",
        "room",
        "papers",
        "data",
        "signals",
        "cost",
        "handles",
        "verdict",
        "use_when",
        "limits",
        "parameters",
        "summary",
    }
    assert all(keys <= f.keys() for f in found)
    dpo = next(f for f in found if f["short"] == "dpo")
    assert (dpo["id"], dpo["room"], dpo["papers"], dpo["data"]) == (
        "objectives.preference.dpo",
        "objectives",
        [188],
        ["preference"],
    )
    assert dpo["parameters"]["beta"]["default"] == "0.1"


def test_methods_of_papers_as_json():
    found = json.loads(luthier("methods", "--papers", "--json").out)
    assert len(found) == 375
    assert len({f["id"] for f in found}) == 375
    assert all(
        {"id", "name", "title", "arxiv", "scope", "topic", "summary", "components", "verdicts"} <= f.keys()
        for f in found
    )
    assert all(f["name"] and f["title"] and f["summary"] for f in found)
    assert all(
        re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?|[a-z-]+(\.[A-Z]{2})?/\d{7}", f["arxiv"]) for f in found if f["arxiv"]
    )
    by_id = {f["id"]: f for f in found}
    assert by_id[188]["components"] == ["objectives.preference.dpo"]
    assert set(by_id[188]["verdicts"]) == {"objectives.preference.dpo"}
    served = {c for f in found for c in f["components"]}
    assert served == {e.id for e in entries().values() if e.card.papers}


def test_methods_of_papers_in_words():
    lines = luthier("methods", "--papers").out.strip().splitlines()
    assert len(lines) == 376
    assert any(line.startswith("188 ") and "objectives.preference.dpo" in line for line in lines)
    assert any(line.endswith(": none yet") for line in lines)
    assert re.match(r"\d+ of 375 papers are served", lines[-1])


SEARCHES = {
    "learn from preference pairs without reward model": "objectives.preference.dpo",
    "average the weights of several models": "merge.average",
    "low-rank adapter": "adapt.lowrank.lora",
    "noise on embeddings while training": "regularise.noise.neftune",
    "reinforcement learning from samples scored by a verifier": "objectives.policy.grpo",
}


@pytest.mark.parametrize("text", SEARCHES)
def test_search_finds_what_is_described(text):
    hits = json.loads(luthier("methods", text, "--json", "--count", 3).out)
    assert len(hits) == 3
    assert any(h["id"].startswith(SEARCHES[text]) for h in hits), hits
    assert all({"title", "id", "summary", "score", "snippet"} == h.keys() for h in hits)
    assert [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)


def test_search_says_what_to_put_into_a_recipe_or_that_there_is_nothing():
    ran = luthier("methods", "learn from preference pairs without reward model", "--count", 1)
    assert "(objectives.preference.dpo)" in ran.out
    assert "recipe: objective: dpo" in ran.out
    assert "nothing found for 'qqzzx'" in luthier("methods", "qqzzx").out
    refused(luthier("methods", "dpo", "--count", 0), "--count")


# ------------------------------------------------------------------------------------------- check, preview, plan
def test_check_says_how_the_data_was_read(place, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", plain(place))
    ran = luthier("check", recipe)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        f"{recipe}: sound",
        f"model: LlamaForCausalLM in {place}/model",
        f"data: {place}/chat.jsonl: 24 rows read as messages: messages are the turns of a chat.",
    ]
    pairs = luthier("check", recipe, "--set", f"data.train={place}/pairs.jsonl", "objective=dpo")
    assert "24 rows read as preference: chosen is preferred to rejected as answer to prompt" in pairs.out
    turned = luthier("check", recipe, "--set", f"data.train={place}/pairs.jsonl", "data.kind=text")
    assert "Used as text: the chosen side is kept" in turned.out
    refused(
        luthier("check", recipe, "--set", "data.test=nix.jsonl", "data.old=lab:language/srot"),
        "2 faults",
        "data.test: data 'nix.jsonl'",
        "data.old: data 'lab:language/srot': unknown skill 'srot'",
    )


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "lab").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_lab_examples_are_checked_with_their_data(path):
    ran = luthier("check", path)
    assert ran.code == 0, ran.err
    assert "rows of lab:language/" in ran.out


def test_help_methods_and_check_load_nothing_heavy(tmp_path):
    """What these commands load is what makes them quick; `python -m benchmarks --cells startup` measures the seconds."""
    recipe = ROOT / "examples" / "lab" / "nll.yaml"
    heavy = ("torch", "transformers", "diffusers", "datasets", "pandas", "scipy", "sklearn", "accelerate")
    code = (
        "import sys; from luthier.cli.main import main\ntry: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        f"assert not [m for m in {heavy} if m in sys.modules], [m for m in {heavy} if m in sys.modules]"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for words in (
        ["--help"],
        ["run", "--help"],
        ["methods"],
        ["methods", "--papers"],
        ["methods", "diverse answers"],
        ["check", str(recipe)],
        ["reproduce", "--list"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr


def test_preview_shows_trained_tokens(place, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path / "r.yaml", plain(place))
    told = words_of(luthier("preview", recipe, "--rows", 2).out)
    assert "24 rows read as messages" in told
    assert "no test data given: 2 rows held out of training" in told
    assert "22 rows gave 22 examples" in told
    assert told.count("trained ─") == 2
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = luthier("preview", recipe, "--rows", 1).out
    row = json.loads((place / "chat.jsonl").read_text().splitlines()[0])
    answer = row["messages"][1]["content"]
    assert re.search(rf"\x1b\[1;4;32m\s*{answer}\s*\x1b", coloured)
    assert re.search(rf"\x1b\[2m\s*{row['messages'][0]['content']}\s*\x1b", coloured)


def test_preview_as_a_page(place, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", plain(place))
    ran = luthier("preview", recipe, "--rows", 3, "--html", tmp_path / "page.html")
    assert ran.out.strip() == f"written to {tmp_path}/page.html"
    page = (tmp_path / "page.html").read_text()
    rows = [json.loads(line)["messages"] for line in (place / "chat.jsonl").read_text().splitlines()[:3]]
    trained = [" ".join(html.unescape(t).split()) for t in re.findall(r'<span class="t">([^<]*)</span>', page)]
    assert [r[1]["content"] for r in rows] == [t for t in trained if t != "trained"]


def test_preview_applies_the_selectors(place, tmp_path):
    recipe = write_recipe(
        tmp_path / "r.yaml",
        plain(place, data={"train": str(place / "chat.jsonl"), "steps": [{"longest": {"keep": 4}}]}),
    )
    told = words_of(luthier("preview", recipe).out)
    assert "data.select.longest kept 4 of 22 rows" in told
    assert "4 rows gave 4 examples" in told


def test_plan(place, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", plain(place, adapt={"lora": {"rank": 2}}))
    told = luthier("plan", recipe).out
    assert "3 steps over 22 rows" in told
    assert "forward passes: 3 policy" in told
    found = json.loads(luthier("plan", recipe, "--json").out)
    assert (found["steps"], found["rows"], found["forwards"]) == (3, 22, {"policy": 3})
    assert 0 < found["trained"] < found["parameters"]
    assert found["memory_bytes"] > found["weights_bytes"] > 0
    assert not found["logits"]
    none = json.loads(luthier("plan", recipe, "--json", "--set", "train.steps=0").out)
    assert none["steps"] == 0
    assert found["time"] is None


def test_a_timed_plan_says_how_long_the_run_takes(place, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", plain(place))
    told = luthier("plan", recipe, "--time").out
    assert re.search(
        r"about [\d.]+ m?s of training: 3 steps of [\d.]+ m?s \(.* over 2 steps, measured on this machine\)", told
    )
    time = json.loads(luthier("plan", recipe, "--time", "--json").out)["time"]
    assert time["training"] == pytest.approx(3 * time["step"])
    assert "there is no step to time" in luthier("plan", recipe, "--time", "--set", "train.steps=0").out
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------- run and its results
def test_run_prints_readings_and_where_everything_is(place, tmp_path):
    recipe = write_recipe(tmp_path / "mine.yaml", plain(place, measure=["likelihood"]))
    ran = luthier("run", recipe, "--out", tmp_path / "out")
    assert re.search(r"quality +nll +\d\.\d{4} nats per token", ran.out)
    assert "3 steps in " in ran.out
    assert f"everything is in {tmp_path}/out" in ran.out
    assert "step 3/3  loss" in ran.err
    assert "Writing model shards" not in ran.err


def test_run_without_out_makes_a_folder_by_the_recipes_name(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert luthier("run", write_recipe(tmp_path / "mine.yaml", plain(place))).code == 0
    assert luthier("run", tmp_path / "mine.yaml", "--set", "name=other").code == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["mine", "other"]


def test_measure_and_trace(done):
    found = json.loads(luthier("measure", done / "one", "--json").out)
    assert [r["name"] for r in found][:2] == ["nll", "perplexity"]
    assert {"name", "value", "items", "unit", "axis", "better"} <= found[0].keys()
    told = luthier("measure", done / "one").out
    assert f"{found[0]['value']:.4f} nats per token" in told
    assert "trained_parameters" in told
    trace = json.loads(luthier("trace", done / "two", "--json").out)
    assert {r["hook"] for r in trace} == {"regularise.noise.neftune", "optim.gradients.clip_grad_norm"}
    assert re.search(
        r"embeddings +regularise.noise.neftune +ran 3 times, changed [1-9]\d* in all",
        luthier("trace", done / "two").out,
    )


def test_figures_that_are_not_finite_are_told_as_words(place, tmp_path):
    recipe = write_recipe(
        tmp_path / "r.yaml", plain(place, measure=["likelihood"], train={"steps": 2, "batch": 4, "lr": 1e3})
    )
    assert luthier("run", recipe, "--out", tmp_path / "out").code == 0
    values = {r["name"]: r["value"] for r in json.loads(luthier("measure", tmp_path / "out", "--json").out)}
    assert values["perplexity"] == "inf"
    assert "inf per token" in luthier("measure", tmp_path / "out").out


def test_generate(done):
    words = ["--prompt", "w1 w2", "--prompt", "w3", "--max-new", 5]
    greedy = luthier("generate", done / "one", *words, "--temperature", 0, "--json")
    made = json.loads(greedy.out)
    assert [m["prompt"] for m in made] == ["w1 w2", "w3"]
    assert all(len(m["outputs"]) == 1 for m in made)
    assert luthier("generate", done / "one", *words, "--temperature", 0, "--seed", 9, "--json").out == greedy.out
    merged = luthier("generate", done / "one" / "model", *words, "--temperature", 0, "--json")
    assert merged.out == greedy.out
    lines = luthier("generate", done / "one", "--prompt", "w1 w2", "--max-new", 5, "--temperature", 0).out.splitlines()
    assert lines == [made[0]["outputs"][0]]
    several = json.loads(luthier("generate", done / "one", *words, "--samples", 3, "--json").out)
    assert all(len(m["outputs"]) == 3 for m in several)
    again = luthier("generate", done / "one", *words, "--samples", 3, "--json").out
    assert json.loads(again) == several
    other = luthier("generate", done / "one", *words, "--samples", 3, "--json", "--seed", 1).out
    assert other != again


def test_generate_reads_prompts_from_standard_input(done):
    piped = luthier("generate", done / "one", "--max-new", 5, "--temperature", 0, "--json", stdin="w1 w2\n\nw3\n")
    named = luthier(
        "generate", done / "one", "--prompt", "w1 w2", "--prompt", "w3", "--max-new", 5, "--temperature", 0, "--json"
    )
    assert piped.out == named.out


def test_export(done, tmp_path):
    from transformers import AutoModelForCausalLM

    ran = luthier("export", done / "one", "--to", "peft", "--out", tmp_path / "peft")
    assert ran.out.strip() == f"written to {tmp_path}/peft"
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        done / "model"
    )
    assert luthier("export", done / "one", "--out", tmp_path / "merged").code == 0
    a, b = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (tmp_path / "merged", done / "one" / "model"))
    assert all(torch.equal(a[k], b[k]) for k in b)
    refused(
        luthier("export", done / "one", "--to", "gguf", "--out", tmp_path / "x"),
        "export --to requires 'merged' or 'peft'; got 'gguf'",
    )
    refused(
        luthier("export", done / "one", "--out", tmp_path / "merged"),
        "requires an empty or new folder; got one with files in it",
    )
    refused(luthier("export", done / "two", "--to", "peft", "--out", tmp_path / "y"), "low-rank", "full")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


# ----------------------------------------------------------------------------------------------------- merge
def merge_recipe(done, tmp_path, **changes):
    return write_recipe(
        tmp_path / "merge.yaml",
        {
            "base": str(done / "model"),
            "models": [str(done / "one"), str(done / "two" / "model")],
            "merge": "soup",
            **changes,
        },
    )


def test_merge_of_two_runs(done, tmp_path):
    from transformers import AutoModelForCausalLM

    ran = luthier("merge", merge_recipe(done, tmp_path), "--out", tmp_path / "soup")
    assert ran.out.strip() == f"2 models merged by merge.average.soup into {tmp_path}/soup"
    one, two = (load_file(done / n / "model" / "model.safetensors") for n in ("one", "two"))
    soup = load_file(tmp_path / "soup" / "model.safetensors")
    for name, value in soup.items():
        torch.testing.assert_close(value, (one[name] + two[name]) / 2, rtol=1e-6, atol=1e-7)
    AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    told = luthier("generate", tmp_path / "soup", "--prompt", "w1", "--max-new", 3)
    assert told.code == 0
    weighted = luthier(
        "merge",
        merge_recipe(done, tmp_path),
        "--out",
        tmp_path / "first",
        "--set",
        "merge={linear: {weights: [1.0, 0.0]}}",
    )
    assert weighted.code == 0
    first = load_file(tmp_path / "first" / "model.safetensors")
    assert all(torch.equal(first[k], one[k]) for k in one)


def test_faults_of_a_merge_are_listed_at_once(done, tmp_path):
    recipe = merge_recipe(done, tmp_path)
    refused(
        luthier("merge", recipe, "--out", tmp_path / "x", "--set", "merge=sop", "modles=[a]"),
        "2 faults",
        "unknown component 'sop'; did you mean 'soup'",
        "unknown key 'modles'; did you mean 'models'?",
    )
    refused(
        luthier("merge", recipe, "--out", tmp_path / "x", "--set", "models=[]"),
        "models: requires a list of folders; got []",
    )
    refused(luthier("merge", recipe, "--out", tmp_path / "x", "--set", "merge={linear: {weights: [1.0]}}"), "linear")
    refused(
        luthier("merge", recipe, "--out", tmp_path / "x", "--set", f"base={tmp_path}/none"),
        "requires config.json; got no such folder",
    )
    refused(luthier("merge", recipe, "--out", tmp_path / "x", "--set", "dtype=fp5"), "dtype")
    assert not (tmp_path / "x").exists()
    before = files(done / "one")
    refused(luthier("merge", recipe, "--out", done / "one"), "new or empty output folder")
    assert files(done / "one") == before


# --------------------------------------------------------------------------------------------------- compare
@pytest.fixture(scope="module")
def compared(place):
    arms = {"plain": {}, "dft": {"objective": "dft"}, "same": {}}
    paths = [
        write_recipe(place / f"arm_{n}.yaml", plain(place, name=n, measure=["likelihood", "cost"], **own))
        for n, own in arms.items()
    ]
    ran = luthier("compare", *paths, "--seeds", 3, "--out", place / "comparison")
    assert ran.code == 0, ran.err
    return paths, place / "comparison", ran


def test_compare_writes_runs_a_table_and_a_report(compared):
    _, out, ran = compared
    assert sorted(p.name for p in (out / "runs").glob("*.json")) == sorted(
        f"{a}.{s}.json" for a in ("plain", "dft", "same") for s in range(3)
    )
    assert ran.err.count(": done in") == 9
    assert f"report: {out}/report.html" in ran.out
    page = (out / "report.html").read_text()
    for words in ("plain", "dft", "same", "nll", "luthier compare"):
        assert words in page
    assert not re.search(r'(src|href)="https?://', page), "the report stands by itself"


def test_the_same_recipe_under_another_name_is_equal(compared):
    _, out, _ = compared
    for seed in range(3):
        a, b = (json.loads((out / "runs" / f"{n}.{seed}.json").read_text())["result"] for n in ("plain", "same"))
        assert a["curves"]["loss"] == b["curves"]["loss"]
        assert a["readings"]["nll"] == b["readings"]["nll"]
    losses = [json.loads((out / "runs" / f"plain.{s}.json").read_text())["result"]["curves"]["loss"] for s in range(3)]
    assert losses[0] != losses[1]


def test_compare_takes_over_what_is_finished(compared):
    paths, out, _ = compared
    before = files(out / "runs")
    again = luthier("compare", *paths, "--seeds", 3, "--out", out)
    assert again.err.count(": reused") == 9
    assert "start" not in again.err
    assert files(out / "runs") == before
    gone = out / "runs" / "dft.1.json"
    gone.unlink()
    (out / "runs" / "same.2.json").write_text("{half")
    third = luthier("compare", *paths, "--seeds", 3, "--out", out)
    assert (third.err.count(": reused"), third.err.count(": damaged"), third.err.count(": done in")) == (7, 1, 2)
    assert (
        json.loads(gone.read_text())["result"]["readings"]["nll"]
        == json.loads(before["dft.1.json"])["result"]["readings"]["nll"]
    )


def test_compare_refuses_what_cannot_be_compared(compared, tmp_path, place):
    paths, out, _ = compared
    before = files(out)
    refused(
        luthier("compare", *paths, "--seeds", 3, "--out", out, "--set", "train.lr=1e-3"),
        "requires the result of this comparison",
        "Choose another output folder",
    )
    assert files(out) == before
    refused(luthier("compare", paths[0], "--out", tmp_path / "x"), "compare requires two or more recipes; got 1")
    refused(luthier("compare", paths[0], paths[0], "--out", tmp_path / "x"), "the arm name 'plain' is taken")
    bare = write_recipe(tmp_path / "bare.yaml", plain(place, objectiv="nll"))
    refused(
        luthier("compare", paths[0], bare, "--out", tmp_path / "x"),
        "2 faults",
        "unknown key 'objectiv'",
        "a comparison requires `measure`",
    )
    for seeds, words in (
        ("0", "at least 1; got 0"),
        ("many", "a number or a list such as 0,1,7"),
        ("1,1", "different seeds"),
    ):
        refused(luthier("compare", *paths, "--seeds", seeds, "--out", tmp_path / "x"), words)
    refused(luthier("compare", *paths, "--level", "2", "--out", tmp_path / "x"), "--level")
    assert not (tmp_path / "x").exists()


def test_compare_goes_on_when_one_arm_fails_and_says_why(compared, tmp_path, place):
    paths, _, _ = compared
    broken = write_recipe(
        tmp_path / "broken.yaml",
        plain(place, measure=["likelihood", "cost"], train={"steps": 3, "batch": 4, "lr": 1e30}),
    )
    ran = luthier("compare", paths[0], broken, "--seeds", 2, "--out", tmp_path / "out")
    assert ran.code == 0
    assert ran.err.count("broken, seed 0: failed: training requires a finite") == 1
    assert "broken" in (tmp_path / "out" / "report.html").read_text()
    alone = luthier("compare", broken, paths[0], "--seeds", 2, "--out", tmp_path / "none", "--set", "model=/nowhere")
    refused(
        alone,
        "compare requires at least one run that ends; all failed",
        "model requires an existing folder; got '/nowhere'",
    )


# ------------------------------------------------------------------------------------------ reproduce, lab, help
def test_reproduce_lists_claims():
    lines = luthier("reproduce", "--list").out.splitlines()
    assert {"dpo", "lora"} <= {line.split()[0] for line in lines}
    assert all(re.search(r" (not run yet|holds|fails|undecided)\b", line) for line in lines)
    refused(luthier("reproduce"), "reproduce requires a claim's name, --all, --sample N or --list")
    refused(luthier("reproduce", "dpoo"), "unknown claim 'dpoo'; did you mean 'dpo'")


def test_worlds_that_are_not_there(tmp_path):
    refused(luthier("lab", "check", "langage"), "unknown world 'langage'; did you mean 'language'")
    refused(luthier("lab", "build", "imgae", "--out", tmp_path / "x"), "unknown world 'imgae'; did you mean 'image'?")
    assert not (tmp_path / "x").exists()


def test_help_of_every_command():
    names = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert names == {
        "methods",
        "check",
        "preview",
        "plan",
        "run",
        "compare",
        "merge",
        "generate",
        "push",
        "measure",
        "trace",
        "export",
        "reproduce",
    }
    whole = luthier("--help")
    assert whole.code == 0
    for name in sorted(names):
        ran = luthier(name, "--help")
        assert ran.code == 0
        command = next(c for c in app.registered_commands if (c.name or c.callback.__name__) == name)
        assert words_of(command.callback.__doc__) in words_of(ran.out)
        assert name in whole.out
        options = re.findall(r"^ +(--[a-z-]+)(.*)$", ran.out, flags=re.MULTILINE)
        assert options
    for name in ("build", "check"):
        assert name in {c.name for c in lab_app.registered_commands}
        assert luthier("lab", name, "--help").code == 0
    assert luthier("--version").out.startswith("luthier ")
