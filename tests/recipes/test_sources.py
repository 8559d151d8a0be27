"""Several sources in data.train: exact shares, nothing repeated or left out unseen, one run whoever resumes it, clear faults."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ConfigError, DataError, LuthierError
from luthier.recipes.build import prepare
from luthier.recipes.plan import plan
from luthier.recipes.preview import encode_for_preview
from luthier.recipes.recipe import parse, recipe_faults
from luthier.recipes.rows import load_splits
from luthier.recipes.run import run
from luthier.recipes.sources import Source, counts_of
from luthier.train.mixture import Mixture
from tests.cli.shell import luthier, refused, write_recipe
from tests.recipes.image_parts import dit_folder
from tests.recipes.parts import chat_rows, model_folder, pair_rows, write
from tests.trust.resuming import cut_after, same_end


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model; chat.jsonl (12 chats), asked.csv (30 prompts with answers), plain.txt (7 texts), pairs.jsonl."""
    at = tmp_path_factory.mktemp("sources")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows(12))
    asked = [f"w{i} w{i + 1},w{i + 2}" for i in range(30)]
    (at / "asked.csv").write_text("\n".join(["prompt,response", *asked]), encoding="utf-8")
    (at / "plain.txt").write_text("\n\n".join(f"w{i} w{i + 5} w{i + 9}" for i in range(7)), encoding="utf-8")
    write(at / "pairs.jsonl", pair_rows(10))
    return at


def named(place: Path, **weights: float) -> list[dict[str, Any]]:
    files = {"chat": "chat.jsonl", "asked": "asked.csv", "plain": "plain.txt", "pairs": "pairs.jsonl"}
    return [{"path": str(place / files[k]), **({"weight": w} if w else {})} for k, w in weights.items()]


def recipe(place: Path, sources: Any, data: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    own = {"epochs": 2, "batch": 6, "lr": 1e-2, "packing": 0, **more.pop("train", {})}
    return {"model": str(place / "model"), "adapt": {"lora": {"rank": 2}}, "train": own,
            "data": {"train": sources, "holdout": 0, **(data or {})}, **more}  # fmt: skip


def drawn(prepared: Any, steps: int) -> list[int]:
    """The source of every row that the first steps train on."""
    rows = [r for s in range(steps) for b in prepared.feed.micros(s) for r in b.rows]
    return [prepared.splits.train.origin(prepared.encoded.examples[r][0].row) for r in rows]


def test_each_pass_has_exactly_the_shares_and_says_so(place):
    prepared = prepare(parse(recipe(place, named(place, chat=2, asked=1))))
    assert len(prepared.feed) == 18
    told = drawn(prepared, 15)  # five passes
    assert [Counter(told[at : at + 18]) for at in range(0, 90, 18)] == [Counter({0: 12, 1: 6})] * 5
    said = next(n for n in prepared.notes if n.startswith("one pass has 18 rows"))
    assert f"12 of the 12 rows of {place / 'chat.jsonl'} (66.7 %, each once)" in said
    assert f"6 of the 30 rows of {place / 'asked.csv'} (33.3 %, the others in later passes)" in said
    assert any(n == f"18 of the 30 rows of {place / 'asked.csv'} never come in this run" for n in prepared.notes)


def test_no_row_comes_again_before_all_of_its_source_came(place):
    prepared = prepare(parse(recipe(place, named(place, chat=2, asked=1))))
    rows = [r for s in range(15) for b in prepared.feed.micros(s) for r in b.rows]
    assert len(set(rows)) == 42  # five passes hold all 30 of the larger one, each once
    counts = Counter(rows)
    assert {counts[r] for r in range(12, 42)} == {1}
    assert {counts[r] for r in range(12)} == {5}


def test_with_the_largest_ending_a_pass_every_row_comes_and_repeats_are_even_and_counted(place):
    prepared = prepare(parse(recipe(place, named(place, chat=2, asked=1), {"mix": "largest"})))
    assert len(prepared.feed) == 90
    counts = Counter(r for s in range(15) for b in prepared.feed.micros(s) for r in b.rows)
    assert [counts[r] for r in range(42)] == [5] * 12 + [1] * 30
    assert any("60 of the 12 rows" in n and "each 5 times" in n for n in prepared.notes)
    assert not any("never come" in n for n in prepared.notes)


def test_a_list_without_weights_is_all_rows_once_a_pass(place):
    prepared = prepare(parse(recipe(place, [str(place / "chat.jsonl"), {"path": str(place / "plain.txt")}])))
    assert len(prepared.feed) == 19
    first = [r for s in range(4) for b in prepared.feed.micros(s) for r in b.rows][:19]
    assert sorted(first) == list(range(19))
    assert "19 rows of text data from 2 sources." in prepared.notes[0]


@pytest.mark.parametrize(
    ("weights", "sizes", "mix", "counts"),
    [((1, 1), (3, 50), "smallest", (3, 3)), ((0.1, 0.3), (5, 15), "smallest", (5, 15)),
     ((3, 2, 1), (30, 10, 100), "smallest", (15, 10, 5)), ((3, 2, 1), (30, 10, 100), "largest", (300, 200, 100)),
     ((1, 3), (7, 10), "smallest", (3, 10))],
)  # fmt: skip
def test_counts(weights, sizes, mix, counts):
    assert counts_of([Source(path=str(i), weight=w) for i, w in enumerate(weights)], sizes, mix) == counts


@pytest.mark.parametrize("drawn", [0, 1, 5, 6, 11, 13, 25, 60])
def test_how_many_rows_were_seen_is_what_a_count_finds(drawn):
    mixture = Mixture([list(range(4)), list(range(4, 15))], [4, 2])
    rows = set(mixture.rows(3, 0, drawn)) if drawn else set[int]()
    assert mixture.seen(3, drawn) == [len([r for r in rows if r < 4]), len([r for r in rows if r >= 4])]


def test_steps_processes_and_the_seed_decide_the_rows_and_nothing_else(place):
    plain = recipe(place, named(place, chat=2, asked=1))
    a, b = prepare(parse(plain)), prepare(parse(plain | {"adapt": "full"}))
    other = prepare(parse(plain | {"seed": 1}))
    rows = [[m.rows for s in (7, 2, 0) for m in p.feed.micros(s)] for p in (a, b, other)]
    assert rows[0] == rows[1] != rows[2]
    for step in range(4):
        (whole,) = (m.rows for m in a.feed.micros(step))
        halves = [m.rows for rank in (0, 1) for m in a.feed.micros(step, rank, 2)]
        assert (whole[0::2], whole[1::2]) == tuple(halves)


def test_a_run_cut_within_and_at_the_end_of_a_pass_ends_with_the_same_bytes(place, tmp_path):
    plain = recipe(place, named(place, chat=2, plain=1), train={"epochs": 2, "batch": 6, "save_every": 1, "keep": 99})
    run(parse(plain), tmp_path / "whole")
    for step in (2, 3):
        cut_after(tmp_path / "whole", tmp_path / f"cut{step}", step)
        run(parse(plain), tmp_path / f"cut{step}", resume=True)
        same_end(tmp_path / "whole", tmp_path / f"cut{step}")
    plain["data"]["train"][1]["weight"] = 2.0
    cut_after(tmp_path / "whole", tmp_path / "cut", 2)
    with pytest.raises(LuthierError, match="or this same recipe"):
        run(parse(plain), tmp_path / "cut", resume=True)


def test_held_out_rows_are_the_same_share_of_each_source_and_none_is_trained_on(place):
    splits = load_splits(parse(recipe(place, named(place, chat=1, asked=1), {"holdout": 7})).data, 0)
    assert len(splits.test) == 7
    assert Counter(splits.train.origin(i) for i in range(35)) == Counter({0: 10, 1: 25})
    assert not [r for r in splits.test if r in splits.train.rows]
    assert f"2 of {place / 'chat.jsonl'}, 5 of {place / 'asked.csv'}" in splits.train.notes[0]
    few = load_splits(parse(recipe(place, named(place, chat=1, asked=1), {"holdout": 0.5, "test_rows": 3})).data, 0)
    assert Counter("messages" in r for r in few.test) == Counter({True: 1, False: 2})


def test_selectors_choose_first_and_weights_share_what_is_left(place):
    plain = recipe(place, named(place, chat=1, asked=1), {"steps": [{"longest": {"keep": 20}}]})
    prepared = prepare(parse(plain))
    left = Counter(prepared.splits.train.origin(i) for i in range(20))
    assert left[1] > 0
    least = min(left.values())
    assert len(prepared.feed) == 2 * least
    assert Counter(drawn(prepared, 2 * least)[: 2 * least]) == Counter({0: least, 1: least})


def test_a_source_with_own_columns_and_rows_is_read_by_them(place, tmp_path):
    write(tmp_path / "own.jsonl", [{"q": f"w{i}", "a": "w3", "prompt": "w9"} for i in range(9)])
    own = {"path": str(tmp_path / "own.jsonl"), "fields": {"prompt": "q", "response": "a"}, "rows": 4, "weight": 1}
    splits = load_splits(parse(recipe(place, [*named(place, chat=3), own])).data, 0)
    assert [r["prompt"] for r in splits.train.rows[12:]] == ["w0", "w1", "w2", "w3"]
    assert "The first 4 of them are used (data.train[1].rows)." in splits.train.statement
    assert splits.train.where(13) == f"{tmp_path / 'own.jsonl'} line 2"


def test_rows_are_named_with_their_source_also_where_files_share_a_name(place, tmp_path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"prompt": "w1", "response": " ".join(["w2"] * 70)}) + "\n")
    with pytest.raises(DataError) as fault:
        prepare(parse(recipe(place, [str(place / "chat.jsonl"), str(tmp_path / "chat.jsonl")])))
    assert f"{tmp_path / 'chat.jsonl'} line 1" in str(fault.value)
    assert str(place / "chat.jsonl") not in str(fault.value)


def test_rows_that_stand_in_two_sources_are_counted(place, tmp_path):
    first = (place / "chat.jsonl").read_text().splitlines(keepends=True)[:5]
    (tmp_path / "again.jsonl").write_text("".join(first))
    splits = load_splits(parse(recipe(place, [str(place / "chat.jsonl"), str(tmp_path / "again.jsonl")])).data, 0)
    assert "5 rows of a source stand in one before it too." in splits.train.statement


def test_sources_of_several_kinds_are_refused_and_named_unless_a_kind_is_asked_for(place):
    mixed = named(place, chat=1, pairs=1)
    with pytest.raises(DataError) as fault:
        prepare(parse(recipe(place, mixed)))
    for word in ("text data in", "chat.jsonl", "preference data in", "pairs.jsonl", "data.kind"):
        assert word in str(fault.value)
    prepared = prepare(parse(recipe(place, mixed, {"kind": "text"})))
    assert len(prepared.feed) == 20


@pytest.mark.parametrize(
    ("train", "more", "told"),
    [([], {}, "requires at least one source; got an empty list"),
     (3, {}, "requires a source or a list of sources; got 3"),
     ([3], {}, "data.train[0]: requires a name, or a mapping of path, weight, rows"),
     ([{"path": "a", "wieght": 1}], {}, "did you mean 'weight'?"),
     ([{"weight": 1}], {}, "data.train[0]: requires the key 'path'"),
     ([{"path": "a", "weight": 0}, {"path": "b", "weight": 1}], {}, "data.train[0].weight: input should be greater than 0"),
     ([{"path": "a", "weight": -1}, {"path": "b", "weight": 1}], {}, "greater than 0"),
     ([{"path": "a", "weight": float("inf")}, {"path": "b", "weight": 1}], {}, "finite number"),
     ([{"path": "a", "weight": 1}, "b"], {}, "got none for b (data.train[1])"),
     ([{"path": "a", "weight": 1}], {}, "requires another source beside it"),
     (["a", "b", "a"], {}, "data.train[2]: requires a source that is not named before; got a, as data.train[0]"),
     (["a", "lab:language/copy"], {}, "A world mixes its own skills"),
     (["a", "b"], {"data": {"rows": 5}}, "data.rows: requires one source"),
     (["a", "b"], {"data": {"mix": "largest"}}, "data.mix: requires sources with weights"),
     ("a", {"data": {"mix": "largest"}}, "data.mix: requires sources with weights"),
     ([{"path": "a", "weight": 1}, {"path": "b", "weight": 1}], {"data": {"mix": "longest"}}, "data.mix"),
     ([{"path": "a", "weight": 1}, {"path": "b", "weight": 1}], {"loop": "raft", "reward": "exact"}, "Remove the weights")],
)  # fmt: skip
def test_each_fault_of_a_recipe_is_told_before_anything_is_read(train, more, told):
    plain = {"model": "none", **more, "data": {**more.get("data", {}), "train": train}}
    faults = recipe_faults(plain)
    assert any(told in f for f in faults), faults
    with pytest.raises(ConfigError):
        parse(plain)


def test_faults_of_reading_name_the_source(place, tmp_path):
    gone = [{"path": str(place / "chat.jsonl"), "weight": 1}, {"path": str(tmp_path / "gone.jsonl"), "weight": 1}]
    refused(luthier("check", write_recipe(tmp_path / "r.yaml", recipe(place, gone))), "gone.jsonl")
    unknown = [str(place / "chat.jsonl"), {"path": str(place / "asked.csv"), "fields": {"promt": "a"}}]
    refused(luthier("check", write_recipe(tmp_path / "s.yaml", recipe(place, unknown))), "data.train[1] (", "asked.csv")
    light = named(place, chat=1000, asked=1)
    refused(
        luthier("check", write_recipe(tmp_path / "t.yaml", recipe(place, light))),
        "a weight with which a pass has a row",
    )
    lost = recipe(place, named(place, chat=1, plain=1), {"max_length": 8, "truncation": "drop"})
    write(tmp_path / "long.jsonl", [{"prompt": "w1", "response": " ".join(["w2"] * 20)}])
    lost["data"]["train"][1]["path"] = str(tmp_path / "long.jsonl")
    with pytest.raises(DataError, match=r"at least one row of every source to train on; got none of .*long\.jsonl"):
        prepare(parse(lost))


def test_check_preview_plan_and_run_tell_the_same_pass(place, tmp_path):
    plain = recipe(place, named(place, chat=2, asked=1))
    told = "one pass has 18 rows: 12 of the 12 rows"
    file = write_recipe(tmp_path / "r.yaml", plain)
    checked = luthier("check", file)
    assert checked.code == 0 and told in checked.out
    assert told in encode_for_preview(parse(plain))[2]
    planned = plan(parse(plain))
    assert any(told in n for n in planned.notes)
    finished = run(parse(plain), tmp_path / "run")
    assert (planned.rows, planned.steps) == (18, finished.outcome.steps) == (18, 6)
    assert any(told in n for n in json.loads((tmp_path / "run" / "result.json").read_text())["notes"])


def test_prompts_of_samples_come_by_weight_too(place):
    plain = recipe(place, named(place, chat=1, asked=1), objective="grpo", reward={"format": {"pattern": "w.*"}},
                   rollout={"group": 2, "max_new": 2}, train={"steps": 12, "batch": 4})  # fmt: skip
    del plain["train"]["epochs"]
    prepared = prepare(parse(plain))
    assert len(prepared.feed) == 24
    owners = [r for s in range(12) for b in prepared.feed.micros(s) for r in b.rows][::2]
    assert Counter(r >= 12 for r in owners) == Counter({False: 12, True: 12})
    assert any("18 of the 30 rows" in n and "never come" in n for n in prepared.notes)


def test_the_reference_of_pairs_is_cached_for_every_row(place, tmp_path):
    write(tmp_path / "more.jsonl", [{"prompt": f"w{i}", "chosen": "w1", "rejected": "w2"} for i in range(20)])
    train = [*named(place, pairs=1), {"path": str(tmp_path / "more.jsonl"), "weight": 1}]
    plain = recipe(place, train, objective="dpo", train={"epochs": 3, "batch": 5})
    finished = run(parse(plain))
    assert len(finished.prepared.feed.reference) == 30  # type: ignore[attr-defined]
    assert finished.outcome.curves[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert plan(parse(plain)).forwards["reference"] == 6


def test_arms_of_a_comparison_see_the_same_rows_and_may_differ_in_a_weight(place):
    from luthier.compare.arms import run_arm
    from luthier.compare.summary import compare
    from luthier.report.html import settings

    arms = [recipe(place, named(place, chat=w, asked=1), {"test_rows": 4, "holdout": 4}, measure=["likelihood"])
            for w in (1, 2)]  # fmt: skip
    made = compare([run_arm(n, plain, 0) for n, plain in zip("ab", arms, strict=True)], ["a", "b"], [0])
    differing = [s for s in settings(made) if s.differs]
    assert any("train" in s.key for s in differing) and all("data" in s.key for s in differing), differing


def test_images_are_refused_with_what_to_do(tmp_path):
    dit_folder(tmp_path / "image")
    plain = {
        "model": str(tmp_path / "image"),
        "objective": "denoise",
        "data": {"train": ["a", "b"]},
        "train": {"steps": 1},
    }
    refused(luthier("check", write_recipe(tmp_path / "r.yaml", plain)), "one source of images", "one folder")
    with pytest.raises(DataError, match="one source of images"):
        prepare(parse(plain))


def test_a_pass_of_many_rows_is_made_once_and_not_for_every_step():
    mixture = Mixture([range(100_000), range(100_000, 300_000)], [100_000, 50_000])
    made = [mixture.rows(0, step, 8) for step in range(3)]
    held = mixture._last
    assert mixture.rows(0, 1, 8) == made[1] and mixture._last is held
    assert all(a != b for a, b in pairwise(made))
