"""A recipe run from end to end on a tiny model folder: what it leaves behind can be loaded, repeated and resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from luthier.core import Needs, Objective, Terms
from luthier.core.errors import Refused
from luthier.core.files import damage
from luthier.recipes.export import LoadedRun, export
from luthier.recipes.recipe import Recipe, parse
from luthier.recipes.run import run
from tests.recipes.parts import chat_rows, model_folder, pair_rows, write

OBJECTIVES = {
    "nll": {"objective": "nll"},
    "dft": {"objective": "dft"},
    "dpo": {"objective": "dpo", "rows": "pairs"},
    "orpo": {"objective": "orpo", "rows": "pairs"},
    "grpo": {
        "objective": "grpo",
        "reward": {"format": {"pattern": "w[0-9]( .*)?"}},
        "rollout": {"group": 4, "max_new": 6},
    },
}
ADAPTATIONS = {
    "full": "full",
    "lora": {"lora": {"rank": 2}},
    "neuroada": {"neuroada": {"k": 2}},
    "half": "half_finetune",
}
ADAPTER = "adapter/adaptation.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("run")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    write(at / "pairs.jsonl", pair_rows())
    write(at / "old.jsonl", chat_rows(40)[30:])
    return at


def recipe(place, objective="nll", adapt="full", train=None, data=None, **more) -> Recipe:
    own = {**(OBJECTIVES[objective] if isinstance(objective, str) else {"objective": objective}), **more}
    rows = own.pop("rows", "chat")
    return parse(
        {
            "model": str(place / "model"),
            "adapt": adapt,
            **own,
            "data": {"train": str(place / f"{rows}.jsonl"), "test_rows": 2, **(data or {})},
            "train": {"steps": 3, "batch": 8, "lr": 1e-2, **(train or {})},
        }
    )


def logits(model, ids):
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


IDS = torch.randint(3, 47, (4, 12), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------ every objective with every adaptation
@pytest.mark.parametrize("adapt", ADAPTATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_a_run_leaves_behind(place, tmp_path, objective, adapt):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    made = run(recipe(place, objective, ADAPTATIONS[adapt]), out)
    live = made.prepared.policy.view.module.model
    attached = made.prepared.policy.attached
    after = logits(live, IDS)
    with attached.disabled():
        assert not torch.equal(logits(live, IDS), after), "nothing was trained"
        close(logits(live, IDS), logits(AutoModelForCausalLM.from_pretrained(place / "model"), IDS))

    assert len(made.outcome.curves) == 3
    assert all(torch.isfinite(torch.tensor(c["loss"])) for c in made.outcome.curves)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["status"], manifest["seed"], manifest["data"]["rows"]) == ("finished", 0, 22)
    assert manifest["identity"] == made.recipe.identity
    assert manifest["adaptation"]["trained"] == attached.describe()["trained"]
    assert {"torch", "transformers", "luthier"} <= manifest["versions"].keys()
    result = json.loads((out / "result.json").read_text())
    assert [c["loss"] for c in result["curves"]] == [c["loss"] for c in made.outcome.curves]
    assert result["cost"]["forwards_policy"] == 3
    assert len(result["samples"]) == 2
    saved = load_file(out / ADAPTER)
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in attached.state().items()}
    assert damage(out / "model") is None
    close(logits(AutoModelForCausalLM.from_pretrained(out / "model"), IDS), after)
    assert AutoTokenizer.from_pretrained(out / "model").chat_template
    card = (out / "README.md").read_text()
    assert f'"{out}/model"' in card
    assert str(place / "model") in card

    again = LoadedRun(out)
    close(logits(again.model, IDS), after)
    asked = [r["messages"][:-1] for r in chat_rows(3)]
    subject = again.subject()
    told = subject.generate(asked, temperature=0.0, max_new=8)
    from luthier.recipes.run import subject_of

    assert told == subject_of(made.prepared).generate(asked, temperature=0.0, max_new=8)


@pytest.mark.parametrize("adapt", ["full", "half", "lora"])
@pytest.mark.parametrize("objective", ["nll", "dpo"])
def test_a_run_that_keeps_no_base_leaves_the_same_bytes(place, tmp_path, objective, adapt):
    made = {keep: run(recipe(place, objective, ADAPTATIONS[adapt], train={"epochs": 2, "steps": None}),
                      tmp_path / str(keep), keep_base=keep) for keep in (True, False)}  # fmt: skip
    copies = {keep: m.prepared.policy.attached.describe().get("base_copy_bytes", 0) for keep, m in made.items()}
    assert copies[False] == 0
    assert (copies[True] > 0) == (adapt != "lora")
    for name in ("adapter/adaptation.safetensors", "model/model.safetensors", "trace.json"):
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes(), name


ASKING = {
    "a measure": {"measure": ["pair_accuracy"], "objective": "dpo"},
    "a loop": {"loop": {"raft": {"samples": 2, "prompts": 4, "steps": 2}}, "reward": {"format": {"pattern": "w.*"}},
               "rollout": {"max_new": 4}},
    "a hook": {"regularise": ["bc_anchor"], "data": {"retain": "old.jsonl"}},
    "an objective": {**OBJECTIVES["grpo"], "objective": {"trajectory_balance": {"reference": True}}},
}  # fmt: skip


@pytest.mark.parametrize("asking", ASKING)
def test_the_base_stays_where_anything_asks_for_it(place, tmp_path, asking):
    own = {k: v for k, v in ASKING[asking].items() if k != "data"}
    data = {k: str(place / v) for k, v in ASKING[asking].get("data", {}).items()}
    name = own.pop("objective", "nll")
    made = run(recipe(place, name, "full", data=data, **own), tmp_path / "out", keep_base=False)
    assert made.prepared.policy.attached.describe()["base_copy_bytes"] > 0


@pytest.mark.parametrize("adapt", ADAPTATIONS)
def test_exports(place, tmp_path, adapt):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = run(recipe(place, adapt=ADAPTATIONS[adapt]), tmp_path / "out")
    want = logits(made.prepared.policy.view.module.model, IDS)
    export(tmp_path / "out", "merged", tmp_path / "merged")
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), IDS), want)
    if adapt == "lora":
        export(tmp_path / "out", "peft", tmp_path / "peft")
        base = AutoModelForCausalLM.from_pretrained(place / "model")
        close(logits(PeftModel.from_pretrained(base, tmp_path / "peft"), IDS), want)
    else:
        with pytest.raises(Refused, match="low-rank"):
            export(tmp_path / "out", "peft", tmp_path / "peft")
        assert not (tmp_path / "peft").exists()


# ------------------------------------------------------------------------------------------- LoFiT's biases
def test_lofit_offsets_become_biases_of_the_merged_model(place, tmp_path):
    from transformers import AutoModelForCausalLM

    made = run(recipe(place, adapt={"lofit": {"stage": "tune", "random": True, "count": 3}}), tmp_path / "out")
    want = logits(made.prepared.policy.view.module.model, IDS)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert merged.config.attention_bias
    assert any(p.abs().sum() > 0 for n, p in merged.named_parameters() if n.endswith("o_proj.bias"))
    close(logits(merged, IDS), want)
    assert not AutoModelForCausalLM.from_pretrained(place / "model").config.attention_bias


def test_lofit_scales_become_columns(place, tmp_path):
    from transformers import AutoModelForCausalLM

    made = run(recipe(place, adapt={"lofit": {"stage": "localise", "l1": 0.0}}), tmp_path / "out")
    want = logits(made.prepared.policy.view.module.model, IDS)
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model"), IDS), want)


def test_an_architecture_without_a_place_for_biases_keeps_the_adapter(place, tmp_path):
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=47,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
    )
    folder = tmp_path / "mistral"
    MistralForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(place / "model").save_pretrained(folder)
    made = run(
        recipe(place, adapt={"lofit": {"stage": "tune", "random": True, "count": 3}}, model=str(folder)),
        tmp_path / "out",
    )
    assert not (tmp_path / "out" / "model").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "There is no merged model" in card
    assert "cannot hold" in card
    want = logits(made.prepared.policy.view.module.model, IDS)
    close(logits(LoadedRun(tmp_path / "out").model, IDS), want)


# ------------------------------------------------------------------------------------------ repeat and resume
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_recipe_twice_gives_the_same_bytes(place, tmp_path, objective):
    for name in ("a", "b"):
        run(recipe(place, objective, "lora", measure=["likelihood"]), tmp_path / name)
    for file in (ADAPTER, "model/model.safetensors", "trace.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    a, b = (json.loads((tmp_path / n / "result.json").read_text()) for n in "ab")
    assert (a["readings"], a["samples"], a["curves"]) == (b["readings"], b["samples"], b["curves"])
    run(recipe(place, objective, "lora", seed=1), tmp_path / "c")
    assert (tmp_path / "c" / ADAPTER).read_bytes() != (tmp_path / "a" / ADAPTER).read_bytes()


class Killed(BaseException):
    """The process is gone; no handler of the program may see it."""


CASES = {
    **{k: {"objective": k} for k in OBJECTIVES},
    "dpo in full": {"objective": "dpo", "adapt": "full"},
    "neftune, muon, micro": {
        "regularise": [{"neftune": {"alpha": 5}}],
        "optimiser": "muon",
        "train": {"micro": 3},
        "adapt": "full",
    },
    "packing, cosine": {"schedule": {"cosine": {"warmup": 2}}, "train": {"packing": 32}},
    "checkpointing, dropout": {"train": {"checkpointing": True}, "adapt": {"lora": {"rank": 2, "dropout": 0.3}}},
    "samples used twice": {"objective": "grpo", "rollout": {"group": 4, "max_new": 6, "reuse": 2}},
    "own best samples": {
        "objective": "nll",
        "reward": {"format": {"pattern": "w[0-9]( .*)?"}},
        "rollout": {"max_new": 6},
        "loop": {"raft": {"samples": 4, "prompts": 4, "steps": 2}},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_killed_between_checkpoints_ends_with_the_same_bytes(place, tmp_path, case):
    own = {"adapt": "lora", **CASES[case]}
    own["train"] = {"steps": 6, "save_every": 2, **own.get("train", {})}
    whole = run(recipe(place, **own), tmp_path / "whole")

    def kill(event):
        if event["kind"] == "step" and event["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        run(recipe(place, **own), tmp_path / "half", on_event=kill)
    assert sorted(p.name for p in (tmp_path / "half" / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert json.loads((tmp_path / "half" / "manifest.json").read_text())["status"] == "running"
    again = run(recipe(place, **own), tmp_path / "half", resume=True)
    for file in (ADAPTER, "trace.json"):
        assert (tmp_path / "half" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert [c["loss"] for c in again.outcome.curves] == [c["loss"] for c in whole.outcome.curves]
    assert [c.get("reward") for c in again.outcome.curves] == [c.get("reward") for c in whole.outcome.curves]
    assert again.samples == whole.samples


def test_resuming_a_finished_run_changes_nothing(place, tmp_path):
    first = run(recipe(place), tmp_path / "out")
    before = (tmp_path / "out" / ADAPTER).read_bytes()
    again = run(recipe(place), tmp_path / "out", resume=True)
    assert (tmp_path / "out" / ADAPTER).read_bytes() == before
    assert again.outcome.cost["train_tokens"] == first.outcome.cost["train_tokens"]
    assert again.outcome.cost["forwards_policy"] == first.outcome.cost["forwards_policy"]
    assert again.prepared.policy.forwards == first.prepared.policy.forwards


def test_resume_without_any_checkpoint_starts_anew(place, tmp_path):
    run(recipe(place), tmp_path / "out")
    before = (tmp_path / "out" / ADAPTER).read_bytes()
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    run(recipe(place), tmp_path / "out", resume=True)
    assert (tmp_path / "out" / ADAPTER).read_bytes() == before


# ---------------------------------------------------------------------------------------- parts of a recipe
def test_regularisers_and_gradient_transforms_stand_in_the_trace(place, tmp_path):
    hooks = [{"neftune": {"alpha": 5}}, {"clip_grad_by_component": {"max_norm": 1e-3}}]
    made = run(recipe(place, regularise=hooks), tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "trace.json").read_text())
    names = [(r["step"], r["point"], r["hook"]) for r in rows]
    assert names == [(s, p, h) for s in range(3) for p, h in (("embeddings", "regularise.noise.neftune"),
                                                              ("gradients", "optim.gradients.clip_grad_by_component"))]  # fmt: skip
    seen = [c["tokens"] for c in made.outcome.curves]
    assert [r["changed"] for r in rows if r["point"] == "embeddings"] == seen
    parameters = len(list(made.prepared.policy.attached.named_parameters()))
    assert all(0 < r["changed"] <= parameters for r in rows if r["point"] == "gradients")
    plain = run(recipe(place, regularise=hooks[1:]))
    assert plain.outcome.curves[0]["loss"] != made.outcome.curves[0]["loss"]


def test_train_clip_is_the_last_gradient_transform_unless_there_is_another(place):
    def hooks(**own):
        return [h.id.rsplit(".", 1)[-1] for h in run(recipe(place, **own)).prepared.parts.hooks]

    assert hooks() == ["clip_grad_norm"]
    assert hooks(train={"clip": 0}) == []
    assert hooks(regularise=["neftune"]) == ["neftune", "clip_grad_norm"]
    assert hooks(regularise=["clip_grad_by_component"]) == ["clip_grad_by_component"]


def test_a_sum_of_objectives_is_the_weighted_sum_of_their_terms(place):
    def first(objective):
        return run(recipe(place, objective, train={"steps": 1}, rows="pairs")).outcome.curves[0]

    both = first([{"dpo": {"weight": 2.0}}, {"nll": {"on": "chosen", "weight": 0.5}}])
    dpo, nll = first({"dpo": {}})["loss"], first({"nll": {"on": "chosen"}})["loss"]
    assert both["loss"] == pytest.approx(2.0 * dpo + 0.5 * nll, rel=1e-6)
    assert (both["term/dpo"], both["term/nll.chosen"]) == pytest.approx((dpo, nll), rel=1e-6)


def test_one_objective_twice_in_a_sum(place):
    made = run(
        recipe(place, ["nll", {"mask": {"inner": "nll", "share": 1.0, "weight": 2.0}}], train={"steps": 1, "micro": 3})
    )
    first = made.outcome.curves[0]
    assert first["term/nll"] == pytest.approx(first["term/nll#2"], rel=1e-6)
    assert first["loss"] == pytest.approx(3 * first["term/nll"], rel=1e-6)
    twice = [{"nll": {"on": "chosen"}}, {"nll": {"on": "rejected", "weight": -0.5}}]
    alone = [{"nll": {"on": "chosen"}}, {"nll": {"on": "rejected"}}]
    losses = [
        run(recipe(place, o, rows="pairs", train={"steps": 1})).outcome.curves[0]["loss"] for o in (twice, *alone)
    ]
    assert losses[0] == pytest.approx(losses[1] - 0.5 * losses[2], rel=1e-6)


def test_several_adaptations_on_disjoint_sites(place, tmp_path):
    from transformers import AutoModelForCausalLM

    adapt = [
        {"lora": {"rank": 2, "sites": "q_proj,v_proj"}},
        {"neuroada": {"k": 2, "sites": "mlp"}},
        {"full": {"sites": "*norm"}},
    ]
    made = run(recipe(place, adapt=adapt), tmp_path / "out")
    want = logits(made.prepared.policy.view.module.model, IDS)
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model"), IDS), want)
    close(logits(LoadedRun(tmp_path / "out").model, IDS), want)
    base, merged = (
        load_file(place / "model" / "model.safetensors"),
        load_file(tmp_path / "out" / "model" / "model.safetensors"),
    )
    changed = {n.split(".")[-2] for n in base if not torch.equal(base[n], merged[n])}
    assert changed == {
        "q_proj",
        "v_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    }
    with pytest.raises(Refused, match="low-rank"):
        export(tmp_path / "out", "peft", tmp_path / "peft")


# ------------------------------------------------------------------------------------------------ the data
def test_selectors_choose_the_rows_that_train(place):
    rows = [json.loads(line) for line in (place / "chat.jsonl").read_text().splitlines()]
    made = run(
        recipe(place, data={"holdout": 0, "steps": [{"longest": {"keep": 10}}]}, train={"epochs": 1, "steps": None})
    )
    sizes = sorted((len(r["messages"][1]["content"].split()) for r in rows), reverse=True)[:10]
    kept = [len(r["messages"][1]["content"].split()) for r in made.prepared.splits.train.rows]
    assert sorted(kept, reverse=True) == sizes
    assert made.outcome.steps == 2
    assert f"data.select.longest kept 10 of 24 rows: 10 longest responses, {sizes[-1]} tokens or more" in made.notes


def test_selectors_run_in_order_and_the_plan_counts_what_they_leave(place):
    from luthier.recipes.plan import plan

    steps = [{"longest": {"keep": 12}}, {"random": {"keep": 0.5}}]
    one = recipe(place, data={"holdout": 0, "steps": steps}, train={"epochs": 1, "steps": None, "batch": 4})
    made = run(one)
    assert [n.split(":")[0] for n in made.notes if "kept" in n] == [
        "data.select.longest kept 12 of 24 rows", "data.select.random kept 6 of 12 rows"]  # fmt: skip
    told = plan(one)
    assert (told.rows, told.steps, told.forwards["policy"]) == (6, 2, made.prepared.policy.forwards["policy"])


def test_qdit_uses_the_scores_of_the_rows(place, tmp_path):
    scored = [{**r, "score": float(i)} for i, r in enumerate(chat_rows())]
    write(tmp_path / "scored.jsonl", scored)
    steps = [{"qdit": {"keep": 5, "alpha": 1.0}}]
    made = run(recipe(place, data={"train": str(tmp_path / "scored.jsonl"), "holdout": 0, "steps": steps}))
    assert [r["score"] for r in made.prepared.splits.train.rows] == [19.0, 20.0, 21.0, 22.0, 23.0]


def test_held_out_rows_are_never_trained_on_and_never_depend_on_the_seed(place):
    made = [run(recipe(place, data={"holdout": 0.25, "test_rows": 0}, seed=s, measure=["likelihood"])) for s in (0, 1)]
    tests = [[json.dumps(r) for r in m.prepared.splits.test] for m in made]
    trained = {json.dumps(r) for r in made[0].prepared.splits.train.rows}
    assert len(tests[0]) == 6
    assert tests[0] == tests[1]
    assert not trained & set(tests[0])
    assert len(trained) == 18
    assert len(made[0].readings[0].items) == 6
    assert "no test data given: 6 rows held out of training (data.holdout)" in made[0].notes


def test_old_data_is_measured_against_the_base(place):
    still, moved = (
        run(
            recipe(
                place, data={"old": str(place / "old.jsonl"), "test_rows": 20}, measure=["forgetting"], train={"lr": lr}
            )
        )
        for lr in (0.0, 0.05)
    )
    (same,), (changed,) = still.readings, moved.readings
    assert (same.name, len(same.items), same.value) == ("forgetting_nll", 10, pytest.approx(0.0, abs=1e-6))
    assert abs(changed.value) > 1e-3


def test_a_test_file_and_a_limit(place, tmp_path):
    write(tmp_path / "test.jsonl", chat_rows(40)[34:])
    made = run(
        recipe(place, data={"test": str(tmp_path / "test.jsonl"), "test_rows": 4, "rows": 12}, measure=["likelihood"])
    )
    assert len(made.readings[0].items) == 4
    assert len(made.prepared.splits.train.rows) == 12
    assert "the first 12 of 24 rows are used (data.rows)" in made.notes


def test_no_steps_measure_the_base(place):
    made = run(recipe(place, measure=["likelihood"], train={"steps": 0}))
    assert made.outcome.steps == 0
    assert made.readings[0].value == pytest.approx(3.85, abs=0.2)


# ---------------------------------------------------------------------------------------------- Python, teachers
@dataclass(frozen=True, kw_only=True)
class Imitate(Objective):
    """Cross-entropy to the teacher's probability of the given token: enough to ask for a teacher."""

    needs: ClassVar[Needs] = Needs(batch=("text",), signals=("token_logp", "token_mask", "teacher_token_logp"))

    def __call__(self, batch, s):
        return Terms("imitate", -s["teacher_token_logp"].exp() * s["token_logp"], s["token_mask"])


def test_an_objective_that_needs_a_teacher(place, tmp_path):
    def with_teacher(teacher):
        made = recipe(place)
        return Recipe(model=made.model, data=made.data, objective=Imitate(), train=made.train, teacher=teacher)

    with pytest.raises(Refused, match="requires a teacher model; the recipe names none"):
        run(with_teacher(None))
    made = run(with_teacher(str(place / "model")))
    assert made.prepared.policy.forwards["teacher"] == 3
    assert made.outcome.curves[-1]["loss"] < made.outcome.curves[0]["loss"]


def test_components_from_python_are_the_recipe_of_their_names(place, tmp_path):
    from luthier.adapt.lowrank.lora import LoRA
    from luthier.objectives.preference.dpo import DPO
    from luthier.objectives.supervised.nll import NLL

    named = recipe(
        place, [{"dpo": {"beta": 0.3}}, {"nll": {"on": "chosen", "weight": 0.5}}], {"lora": {"rank": 2}}, rows="pairs"
    )
    live = Recipe(
        model=named.model,
        data=named.data,
        train=named.train,
        adapt=LoRA(rank=2),
        objective=DPO(beta=0.3) + 0.5 * NLL(on="chosen"),
    )
    for name, one in (("named", named), ("live", live), ("read", parse(live.as_dict()))):
        run(one, tmp_path / name)
    bytes_of = [(tmp_path / n / ADAPTER).read_bytes() for n in ("named", "live", "read")]
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]
    assert LoadedRun(tmp_path / "live").recipe.as_dict() == parse(live.as_dict()).as_dict()


def test_nothing_is_written_without_a_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run(recipe(place, measure=["likelihood"]))
    assert made.readings
    assert made.samples
    assert list(tmp_path.iterdir()) == []
