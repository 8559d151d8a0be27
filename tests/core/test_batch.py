"""A batch: rows, parts, conditions, and copies that share nothing they should not."""

from __future__ import annotations

import pytest
import torch

from luthier.core import Batch


def pair() -> Batch:
    return Batch(
        "image_preference",
        {"image": torch.arange(4.0)[:, None], "condition.class": torch.arange(4), "condition.text": torch.arange(8).view(4, 2)},
        parts=("chosen", "rejected"),
        columns={"weight": torch.tensor([1.0, 2.0])},
        rows=(5, 9),
        meta=({"id": 5}, {"id": 9}),
    )  # fmt: skip


def test_length_is_rows_not_sequences():
    assert len(pair()) == 2
    assert len(Batch("text", {"input_ids": torch.zeros(3, 8)})) == 3
    packed = Batch("text", {"input_ids": torch.zeros(1, 64), "home": torch.zeros(6, 2)}, parts=("chosen", "rejected"))
    assert len(packed) == 3, "a packed batch has as many rows as `home` has sequences of a part"


def test_conditions_are_those_of_one_part_by_the_models_own_names():
    batch = pair()
    assert {k: v.tolist() for k, v in batch.condition().items()} == {"class": [0, 1], "text": [[0, 1], [2, 3]]}
    assert batch.condition("rejected")["class"].tolist() == [2, 3]
    assert Batch("image", {"image": torch.zeros(2, 1)}).condition() == {}
    with pytest.raises(KeyError, match="unknown part 'chose'; did you mean 'chosen'"):
        batch.condition("chose")


def test_another_device_has_everything_and_the_rows_go_along():
    moved = pair().to("meta")
    assert {t.device.type for t in (*moved.inputs.values(), *moved.columns.values())} == {"meta"}
    assert (moved.rows, moved.meta, moved.parts, moved.kind) == (
        (5, 9),
        ({"id": 5}, {"id": 9}),
        pair().parts,
        pair().kind,
    )


def test_a_new_loss_mask_drops_what_was_made_from_the_old_one():
    batch = Batch("text", {"input_ids": torch.zeros(2, 3), "loss_mask": torch.ones(2, 3), "trained": torch.arange(6)})
    assert "trained" in batch.with_inputs(input_ids=torch.ones(2, 3)).inputs
    changed = batch.with_inputs(loss_mask=torch.zeros(2, 3))
    assert set(changed.inputs) == {"input_ids", "loss_mask"}
    assert changed.inputs["loss_mask"].sum() == 0
    assert batch.inputs["loss_mask"].sum() == 6
