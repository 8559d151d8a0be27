"""Text in and out of a recipe: rows to training sequences, prompts and answers to tokens for measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from luthier.core.errors import DataError, sentence
from luthier.models.encode import Encoded, EncodedData, Settings, encode, stops
from luthier.recipes.recipe import Data
from luthier.recipes.rows import Rows, question

Row = Mapping[str, Any]


def settings_of(data: Data, config: Any = None) -> Settings:
    """The encoding that a recipe's data section asks for; the model's context is the default limit."""
    limit = data.max_length
    if limit is None and config is not None:
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return Settings(max_length=limit, train_on=data.train_on, truncation=data.truncation, template=data.template,
                    system=data.system, on_bad=data.on_bad, add_end=data.add_end)  # fmt: skip


def encode_training(source: Rows, kind: str, tokenizer: Any, data: Data, config: Any) -> EncodedData:
    """Rows as sequences of the kind that the objective asked for; "group" encodes prompts, from which samples are drawn."""
    settings = settings_of(data, config)
    if kind != "group":
        return encode(source.rows, kind, tokenizer, settings, where=source.where)
    return encode([as_prompt(r) for r in source.rows], "prompts", tokenizer, settings, where=source.where)


def as_prompt(row: Row) -> Row:
    """A row with its last answer taken off, kept as `answer` if there is none."""
    prompt, response = question(row)
    return {**row, "prompt": prompt, "answer": row.get("answer", response)}


@dataclass
class Text:
    """Renders prompts and pairs exactly as training does."""

    tokenizer: Any
    settings: Settings

    def renders(self, prompts: Sequence[Any], room: int = 0) -> list[list[int]]:
        """Token ids that end where the answer begins, leaving `room` tokens for it where the recipe allows cutting prompts.

        An empty prompt is the begin token. Raises DataError for a prompt that must not be cut and is too long.
        """
        known: dict[int, list[int]] = {}
        asked = [i for i, p in enumerate(prompts) if p]
        if asked:
            limit = self.settings.max_length
            cut = limit is not None and self.settings.truncation != "error"
            settings = replace(self.settings, max_length=max(2, limit - room)) if cut and limit else self.settings
            made = encode([{"prompt": prompts[i]} for i in asked], "prompts", self.tokenizer, settings)
            known = {asked[e[0].row]: list(e[0].ids) for e in made.examples}
        if len(known) < len(asked):
            raise DataError(sentence("measuring", "prompts that fit the context", f"{len(asked) - len(known)} that do not",
                                     "Raise data.max_length or leave them out"))  # fmt: skip
        return [known[i] if i in known else self._begin() for i in range(len(prompts))]

    def _begin(self) -> list[int]:
        if self.tokenizer.bos_token_id is None:
            raise DataError(
                "generation from an empty prompt requires a begin token; the tokenizer has none. Give prompts."
            )
        return [self.tokenizer.bos_token_id]

    def pairs(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[Encoded]:
        """Prompt and response as tokens; the mask is 1 on the response and its end token."""
        out = self._encoded(prompts, responses)
        if len(out) < len(prompts):
            raise DataError(sentence("measuring", "rows that can be encoded", f"{len(prompts) - len(out)} that cannot",
                                     "Set data.max_length or clean the test rows"))  # fmt: skip
        return [out[i] for i in range(len(prompts))]

    def fitting(self, rows: Sequence[Row]) -> list[int]:
        """Numbers of the test rows that can be encoded as the recipe allows; the others would be dropped in training too."""
        asked = [(i, p, r) for i, row in enumerate(rows) for p, r in _sides(row)]
        fine = self._encoded([p for _, p, _ in asked], [r for _, _, r in asked])
        lost = {i for at, (i, _, _) in enumerate(asked) if at not in fine}
        return [i for i in range(len(rows)) if i not in lost]

    def _encoded(self, prompts: Sequence[Any], responses: Sequence[str]) -> dict[int, Encoded]:
        rows = [{"prompt": p, "response": r} if p else {"text": r} for p, r in zip(prompts, responses, strict=True)]
        out: dict[int, Encoded] = {}
        for plain in (True, False):
            at = [i for i, row in enumerate(rows) if ("text" in row) == plain]
            settings = (
                replace(self.settings, truncation="right")
                if plain and self.settings.truncation != "error"
                else self.settings
            )
            if at:
                made = encode([rows[i] for i in at], "text", self.tokenizer, settings)
                out.update({at[e[0].row]: e[0] for e in made.examples})
        return out

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return tuple(stops(self.tokenizer, self.settings))


def _sides(row: Row) -> list[tuple[Any, str]]:
    """Every (prompt, response) that a measure may ask of a test row: both sides of a pair."""
    prompt, response = question(row)
    other = row.get("rejected")
    if other is None:
        return [(prompt, response)]
    return [(prompt, response), (prompt, other if isinstance(other, str) else str(other[-1]["content"]))]


def renderer(tokenizer: Any, data: Data, config: Any = None) -> Text:
    """How measures and rollouts render text for this recipe; what training may cut, measuring may cut."""
    settings = settings_of(data, config)
    cut = "error" if data.truncation == "error" else "right" if data.truncation == "right" else "prompt"
    return Text(tokenizer, replace(settings, train_on="assistant", truncation=cut, on_bad="error", blank=True))
