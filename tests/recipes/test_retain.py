"""Old rows for hooks and stored words of a teacher, from the recipe to the step."""

from __future__ import annotations

import json

import pytest

from luthier.core.errors import DataError
from luthier.models.topk import teacher_topk
from luthier.recipes.build import prepare
from luthier.recipes.recipe import parse, recipe_faults
from luthier.recipes.rows import retained
from luthier.train.loop import Loop

SMALL = {"model": "lab:language", "train": {"steps": 2, "batch": 4, "micro": 2, "lr": 1e-3}}


def test_hooks_that_need_old_rows_say_so_and_old_rows_need_a_hook():
    plain = {"model": "m", "data": {"train": "a.jsonl"}, "regularise": ["replay"]}
    assert recipe_faults(plain) == [
        "replay requires rows of old skills; the recipe names none. Add `data.retain: SOURCE`."
    ]
    plain = {"model": "m", "data": {"train": "a.jsonl", "retain": "b.jsonl"}}
    (fault,) = recipe_faults(plain)
    assert fault.startswith("data.retain: requires a regulariser that trains on old rows")
    (fault,) = recipe_faults({"model": "m", "data": {"train": "a.jsonl", "topk": "t.safetensors"}})
    assert fault.startswith("data.topk: requires an objective that reads stored words of a teacher")


def test_what_is_measured_is_not_retained(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    data = parse(
        {"model": "m", "data": {"train": "x", "old": str(path), "retain": str(path)}, "regularise": ["replay"]}
    ).data
    with pytest.raises(DataError, match=r"rows that are not measured; got .*, which data.old names too"):
        retained(data, 0)
    lab = parse({"model": "m", "data": {"train": "x", "retain": ["lab:language/sort", "lab:language/copy"], "retain_rows": 10},
                 "regularise": ["replay"]}).data  # fmt: skip
    found = retained(lab, 0)
    assert found is not None
    assert [r["skill"] for r in found.rows] == ["sort"] * 5 + ["copy"] * 5
    assert {r["split"] for r in found.rows} == {"train"}


def test_every_hook_on_old_rows_works_beside_the_others():
    hooks = ["masked_thought", "replay", "bc_anchor", {"ewc": {"samples": 3}}, "neftune"]
    recipe = {**SMALL, "adapt": {"lora": {"rank": 2}}, "regularise": hooks,
              "objective": ["anchored_sft", {"kickstarting": {"weight": 0.1}}],
              "data": {"train": "lab:language/rotate", "rows": 8, "test_rows": 2, "retain": "lab:language/sort",
                       "retain_rows": 6}}  # fmt: skip
    prepared = prepare(parse(recipe))
    outcome = Loop(prepared.job).run()
    assert {"term/anchored_sft", "term/kickstarting", "term/replay", "term/bc_anchor"} <= set(outcome.curves[-1])
    assert {r.hook.rsplit(".", 1)[1] for r in outcome.trace} >= {"ewc", "masked_thought", "neftune"}
    assert prepared.policy.forwards["retain"] > 0


def test_stored_words_train_as_the_teacher_itself_does(tmp_path):
    from luthier.lab.language import World

    data = {"train": "lab:language/sort", "rows": 8, "test_rows": 2}
    recipe = {**SMALL, "data": data, "objective": {"logit_targets": {"label": 0.5, "top": 3}}}
    live = prepare(parse({**recipe, "teacher": str(World().model_folder())}))
    feed = live.feed
    assert live.policy.teacher is not None
    made = teacher_topk(live.policy.teacher, (feed.collate([r]) for r in range(len(feed))), 4)  # type: ignore[attr-defined]
    made.save(tmp_path / "top.safetensors")
    stored = prepare(parse({**recipe, "data": {**data, "topk": str(tmp_path / "top.safetensors")}}))
    losses = [Loop(p.job).run().curves[0]["loss"] for p in (live, stored)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
