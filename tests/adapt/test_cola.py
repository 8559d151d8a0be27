"""cola: links beside LoRA and sums of factors, an unchanged output between links, and exact resume."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

from luthier.adapt.attach import attach
from luthier.adapt.lowrank.cola import Cola
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Context, stream
from luthier.core.errors import Refused
from luthier.recipes.build import prepare
from luthier.recipes.recipe import parse
from luthier.train.loop import Loop
from tests.adapt.tiny import llama, logits, shaken
from tests.tolerance import same

F64 = torch.float64


def trained(model: nn.Module, cola: Cola, x: torch.Tensor, y: torch.Tensor, steps: int):
    """The handle after Adam with the component's hooks, and what the model gave before and after each link's end."""
    handle, seen = attach(model, cola, "0"), []
    search = torch.optim.Adam([p for _, p in handle.named_parameters()], lr=0.05)
    for step in range(steps):
        search.zero_grad()
        (model(x) - y).square().mean().backward()
        search.step()
        before = model(x).detach()
        ctx = Context(step, steps, 0, model, handle, optimiser=search)
        for hook in handle.hooks():
            hook.stepped(list(handle.named_parameters()), ctx)
        if ctx.changed:
            seen.append((before, model(x).detach(), dict(search.state), handle.state()["0.b"].clone()))
    return handle, seen


def world():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 7)).double()
    return model, torch.randn(40, 8, dtype=F64), torch.randn(40, 7, dtype=F64)


def test_between_links_the_output_stays_and_the_optimiser_forgets():
    model, x, y = world()
    base = model(x).detach()
    handle, seen = trained(model, Cola(rank=2, links=3), x, y, 30)
    assert len(seen) == 2
    for before, after, state, b in seen:
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)
        assert state == {}
        assert not b.any()
    with handle.disabled():
        assert torch.equal(model(x), base)


def test_the_change_is_the_sum_of_the_links_and_its_rank_exceeds_one_links():
    model, x, y = world()
    w = model[0].weight.detach().clone()
    handle, _ = trained(model, Cola(rank=2, alpha=3.0, links=3), x, y, 30)
    p = {k[2:]: v for k, v in handle.state().items()}
    pairs = [(p["kept_b"][:, :2], p["kept_a"][:2]), (p["kept_b"][:, 2:], p["kept_a"][2:]), (p["b"], p["a"])]
    want = [
        [sum(1.5 * float(b[i, r] * a[r, j]) for b, a in pairs for r in range(2)) for j in range(8)] for i in range(7)
    ]
    change = handle.merged()["0.weight"] - w
    same(change, torch.tensor(want, dtype=F64))
    assert torch.linalg.matrix_rank(change) == 6
    assert torch.linalg.matrix_rank(p["b"] @ p["a"]) == 2


def test_one_link_is_lora_step_by_step():
    model, x, y = world()
    twin = copy.deepcopy(model)
    lora = attach(twin, LoRA(rank=2, alpha=3.0), "0")
    lora.load(attach(copy.deepcopy(model), Cola(rank=2, alpha=3.0, links=1), "0").state())
    handle, seen = trained(model, Cola(rank=2, alpha=3.0, links=1), x, y, 10)
    search = torch.optim.Adam([p for _, p in lora.named_parameters()], lr=0.05)
    for _ in range(10):
        search.zero_grad()
        (twin(x) - y).square().mean().backward()
        search.step()
    assert not seen
    assert handle.hooks() == ()
    assert all(torch.equal(t, lora.state()[n]) for n, t in handle.state().items())


def test_links_have_equal_lengths_and_the_last_step_starts_none():
    for links, steps in ((1, 7), (2, 7), (3, 9), (4, 10), (5, 5)):
        ends = [e for s in range(steps) if (e := Cola(links=links).ends(s, steps)) is not None]
        assert ends == list(range(len(ends)))
        assert len(ends) <= links - 1
    assert [Cola(links=3).ends(s, 9) for s in range(9)] == [None, None, 0, None, None, 1, None, None, None]


def test_it_exports_as_one_lora_of_the_whole_rank():
    from luthier.adapt.export import lora_tensors

    model = llama(layers=1)
    handle = attach(model, Cola(rank=2, links=3), "q_proj")
    shaken(handle)
    for name, t in handle.state().items():
        if "kept" in name:
            t.normal_(generator=stream(0, "test"))
    tensors = lora_tensors(handle)
    (a,), (b,) = ([t for n, t in tensors.items() if f"lora_{k}" in n] for k in "AB")
    assert (a.shape[0], b.shape[1]) == (6, 6)
    site = "model.layers.0.self_attn.q_proj"
    base = model.get_parameter(f"{site}.weight").detach()
    same(handle.merged()[f"{site}.weight"], base + b @ a)
    assert torch.isfinite(logits(model)).all()


def test_a_run_stopped_between_links_resumes_to_the_same_bits(tmp_path):
    def loop(out):
        plain = {"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "seed": 3,
                 "adapt": {"cola": {"rank": 2, "links": 3}},
                 "train": {"steps": 9, "batch": 4, "save_every": 4, "keep": 2}}  # fmt: skip
        made = prepare(parse(plain))
        made.job.out = out
        return made, Loop(made.job)

    whole, running = loop(tmp_path)
    outcome = running.run()
    assert {r.step for r in outcome.trace if r.point == "stepped" and r.changed} == {2, 5}
    want = {k: v.clone() for k, v in whole.policy.attached.state().items()}
    shutil.rmtree(max((tmp_path / "checkpoints").iterdir()))
    assert [k.name for k in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    again, resumed = loop(tmp_path)
    resumed.run(resume=True)
    got = again.policy.attached.state()
    assert all(torch.equal(got[n], want[n]) for n in want)


def test_more_links_than_steps_are_refused():
    model = llama(layers=1)
    handle = attach(model, Cola(links=3), "q_proj")
    with pytest.raises(Refused, match="at least as many steps as links = 3; got 2 steps"):
        handle.hooks()[0].start(Context(0, 2, 0, model, handle))
