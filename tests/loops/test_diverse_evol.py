"""DiverseEvol: sizes and steps of rounds, one round is k-centre, rounds embed with the model trained, restart, resume."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import ConfigError, Refused
from luthier.loops.diverse_evol import DiverseEvol, sizes, starts
from luthier.ops.submodular import k_centre
from luthier.recipes.build import prepare
from luthier.recipes.plan import plan
from luthier.recipes.recipe import parse
from luthier.train.checkpoint import same_bits
from luthier.train.loop import Loop
from tests.recipes.parts import chat_rows, model_folder, pair_rows, write
from tests.tolerance import same


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("evol")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows(30))
    write(at / "pairs.jsonl", pair_rows(20))
    return at


def made(place, out=None, steps=9, rows="chat.jsonl", objective="nll", **loop):
    recipe = {"model": str(place / "model"), "data": {"train": str(place / rows), "holdout": 0}, "objective": objective,
              "train": {"steps": steps, "batch": 4, "micro": 2, "lr": 3e-2, "packing": 0},
              "loop": {"diverse_evol": {"keep": 12, "rounds": 3, **loop}}}  # fmt: skip
    return prepare(parse(recipe), out)


def watched(prepared):
    """What the feed had chosen at each step, and the weights that each round began and ended with."""
    feed, loop, chosen, weights = prepared.feed, Loop(prepared.job), [], []
    inner = feed.micros

    def micros(step, rank=0, world=1):
        before = {k: v.clone() for k, v in prepared.policy.attached.state().items()}
        batches = inner(step, rank, world)
        after = {k: v.clone() for k, v in prepared.policy.attached.state().items()}
        chosen.append(list(feed.used))
        weights.append((before, after))
        assert {r for b in batches for r in b.rows} <= set(feed.chosen)
        return batches

    feed.micros = micros
    return loop, chosen, weights


def test_sizes_grow_evenly_and_every_round_has_a_step():
    assert sizes(12, 0, 3) == [4, 8, 12]
    assert sizes(11, 4, 3) == [7, 9, 11]
    assert starts(12, [4, 8, 12]) == [0, 2, 6]
    assert starts(3, [1, 50, 100]) == [0, 1, 2]
    for steps in range(5, 40):
        at = starts(steps, sizes(20, 3, 5))
        assert at[0] == 0
        assert all(b > a for a, b in zip(at, [*at[1:], steps]))


def test_one_round_is_one_shot_k_centre_and_trains_as_on_rows_chosen_before(place):
    one = made(place, rounds=1)
    vectors = one.feed.vectors()
    index, radius = k_centre(vectors, 12)
    Loop(one.job).run()
    assert one.feed.chosen == index.tolist()
    assert one.feed.figures["radius"] == float(radius)
    rows = [r for i, r in enumerate(chat_rows(30)) if i in set(one.feed.chosen)]
    write(place / "chosen.jsonl", rows)
    recipe = one.recipe.as_dict()
    before = prepare(parse({**recipe, "loop": None, "data": {**recipe["data"], "train": str(place / "chosen.jsonl")}}))
    Loop(before.job).run()
    assert same_bits(one.policy.attached.state(), before.policy.attached.state())


def test_the_embedding_is_the_mean_hidden_state_of_each_row_alone(place):
    prepared = made(place)
    module = prepared.policy.view.module.model
    for i in (0, 7, 29):
        ids = torch.tensor([list(prepared.feed.parts.pool.examples[i][0].ids)])
        with torch.no_grad():
            hidden = module(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        same(prepared.feed.vectors()[i], hidden.mean(0))


def test_rounds_keep_what_was_chosen_and_add_by_the_model_just_trained(place):
    prepared = made(place)
    loop, chosen, weights = watched(prepared)
    loop.run()
    assert [len(c) for c in chosen] == [4] + [8] * 3 + [12] * 5
    assert set(chosen[0]) < set(chosen[1]) < set(chosen[4])
    fresh = made(place)
    untrained = k_centre(fresh.feed.vectors(), 12)[0].tolist()
    assert set(chosen[0]) == set(untrained[:4])
    for at, had, has in ((1, 0, 1), (4, 3, 4)):
        fresh.policy.attached.load(weights[at][0])
        by_hand = k_centre(fresh.feed.vectors(), len(chosen[has]), chosen[had])[0].tolist()
        assert set(chosen[has]) == set(by_hand)
    assert set(chosen[-1]) != set(untrained)


def test_restart_begins_each_round_with_the_same_weights_and_the_last_is_a_run_of_its_own(place):
    prepared = made(place)
    loop, chosen, weights = watched(prepared)
    loop.run()
    for at in (1, 4):
        assert same_bits(weights[at][1], weights[0][1])
        assert not same_bits(weights[at][0], weights[0][1])
    write(place / "last.jsonl", [r for i, r in enumerate(chat_rows(30)) if i in set(chosen[-1])])
    recipe = prepared.recipe.as_dict()
    plain = {**recipe, "loop": None, "train": {**recipe["train"], "steps": 5},
             "data": {**recipe["data"], "train": str(place / "last.jsonl")}}  # fmt: skip
    alone = prepare(parse(plain))
    Loop(alone.job).run()
    assert same_bits(prepared.policy.attached.state(), alone.policy.attached.state())


def test_without_restart_the_weights_go_on(place):
    prepared = made(place, restart=False)
    loop, _, weights = watched(prepared)
    loop.run()
    assert all(same_bits(before, after) for before, after in weights)
    assert prepared.feed.phase(4, 9) == (4, 9)
    assert not any(k.startswith("begin.") for k in prepared.feed.state())


def test_rows_by_lot_come_first(place):
    prepared = made(place, drawn=5)
    loop, chosen, _ = watched(prepared)
    loop.run()
    assert prepared.feed.sizes == [8, 10, 12]
    assert made(place, drawn=5, rounds=1).feed.sizes == [12]
    lot = prepared.feed.chosen[:5]
    again = made(place, drawn=5, rounds=2)
    again.feed.micros(0)
    assert again.feed.chosen[:5] == lot
    assert set(lot) <= set(chosen[0])


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("stop", [3, 5])
def test_it_resumes_inside_a_round_and_between_two_bit_for_bit(place, tmp_path, restart, stop):
    whole = Loop(made(place, tmp_path / "a", restart=restart).job)
    whole.run()
    half = Loop(made(place, tmp_path / "b", restart=restart).job)
    half.job.on_event = lambda event: setattr(half, "stop", event["step"] == stop)
    assert half.run().steps == stop
    again = Loop(made(place, tmp_path / "b", restart=restart).job)
    assert again.run(resume=True).steps == 9
    assert same_bits(again.job.policy.attached.state(), whole.job.policy.attached.state())
    assert again.curves == whole.curves
    assert again.job.feed.chosen == whole.job.feed.chosen


def test_a_recipe_runs_it_beside_lora_and_a_regulariser(place):
    recipe = {"model": str(place / "model"), "data": {"train": str(place / "chat.jsonl")}, "objective": "dft",
              "adapt": {"lora": {"rank": 2}}, "regularise": ["neftune"], "train": {"steps": 6, "batch": 4, "lr": 1e-2},
              "loop": {"diverse_evol": {"rounds": 2, "keep": 0.5}}}  # fmt: skip
    prepared = prepare(parse(recipe))
    loop = Loop(prepared.job)
    assert loop.run().steps == 6
    assert [c["chosen"] for c in loop.curves] == [7.0, 7.0, 14.0, 14.0, 14.0, 14.0]
    assert prepared.policy.forwards["embed"] == 2 * 7
    planned = plan(prepared.recipe)
    assert (planned.forwards["policy"], planned.forwards["embed"], planned.steps) == (6, 14, 6)
    passes = plan(parse({**recipe, "train": {"epochs": 2, "batch": 4}}))
    assert passes.steps == 2 * 14 // 4


def test_what_cannot_be_is_refused(place):
    with pytest.raises(Refused, match="requires a row for each of 9 rounds beside the 4 drawn; got 12 of 30 rows"):
        made(place, rounds=9, drawn=4)
    with pytest.raises(Refused, match=r"diverse_evol requires a step for each of its 3 rounds; got 2 steps"):
        made(place, steps=2)
    with pytest.raises(Refused, match=r"keep requires a share up to 1\.0, or a whole number; got 1\.5"):
        made(place, keep=1.5)
    with pytest.raises(Refused, match="loop diverse_evol requires text data; got preference data"):
        made(place, rows="pairs.jsonl", objective="dpo")
    with pytest.raises(ConfigError, match="reward: requires an objective, loop or measure that asks for one"):
        parse({"model": "m", "data": "x", "loop": "diverse_evol", "reward": "exact"})
    with pytest.raises(ConfigError, match="learns from its own samples requires `reward`"):
        parse({"model": "m", "data": "x", "loop": "raft"})
    assert DiverseEvol(keep=100).count(30) == 30
