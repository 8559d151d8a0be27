"""Are k weights of every neuron a better use of a small budget than a low-rank update?

On square matrices k values per row and rank k / 2 have exactly as many parameters, so both arms adapt the attention
matrices only.
"""

from __future__ import annotations

from luthier.reproduce.claim import Claim

SITES = "*self_attn.*_proj"

CLAIM = Claim(
    component="neuroada",
    papers=(250,),
    source="arXiv 2510.18940",
    says="A few trained weights in every neuron do better than other adapters of the same size.",
    world="language: rotate from 256 rows; attention matrices of 128 x 128, 8192 trained parameters in every arm",
    expect="neuroada < lora",
    also=("neuroada < random : nll", "neuroada > lora : exact_match", "neuroada < lora : forgetting_nll"),
    measure="nll",
    seeds=tuple(range(6)),
    recipe={
        "model": "lab:language",
        "data": {"train": "lab:language/rotate", "rows": 256, "test_rows": 100, "old": ["lab:language/sort"]},
        "train": {"steps": 60, "batch": 32, "warmup": 0.1},
        "measure": ["likelihood", {"exact_match": {"max_new": 16}}, {"old_data": {"accuracy": False}}],
    },
    arms={
        "neuroada": {"adapt": {"neuroada": {"k": 4, "sites": SITES}}},
        "random": {"adapt": {"neuroada": {"k": 4, "choose": "random", "sites": SITES}}},
        "lora": {"adapt": {"lora": {"rank": 2, "sites": SITES}}},
    },
    grid={"train.lr": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)},
    note="`random` chooses the weights of each neuron by lot instead of by size, which the paper's ablation finds worse. The "
    "dense masked baseline of the paper has the same gradients and is left out: the unit tests hold it equal.",
)
