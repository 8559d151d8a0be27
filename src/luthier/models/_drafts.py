"""Rows to texts with trained spans: which template, which turns, what stands between prompt and response."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier.core.errors import DataError
from luthier.models.chat import PLAIN, STRUCTURED, Chat, Turn, template_text, transcript

if TYPE_CHECKING:
    from luthier.models.encode import Settings

Row = Mapping[str, Any]
NO_TEMPLATE = (
    "chat messages require a chat template; there is none. Set data.template to plain, a .jinja file or Jinja text"
)


JUDGED = "{prompt}\n\nJudgment: {judgment}"


class Draft(NamedTuple):
    """One sequence before tokenising. spans: trained characters. prompt: where the response begins (pairs). begin,
    end: whether the tokenizer's begin ids and the end token are put around the text."""

    text: str
    spans: tuple[tuple[int, int], ...]
    prompt: int
    begin: bool
    end: bool


class Bad(Exception):
    """Why a row cannot be encoded."""


class Maker:
    """Turns rows into drafts; counts what is worth saying."""

    def __init__(self, tokenizer: Any, settings: Settings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        found = template_text(tokenizer, settings.template)
        self.chat = Chat(tokenizer, settings.template) if found else None
        self.eos = tokenizer.eos_token_id if settings.add_end else None
        self.noted: dict[str, set[int]] = defaultdict(set)
        self.row = 0
        if settings.add_end and tokenizer.eos_token_id is None and self.chat is None:
            raise DataError(
                "the tokenizer requires an end token, so that the model learns to stop; it has none. "
                "Set its eos_token, or data.add_end: false."
            )

    def _note(self, what: str) -> None:
        self.noted[what].add(self.row)

    def template(self, rows: Sequence[Row]) -> str:
        """How texts were made, in words."""
        end = ", the end token follows" if self.eos is not None else ""
        if rows and all("text" in r for r in rows):
            return f"Plain text, every token trained{end}"
        if self.chat is None:
            return f"No chat template: prompt and response are joined as they are{end}"
        if self.chat.template == PLAIN:
            return "Template plain: User: and Assistant: lines, each answer closed by the end token"
        return (
            "The tokenizer's own chat template"
            if self.settings.template is None
            else "The chat template of data.template"
        )

    def drafts(self, number: int, row: Row, kind: str) -> tuple[Draft, ...]:
        """One draft per part. Raises Bad with the reason."""
        self.row = number
        if kind == "text":
            if "messages" in row:
                return (self._conversation(row, row["messages"], self.settings.train_on),)
            if "text" in row:
                return (Draft(row["text"], ((0, len(row["text"])),), 0, True, self.eos is not None),)
            return (self._answer(row, row["response"]),)
        if kind == "preference":
            pair = self._answer(row, row["chosen"]), self._answer(row, row["rejected"])
            if pair[0].text[: pair[0].prompt] != pair[1].text[: pair[1].prompt]:
                raise Bad("the chat template writes another prompt before chosen than before rejected")
            return pair
        if kind == "scored":
            return tuple(self._answer(row, r) for r in row["responses"])
        if kind == "feedback":
            return (self._answer(row, row["response"]),)
        if kind == "judged":
            return self._answer(_with_judgment(row), row["response"]), self._answer(row, row["response"])
        if kind == "set":
            return tuple(self._tagged(row, tag, r) for r in row["responses"] for tag in row["tags"])
        return (self._prompt(row),)

    def _messages(self, row: Row, turns: Sequence[Row]) -> list[Row]:
        system = row.get("system") or self.settings.system
        if isinstance(system, str) and system.strip() and not (turns and turns[0]["role"] in ("system", "developer")):
            return [{"role": "system", "content": system}, *turns]
        return list(turns)

    def _asked(self, row: Row) -> tuple[list[Row], bool]:
        """(messages of a prompt, whether it was a written transcript)."""
        if not isinstance(row["prompt"], str):
            return self._messages(row, row["prompt"]), False
        read = transcript(row["prompt"])
        if read is not None:
            self._note("a prompt written as a Human:/Assistant: transcript was read as turns")
        return self._messages(row, read or [{"role": "user", "content": row["prompt"]}]), read is not None

    def _answer(self, row: Row, response: Any) -> Draft:
        """Prompt and response; only the response is trained."""
        if self.chat is None:
            return self._joined(row, response)
        asked, read = self._asked(row)
        said = (
            [{"role": "assistant", "content": response.strip() if read else response}]
            if isinstance(response, str)
            else response
        )
        train_on = "all" if self.settings.train_on == "all" else "assistant"
        return self._conversation(row, [*asked, *said], train_on, first=len(asked), system=False)

    def _tagged(self, row: Row, tag: str, response: str) -> Draft:
        """A response behind a tag that opens it; the tag is read but not trained."""
        space = "" if tag[-1:].isspace() or response[:1].isspace() else " "
        draft = self._answer(row, f"{tag}{space}{response}")
        (start, end), *more = draft.spans
        return draft._replace(spans=((draft.text.index(tag, start) + len(tag), end), *more))

    def _joined(self, row: Row, response: Any) -> Draft:
        prompt = row["prompt"]
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise Bad(NO_TEMPLATE)
        system = row.get("system") or self.settings.system
        prompt = f"{system}\n\n{prompt}" if system else prompt
        if prompt and not prompt[-1:].isspace() and not response[:1].isspace():
            self._note("a space was put between prompt and response; it belongs to the response")
            response = f" {response}"
        start = 0 if self.settings.train_on == "all" else len(prompt)
        return Draft(
            prompt + response, ((start, len(prompt) + len(response)),), len(prompt), True, self.eos is not None
        )

    def _conversation(
        self, row: Row, turns: Sequence[Row], train_on: str, first: int = 0, system: bool = True
    ) -> Draft:
        """A rendered chat; `first` is the number of messages that are prompt."""
        if self.chat is None:
            raise Bad(NO_TEMPLATE)
        turns = self._messages(row, turns) if system else turns
        try:
            made = self.chat.render(turns, row.get("tools"))
        except DataError as fault:
            raise Bad(str(fault)) from fault
        wanted = self._wanted(turns, made.turns, train_on, first)
        for turn in wanted:
            said = turns[turn.message]
            empty = not said["content"].strip() and not any(said.get(k) for k in STRUCTURED)
            if empty and not turn.whole and not (self.settings.blank and turn.end):
                raise Bad(f"message {turn.message + 1} (assistant) is empty; give it a text or mark it train: false")
            if not turn.whole and not empty:
                raise Bad(
                    f"the chat template changes message {turn.message + 1} (assistant), so it cannot be trained as "
                    f"written; mark it train: false, set data.train_on: last, or use another template"
                )
        if any(not t.whole for t in made.turns if t not in wanted):
            self._note("the template changes earlier assistant turns, which are context only")
        self._note_control(turns)
        spans = tuple((t.start, t.end) for t in wanted)
        open_end = bool(wanted) and wanted[-1].message == len(turns) - 1 and not wanted[-1].ended
        if any(not t.ended for t in wanted if t.message < len(turns) - 1):
            self._note("the template does not end every turn; only the last one gets an end token")
        if train_on == "all":
            skip = [t for t in made.turns if turns[t.message].get("train") is False]
            spans = tuple(_minus(len(made.text), skip))
        if open_end and self.eos is None and self.settings.add_end:
            raise Bad(
                "neither the chat template nor the tokenizer has an end token. Set eos_token, or data.add_end: false"
            )
        prompt = min((t.start for t in made.turns if t.message >= first), default=0) if first else 0
        return Draft(made.text, spans, prompt, False, open_end and self.eos is not None)

    def _wanted(self, turns: Sequence[Row], found: Sequence[Turn], train_on: str, first: int) -> list[Turn]:
        kept = [t for t in found if t.message >= first and turns[t.message].get("train") is not False]
        if train_on == "last":
            return [t for t in kept if t.message == found[-1].message]
        if train_on == "completion":
            asked = max((i for i, m in enumerate(turns) if m["role"] == "user"), default=-1)
            return [t for t in kept if t.message > asked]
        return kept

    def _prompt(self, row: Row) -> Draft:
        if self.chat is None:
            if not isinstance(row["prompt"], str):
                raise Bad(NO_TEMPLATE)
            system = row.get("system") or self.settings.system
            return Draft(f"{system}\n\n{row['prompt']}" if system else row["prompt"], (), 0, True, False)
        try:
            asked = self._asked(row)[0]
            self._note_control(asked)
            return Draft(self.chat.generation_prompt(asked, row.get("tools")), (), 0, False, False)
        except DataError as fault:
            raise Bad(str(fault)) from fault

    def _note_control(self, turns: Sequence[Row]) -> None:
        control = self.chat.control if self.chat else None
        if control is not None and any(control.search(m["content"]) for m in turns):
            self._note("the tokenizer reads text as control tokens")


def _with_judgment(row: Row) -> Row:
    """The row with its judgment behind the prompt, after a blank line; itself where there is none."""
    said, prompt = row.get("judgment"), row["prompt"]
    if not said:
        return row
    if isinstance(prompt, str):
        return {**row, "prompt": JUDGED.format(prompt=prompt, judgment=said)}
    last = {**prompt[-1], "content": JUDGED.format(prompt=prompt[-1]["content"], judgment=said)}
    return {**row, "prompt": [*prompt[:-1], last]}


def _minus(size: int, skip: Sequence[Turn]) -> Iterator[tuple[int, int]]:
    """The stretches of 0..size outside of some turns."""
    at = 0
    for turn in skip:
        if turn.start > at:
            yield at, turn.start
        at = turn.end
    if at < size:
        yield at, size
