"""BARE: a base model drafts varied examples, an instruction-tuned one repairs each by itself.

Paper: arXiv 2502.01697.   Formula: draft ~ base(. | few examples); row = refiner(. | few examples, draft).
Takes: a few examples, two samplers (prompts -> one text each).   Gives: n rows with prompt and response, or fewer.
Choose it when: an instruction-tuned model writes the same few examples over and over.   Rather not when: the refiner
cannot solve what the base drafts.
Relatives: data.select.grape (picks among answers), prismatic (picks what is rare).

>>> drafts = lambda prompts: ["2 + 2\\nAnswer: 5\\nEnd of example"] * len(prompts)
>>> repaired = lambda prompts: ["Question: 2 + 2\\nAnswer: 4"] * len(prompts)
>>> made = BaseRefine()([{"prompt": "1 + 1", "response": "2"}], 1, base=drafts, refiner=repaired)
>>> made.drafts[0]["response"], made.rows[0]["response"]
('5', '4')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from luthier.core import Card, Needs, Row, component
from luthier.core.errors import DataError, sentence
from luthier.core.streams import python_stream
from luthier.data.synthesise._makers import BEGIN, END, QUESTION, Made, Sampler, Synthesise, checked, read, written

CARD = Card(
    name="BARE",
    source="arXiv 2502.01697",
    papers=(281,),
    needs=Needs(batch=("text",), handles=("base", "refiner")),
    cost="one sample of the base and one of the refiner for each row, and some more for texts that cannot be read",
    limits=(
        "a refiner that returns the draft gives the base's rows, as no refiner does",
        "the refiner sees one draft at a time: the order of drafts does not change any row",
        "the similarity of copies is 1 and does not depend on the order",
    ),
    differs=(
        "the words of both prompts are this project's; the authors write them for each task",
        "drafts that cannot be read are drawn again `retries` times; the authors' code leaves them out",
        "examples are the same in all prompts, as in the authors' runs of BARE, or drawn for each draft with `drawn`",
        "temperatures belong to the samplers: 0.7 for both in the authors' code",
    ),
    use_when="few examples are given and many, different ones are wanted",
    avoid_when="a base model without instruction tuning is not at hand",
    relatives=("data.select.prismatic", "data.select.grape"),
    mechanism="data builder",
)
DRAFT = "Draft:"
TASK = "Here are examples of one kind of question, each with its right answer."
REPAIR = (
    "Correct the draft below so that its question is clear and of the same kind and its answer is right and in the same form "
    "as in the examples. Keep its idea. Write the corrected question and answer only."
)


def shown(examples: Sequence[Row]) -> str:
    """Examples between their marks, as both prompts show them."""
    return "\n\n".join(f"{BEGIN}\n{written(row)}\n{END}" for row in examples)


def base_prompt(examples: Sequence[Row]) -> str:
    """Text that a base model goes on from: the examples and the beginning of another one."""
    return f"{TASK}\n\n{shown(examples)}\n\n{BEGIN}\n{QUESTION}"


def refine_prompt(examples: Sequence[Row], draft: Row) -> str:
    """What the refiner is asked; the draft comes last, after `Draft:`."""
    return f"{TASK}\n\n{shown(examples)}\n\n{REPAIR}\n\n{DRAFT}\n{written(draft)}"


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class BaseRefine(Synthesise):
    """shots: examples in a prompt; drawn: whether they are drawn anew for each draft (else the first ones); retries: more
    rounds for drafts that cannot be read; seed: of the examples drawn."""

    shots: Annotated[int, Ge(1)] = 3
    drawn: bool = False
    retries: Annotated[int, Ge(0)] = 2
    seed: int = 0

    def __call__(self, examples: Sequence[Row], n: int, **samplers: Sampler) -> Made:
        """n rows, or fewer where texts cannot be read; samplers: base, and refiner (leave it out to keep the drafts).

        Raises DataError for bad examples, n < 1, unknown samplers, and samplers that give another number of texts.
        """
        checked(examples, "base_refine")
        if n < 1 or "base" not in samplers or set(samplers) - {"base", "refiner"}:
            came = f"n = {n} and the samplers {', '.join(samplers) or 'none'}"
            raise DataError(sentence("base_refine", "n >= 1 and the samplers base and refiner", came, "Check the call"))
        drafts, told, lost = [], [], 0
        for turn in range(self.retries + 1):
            few = [self._few(examples, turn * n + i) for i in range(n - len(drafts))]
            texts = _asked(samplers["base"], [base_prompt(f) for f in few], "base")
            for text, own in zip(texts, few, strict=True):
                row = read(f"{QUESTION} {text}")
                drafts += [] if row is None else [row]
                told += [] if row is None else [own]
            lost += n - len(drafts)
            if len(drafts) == n:
                break
        if "refiner" not in samplers:
            return Made(tuple(drafts), tuple(drafts), {"draft": lost, "refined": 0})
        prompts = [refine_prompt(own, draft) for own, draft in zip(told, drafts, strict=True)]
        refined = [read(text) for text in _asked(samplers["refiner"], prompts, "refiner")]
        kept = [(row, draft) for row, draft in zip(refined, drafts, strict=True) if row is not None]
        rows, sources = [row for row, _ in kept], [draft for _, draft in kept]
        return Made(tuple(rows), tuple(sources), {"draft": lost, "refined": len(drafts) - len(rows)})

    def _few(self, examples: Sequence[Row], number: int) -> list[Row]:
        k = min(self.shots, len(examples))
        rng = python_stream(self.seed, "data.synthesise.base_refine", number)
        return rng.sample(list(examples), k) if self.drawn else list(examples[:k])


def _asked(sample: Sampler, prompts: Sequence[str], who: str) -> Sequence[str]:
    texts = sample(prompts) if prompts else []
    if len(texts) != len(prompts):
        came = f"{len(texts)} for {len(prompts)}"
        raise DataError(sentence(f"the sampler {who}", "one text for each prompt", came, "Check the sampler"))
    return texts
