"""Is imitating the best of eight samples better than imitating one's own samples as they come?"""

from __future__ import annotations

from luthier.reproduce.claim import Claim

CLAIM = Claim(
    component="raft",
    papers=(62,),
    source="arXiv 2304.06767",
    says="Fine-tuning on the best of K samples by a reward, round after round, raises the reward; on unranked samples it does "
    "not.",
    world="language: sort 8 to 10 letters, exact verifier; 6 rounds of 32 prompts, 10 steps on what each round kept",
    expect="best_of_8 > as_they_come",
    also=("best_of_8 < as_they_come : forgetting_accuracy",),
    measure="exact_match",
    seeds=tuple(range(5)),
    recipe={
        "model": "lab:language",
        "data": {"train": "lab:language/sort_long", "rows": 512, "test_rows": 100, "old": "lab:language/sort"},
        "objective": "nll",
        "reward": "exact",
        "rollout": {"max_new": 14},
        "train": {"steps": 60, "batch": 16, "warmup": 0.1},
        "measure": [{"exact_match": {"max_new": 14}}, {"old_data": {"max_new": 14}}],
    },
    arms={
        "best_of_8": {"loop": {"raft": {"samples": 8, "prompts": 32, "steps": 10}}},
        "as_they_come": {"loop": {"raft": {"samples": 1, "prompts": 32, "steps": 10}}},
    },
    grid={"train.lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)},
    budget_s=180,
    note="Both arms take as many optimiser steps; the first samples eight times as much.",
)
