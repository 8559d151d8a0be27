"""Every component of objectives, regularise, optim and reward: whole card, and configuration that round-trips."""

from __future__ import annotations

import doctest
import sys

import pytest

from luthier.core.config import as_dict, build_component
from luthier.core.registry import entries
from luthier.objectives.policy.grpo import GRPO
from luthier.objectives.supervised.nll import NLL
from luthier.objectives.wrap.mask import Mask
from luthier.regularise.representation.concept_ablation import ConceptAblation
from luthier.reward.combine.diversity_reward import DiversityReward
from luthier.reward.combine.dra import DRA
from luthier.reward.verifiers.exact import Exact

ROOMS = ("objectives", "regularise", "optim", "reward")
OURS = [e for e in entries().values() if e.room in ROOMS]
# Components without defaults for all parameters: an example, or the reason why none can be written.
EXAMPLES = {
    "regularise.representation.concept_ablation": ConceptAblation(directions="directions.safetensors"),
    "objectives.wrap.mask": Mask(inner=GRPO(kl=0.1), how="freeze"),
    "reward.combine.diversity_reward": DiversityReward(reward=Exact(), by="ngram"),
    "reward.combine.dra": DRA(reward=Exact()),
}
NOT_WRITTEN = {"reward.combine.weighted": "recipes write it as a list under `reward:`, with a weight in each member"}
OTHERS = [
    GRPO(normalise=128, scale="none"),
    GRPO(normalise="token", clip_high=0.28, dual_clip=3.0),
    NLL(on="chosen", per="sequence"),
]


@pytest.mark.parametrize("entry", OURS, ids=lambda e: e.id)
def test_card_is_whole_and_configuration_round_trips(entry):
    assert entry.card.faults() == []
    assert entry.card.relatives == () or all(r in entries() for r in entry.card.relatives), entry.card.relatives
    if entry.id in NOT_WRITTEN:
        return
    made = EXAMPLES.get(entry.id) or entry.load()()
    assert build_component(as_dict(made), entry.room, "here") == made


@pytest.mark.parametrize("made", OTHERS, ids=repr)
def test_other_settings_round_trip(made):
    assert build_component(as_dict(made), "objectives", "here") == made


@pytest.mark.parametrize("entry", OURS, ids=lambda e: e.id)
def test_examples_in_the_docstring_run(entry):
    entry.load()
    failed, _ = doctest.testmod(sys.modules[f"luthier.{entry.id}"])
    assert failed == 0
