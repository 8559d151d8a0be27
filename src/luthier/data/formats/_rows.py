"""One record to one canonical row, or the reason why it does not fit.

Canonical rows:
text        {"messages": [{"role", "content", ...}]}, {"prompt", "response"} or {"text"}
preference  {"prompt", "chosen", "rejected"}, each a string or a list of messages
scored      {"prompt", "responses": [...], "scores": [...]}
feedback    {"prompt", "response", "label": bool}
judged      {"prompt", "response", "judgment"}, where the judgment is empty for an answer without fault
set         {"prompt", "tags": [...], "responses": [...]}
prompts     {"prompt"} and, where the data has one, "answer"
pairs       {"query", "positive"} and, where the data has one, "negative"; or {"text", "label"}
Columns that a format does not use stay under their own names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

ROLES = {"system": "system", "developer": "developer", "user": "user", "human": "user", "assistant": "assistant",
         "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "tool": "tool",
         "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool",
         "function_call": "call", "tool_call": "call"}  # fmt: skip
SWITCHES = ("train", "weight", "loss")
JSON_COLUMNS = ("messages", "responses", "tags", "scores", "tools", "chosen", "rejected", "prompt")
Row = dict[str, Any]


class Unfit(Exception):
    """Why a record is no row of this format."""


def text(value: Any, column: str, *, empty: bool = False) -> str:
    """A string of real characters. Raises Unfit for null, other types, blank (unless `empty`), lone surrogates."""
    if value is None:
        raise Unfit(f"{column} is null")
    if not isinstance(value, str):
        raise Unfit(f"{column} is a {type(value).__name__}, not text")
    if not empty and not value.strip():
        raise Unfit(f"{column} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as fault:
            raise Unfit(f"{column} holds half of a character (a lone surrogate) at position {fault.start}") from None
    return value


def from_json(value: Any, column: str, opening: str = "[{") -> Any:
    """A list or object that a table column holds as JSON text."""
    if isinstance(value, str) and value.strip()[:1] and value.strip()[0] in opening:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise Unfit(f"{column} looks like JSON but is not: {value.strip()[:40]!r}") from None
    return value


def _content(value: Any, at: str, *, empty: bool) -> str:
    """Message content: a string, or a list of text parts, which is joined."""
    if isinstance(value, list):
        parts = []
        for part in value:
            if not isinstance(part, Mapping) or part.get("type", "text") != "text":
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise Unfit(f"{at} has a content part of type {kind!r}; only text is read here")
            parts.append(text(part.get("text"), f"{at} text part", empty=True))
        value = "".join(parts)
    return text(value, f"{at} content", empty=empty)


def _call(value: Any, at: str) -> list[Row]:
    """Tool calls in the form that chat templates read, from JSON text or objects of {name, arguments}."""
    value = from_json(value, at)
    calls = []
    for one in value if isinstance(value, list) else [value]:
        inner = one.get("function", one) if isinstance(one, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise Unfit(f"{at} requires {{name, arguments}}; got {str(one)[:60]!r}")
        arguments = from_json(inner.get("arguments", inner.get("parameters", {})), f"{at} arguments", "{")
        kept = {k: v for k, v in one.items() if k not in ("function", "name", "arguments", "parameters", "type")}
        calls.append({**kept, "type": "function", "function": {"name": inner["name"], "arguments": arguments}})
    return calls


def _switch(raw: Mapping[str, Any], at: str, role: str) -> Row:
    """{"train": bool} from `train`, `weight` (0 or 1) or `loss`; nothing if none is given."""
    given = {k: raw[k] for k in SWITCHES if raw.get(k) is not None}
    if not given:
        return {}
    values = set()
    for key, value in given.items():
        if value not in (0, 1) or isinstance(value, str):
            raise Unfit(f"{at} {key} is {value!r}; a turn is trained (1, true) or not (0, false)")
        values.add(bool(value))
    if len(values) > 1:
        raise Unfit(f"{at} says both {' and '.join(f'{k}: {v}' for k, v in given.items())}")
    if role != "assistant" and values == {True}:
        raise Unfit(
            f"{at} asks to train a {role} turn; only assistant turns are trained (or every token, with train_on: all)"
        )
    return {"train": values.pop()} if role == "assistant" else {}


def message(raw: Any, number: int) -> Row:
    """One message as {"role", "content", ...} with the field's usual role names, from OpenAI or ShareGPT spelling."""
    at = f"message {number}"
    if not isinstance(raw, Mapping):
        raise Unfit(f"{at} is a {type(raw).__name__}, not an object")
    said = raw.get("role", raw.get("from"))
    role = ROLES.get(str(said).lower())
    if role is None:
        raise Unfit(f"{at} has the role {said!r}; known: {', '.join(sorted(ROLES))}")
    content = raw["content"] if "content" in raw else raw.get("value", raw.get("text"))
    known = ("role", "from", "content", "value", *SWITCHES)
    extra = {k: v for k, v in raw.items() if k not in known and v is not None}
    calls: Row = {}
    if role == "call":
        role, calls, content = "assistant", {"tool_calls": _call(content, at)}, ""
    elif extra.get("tool_calls"):
        calls = {"tool_calls": _call(extra.pop("tool_calls"), f"{at} tool_calls")}
    extra.pop("tool_calls", None)
    if "value" not in raw and "content" not in raw:
        extra.pop("text", None)
    if content is None and (calls or any(extra.get(k) for k in ("reasoning_content", "reasoning", "thinking"))):
        content = ""
    filled = _content(content, at, empty=bool(calls) or role != "assistant" or bool(extra.get("reasoning_content")))
    return {"role": role, "content": filled, **extra, **calls, **_switch(raw, at, role)}


def messages(value: Any, column: str) -> list[Row]:
    """A conversation of at least one message."""
    value = from_json(value, column)
    if not isinstance(value, list) or not value:
        raise Unfit(
            f"{column} requires a list of messages; got {'an empty list' if value == [] else type(value).__name__}"
        )
    return [message(m, i) for i, m in enumerate(value, 1)]


def text_or_messages(value: Any, column: str) -> str | list[Row]:
    """A string, or a list of messages (also one written as JSON text that starts with `[{`)."""
    if isinstance(value, str) and value.lstrip().startswith('[{"') and value.rstrip().endswith("]"):
        try:
            value = from_json(value, column, "[")
        except Unfit:
            return text(value, column)
    return messages(value, column) if isinstance(value, (list, tuple)) else text(value, column)


def number(value: Any, column: str) -> float:
    """A finite number."""
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Unfit(f"{column} requires a number; got {value!r:.40}") from None
    if not math.isfinite(found):
        raise Unfit(f"{column} requires a finite number; got {value!r}")
    return found


def truth(value: Any, column: str) -> bool:
    """A truth value, also as 0 and 1 or as the words true and false."""
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1)):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "1", "0"):
        return value.strip().lower() in ("true", "1")
    raise Unfit(f"{column} requires true or false; got {value!r:.40}")


# ------------------------------------------------------------ builders: one per format, from {canonical name: value}
def _messages(v: Row) -> Row:
    turns = messages(v["messages"], "messages")
    system = v.pop("system", None)
    if system is not None and (said := text(system, "system", empty=True)).strip():
        if turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": said})
        elif turns[0]["content"] != said:
            raise Unfit("the system column and the first message give two different system texts")
    if not any(t["role"] == "assistant" for t in turns):
        raise Unfit("no assistant message, so there is nothing to train")
    return {"messages": turns}


def _pair(v: Row) -> Row:
    return {"prompt": text_or_messages(v["prompt"], "prompt"), "response": text(v["response"], "response")}


def _joined(prompt: Any, v: Row) -> Any:
    """The prompt with the text of the input column after a blank line, where there is one."""
    if v.get("input") is not None and (more := text(v["input"], "input", empty=True)).strip():
        if not isinstance(prompt, str):
            raise Unfit("input cannot be joined to a prompt that is a list of messages")
        return f"{prompt}\n\n{more}"
    return prompt


def _alpaca(v: Row) -> Row:
    return {"prompt": _joined(text(v["instruction"], "instruction"), v), "response": text(v["response"], "response")}


def _text(v: Row) -> Row:
    return {"text": text(v["text"], "text")}


def _common(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) where both sides repeat the prompt: equal first messages, or a shared transcript."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        n = 0
        while n < min(len(chosen), len(rejected)) - 1 and chosen[n] == rejected[n]:
            n += 1
        if n == 0:
            raise Unfit("there is no prompt: chosen and rejected share no first message")
        return chosen[:n], chosen[n:], rejected[n:]
    if isinstance(chosen, str) and isinstance(rejected, str):
        mark, n = "\n\nAssistant:", 0
        while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
            n += 1
        at = chosen.rfind(mark, 0, n)
        if at >= 0:
            at += len(mark)
            return chosen[:at], text(chosen[at:], "chosen"), text(rejected[at:], "rejected")
    raise Unfit("there is no prompt column, and chosen and rejected share no prompt")


def _after(side: Any, prompt: Any, column: str) -> Any:
    """A side without the messages of its prompt, where it repeats them."""
    if not isinstance(side, list):
        return side
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    bare = side[len(before) :] if side[: len(before)] == before else side
    if not bare or bare[-1]["role"] != "assistant":
        raise Unfit(f"{column} does not end with an assistant message")
    if any(m["role"] == "user" for m in bare):
        raise Unfit(f"{column} holds user messages that are not in the prompt")
    return bare


def _preference(v: Row) -> Row:
    chosen, rejected = (text_or_messages(v[k], k) for k in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Unfit("chosen and rejected are not both text or both messages")
    if v.get("prompt") is None and "messages" not in v:
        prompt, chosen, rejected = _common(chosen, rejected)
    else:
        prompt = (
            messages(v["messages"], "messages")
            if "messages" in v
            else _joined(text_or_messages(v["prompt"], "prompt"), v)
        )
    return {
        "prompt": prompt,
        "chosen": _after(chosen, prompt, "chosen"),
        "rejected": _after(rejected, prompt, "rejected"),
    }


def _scored(v: Row) -> Row:
    responses = from_json(v["responses"], "responses")
    scores = from_json(v.get("scores"), "scores")
    if not isinstance(responses, list) or not responses:
        raise Unfit("responses requires a list with at least one text")
    if "scores" not in v:
        if not all(isinstance(r, Mapping) for r in responses):
            raise Unfit("there are no scores")
        scores = [
            next((r[k] for k in ("score", "overall_score", "rating", "reward") if k in r), None) for r in responses
        ]
        responses = [
            next((r[k] for k in ("response", "text", "content", "completion") if k in r), None) for r in responses
        ]
    if not isinstance(scores, list) or len(scores) != len(responses):
        came = len(scores) if isinstance(scores, list) else repr(scores)
        raise Unfit(f"{len(responses)} responses need as many scores; got {came}")
    return {
        "prompt": text_or_messages(v["prompt"], "prompt"),
        "responses": [text(r, f"response {i}") for i, r in enumerate(responses, 1)],
        "scores": [number(s, f"score {i}") for i, s in enumerate(scores, 1)],
    }


def _feedback(v: Row) -> Row:
    label = truth(v["label"], "label")
    if "messages" not in v:
        return {**_pair(v), "label": label}
    turns = messages(v["messages"], "messages")
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise Unfit("the judged conversation does not end with an assistant message after a prompt")
    if turns[-1].get("tool_calls"):
        raise Unfit("the judged message is a tool call, not text")
    return {"prompt": turns[:-1], "response": turns[-1]["content"], "label": label}


def _judged(v: Row) -> Row:
    said = v["judgment"]
    return {**_pair(v), "judgment": "" if said is None else text(said, "judgment", empty=True).strip()}


def _set(v: Row) -> Row:
    made: Row = {"prompt": text_or_messages(v["prompt"], "prompt")}
    for name in ("tags", "responses"):
        found = from_json(v[name], name)
        if not isinstance(found, list) or not found:
            raise Unfit(f"{name} requires a list with at least one text")
        made[name] = [text(x, f"{name} {i}") for i, x in enumerate(found, 1)]
    if len(set(made["tags"])) < len(made["tags"]):
        raise Unfit("tags repeat one another")
    return made


def _prompts(v: Row) -> Row:
    if "messages" in v:
        turns = messages(v["messages"], "messages")
        if turns[-1]["role"] == "assistant":
            raise Unfit("the prompt ends with an assistant message, so there is nothing to complete")
        made: Row = {"prompt": turns}
    else:
        made = {"prompt": _joined(text_or_messages(v["prompt"], "prompt"), v)}
    if "answer" in v:
        if v["answer"] is None:
            raise Unfit("answer is null")
        made["answer"] = text(v["answer"], "answer", empty=True) if isinstance(v["answer"], str) else v["answer"]
    return made


def _together(v: Row) -> Row:
    """A query with its positive and perhaps a negative; or a text with its label, to be paired with others of that label."""
    if "query" in v:
        return {k: text(v[k], k) for k in ("query", "positive", "negative") if k in v}
    if not isinstance(v["label"], str | int):
        raise Unfit(f"label requires text or a whole number; got {v['label']!r:.40}")
    return {"text": text(v["text"], "text"), "label": v["label"]}


BUILDERS: Mapping[str, Callable[[Row], Row]] = {
    "messages": _messages, "sharegpt": _messages, "prompt/response": _pair, "alpaca": _alpaca, "text": _text,
    "preference": _preference, "scored": _scored, "feedback": _feedback, "judged": _judged, "set": _set,
    "prompts": _prompts, "query/positive": _together,
}  # fmt: skip


def build(fmt: str, columns: Mapping[str, str], record: Mapping[str, Any]) -> Row:
    """The canonical row of a record. columns: canonical name -> column of the record. Raises Unfit with the reason."""
    for canonical, column in columns.items():
        if column not in record and canonical not in ("input", "system"):
            raise Unfit(f"the column {column!r} is missing")
    made = BUILDERS[fmt]({k: record[c] for k, c in columns.items() if c in record})
    used = set(columns.values())
    for key, value in record.items():
        if key in used or value is None:
            continue
        if key == "tools":
            value = from_json(value, "tools")
            if not isinstance(value, list) or not all(isinstance(t, Mapping) for t in value):
                raise Unfit("tools requires a list of objects")
            if not value:
                continue
        made[key if key not in made else f"{key}_"] = value
    return made
