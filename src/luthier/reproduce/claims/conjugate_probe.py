"""Is in-context regression erased by tuning on a few tasks, or only hidden, so that scaled labels bring it back?

A small transformer without positions learns regression in context on prompts from three known tasks and from a Gaussian. It is
then tuned on the known tasks alone. Its error on Gaussian tasks is measured against ridge regression, plainly and with labels
multiplied by gamma and answers divided by it.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core import stream
from luthier.core.streams import seed_of
from luthier.lab.micro.in_context import InContextWorld
from luthier.measure.diagnose.conjugate_probe import conjugated
from luthier.reproduce.claim import TUNING_SEED, Claim

TASKS, INPUTS, LONGEST = 3, 2, 8
WIDTH, LAYERS, HEADS, BATCH = 32, 2, 4, 64
STEPS, TUNING_STEPS, TEST = 1500, 150, 2000
GAMMAS = (1.5, 2.0, 3.0)
Prompt = tuple[Tensor, Tensor, Tensor]
WORLD = InContextWorld.random(TASKS, INPUTS, seed=0, noise=1.0)


class Regressor(nn.Module):
    """(x (n, k, d), y (n, k), query (n, d)) -> prediction (n,): one token for each pair and one for the query."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, 0.0, nn.functional.gelu, batch_first=True, norm_first=True
        )
        self.read = nn.Linear(INPUTS + 2, WIDTH)
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.say = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """The prediction, (n,)."""
        pairs = torch.cat([x, y[..., None], torch.zeros_like(y[..., None])], -1)
        asked = torch.cat([query, query.new_zeros(len(query), 1), query.new_ones(len(query), 1)], -1)[:, None]
        return self.say(self.body(self.read(torch.cat([pairs, asked], 1)))[:, -1])[:, 0]


def prompts(n: int, k: int, g: torch.Generator, share: float | None = None) -> tuple[Prompt, Tensor]:
    """Prompts with k pairs, and the answers (n,)."""
    x, y = (t.float() for t in WORLD.sample(n, k + 1, g, share))
    return (x[:, :k], y[:, :k], x[:, k]), y[:, k]


def trained(net: Regressor, steps: int, lr: float, seed: int, role: str, share: float | None = None) -> Regressor:
    """The network after Adam on fresh prompts of every length."""
    search: Any = torch.optim.Adam(net.parameters(), lr=lr)
    plan: Any = torch.optim.lr_scheduler.OneCycleLR(search, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        g = stream(seed, role, step)
        given, y = prompts(BATCH, int(torch.randint(1, LONGEST + 1, (), generator=g)), g, share)
        search.zero_grad()
        (net(*given) - y).square().mean().backward()
        search.step()
        plan.step()
    return net.eval()


@functools.cache
def pretrained() -> Regressor:
    """The base of all seeds."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(0, "claim.conjugate_probe.start"))
        net = Regressor()
    return trained(net, STEPS, 3e-3, 0, "claim.conjugate_probe.pretraining")


def tuned(seed: int) -> Regressor:
    """The base after tuning on the few tasks."""
    return trained(copy.deepcopy(pretrained()), TUNING_STEPS, 1e-3, seed, "claim.conjugate_probe.tuning", share=1.0)


def excess(net: Regressor, seed: int, gamma: float = 1.0) -> float:
    """Mean squared distance to ridge regression on prompts of Gaussian tasks, with labels scaled by gamma."""
    given, _ = prompts(TEST, LONGEST, stream(seed, "claim.conjugate_probe.test"), share=0.0)
    best = WORLD.ridge(*(t.double() for t in given))
    with torch.no_grad():
        said = conjugated(lambda p: net(*p), lambda p: (p[0], gamma * p[1], p[2]), lambda a: a / gamma)(given)
    return float((said - best).square().mean())


@functools.cache
def best_gamma() -> float:
    """The scale that helps a tuned model most, at a seed that is not reported."""
    net = tuned(TUNING_SEED)
    return min(GAMMAS, key=lambda gamma: excess(net, TUNING_SEED, gamma))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Excess error on Gaussian tasks of base and tuned model, plainly and through scaled labels."""
    nets = {"base": pretrained(), "tuned": tuned(seed)}
    scales = {"": 1.0, "_through": best_gamma()}
    return {name + end: {"excess": excess(net, seed, g)} for name, net in nets.items() for end, g in scales.items()}


CLAIM = Claim(
    component="conjugate_probe",
    papers=(150,),
    source="arXiv 2309.10105",
    says="Tuning on a few tasks raises the error on all others, and conjugate prompting (scaled labels) takes part of that rise "
    "back, though it does not help the model before tuning.",
    world="regression in context: three known tasks and a Gaussian, two inputs, eight pairs, noise 1; a transformer of two layers",
    expect="tuned_through < tuned",
    also=("tuned > base", "base_through > base"),
    measure="excess",
    seeds=tuple(range(8)),
    run=run,
    budget_s=90,
    note="One base serves all seeds, which draw the tuning prompts and the test prompts. gamma is the best of three at a seed that "
    "is not reported. The excess is taken over ridge regression, which is optimal on the tested prompts. The noise leaves the task "
    "in doubt: a predictor by Bayes' rule that takes the known tasks for 99 % likely instead of 50 % has an excess of 0.31 instead "
    "of 0.04, and scaled labels undo it. With noise 0.3 eight pairs tell the task, and that predictor would lose 0.013: nothing "
    "to hide, and nothing to bring back.",
)
