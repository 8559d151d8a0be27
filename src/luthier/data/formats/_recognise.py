"""From column names to a format: what the columns of a record can be, and how the answer is put in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import ConfigError, DataError, unknown

KIND = {"messages": "text", "sharegpt": "text", "prompt/response": "text", "alpaca": "text", "text": "text",
        "preference": "preference", "scored": "scored", "feedback": "feedback", "judged": "judged", "set": "set",
        "prompts": "prompts", "query/positive": "pairs"}  # fmt: skip
ALIASES = {"chat": "messages", "prompt-response": "prompt/response", "pairs": "prompt/response",
           "instruction": "alpaca", "prompts+answer": "prompts", "plain": "text"}  # fmt: skip
NAMES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "chat"),
    "prompt": ("prompt", "instruction", "question", "query", "problem"),
    "response": ("response", "completion", "output", "solution", "answer", "target"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "text": ("text", "content", "document"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "responses": ("responses", "completions", "candidates", "answers"),
    "scores": ("scores", "rewards", "ratings", "weights"),
    "label": ("label", "desirable"),
    "judgment": ("judgment", "judgement"),
    "tags": ("tags", "modes"),
    "answer": ("answer", "ground_truth", "solution", "final_answer", "target", "reference"),
    "system": ("system",),
    "query": ("query", "anchor", "sentence1", "question", "prompt"),
    "positive": ("positive", "passage", "sentence2", "answer", "response", "document"),
    "negative": ("negative", "hard_negative"),
}
NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "preference": (("chosen", "rejected"),),
    "scored": (("prompt", "responses"),),
    "feedback": (("messages", "label"), ("prompt", "response", "label")),
    "judged": (("prompt", "response", "judgment"),),
    "set": (("prompt", "responses", "tags"),),
    "sharegpt": (("messages",),),
    "messages": (("messages",),),
    "alpaca": (("instruction", "response"),),
    "prompt/response": (("prompt", "response"),),
    "text": (("text",),),
    "prompts": (("messages",), ("prompt",)),
    "query/positive": (("query", "positive"), ("text", "label")),
}
OPTIONAL = {"preference": ("prompt", "input"), "scored": ("scores",), "alpaca": ("input",), "messages": ("system",),
            "sharegpt": ("system",), "prompts": ("answer", "input"), "query/positive": ("negative",)}  # fmt: skip
SAID = {
    "messages": "{messages} are the turns of a chat",
    "sharegpt": "the from/value turns of {messages} become user, assistant, tool and system messages",
    "prompt/response": "{prompt} is the prompt, {response} the response",
    "alpaca": "{instruction}{input} is the user turn, {response} the assistant turn",
    "text": "each {text} is one document", "preference": "{chosen} is preferred to {rejected}{prompt}",
    "scored": "{responses} answer {prompt}, each with its score",
    "judged": "{judgment} is said of {response}, the answer to {prompt}",
    "set": "{responses} all answer {prompt}, each behind one of {tags}",
    "feedback": "{label} judges the last answer", "prompts": "{prompt}{input} is completed by the model{answer}",
    "query/positive": "{belong}",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A format and the column behind each of its canonical names."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return KIND[self.format]

    def sentence(self) -> str:
        """How the columns are read, in words."""
        c = self.columns
        words = dict(c) | {
            "input": f" + {c['input']} (where given, after a blank line)" if "input" in c else "",
            "answer": f"; {c['answer']} is the reference answer" if "answer" in c else "",
        }
        if self.format == "preference":
            words["prompt"] = f" as answer to {c['prompt']}{words['input']}" if "prompt" in c else (
                " after messages" if "messages" in c else "; the prompt is what both share")  # fmt: skip
        words["belong"] = (f"{c['query']} and {c['positive']} belong together" if "query" in c else
                           f"each {c.get('text')} belongs with others of its {c.get('label')}")  # fmt: skip
        words.setdefault("prompt", c.get("messages", "prompt"))
        return SAID[self.format].format(**words)


def standard(name: str) -> tuple[str, str | None]:
    """(format, text unit) of a format name that a recipe wrote. Raises ConfigError with the nearest names.

    >>> standard("text:lines"), standard("chat")
    (('text', 'lines'), ('messages', None))
    """
    from luthier.data.formats._files import TEXT_UNITS

    base, _, unit = name.partition(":")
    base = ALIASES.get(base.lower(), base.lower())
    if base not in KIND:
        raise ConfigError(f"data.format: {unknown('format', name, [*KIND, *ALIASES])}")
    if unit and (base != "text" or unit not in TEXT_UNITS):
        raise ConfigError(f"data.format: requires text:{'|'.join(TEXT_UNITS)}; got {name!r}")
    return base, unit or None


def _find(canonical: str, columns: Collection[str], taken: Collection[str] = ()) -> str | None:
    lower = {c.lower(): c for c in columns}
    return next((lower[n] for n in NAMES[canonical] if n in lower and lower[n] not in taken), None)


def columns_for(fmt: str, columns: Collection[str]) -> dict[str, str] | None:
    """The column behind each name that a format needs, or None if one is missing."""
    for needed in NEEDS[fmt]:
        found: dict[str, str] = {}
        for name in needed:
            column = _find(name, columns, found.values())
            if column is None:
                break
            found[name] = column
        else:
            for name in OPTIONAL.get(fmt, ()):
                if name == "input" and found.get("instruction", found.get("prompt", "")).lower() != "instruction":
                    continue
                if column := _find(name, columns, found.values()):
                    found[name] = column
            if fmt == "preference" and "prompt" not in found and (chat := _find("messages", columns, found.values())):
                found["messages"] = chat
            return found
    return None


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _chat(value: Any) -> list[Any]:
    from luthier.data.formats._rows import Unfit, from_json

    try:
        value = from_json(value, "", "[")
    except Unfit:
        return []
    return value if isinstance(value, list) and all(isinstance(m, Mapping) for m in value) else []


def recognise(record: Mapping[str, Any]) -> Plan | None:
    """The most specific format that the columns of one record fit, or None."""
    present = [str(k) for k, v in record.items() if v is not None]

    def plan(fmt: str) -> Plan | None:
        found = columns_for(fmt, present)
        return None if found is None else Plan(fmt, found)

    if made := plan("preference"):
        return made
    if (made := plan("scored")) and isinstance(record[made.columns["responses"]], (list, str)):
        answers = record[made.columns["responses"]]
        if "scores" in made.columns or (isinstance(answers, list) and answers and isinstance(answers[0], Mapping)):
            return made
    if (made := plan("set")) and all(isinstance(record[made.columns[c]], list) for c in ("responses", "tags")):
        return made
    chat = _find("messages", present)
    if chat and (turns := _chat(record[chat])):
        if (made := plan("feedback")) and _is_truth(record[made.columns["label"]]):
            return made
        roles = {str(m.get("role", m.get("from"))).lower() for m in turns}
        if not roles & {"assistant", "gpt", "model", "bot", "chatgpt", "function_call", "tool_call"}:
            return plan("prompts")
        return plan("sharegpt" if "from" in turns[0] else "messages")
    if (made := plan("feedback")) and "messages" not in made.columns and _is_truth(record[made.columns["label"]]):
        return made
    if made := plan("judged"):
        return made
    lower = {c.lower() for c in present}
    named = {"response", "completion", "output"} & lower
    if "instruction" in lower and named and (made := plan("alpaca")):
        return made
    if {"prompt", "problem"} & lower and not named and {"answer", "ground_truth"} & lower and "solution" not in lower:
        return plan("prompts")
    if made := plan("prompt/response"):
        return made
    if {"input", "output"} <= lower:
        exact = {c.lower(): c for c in present}
        return Plan("prompt/response", {"prompt": exact["input"], "response": exact["output"]})
    return plan("text") or plan("prompts")


def asked(fmt: str, columns: Collection[str], where: str) -> Plan:
    """The plan for a format that was asked for. Raises DataError naming the columns that it needs."""
    found = columns_for(fmt, columns)
    if found is None:
        needs = " or ".join(
            " + ".join(f"{n} (or {', '.join(NAMES[n][1:])})" if NAMES[n][1:] else n for n in group)
            for group in NEEDS[fmt]
        )
        raise DataError(
            f"{where} as {fmt} requires the columns {needs}; got {', '.join(sorted(columns)) or 'none'}. "
            f"Map them with data.fields, e.g. {{{NEEDS[fmt][0][0]}: YOUR_COLUMN}}."
        )
    return Plan(fmt, found)
