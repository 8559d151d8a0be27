"""RAFT: selection, the analytic best-of-K law, K = 1, resume inside a round."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.loops.raft import RAFT, best_of_k, best_overall, best_per_group
from luthier.train.checkpoint import same_bits
from tests.recipes.parts import chat_rows, model_folder, write
from tests.tolerance import same


def test_selection_equals_the_loop():
    reward, group = torch.tensor([1.0, 3.0, 3.0, 0.0, -1.0, 2.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert best_per_group(reward, group).tolist() == [1, 5]
    assert best_overall(reward, 1 / 3).tolist() == [1, 2]
    assert best_overall(reward, 0.01).tolist() == [1]
    for k in range(1, 130):  # 1 / 49 of 98 samples are 2, though 98 * (1 / 49) is just below 2
        assert len(best_overall(torch.arange(6.0 * k), 1 / k)) == 6


def test_kept_samples_follow_the_analytic_best_of_k_law():
    p, reward, k, n = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.1, 0.9, 0.4]), 4, 40_000
    draws = torch.multinomial(p, n * k, replacement=True, generator=torch.Generator().manual_seed(0))
    kept = draws[best_per_group(reward[draws], torch.arange(n).repeat_interleave(k))]
    law = best_of_k(p, reward, k)
    assert law.sum().item() == pytest.approx(1)
    found = torch.bincount(kept, minlength=3) / n
    assert ((found - law).abs() < 4 * (law * (1 - law) / n).sqrt()).all()


@pytest.mark.parametrize("k", [1, 2, 7])
def test_kl_from_the_base_is_within_its_bound_and_k_1_is_the_base(k):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    law = best_of_k(p, torch.tensor([0.1, 0.9, 0.4]), k)
    assert (law * (law / p).log()).sum().item() <= math.log(k) - (k - 1) / k + 1e-12
    if k == 1:
        same(law, p)


def test_k_1_keeps_every_sample():
    group = torch.arange(5)
    for keep in ("per_prompt", "global"):
        assert RAFT(samples=1, keep=keep).choose(torch.rand(5), group).tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    at = tmp_path_factory.mktemp("raft")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    return {"model": str(at / "model"), "data": {"train": str(at / "chat.jsonl")}, "objective": "nll", "reward": "exact",
            "loop": {"raft": {"samples": 3, "prompts": 6, "steps": 3, "kl": 0.1}}, "rollout": {"max_new": 5},
            "train": {"steps": 5, "batch": 4, "lr": 1e-2}}  # fmt: skip


def test_a_run_logs_its_rounds_and_resumes_inside_one_bit_for_bit(recipe, tmp_path):
    from luthier.recipes.build import prepare
    from luthier.recipes.recipe import parse
    from luthier.train.loop import Loop

    whole = Loop(prepare(parse(recipe), tmp_path / "a").job)
    whole.run()
    assert all("reward_kept" in c for c in whole.curves)
    half = Loop(prepare(parse(recipe), tmp_path / "b").job)
    half.job.on_event = lambda event: setattr(half, "stop", event["step"] == 2)
    assert half.run().steps == 2
    again = Loop(prepare(parse(recipe), tmp_path / "b").job)
    assert again.run(resume=True).steps == 5
    assert same_bits(again.job.policy.attached.state(), whole.job.policy.attached.state())
    assert again.curves == whole.curves
