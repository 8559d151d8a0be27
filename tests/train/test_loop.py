"""Resume, interruption, NaN, hooks."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from luthier.core import Hook
from luthier.core.errors import CheckpointError, NoEffect, NonFinite
from luthier.train.checkpoint import flatten, folder_of, latest, load, restore, same_bits
from luthier.train.feed import packing_width
from luthier.train.loop import Loop
from tests.train.parts import Nan, RowLoss, TokenLoss, job


@pytest.mark.parametrize("how", [{}, {"micro": 3}, {"width": 16}, {"dropout": 0.3}, {"dtype": torch.float32}], ids=str)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_is_bitwise_equal(tmp_path, how, at):
    whole = Loop(job(TokenLoss() + 0.1 * RowLoss(), steps=4, out=tmp_path / "a", **how))
    whole.run()
    half = job(TokenLoss() + 0.1 * RowLoss(), steps=4, out=tmp_path / "b", **how)
    first = Loop(half)
    first.steps = at
    first.run()
    first.save(at)
    again = Loop(job(TokenLoss() + 0.1 * RowLoss(), steps=4, out=tmp_path / "b", **how))
    outcome = again.run(resume=True)
    assert outcome.steps == 4
    assert same_bits(again.job.policy.attached.state(), whole.job.policy.attached.state())
    assert [c["loss"] for c in outcome.curves] == [c["loss"] for c in whole.curves]


def test_a_flipped_byte_is_named_and_the_older_checkpoint_used(tmp_path):
    Loop(job(steps=4, out=tmp_path, save_every=1)).run()
    newest = folder_of(tmp_path, 3) / "adaptation.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-5] ^= 1
    newest.write_bytes(raw)
    found, skipped = latest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "adaptation.safetensors" in skipped[0]
    with pytest.raises(CheckpointError, match="damaged"):
        load(folder_of(tmp_path, 3))


def test_a_half_written_checkpoint_is_skipped(tmp_path):
    Loop(job(steps=3, out=tmp_path, save_every=1)).run()
    (folder_of(tmp_path, 2) / "COMPLETE.json").unlink()
    found, skipped = latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "incomplete" in skipped[0]


def test_what_a_killed_process_left_half_written_goes_with_the_next_checkpoint(tmp_path):
    left = tmp_path / "checkpoints" / ".step-00000001.killed"
    left.mkdir(parents=True)
    (left / "state.safetensors").write_bytes(b"half")
    Loop(job(steps=3, out=tmp_path, save_every=1)).run()
    assert sorted(p.name for p in left.parent.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    Loop(job(steps=3, out=tmp_path, save_every=1, identity="one")).run()
    with pytest.raises(CheckpointError, match="the recipe and data it was written with"):
        Loop(job(steps=3, out=tmp_path, identity="two")).run(resume=True)


def test_ctrl_c_saves_and_stops_and_resume_ends_with_the_same_bits(tmp_path):
    whole = Loop(job(steps=5))
    whole.run()

    def press(event):
        if event["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = Loop(job(steps=5, out=tmp_path, on_event=press))
    outcome = stopped.run()
    assert outcome.interrupted
    assert outcome.steps == 2
    again = Loop(job(steps=5, out=tmp_path))
    assert again.run(resume=True).steps == 5
    assert same_bits(again.job.policy.attached.state(), whole.job.policy.attached.state())


def test_nan_stops_with_its_rows_and_changes_nothing(tmp_path):
    loop = Loop(job(Nan(), steps=11, batch=1, out=tmp_path))
    with pytest.raises(NonFinite, match="rows 3"):
        loop.run()
    assert json.loads((tmp_path / "not_finite.json").read_text())["rows"] == [3]
    assert all(torch.isfinite(p).all() for p in loop.parameters)


class Idle(Hook):
    id = "test.idle"
    points = ("gradients",)

    def gradients(self, named, ctx):
        pass


class MayIdle(Idle):
    may_idle = True


def test_a_hook_that_changes_nothing_is_an_error_unless_it_may():
    with pytest.raises(NoEffect, match=r"test\.idle"):
        Loop(job(hooks=[Idle()])).run()
    outcome = Loop(job(hooks=[MayIdle()], steps=2)).run()
    assert [(r.step, r.point) for r in outcome.trace] == [(0, "gradients"), (1, "gradients")]


class Penalty(Hook):
    id = "test.penalty"
    points = ("terms",)
    may_idle = True

    def terms(self, batch, s, ctx):
        from luthier.core import Terms

        return Terms("penalty", (ctx.model.model.lm_head.weight**2).sum()[None], scale=0.5)


@pytest.mark.parametrize("micro", [None, 2])
def test_a_penalty_counts_once_however_the_batch_is_split(micro):
    loop = Loop(job(hooks=[Penalty()], micro=micro))
    result = loop.stepper(loop.job.feed.micros(0), loop.context(0))
    weight = loop.job.policy.view.module.model.lm_head.weight
    assert result.terms["penalty"][0] == pytest.approx((weight.detach() ** 2).sum().item())


def test_nested_state_survives_flattening():
    state = {
        "state": {0: {"step": torch.tensor(3.0), "buf": torch.ones(2)}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.99), "none": None}],
    }
    tensors = {}
    again = restore(json.loads(json.dumps(flatten(state, "s", tensors))), tensors)
    assert again["groups"] == state["groups"]
    assert torch.equal(again["state"][0]["buf"], torch.ones(2))
    with pytest.raises(CheckpointError, match="set"):
        flatten({"bad": {1, 2}}, "s", {})


def test_long_rows_of_a_narrow_model_are_padded_and_those_of_a_wide_one_packed():
    lengths = [1000, 400, 400, 400, 400, 400]
    for hidden, width in ((0, 2000), (4096, 2000), (512, 2000), (128, 0)):
        assert packing_width(lengths, hidden) == width, hidden
    assert packing_width([40, 9, 12, 10, 8, 11], 128) == 80
