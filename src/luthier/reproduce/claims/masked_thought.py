"""Does hiding parts of worked answers help when few of them are trained for many passes?"""

from __future__ import annotations

from luthier.reproduce.claim import Claim

CLAIM = Claim(
    component="masked_thought",
    papers=(148,),
    source="arXiv 2403.02178",
    says="Hiding random tokens of worked answers from the model's eyes gives a higher accuracy of final answers than plain "
    "supervised tuning on the same few rows.",
    world="language: two-digit subtraction with its steps from 96 rows, seen 27 times each; final answers of unseen pairs",
    expect="masked > plain",
    measure="exact_match",
    seeds=tuple(range(5)),
    recipe={
        "model": "lab:language",
        "data": {"train": "lab:language/subtract", "rows": 96, "test_rows": 100},
        "train": {"steps": 160, "batch": 16, "warmup": 0.1},
        "measure": [{"exact_match": {"max_new": 26}}],
    },
    arms={"masked": {"regularise": ["masked_thought"]}, "plain": {}},
    grid={"train.lr": (5e-4, 1e-3, 2e-3, 4e-3)},
    budget_s=240,
    note="Rate 0.4 and warm-up 0.66 as in the authors' script for grade-school problems; the same four learning rates and the "
    "same number of steps for both arms. The model has never seen subtraction: unlike the paper's models it learns the steps "
    "themselves here, and the steps are digits, of which each one counts.",
)
