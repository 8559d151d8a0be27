"""Do two guide prompts find more different right answers than a warmer model that goes as far from its own beliefs?

Questions with a hundred possible answers of one token: some questions have one right answer, others twenty. A toy model knows
them, with favourites, and obeys imperfectly: told to differ it lowers the answers that it is shown by different amounts, told to
repeat it raises them, and being told anything shifts all answers a little. Ten answers are drawn one after the other.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Generator, Tensor

from luthier.core import stream
from luthier.decode.guidance.g2 import guide
from luthier.models.generation import draw
from luthier.reproduce.claim import Claim

QUESTIONS, ANSWERS, RIGHT, DRAWS, REPEATS = 40, 100, 20, 10, 20
GAMMAS, THRESHOLD = (0.25, 0.5, 1.0, 2.0), 0.5
TEMPERATURES = tuple(1 + 0.05 * i for i in range(41))


def world(seed: int) -> tuple[Tensor, Tensor]:
    """(logits, whether right), (questions, answers): every second question has one right answer."""
    g = stream(seed, "claim.g2.world")
    logits = torch.randn(QUESTIONS, ANSWERS, generator=g, dtype=torch.float64)
    right = torch.zeros(QUESTIONS, ANSWERS, dtype=torch.bool)
    right[::2, :1] = right[1::2, :RIGHT] = True
    logits += torch.where(right, 5.0, 0.0)
    logits[1::2, :RIGHT] += 1.5 * torch.randn(QUESTIONS // 2, RIGHT, generator=g, dtype=torch.float64)
    logits[::2, :1] += 4.0
    return logits, right


def told(logits: Tensor, shown: Tensor, sign: float, shift: Tensor, generator: Generator) -> Tensor:
    """Logits after an instruction: shown answers move by 1 to 3 nats, all by a shift that both instructions share and noise."""
    amount = 1 + 2 * torch.rand(logits.shape, generator=generator, dtype=logits.dtype)
    noise = 0.3 * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    return logits + sign * amount * shown + shift + noise


def answers(seed: int, gamma: float, temperature: float, alone: bool = False) -> dict[str, float]:
    """Different right answers among the draws of a question, and the plain model's mean nats per answer."""
    base, right = (t.repeat_interleave(REPEATS, 0) for t in world(seed))
    g = stream(seed, "claim.g2.obedience")
    uniform = torch.rand(len(base), DRAWS, generator=stream(seed, "claim.g2.draws"))
    shift = torch.randn(base.shape, generator=g, dtype=base.dtype)
    seen, nats = torch.zeros_like(base), torch.zeros(len(base), dtype=base.dtype)
    for i in range(DRAWS):
        z = base
        if gamma and i:
            differ, repeat = (told(base, seen, sign, shift, g) for sign in (-1.0, 1.0))
            z = guide(base, differ, base if alone else repeat, gamma, THRESHOLD)
        chosen = draw(z, temperature, uniform[:, i])[:, None]
        nats += -base.log_softmax(-1).gather(-1, chosen)[:, 0] / DRAWS
        seen.scatter_(-1, chosen, 1.0)
    return {"distinct": float((seen * right).sum(-1).mean()), "nll": float(nats.mean())}


@functools.lru_cache(2)
def warmer(seed: int) -> list[dict[str, float]]:
    """The model alone at rising temperatures."""
    return [answers(seed, 0.0, t) for t in TEMPERATURES]


def matched(seed: int, nll: float) -> float:
    """Different right answers of the model alone where its nats per answer are those given, between two temperatures."""
    rows = warmer(seed)
    for low, high in itertools.pairwise(rows):
        if low["nll"] <= nll <= high["nll"]:
            share = (nll - low["nll"]) / (high["nll"] - low["nll"])
            return low["distinct"] + share * (high["distinct"] - low["distinct"])
    return min(rows, key=lambda r: abs(r["nll"] - nll))["distinct"]


def run(seed: int) -> dict[str, dict[str, float]]:
    """Mean over strengths of different right answers, and of a warmer model at the same nats for each arm."""
    out: dict[str, dict[str, float]] = {}
    for arm, alone in (("g2", False), ("one_guide", True)):
        found = [answers(seed, gamma, 1.0, alone) for gamma in GAMMAS]
        out[arm] = {k: sum(f[k] for f in found) / len(found) for k in ("distinct", "nll")}
        beside = [matched(seed, f["nll"]) for f in found]
        out[f"warmer_than_{arm}"] = {"distinct": sum(beside) / len(beside), "nll": out[arm]["nll"]}
    return out


CLAIM = Claim(
    component="g2",
    papers=(302,),
    source="arXiv 2511.00432",
    says="Guided away from earlier answers, a model gives more different right answers than a warmer one as far from its beliefs.",
    world="40 questions of 1 or 20 right answers among 100; a toy model that obeys imperfectly; ten answers each, 20 repeats",
    expect="g2 > warmer_than_g2",
    also=("one_guide > warmer_than_one_guide",),
    measure="distinct",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="The warmer model's temperature is set for each strength so that the plain model's mean nats per answer are the same. That "
    "the model obeys at all is built into the world: what is tried is the difference of two guides and its gate. one_guide "
    "takes the difference of the diversity guide and the base.",
)
