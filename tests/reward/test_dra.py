"""dra: loops, its limits, groups apart, and the released formula on one prompt."""

from __future__ import annotations

import pytest
import torch

from luthier.core import Reward
from luthier.core.errors import DataError
from luthier.objectives.policy._advantage import advantages
from luthier.reward.combine import dra
from luthier.reward.combine.dra import DRA, redundancy
from tests.tolerance import same

F64 = torch.float64


def vectors(n=7, d=5, seed=0):
    return torch.rand(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_equals_the_loop():
    x, group = torch.randn(7, 5, dtype=F64), torch.tensor([0, 1, 0, 0, 1, 1, 2])
    want = []
    for i in range(7):
        total = sum(
            max(0.0, (x[i] @ x[j] / x[i].norm() / x[j].norm()).item()) for j in range(7) if group[j] == group[i]
        )
        want.append(total)
    same(redundancy(x, group), torch.tensor(want, dtype=F64))


def test_alike_divides_by_the_group_and_keeps_standardised_advantages():
    x, group, reward = vectors(1).expand(4, 5), torch.zeros(4), torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=F64)
    same(redundancy(x, group), torch.full((4,), 4.0, dtype=F64))
    same(advantages(reward / 4, group, "std", eps=0.0), advantages(reward, group, "std", eps=0.0))


def test_orthogonal_and_opposite_completions_keep_their_reward():
    same(redundancy(torch.eye(4, dtype=F64), torch.zeros(4)), torch.ones(4, dtype=F64))
    same(redundancy(torch.tensor([[1.0], [-1.0]], dtype=F64), torch.zeros(2)), torch.ones(2, dtype=F64))


def test_other_prompts_change_nothing():
    x = vectors()
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    same(redundancy(x, group)[:3], redundancy(x[:3], group[:3]))


def test_one_prompt_equals_the_released_formula_up_to_its_epsilon():
    x, reward = vectors(), torch.rand(7, dtype=F64)
    unit = torch.nn.functional.normalize(x, p=2, dim=1)
    theirs = reward * (1.0 / ((unit @ unit.T).sum(dim=1) + 1e-6))
    torch.testing.assert_close(reward / redundancy(x, torch.zeros(7)), theirs, rtol=1e-6, atol=0)


class Ones(Reward):
    id = "reward.ones"

    def __call__(self, rows, completions):
        return torch.tensor([float("wrong" not in c) for c in completions])


def test_component_groups_by_prompt(monkeypatch):
    table = {"a": [1.0, 0], "b": [0, 1.0], "wrong": [1.0, 0]}
    monkeypatch.setattr(dra, "embedder", lambda name: lambda texts: torch.tensor([table[t] for t in texts]))
    rows = [{"prompt": "p"}] * 3 + [{"prompt": "q"}] * 2
    assert DRA(reward=Ones())(rows, ["a", "a", "b", "a", "wrong"]).tolist() == [0.5, 0.5, 1.0, 0.5, 0.0]
    with pytest.raises(DataError, match=r"dra requires one row per completion"):
        DRA(reward=Ones())(rows, ["a"])
