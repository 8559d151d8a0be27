"""Does the vector of one new word learn an object from five images, and leave the rest of the model alone?"""

from __future__ import annotations

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._concept import WEIGHTS, WORD, Lesson

LESSON = Lesson(
    {
        "word": ({"adapt": WORD, "objective": "denoise"}, (5e-3, 2e-2)),
        "weights": ({"adapt": WEIGHTS, "objective": "denoise"}, (1e-3, 2e-3)),
    },
    by=("alignment/log_probability",),
)

CLAIM = Claim(
    component="textual_inversion",
    papers=(),
    source="arXiv 2208.01618",
    says="The vector of a new word alone, learned from five images, draws an object nearer to what is asked than the word that it began "
    "as, and keeps the rest of the model where training weights beside it does not.",
    world="image: five flags, an object that the base never saw, under a new word; 14 unseen captions of it, 32 others",
    expect="word > start",
    also=("word > start : new", "word > weights : other", "word > weights : class", "weights > word"),
    measure="alignment/log_probability",
    seeds=tuple(range(5)),
    run=LESSON.run,
    budget_s=150,
    note="80 steps of 16 images. weights: a LoRA of rank 8 learns beside the word. start: the word means square. new, class, other: "
    "shares of images of the object, of squares and of other shapes that are exactly as asked. Two rates for each arm, chosen by the "
    "measure on other captions at a seed that is not reported. The paper is no row of the index.",
)
