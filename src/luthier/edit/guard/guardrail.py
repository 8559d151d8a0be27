"""Guardrails: make a model look as if it had unlearned something, by an instruction or a filter around untouched weights.

Paper: arXiv 2403.03329.
Formula: with forbidden(t) = some forbidden phrase stands in t: instruction: M(instruction + prompt); input: the refusal if
forbidden(prompt), else M(prompt); output: the refusal if forbidden(M(prompt)), else M(prompt).
Takes: any subject and a list of phrases.   Gives: a subject that generates behind the guard and scores as before.
Choose it when: comparing unlearning methods: what does a plain filter score?   Rather not when: weights are given away.
Relatives: edit_success and old_data (the same figures as for a weight edit), locft (edits the weights).

>>> forbidden("Tell me about ROME.", ("rome",)), forbidden("a Romeo", ("rome",))
(True, False)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from luthier.core import Card, Needs, Subject, component
from luthier.core.component import Component
from luthier.core.errors import ConfigError, sentence

CARD = Card(
    name="guardrail baselines",
    source="arXiv 2403.03329",
    papers=(372,),
    needs=Needs(handles=("subject",)),
    cost="none beside the generation; the input filter saves it where it refuses",
    limits=(
        "no forbidden phrase: the very answers of the subject (for the instruction: no change of the prompt)",
        "weights are untouched and every score of a text (logp) is the subject's own, bit for bit",
        "the input filter refuses exactly the prompts with a forbidden phrase, the output filter exactly such answers",
    ),
    differs=(
        "phrases are found as whole words without regard to letter case; a judge of one's own (a classifier, another model's "
        "verdict) is the argument `judge` of `Guarded`",
        "the words of the instruction are ours; the paper writes them for each benchmark",
        "the instruction is a part of the prompt, so it is not part of the scores, which are those of the bare model",
    ),
    use_when="an unlearning method is reported: the guardrail is what it must beat",
    avoid_when="the weights can be reached: they hold all that the guard hides",
    relatives=("measure.quality.edit_success", "edit.locate.locft", "measure.forgetting.old_data"),
    mechanism="wrapper of a subject",
)
Kind = Literal["instruction", "input", "output"]
Judge = Callable[[str], bool]


def forbidden(text: str, phrases: Sequence[str]) -> bool:
    """Whether one of the phrases stands in the text, as whole words and in any letter case."""
    plain = " ".join(text.split()).casefold()
    return any(re.search(rf"(?<!\w){re.escape(' '.join(p.split()).casefold())}(?!\w)", plain) for p in phrases)


def words(prompt: Any) -> str:
    """All text of a prompt: itself, or the contents of all its messages."""
    return prompt if isinstance(prompt, str) else "\n".join(str(m.get("content", "")) for m in prompt)


def instructed(prompt: Any, instruction: str) -> Any:
    """The prompt after an instruction: before its text, or as a first system message (joined to one that is there)."""
    if isinstance(prompt, str):
        return f"{instruction}\n{prompt}"
    first, *rest = prompt
    if first.get("role") == "system":
        return [{**first, "content": f"{instruction}\n{first['content']}"}, *rest]
    return [{"role": "system", "content": instruction}, *prompt]


@dataclass(frozen=True)
class Guarded:
    """A subject behind a guard. judge: text -> whether it is forbidden; instruction: what stands before each prompt."""

    inner: Subject
    kind: Kind
    judge: Judge
    refusal: str
    instruction: str = ""

    def generate(self, prompts: Sequence[Any], *, samples: int = 1, temperature: float = 1.0, max_new: int = 64,
                 role: str = "measure") -> list[list[str]]:  # fmt: skip
        """`samples` completions per prompt, refusals in place of what the guard stops."""

        def ask(given: Sequence[Any]) -> list[list[str]]:
            asked: dict[str, Any] = {"samples": samples, "temperature": temperature, "max_new": max_new, "role": role}
            return self.inner.generate(given, **asked) if given else []

        if self.kind == "instruction":
            return ask([instructed(p, self.instruction) for p in prompts] if self.instruction else prompts)
        if self.kind == "output":
            return [[self.refusal if self.judge(t) else t for t in texts] for texts in ask(prompts)]
        stopped = [self.judge(words(p)) for p in prompts]
        if not any(stopped):
            return ask(prompts)
        passed = iter(ask([p for p, stop in zip(prompts, stopped, strict=True) if not stop]))
        return [[self.refusal] * samples if stop else next(passed) for stop in stopped]

    def logp(self, prompts: Sequence[Any], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The bare model's: a guard changes texts, not probabilities."""
        return self.inner.logp(prompts, responses)

    def base(self) -> Subject:
        """The model without the guard."""
        return self.inner


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Guardrail(Component):
    """phrases: what must not be spoken of; kind: where the guard stands; refusal: what is said in place.

    instruction: text before each prompt (kind instruction), with {phrases} for the phrases.
    """

    room: ClassVar[str] = "edit"
    phrases: tuple[str, ...]
    kind: Literal["instruction", "input", "output"] = "output"
    refusal: str = "I cannot help with that."
    instruction: str = "Do not say anything about the following, and refuse if you are asked about it: {phrases}."

    def __post_init__(self) -> None:
        if any(not p.strip() for p in self.phrases):
            raise ConfigError(
                sentence("guardrail", "phrases with a word in them", repr(self.phrases), "Remove the empty one")
            )

    def __call__(self, subject: Subject) -> Guarded:
        """The subject behind this guard; the subject itself is not changed."""
        told = self.instruction.replace("{phrases}", ", ".join(self.phrases)) if self.phrases else ""
        return Guarded(subject, self.kind, lambda text: forbidden(text, self.phrases), self.refusal, told)
