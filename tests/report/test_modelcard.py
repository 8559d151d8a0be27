from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from luthier.core.config import load_yaml
from luthier.core.protocols import Reading
from luthier.report.modelcard import CardFacts, fence, inline, model_card, write_model_card

FACTS = CardFacts(
    name="out/dft-run",
    base_model="HuggingFaceTB/SmolLM2-135M",
    recipe={"model": "HuggingFaceTB/SmolLM2-135M", "objective": {"dft": {}}, "train": {"steps": 3}},
    readings=(Reading("held_out_nll", 1.25, (1.0, 1.5), -1, "nats"), Reading("time", 12.0, (), -1, "s", "cost")),
    cost={"seconds": 12.0, "peak_bytes": 3e8},
    data=("pairs.jsonl: 1,200 rows, 3 dropped (longer than the context); licence not stated",),
    saved="peft",
    versions={"torch": "2.13.0"},
    seed=4,
)


def test_head_is_yaml_that_hubs_read():
    head = yaml.safe_load(model_card(FACTS).split("---")[1])
    assert head == {"library_name": "peft", "tags": ["luthier", "lora"], "base_model": "HuggingFaceTB/SmolLM2-135M"}
    licensed = CardFacts(name="x", base_model="./local", recipe={}, licence="apache-2.0", language=("en", "de"))
    head = yaml.safe_load(model_card(licensed).split("---")[1])
    assert head == {
        "library_name": "transformers",
        "tags": ["luthier"],
        "license": "apache-2.0",
        "language": ["en", "de"],
    }


@pytest.mark.parametrize(
    "name", ["0E0", "0e0", "12e3", "1_000", "0o17", "0x1f", "1.5", "5.e1", "true", "on", "null", "~"]
)
def test_names_that_look_like_numbers_or_truth_values_stay_names(name):
    facts = replace(FACTS, base_model=name, recipe={"model": name, "data": {"train": [name]}})
    card = model_card(facts)
    recipe = re.search(r"```yaml\n(.*?)```", card, flags=re.S).group(1)  # type: ignore[union-attr]
    head = card.split("---")[1]
    assert f'base_model: "{name}"' in head
    assert recipe.splitlines() == [f"model: '{name}'", "data:", "  train:", f"  - '{name}'"]
    for read in (yaml.safe_load, lambda text: load_yaml(text, "card")):
        assert read(recipe) == facts.recipe
        assert read(head)["base_model"] == name


def test_body_states_everything_and_what_is_not_known():
    card = model_card(FACTS)
    recipe = re.search(r"```yaml\n(.*?)```", card, flags=re.S).group(1)  # type: ignore[union-attr]
    assert yaml.safe_load(recipe) == FACTS.recipe
    for words in (
        "| quality | held out nll | 1.25 nats | lower is better | 2 |",
        "- peak bytes: 286 MiB",
        "3 dropped",
        "torch 2.13.0",
        "Seed: 4.",
    ):
        assert words in card
    empty = model_card(CardFacts(name="x", base_model="lab:language", recipe={}))
    for words in (
        "Nothing was measured.",
        "Not recorded.",
        "Seed: not recorded.",
        "No licence was chosen",
        "base_model:",
    ):
        assert (words in empty) == (words != "base_model:")


@pytest.mark.parametrize("saved", ["model", "peft"])
def test_loading_code_is_python_and_names_cannot_break_out(saved: str):
    card = model_card(CardFacts(name='a"); import os #', base_model="b", recipe={}, saved=saved))  # type: ignore[arg-type]
    code = re.search(r"```python\n(.*?)```", card, flags=re.S).group(1)  # type: ignore[union-attr]
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Import)]
    assert calls == []
    shell = model_card(CardFacts(name="a; rm b", base_model="b", recipe={}, saved="luthier"))
    assert "luthier generate 'a; rm b'" in shell


def test_what_models_and_data_wrote_stays_text():
    evil = "```\n# Heading\n<script>1</script> | x"
    card = model_card(
        CardFacts(
            name="n",
            base_model="b",
            recipe={"k": evil},
            data=(evil,),
            samples=[{"prompt": evil, "outputs": [evil]}],
            warnings=(evil,),
        )
    )
    outside, inside = [], None
    for line in card.splitlines():
        mark = re.match(r"`{3,}", line)
        if mark and inside is None:
            inside = mark.group()
        elif inside is not None and line.strip() == inside:
            inside = None
        elif inside is None:
            outside.append(line)
    assert inside is None
    assert not any(line.startswith("# Heading") or "<script" in line for line in outside)
    assert fence("````").startswith("`````text")
    assert inline("a\n# b") == "a \\# b"


def test_card_is_written_beside_the_model(tmp_path: Path):
    assert write_model_card(FACTS, tmp_path / "run").read_text(encoding="utf-8") == model_card(FACTS)
