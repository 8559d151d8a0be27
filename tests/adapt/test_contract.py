from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from luthier.adapt._delta import Delta
from luthier.core import Adaptation, Sites
from luthier.core.registry import entries
from tests.adapt.contract import CHECKS, EXCUSED, check_config_round_trips
from tests.adapt.tiny import MODELS

ALL = {ident: entry for ident, entry in entries().items() if entry.room == "adapt"}
COMPONENTS = [
    ident for ident, entry in ALL.items() if "image" not in entry.card.needs.batch
]  # those need a model with captions
DELTAS = [ident for ident in COMPONENTS if issubclass(entries()[ident].load(), Delta)]
MORE: dict[str, list[dict[str, Any]]] = {
    "adapt.lowrank.lora": [
        {"rank": 2, "mode": "b_only"},
        {"rank": 2, "mode": "a_only"},
        {"rank": 3, "rank_stabilised": True},
    ],
    "adapt.lowrank.eva": [{"rank": 2, "dropout": 0.1}],
    "adapt.lowrank.locon": [{"rank": 2, "tucker": True}, {"rank": 1, "conv_rank": 3, "rank_stabilised": True}],
    "adapt.lowrank.loha": [{"rank": 2}],
    "adapt.lowrank.lokr": [{"rank": 1, "both": True}, {"whole": True, "factor": 3}],
    "adapt.sparse.diablo": [{"blocks": 1}, {"blocks": 5}],
    "adapt.sparse.neuroada": [{"k": 2, "choose": "random"}],
    "adapt.sparse.saft": [{"density": 0.05}],
    "adapt.sparse.s2ft": [{"ratio": 0.3, "side": "out"}, {"ratio": 0.3, "choose": "weight"}],
    "adapt.sparse.spiel": [{"density": 0.05, "grow": "ma"}],
    "adapt.sparse.lt_sft": [{"density": 0.05, "l1": 0.1}],
    "adapt.representation.lofit": [{"stage": "tune", "random": True, "count": 3}],
    "adapt.lowrank.cola": [{"rank": 2, "links": 1}],
    "adapt.modules.series_adapter": [
        {"placement": "both", "bias": True, "learn_scaling": True},
        {"activation": "identity", "placement": "linear", "bottleneck": 3},
    ],
    "adapt.modules.parallel_adapter": [
        {"placement": "both", "bias": True, "learn_scaling": True},
        {"activation": "identity", "placement": "linear", "bottleneck": 3},
    ],
    "adapt.peft": [
        {"method": "IA3", "config": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}}
    ],
}
TOUGH = {"convolutions": Sites("*", kinds=("conv", "linear")), "embedding": Sites("*", kinds=("embedding", "linear"))}


def variants(ident: str) -> list[Callable[[], Adaptation]]:
    cls = entries()[ident].load()
    return [lambda given=given: cls(**given) for given in [{}, *MORE.get(ident, [])]]


def fits(ident: str, model: str) -> bool:
    """Whether the component is meant for such a model."""
    if ident in ("adapt.representation.lofit", "adapt.sparse.s2ft"):
        return model in ("llama", "llama-tied", "gpt2", "bert")
    if ident == "adapt.modules.series_adapter":
        return model in ("llama", "llama-tied", "gpt2", "bert")
    if ident == "adapt.modules.parallel_adapter":
        return model in ("llama", "llama-tied", "gpt2")
    if ident == "adapt.peft":
        return model.startswith("llama")
    return not (ident == "adapt.sparse.neuroada" and model == "convolutions")


def where(ident: str, model: str) -> Sites | None:
    """LoRA goes to every kind of site; the others to their own."""
    return TOUGH.get(model) if ident == "adapt.lowrank.lora" else None


CASES = [
    pytest.param(check, ident, i, model, id=f"{check[6:]}-{ident.removeprefix('adapt.')}-{i}-{model}")
    for check in CHECKS
    for ident in COMPONENTS
    for i in range(1 + len(MORE.get(ident, [])))
    for model in MODELS
    if fits(ident, model)
    and (ident, check) not in EXCUSED
    and (check != "check_fast_form_equals_delta" or ident in DELTAS)
]


@pytest.mark.parametrize(("check", "ident", "variant", "model"), CASES)
def test_contract(check: str, ident: str, variant: int, model: str):
    build, run = MODELS[model]
    CHECKS[check](variants(ident)[variant], build(), run, where(ident, model))


@pytest.mark.parametrize("ident", COMPONENTS)
def test_config_round_trips(ident: str):
    for make in variants(ident):
        check_config_round_trips(make)
        assert make().merge.kind in ("exact", "lossy", "never")


@pytest.mark.parametrize("model", ["gpt2", "convolutions", "embedding"])
@pytest.mark.parametrize("ident", [i for i in COMPONENTS if i != "adapt.peft"])
def test_merge_is_exact_to_rounding_in_float64(ident: str, model: str):
    """Models without float32 inside (a Llama's norms compute in it)."""
    if not fits(ident, model):
        return
    build, run = MODELS[model]
    CHECKS["check_merge_equals_adapter"](variants(ident)[0], build().double(), run, where(ident, model))
    if ident in DELTAS:
        CHECKS["check_fast_form_equals_delta"](variants(ident)[0], build().double(), run, where(ident, model))


def test_excuses_name_real_checks_and_components():
    assert all(ident in COMPONENTS and check in CHECKS for ident, check in EXCUSED)


@pytest.mark.parametrize("ident", COMPONENTS)
def test_parts_take_the_dtype_of_the_weight(ident: str):
    """Half-precision models get half-precision parts (adapters silently in float32 cost a fifth of the memory)."""
    from luthier.adapt.attach import attach

    build, run = MODELS["llama"]
    model = build().to(torch.bfloat16)
    before = run(model)
    with attach(model, variants(ident)[0]()) as handle:
        assert {p.dtype for _, p in handle.named_parameters()} == {torch.bfloat16}
        assert torch.equal(run(model), before)


def test_every_component_is_a_frozen_dataclass_with_few_parameters():
    for ident in COMPONENTS:
        cls = entries()[ident].load()
        assert cls.__dataclass_params__.frozen
        assert len(dataclasses.fields(cls)) <= 8
