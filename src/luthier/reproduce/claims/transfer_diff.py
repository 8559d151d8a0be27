"""Does the difference that tuning made in an old version of a base serve a newer version?

Version 1 of a small net is trained on a broad task, version 2 goes on from it with new data and a slightly shifted
task. Version 1 is tuned on a narrow task; the difference is added to version 2. Risks are exact.
"""

from __future__ import annotations

import functools

from luthier.core import stream
from luthier.lab.micro.features import FeatureWorld, Task
from luthier.merge.executor import merge_tensors
from luthier.merge.task_vectors.transfer_diff import TransferDiff
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._nets import INPUTS, KNOWN, Data, Weights, fresh, mixed, risk, trained

BROAD, FEW, PRETRAIN, TUNE, SHORT = 2000, 200, 400, 200, 20
RATES = (0.001, 0.003, 0.01, 0.03)
ARMS = ("transferred", "untouched", "tuned")


@functools.cache
def world_of(seed: int) -> tuple[FeatureWorld, Weights, Weights, Task, Data]:
    """The world, both versions of the base, and the narrow task with its training data."""
    world, g = FeatureWorld.random(INPUTS, KNOWN, 0, seed), stream(seed, "claim.transfer_diff")
    broad, other = (world.task(tuple(range(KNOWN)), seed * 10 + i) for i in range(2))
    one = trained(fresh(seed), world.sample(broad, BROAD, g), PRETRAIN, 0.01)
    two = trained(one, world.sample(mixed(broad, other, 0.2), BROAD, g), PRETRAIN, 0.003)
    narrow = mixed(broad, world.task(tuple(range(4)), seed * 10 + 2), 0.5)
    return world, one, two, narrow, world.sample(narrow, FEW, g)


@functools.cache
def made(seed: int, arm: str, lr: float) -> Weights:
    """Version 2 as the arm makes it."""
    _, one, two, _, data = world_of(seed)
    if arm == "transferred":
        return merge_tensors(TransferDiff(), two, [one, trained(one, data, TUNE, lr)])
    return trained(two, data, TUNE, lr) if arm == "tuned" else two


def after(seed: int, arm: str, lr: float, rate: float) -> float:
    """Risk on the narrow task after a few steps of tuning from what the arm made."""
    world, _, _, narrow, data = world_of(seed)
    return risk(world, trained(made(seed, arm, lr), data, SHORT, rate), narrow)


@functools.cache
def tuned(arm: str) -> tuple[float, float]:
    """Learning rates of the arm and of the steps after it, of the lowest risk on worlds that are not reported."""
    seeds = [TUNING_SEED + i for i in range(3)]
    first = min(RATES, key=lambda lr: sum(risk(world_of(s)[0], made(s, arm, lr), world_of(s)[3]) for s in seeds))
    return first, min(RATES, key=lambda rate: sum(after(s, arm, first, rate) for s in seeds))


def run(seed: int) -> dict[str, dict[str, float]]:
    """The ported difference, version 2 as it is, and version 2 tuned directly."""
    world, _, _, narrow, _ = world_of(seed)
    return {
        arm: {"risk": risk(world, made(seed, arm, tuned(arm)[0]), narrow), "after": after(seed, arm, *tuned(arm))}
        for arm in ARMS
    }


CLAIM = Claim(
    component="transfer_diff",
    papers=(122,),
    source="arXiv 2503.20110",
    says="Adding the difference that tuning made in one version of a base to another version makes it much better without "
    "training, and is a better start for further tuning.",
    world="feature world: net of 48 units trained on a broad task, then on a shifted one; narrow task of 200 rows; exact risk",
    expect="transferred < untouched",
    also=("transferred < untouched : after", "transferred < tuned"),
    measure="risk",
    seeds=tuple(range(10)),
    run=run,
    budget_s=60,
    note="`after` is the risk after 20 further steps on the narrow task from each start. Learning rates of tuning and of these "
    "steps are chosen for each arm from the same four, on three worlds that are not reported. Risk is a share of that of "
    "answering 0.",
)
