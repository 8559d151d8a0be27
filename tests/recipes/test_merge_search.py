"""Merge recipes that search: what the search sees and what it does not, held to loops over rows with transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.core.errors import ConfigError, Refused
from luthier.core.files import damage
from luthier.merge.search.atlas import atlas
from luthier.merge.search.greedy_soup import greedy_soup
from luthier.merge.search.learned_soup import learned_soup
from luthier.recipes.merging import merge_by_recipe, merge_faults
from luthier.recipes.run import run
from tests.recipes.parts import chat_rows, model_folder, write
from tests.recipes.test_run import recipe

ROWS, UNSEEN = chat_rows(18), chat_rows(26)[18:]
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two models tuned on rows like those of the judge, and one that was harmed."""
    at = tmp_path_factory.mktemp("search")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows(60)[30:])
    for name, rows in (("seen", ROWS), ("unseen", UNSEEN)):
        write(at / f"{name}.jsonl", [{**r, "answer": r["messages"][-1]["content"]} for r in rows])
    for name, seed in (("a", 0), ("b", 1)):
        run(recipe(at, "nll", "full", train={"steps": 25}, seed=seed), at / name)
    model_folder(at / "bad")
    g = torch.Generator().manual_seed(3)
    harmed = {k: v + torch.randn(v.shape, generator=g) for k, v in load_file(at / "model" / FILE).items()}
    save_file(harmed, at / "bad" / FILE, metadata={"format": "pt"})
    return at


def plain(place: Path, search: Any, **judge: Any) -> dict[str, Any]:
    data = {"train": str(place / "seen.jsonl"), "test": str(place / "unseen.jsonl")}
    return {"base": str(place / "model"), "models": [str(place / n) for n in ("bad", "a", "b")], "merge": search,
            "judge": {"data": data, **judge}}  # fmt: skip


def tensors(place: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(place / n / FILE) for n in ("bad", "a/model", "b/model")]


def slow_nll(place: Path, weights: dict[str, torch.Tensor], rows: list[dict[str, Any]], pooled: bool) -> float:
    """Row by row and token by token; pooled: over all tokens alike, else rows alike."""
    model = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    model.load_state_dict(weights, strict=False)
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    sums, counts = [], []
    for row in rows:
        asked = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
        start = len(tokenizer(asked, add_special_tokens=False).input_ids)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double()
        own = [-F.log_softmax(logits[t - 1], -1)[ids[0, t]].item() for t in range(start, ids.shape[1])]
        sums.append(sum(own))
        counts.append(len(own))
    return sum(sums) / sum(counts) if pooled else sum(s / c for s, c in zip(sums, counts, strict=True)) / len(sums)


def same(out: Path, want: dict[str, torch.Tensor]) -> None:
    got = load_file(out / FILE)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_a_greedy_soup_is_that_of_a_score_in_loops_and_says_what_it_is_worth(place, tmp_path):
    told = merge_by_recipe(plain(place, "greedy_soup"), tmp_path / "out")
    models = tensors(place)
    want = greedy_soup(models, lambda w: -slow_nll(place, dict(w), ROWS, pooled=False))
    assert want.weights[0] == 0 and sum(want.weights) >= 1  # the harmed model is left out
    kept = [m for m, w in zip(models, want.weights, strict=True) if w]
    average = {k: sum(m[k].double() for m in kept) / len(kept) for k in models[0]}
    same(tmp_path / "out", {k: v.float() for k, v in average.items()})
    found = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert found["weights"] == list(want.weights)
    assert found["reached"] == pytest.approx(-want.score, rel=1e-4)
    assert (found["rows"], found["unseen_rows"], found["measure"]) == (len(ROWS), len(UNSEEN), "nll")
    assert found["unseen_merged"] == pytest.approx(slow_nll(place, average, UNSEEN, pooled=False), rel=1e-4)
    each = [slow_nll(place, m, UNSEEN, pooled=False) for m in models]
    assert found["unseen_models"] == pytest.approx(each, rel=1e-4)
    assert f"nll on 8 rows that the search did not see: {found['unseen_merged']:.4g}" in told
    assert damage(tmp_path / "out") is None


def test_the_loss_of_a_learned_soup_and_its_gradient_are_those_of_the_rows(place, tmp_path):
    from luthier.recipes.merge_search import Judge

    models = tensors(place)
    judge = Judge(place / "model", plain(place, "learned_soup")["judge"])
    weights = {k: v.clone().requires_grad_() for k, v in models[1].items()}
    value = judge.loss(weights)
    assert value.item() == pytest.approx(slow_nll(place, models[1], ROWS, pooled=True), rel=1e-5)
    name = "model.norm.weight"
    (gradient,) = torch.autograd.grad(value, [weights[name]])
    moved = [dict(models[1], **{name: models[1][name] + d * gradient}) for d in (1e-2, -1e-2)]
    up, down = (slow_nll(place, m, ROWS, pooled=True) for m in moved)
    assert (up - down) / 2e-2 == pytest.approx(gradient.square().sum().item(), rel=1e-2)
    halved = judge.loss(weights, 0.5).item()
    assert halved != pytest.approx(value.item(), rel=1e-3)

    merge_by_recipe(plain(place, {"learned_soup": {"steps": 4, "lr": 0.5}}), tmp_path / "out")
    want = learned_soup(models, judge.loss, steps=4, lr=0.5).weights
    same(tmp_path / "out", {k: sum(w * m[k] for w, m in zip(want, models, strict=True)) for k in models[0]})
    assert want[0] < 1 / 3  # away from the harmed model


def test_scaled_differences_need_the_base(place, tmp_path):
    from luthier.recipes.merge_search import Judge

    given = plain(place, {"atlas": {"steps": 3, "lr": 0.1}})
    merge_by_recipe(given, tmp_path / "out")
    base = load_file(place / "model" / FILE)
    found = atlas(base, tensors(place), Judge(place / "model", given["judge"]).loss, steps=3, lr=0.1)
    factors = found.rule.factors  # type: ignore[attr-defined]
    site = "model.layers.0.mlp.up_proj"
    want = base[f"{site}.weight"] + sum(
        f[0] * (m[f"{site}.weight"] - base[f"{site}.weight"]) for f, m in zip(factors[site], tensors(place), strict=True)
    )
    torch.testing.assert_close(load_file(tmp_path / "out" / FILE)[f"{site}.weight"], want, rtol=1e-5, atol=1e-6)


def test_checkpoints_are_mixed_by_any_measure(place, tmp_path):
    told = merge_by_recipe(plain(place, {"lcsc": {"trials": 9}}, measure={"exact_match": {"max_new": 4}}), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert found["trials"] == 9 and found["measure"] == "exact_match"
    assert sum(found["weights"]) == pytest.approx(1)
    assert "exact_match on 8 rows" in told


def test_adapters_of_the_base_are_searched_like_models(place, tmp_path):
    from luthier.recipes.export import export

    run(recipe(place, "nll", {"lora": {"rank": 2}}, train={"steps": 20}), tmp_path / "lora")
    export(tmp_path / "lora", "peft", tmp_path / "peft")
    given = plain(place, "greedy_soup")
    given["models"] = [str(place / "bad"), str(tmp_path / "peft")]
    merge_by_recipe(given, tmp_path / "out")
    merged = load_file(tmp_path / "lora" / "model" / FILE)
    same(tmp_path / "out", merged)
    found = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert found["weights"] == [0.0, 1.0]
    assert found["unseen_models"][1] == pytest.approx(slow_nll(place, merged, UNSEEN, pooled=False), rel=1e-4)


def test_rows_are_held_out_where_no_others_are_given(place, tmp_path):
    given = plain(place, "greedy_soup")
    del given["judge"]["data"]["test"]
    given["judge"]["data"]["holdout"] = 5
    merge_by_recipe(given, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (found["rows"], found["unseen_rows"]) == (len(ROWS) - 5, 5)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no judge": ({"judge": None}, "judge: greedy_soup requires rows to search by"),
    "a judge for nothing": ({"merge": "soup"}, "judge: requires a merge that searches; soup does not"),
    "no data": ({"judge": {"measure": "likelihood"}}, "judge: requires a mapping with the key 'data'"),
    "a key": ({"judge": {"data": "x.jsonl", "mesure": "likelihood"}}, "unknown key 'mesure'; did you mean 'measure'"),
    "a key beside an unknown merge": ({"merge": "gredy_soup", "judge": {"data": "x.jsonl", "sed": 1}}, "unknown key 'sed'"),
    "a measure": ({"judge": {"data": "x.jsonl", "measure": "likelyhood"}}, "did you mean 'likelihood'"),
    "a key of data": ({"judge": {"data": {"train": "x.jsonl", "row": 3}}}, "unknown key 'row'"),
}


@pytest.mark.parametrize("change", FAULTS)
def test_faults_are_named_before_anything_is_read(place, tmp_path, change):
    own, words = FAULTS[change]
    given = plain(place, "greedy_soup") | own
    assert any(words in fault for fault in merge_faults(given)), merge_faults(given)
    with pytest.raises(ConfigError):
        merge_by_recipe(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_measure_without_a_direction_and_rows_that_are_missing_are_refused(place, tmp_path):
    with pytest.raises(Refused, match="a measure with a direction"):
        merge_by_recipe(plain(place, "greedy_soup", measure="tuco"), tmp_path / "out")
    given = plain(place, "greedy_soup")
    given["judge"]["data"] = {"train": str(place / "seen.jsonl"), "holdout": 0}
    with pytest.raises(Refused, match="rows to search by and others to report on"):
        merge_by_recipe(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
