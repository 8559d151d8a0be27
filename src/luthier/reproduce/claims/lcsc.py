"""Is a searched mix of a run's checkpoints better than its last one, and than the best running average of them?"""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor

from luthier.core import stream
from luthier.diffusion.consistency.ict import ICT
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.consistency import Consistency
from luthier.diffusion.schedules.ve import VE
from luthier.lab.micro.mixture import mmd, mmd_to
from luthier.merge._search import Weights
from luthier.merge.search.lcsc import LCSC, combined, ema_coefficients
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._axes import NO_REWARD, SEEDS, axes, timed
from luthier.reproduce.claims._denoiser import Net, Trainer
from luthier.reproduce.claims._few_steps import world

PATH, STEPS, KEPT, TRIALS, JUDGED, REPORTED = VE(), 400, 16, 200, 700, 2000
GRID = torch.tensor([80.0, 0.0], dtype=torch.float64)
DECAYS, SIZES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9), (0.1, 0.3)


@functools.cache
def checkpoints(seed: int) -> list[dict[str, Tensor]]:
    """The last sixteen of a consistency model's checkpoints, ten steps apart, at a rate that does not fall."""
    trainer = Trainer(Net(PATH, "x0", seed), world(seed)[1], seed, steady=True, every=10)
    trainer.run(ICT(first=10, last=80, mean=0.7), STEPS, 3e-3)
    return trainer.saved[-KEPT:]


def drawn(weights: Weights, seed: int, role: str, n: int) -> Tensor:
    """n one-step samples (n, 2), float64; the noise is the same for all weights."""
    net = copy.deepcopy(_shell())
    net.load_state_dict(dict(weights))
    x = 80 * torch.randn(n, 2, 1, 1, generator=stream(seed, f"claim.lcsc.{role}"))
    with torch.no_grad():
        return sample(net, Consistency(), x, GRID).flatten(1).double()


@functools.cache
def _shell() -> Net:
    return Net(PATH, "x0", 0).requires_grad_(False)


def judged(weights: Weights, seed: int) -> float:
    """Minus the discrepancy of 700 samples from 700 points that were trained on, times 1,000."""
    return -1000 * mmd(drawn(weights, seed, "search", JUDGED), world(seed)[1][:JUDGED].double())


def reported(weights: Weights, seed: int) -> float:
    """Discrepancy of fresh samples from the truth, times 1,000."""
    return 1000 * mmd_to(drawn(weights, seed, "report", REPORTED), world(seed)[0])


def searched(seed: int, step: float) -> dict[str, Tensor]:
    """The searched mix."""
    models = checkpoints(seed)
    search = LCSC(trials=TRIALS, step=step, decays=DECAYS, seed=seed)
    return combined(models, search(models, lambda w: judged(w, seed)).weights)


@functools.cache
def tuned() -> float:
    """The size of a move with the best fresh samples, on a world that is not reported."""
    return min(SIZES, key=lambda step: reported(searched(TUNING_SEED, step), TUNING_SEED))


def mix(arm: str, seed: int) -> Weights:
    """The searched mix, the last checkpoint, the uniform soup, or the average that the same samples prefer."""
    models = checkpoints(seed)
    if arm == "lcsc":
        return searched(seed, tuned())
    if arm == "ema":
        averages = [combined(models, ema_coefficients(KEPT, d).tolist()) for d in DECAYS]
        return max(averages, key=lambda w: judged(w, seed))
    return models[-1] if arm == "last" else combined(models, [1 / KEPT] * KEPT)


@timed
def figures(arm: str, seed: int) -> dict[str, float]:
    """Discrepancies of an arm, and its axes; the base is the last checkpoint."""
    weights, truth = mix(arm, seed), world(seed)[0]
    x, last = (drawn(w, seed, "report", REPORTED) for w in (weights, checkpoints(seed)[-1]))
    return {"mmd_1": 1000 * mmd_to(x, truth), "search": -judged(weights, seed), **axes(x, truth, base=last)}


def run(seed: int) -> dict[str, dict[str, float]]:
    """All arms."""
    tuned()
    checkpoints(seed)
    return {arm: figures(arm, seed) for arm in ("lcsc", "ema", "uniform", "last")}


CLAIM = Claim(
    component="lcsc",
    papers=(174,),
    source="arXiv 2404.02241",
    says="A searched mix of a consistency model's checkpoints draws better in one step than the last of them, than the best running "
    "average of a grid, and than their uniform soup.",
    world="mixtures of five modes in the plane, a consistency model trained from nothing; exact discrepancy from the truth",
    expect="lcsc < ema : mmd_1",
    also=("lcsc < last : mmd_1", "lcsc < uniform : mmd_1"),
    measure="mmd_1",
    seeds=SEEDS,
    run=run,
    absent={"alignment": NO_REWARD},
    budget_s=150,
    note="Sixteen checkpoints, ten steps apart, at a steady rate. The search sees 200 mixes, each by 700 samples and 700 training "
    "points, which choose among the averages too; reported are 2,000 fresh samples against the truth. search: the figure that was "
    "searched by. The size of a move is chosen between 0.1 and 0.3 on a world that is not reported. The cost of an arm is that "
    "of its search, without the run.",
)
