"""Do class images of the model's own keep the class while an object is learned from five images?"""

from __future__ import annotations

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._concept import CLASS, WEIGHTS, Lesson

RATES = (1e-3, 2e-3)
LESSON = Lesson(
    {
        "dreambooth": ({"adapt": WEIGHTS, "objective": {"dreambooth": {"prior": CLASS, "images": 32}}}, RATES),
        "denoise": ({"adapt": WEIGHTS, "objective": "denoise"}, RATES),
    },
    by=("new", "class"),
)

CLAIM = Claim(
    component="dreambooth",
    papers=(),
    source="arXiv 2208.12242",
    says="Training beside class images that the untrained model drew keeps the class of a subject, and the rest, while the subject is "
    "learned.",
    world="image: five flags, an object that the base never saw, under a new word; its class are squares; 32 captions without it",
    expect="dreambooth > denoise",
    also=("dreambooth > denoise : other", "dreambooth > denoise : new", "dreambooth < denoise : drift/base"),
    measure="class",
    seeds=tuple(range(5)),
    run=LESSON.run,
    budget_s=150,
    note="80 steps of 16 images, a LoRA of rank 8 and the word's vector in both arms; 32 class images. new, class, other: shares of "
    "images of the object, of squares and of other shapes that are exactly as asked. Two rates for each arm, chosen by new and class "
    "together on other captions at a seed that is not reported. start: the model before training. The paper is no row of the index.",
)
