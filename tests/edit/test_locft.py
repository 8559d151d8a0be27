"""locft: a hand-written loop with torch's cross-entropy, what it may not touch, and the two orders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from luthier.core.config import as_dict, build_component
from luthier.core.errors import DataError, NoEffect
from luthier.edit._edit import counterfact, place
from luthier.edit.locate.locft import LocFT, edit_loss, orders
from luthier.recipes.export import plain_subject
from tests.adapt.tiny import llama
from tests.tolerance import same

PLACE = "layers.2.mlp.down_proj"
NAME = "model.layers.2.mlp.down_proj.weight"
EDITS = [{"prompt": f"what is the colour of {p} ?", "response": c} for p, c in
         (("mira", "red"), ("tomas", "pink blue"), ("edda", "green"), ("ravi", "black"), ("lena", "white"))]  # fmt: skip
COUNTERFACT = Path(__file__).resolve().parents[3] / "shared" / "data" / "counterfact" / "test.jsonl"


@pytest.fixture
def subject():
    return plain_subject("lab:language")


def weights(subject):
    return {k: v.clone() for k, v in subject.module.model.named_parameters()}


def test_equals_a_loop_with_cross_entropy(subject):
    """Batch 1 depth first: mean cross-entropy of the answer and its end, a new Adam for each edit."""
    twin = plain_subject("lab:language")
    for one in (subject, twin):
        one.module.double()
    p = twin.module.model.get_parameter(NAME)
    for pair in twin.pairs([e["prompt"] for e in EDITS[:2]], [e["response"] for e in EDITS[:2]]):
        ids, labels = (
            torch.tensor([pair.ids]),
            torch.tensor([[i if m else -100 for i, m in zip(pair.ids, pair.mask, strict=True)]]),
        )
        search = torch.optim.Adam([p], lr=1e-3)
        for _ in range(3):
            search.zero_grad()
            logits = twin.module.model(input_ids=ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).backward()
            search.step()
    edited = LocFT(sites=PLACE, epochs=3, order="depth", lr=1e-3, stop=0.0)(subject, EDITS[:2])
    assert len(edited.losses) == 6
    same(edited.after[NAME].float(), p.detach().float())  # the model's norms compute in float32


def test_the_loss_weighs_edits_alike_whatever_their_length():
    logp, mask = -torch.rand(4, 6), torch.rand(4, 6) < 0.6
    mask[:, 0] = True
    want = sum(-sum(float(logp[i, t]) for t in range(6) if mask[i, t]) / int(mask[i].sum()) for i in range(4)) / 4
    assert float(edit_loss(logp, mask)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("order", ["breadth", "depth"])
def test_nothing_else_changes_and_undo_is_exact(subject, order):
    before = weights(subject)
    flags = {k: p.requires_grad for k, p in subject.module.model.named_parameters()}
    edited = LocFT(sites=PLACE, epochs=2, batch=2, lr=1e-3, order=order)(subject, EDITS)
    after = weights(subject)
    assert [k for k in before if not torch.equal(before[k], after[k])] == [NAME]
    assert {k: p.requires_grad for k, p in subject.module.model.named_parameters()} == flags
    edited.undo()
    assert all(torch.equal(before[k], v) for k, v in weights(subject).items())
    edited.redo()
    assert all(torch.equal(after[k], v) for k, v in weights(subject).items())


def test_one_edit_takes_the_same_steps_in_both_orders(subject):
    made = []
    for order in ("breadth", "depth"):
        edited = LocFT(sites=PLACE, epochs=6, batch=1, lr=2e-3, order=order)(subject, EDITS[:1])
        edited.undo()
        made.append((edited.losses, edited.after[NAME]))
    assert made[0][0] == made[1][0]
    assert torch.equal(made[0][1], made[1][1])


def test_orders():
    breadth = orders(5, 3, 2, "breadth", seed=1)
    assert all(sorted(i for rows in epoch for i in rows) == [0, 1, 2, 3, 4] for epoch in breadth)
    assert [len(rows) for rows in breadth[0]] == [2, 2, 1]
    assert breadth[0] != breadth[1]
    assert orders(5, 3, 2, "breadth", seed=1) == breadth != orders(5, 3, 2, "breadth", seed=2)
    assert orders(2, 2, 9, "depth", seed=0) == [[[0]], [[0]], [[1]], [[1]]]


def test_training_ends_when_the_loss_is_below_stop(subject):
    edited = LocFT(sites=PLACE, epochs=200, batch=5, lr=5e-3, stop=0.05)(subject, EDITS)
    assert len(edited.losses) < 200
    assert edited.losses[-1] < 0.05
    said = [one for (one,) in subject.generate([e["prompt"] for e in EDITS], temperature=0.0, max_new=4)]
    assert said == [e["response"] for e in EDITS]
    still = LocFT(sites=PLACE, epochs=3, lr=0.0)(subject, EDITS)
    assert torch.equal(still.after[NAME], still.before[NAME])


def test_it_round_trips_as_a_component():
    one = LocFT(sites=PLACE, order="depth")
    assert build_component(as_dict(one), "edit", "edit") == one


def test_places():
    model = llama()
    assert list(place(model, "layers.1.mlp.down_proj", "x")) == ["model.layers.1.mlp.down_proj.weight"]
    assert len(place(model, "*mlp*", "x")) == 6
    assert len(place(model, "layers.0.mlp.up_proj.weight, layers.1.mlp.up_proj.weight", "x")) == 2
    with pytest.raises(NoEffect, match=r"'down_prij' fits 0 of"):
        place(model, "down_prij", "locft")


def test_bad_edits_are_named(subject):
    with pytest.raises(DataError, match="at least one edit; got none"):
        LocFT(sites=PLACE)(subject, [])
    with pytest.raises(DataError, match="got row 1 with 'prompt'"):
        LocFT(sites=PLACE)(subject, [EDITS[0], {"prompt": "a"}])
    with pytest.raises(DataError, match="the field 'target_new'"):
        counterfact({"prompt": "a"})


def test_counterfact_records_become_rows():
    if not COUNTERFACT.is_file():
        pytest.skip("the data set is not here")
    with COUNTERFACT.open(encoding="utf-8") as lines:
        rows = [counterfact(json.loads(line)) for line in lines]
    assert len(rows) == 3000
    assert all(r["prompt"] and r["response"] and r["paraphrase"] and r["locality"] for r in rows)
