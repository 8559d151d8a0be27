"""The README.md of a run: what the model is, from what and how it was made, what was measured, how to load it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.core.config import dump_yaml
from luthier.core.files import write_text
from luthier.core.protocols import Reading
from luthier.report.words import label, number, quantity

ONE_RUN = (
    "One run with one seed: these figures hold for this model and do not rank the recipe. Compare recipes over seeds "
    "with `luthier compare`."
)
Saved = Literal["model", "peft", "luthier"]
LIBRARY: dict[Saved, str] = {"model": "transformers", "peft": "peft", "luthier": "luthier"}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card states; an empty part is stated as not known, never left out.

    base_model: hub name or folder name. saved: "model" for whole weights, "peft" for an adapter that PEFT loads,
    "luthier" for other adapters. recipe: plain values. data: one sentence per set: name, rows, licence if known.
    samples: as measured, [{"prompt": str, "outputs": [str, ...]}]. licence: of the result, only if somebody decided it.
    seeds: of this run.
    """

    name: str
    base_model: str
    recipe: Mapping[str, Any]
    readings: Sequence[Reading] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    data: Sequence[str] = ()
    saved: Saved = "model"
    licence: str = ""
    language: Sequence[str] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()


def fence(words: str, kind: str = "text") -> str:
    """A code block that its content cannot close: the fence is longer than any run of backticks inside.

    >>> fence("a ``` b").splitlines()[0]
    '````text'
    """
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{kind}\n{words.rstrip()}\n{ticks}"


def inline(words: str) -> str:
    """Text for a line or a table cell of Markdown: no markup, no HTML, no line break.

    >>> inline("a|b <b> *c*")
    'a\\\\|b &lt;b&gt; \\\\*c\\\\*'
    """
    flat = " ".join(str(words).split())
    safe = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", safe)


def front_matter(facts: CardFacts) -> str:
    """The YAML head that model hubs read; every value is written as JSON, which is YAML too."""
    head: dict[str, Any] = {
        "library_name": LIBRARY[facts.saved],
        "tags": ["luthier", *(["lora"] if facts.saved == "peft" else [])],
    }
    if not facts.base_model.startswith(("/", ".", "lab:")):
        head["base_model"] = facts.base_model
    head |= {"license": facts.licence} if facts.licence else {}
    head |= {"language": list(facts.language)} if facts.language else {}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---"])


def readings_table(readings: Sequence[Reading]) -> str:
    """Readings as a Markdown table, by axis."""
    if not readings:
        return "Nothing was measured."
    way = {1: "higher is better", -1: "lower is better", 0: "neither"}
    rows = []
    for r in sorted(readings, key=lambda r: r.axis != "quality"):
        value = number(r.value) + (f" {inline(r.unit)}" if r.unit else "")
        rows.append(
            f"| {inline(r.axis)} | {inline(label(r.name))} | {value} | {way[r.better]} | {len(r.items) or ''} |"
        )
    return "\n".join(["| axis | reading | value | direction | items |", "|---|---|---:|---|---:|", *rows])


def how_to_load(facts: CardFacts) -> str:
    """Code that loads the result, for the way it was saved."""
    base, here = json.dumps(facts.base_model), json.dumps(facts.name)
    if facts.saved == "luthier":
        folder = shlex.quote(facts.name)
        return fence(f"luthier generate {folder}\nluthier export {folder} --to merged", "bash")
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if facts.saved == "model":
        lines += [f"model = AutoModelForCausalLM.from_pretrained({here})"]
    else:
        lines.insert(0, "from peft import PeftModel")
        lines += [f"base = AutoModelForCausalLM.from_pretrained({base})"]
        lines += [f"model = PeftModel.from_pretrained(base, {here})"]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({here if facts.saved == 'model' else base})"]
    return fence("\n".join(lines), "python")


def _licence(facts: CardFacts) -> str:
    base = f"It derives from {inline(facts.base_model)}, whose licence and terms of use apply to it"
    given = (
        f"The result is given under {inline(facts.licence)}. "
        if facts.licence
        else "No licence was chosen for the result. "
    )
    return f"{given}{base}; check them, and those of the data, before you pass it on."


def _samples(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    out: list[str] = []
    for sample in samples:
        if not sample["outputs"]:
            continue
        out += [f"Prompt:\n\n{fence(str(sample['prompt']))}\n"]
        out += [f"Output:\n\n{fence(str(o))}\n" for o in sample["outputs"]]
    return ["## Samples", "", *out] if out else []


def model_card(facts: CardFacts) -> str:
    """The card as Markdown; nothing that a recipe, a data set or a model wrote can act as markup."""
    cost = [f"- {label(name)}: {quantity(value, name)}" for name, value in facts.cost.items()]
    made = ", ".join(f"{inline(n)} {inline(v)}" for n, v in facts.versions.items()) or "not recorded"
    what = {
        "model": "whole weights",
        "peft": "an adapter in PEFT's format",
        "luthier": "an adapter in Luthier's format",
    }
    parts = [
        front_matter(facts),
        "",
        f"# {inline(facts.name)}",
        "",
        f"A fine-tune of {inline(facts.base_model)}, saved as {what[facts.saved]}. Made with Luthier.",
        "",
        "## Recipe",
        "",
        fence(dump_yaml(json.loads(json.dumps(facts.recipe, default=str))), "yaml"),
        "",
        f"Seed: {'not recorded' if facts.seed is None else facts.seed}.",
        "",
        "## Data",
        "",
        *([f"- {inline(line)}" for line in facts.data] or ["Not recorded."]),
        "",
        "## Readings",
        "",
        readings_table(facts.readings),
        "",
        ONE_RUN,
        "",
        "## Cost",
        "",
        *(cost or ["Not recorded."]),
        "",
        *(["## Warnings", "", *(f"- {inline(w)}" for w in facts.warnings), ""] if facts.warnings else []),
        *_samples(facts.samples),
        "## How to load it",
        "",
        how_to_load(facts),
        "",
        "## Licence",
        "",
        _licence(facts),
        "",
        "## Versions",
        "",
        made + ".",
        "",
    ]
    return "\n".join(parts)


def write_model_card(facts: CardFacts, folder: Path) -> Path:
    """Write <folder>/README.md; atomic. Returns its path."""
    path = Path(folder) / "README.md"
    write_text(path, model_card(facts))
    return path
