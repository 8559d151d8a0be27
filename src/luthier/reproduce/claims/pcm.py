"""Do phases make a distilled model better with more steps, where plain consistency distillation stalls?"""

from __future__ import annotations

from luthier.diffusion.consistency.consistency_distillation import ConsistencyDistillation
from luthier.diffusion.consistency.pcm import PCM
from luthier.diffusion.samplers.consistency import Consistency
from luthier.diffusion.samplers.euler import Euler
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._few_steps import Trial

TRIAL = Trial(
    {"pcm": (PCM(phases=4, steps=20), Euler()), "distillation": (ConsistencyDistillation(steps=20), Consistency())},
    steps=300,
    counts=(1, 2, 4),
    by="mmd_4",
)

CLAIM = Claim(
    component="pcm",
    papers=(100,),
    source="arXiv 2405.18407",
    says="PCM beats latent consistency distillation at every number of steps from 1 to 16.",
    world="mixtures of five modes in the plane, a small network as teacher; exact discrepancy from the truth",
    expect="pcm < distillation : mmd_4",
    also=("pcm < distillation : mmd_2", "pcm < distillation : mmd_1"),
    measure="mmd_4",
    seeds=tuple(range(5)),
    run=TRIAL.run,
    budget_s=150,
    note="Four phases, as many as the steps of the main figure, without the adversarial loss. The student of plain "
    "distillation is sampled by the multistep consistency sampler, that of pcm by deterministic jumps. Rates of each arm are "
    "chosen by the main figure on a world that is not reported.",
)
