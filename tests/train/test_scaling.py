"""fp16: steps that overflow change nothing, the scale is resumed, and what cannot be scaled is refused."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState

from luthier.core.errors import Refused
from luthier.train.checkpoint import same_bits
from luthier.train.devices import make_accelerator
from luthier.train.loop import Loop
from luthier.train.scaling import LossScale
from tests.train.parts import job

HIGH = 2.0**26


@pytest.fixture
def half():
    """An accelerator as accelerate makes it for fp16 on a GPU, here on the CPU, where torch scales too."""

    def made(scale=HIGH):
        accelerator = make_accelerator()
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        return accelerator

    yield made
    AcceleratorState._reset_state(True)


def test_steps_that_overflow_change_nothing_and_lower_the_scale(half):
    told: list = []
    first = {k: v.clone() for k, v in Loop(job(dtype=torch.float32)).job.policy.attached.state().items()}
    seen = []

    def event(e):
        told.append(e)
        if e["kind"] == "step":
            seen.append({k: v.clone() for k, v in loop.job.policy.attached.state().items()})

    loop = Loop(job(dtype=torch.float32, steps=14, accelerator=half(), on_event=event))
    loop.run()
    notes = [e["text"] for e in told if e["kind"] == "note"]
    left_out = [e["step"] for e in told if e["kind"] == "step" and "grad_norm" not in e]
    assert notes and len(notes) == len(left_out) < 14
    assert notes[0] == f"step 1 overflowed in fp16 and was left out; the loss scale is now {HIGH / 2:.0f}"
    assert left_out[0] == 1
    before = first
    for step, after in enumerate(seen, 1):
        assert same_bits(before, after) == (step in left_out)
        before = after


def test_without_overflow_the_step_is_that_of_fp32_up_to_rounding(half):
    plain = Loop(job(dtype=torch.float32, steps=3))
    plain.run()
    loop = Loop(job(dtype=torch.float32, steps=3, accelerator=half(1024.0)))
    loop.run()
    for a, b in zip(plain.curves, loop.curves, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=3e-3)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-2)


@pytest.mark.parametrize("at", [2, 9])
def test_a_resumed_run_goes_on_with_the_scale(half, tmp_path, at):
    whole = Loop(job(dtype=torch.float32, steps=14, accelerator=half()))
    whole.run()
    first = Loop(job(dtype=torch.float32, steps=14, accelerator=half(), out=tmp_path))
    first.steps = at
    first.run()
    first.save(at)
    again = Loop(job(dtype=torch.float32, steps=14, accelerator=half(), out=tmp_path))
    again.run(resume=True)
    assert same_bits(again.job.policy.attached.state(), whole.job.policy.attached.state())
    assert again.scale.state() == whole.scale.state()


def test_a_scale_that_is_no_cause_is_no_excuse(half):
    assert LossScale(half().scaler).overflowed(float("inf")) and not LossScale(half().scaler).overflowed(3.0)
    assert not LossScale(half(0.5).scaler).overflowed(float("nan"))
    assert not LossScale(None).overflowed(float("inf"))


def test_weights_in_fp16_and_a_machine_without_a_gpu_are_refused(half):
    with pytest.raises(Refused, match=r"trained weights in fp32; got weights in fp16\. Set dtype: fp32"):
        Loop(job(dtype=torch.float16, steps=1, accelerator=half())).run()
    with pytest.raises(Refused, match=r"fp16 requires a GPU; got the CPU\. Use bf16"):
        make_accelerator("fp16")
