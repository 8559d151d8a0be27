"""The documentation is true: pages generate, code runs, recipes check, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import generate
import pytest
import torch
from generator import markdown, mechanisms, source, technique

from luthier.catalogue.index import papers, serving, verdicts
from luthier.core.config import load_yaml
from luthier.core.registry import entries
from luthier.recipes.composition import refusals, techniques
from luthier.recipes.merging import merge_faults
from luthier.recipes.recipe import Data, ImageSampling, Recipe, Rollout, read, recipe_faults
from luthier.train.settings import Training
from tests.house.test_layers import ALLOWED

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(ROOT.glob("changes/*.md")),
           *(p for p in sorted(DOCS.glob("*.md")) if p.name != "papers.md")]  # fmt: skip
FENCE = re.compile(r"^```(\w+)[ \t]*([^\n]*)\n(.*?)^```", re.S | re.M)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path):
    return path.relative_to(ROOT).as_posix() if isinstance(path, Path) else str(path)


def blocks(text, language):
    """(info, code) of each fenced block of a language."""
    return [(info.strip(), code) for found, info, code in FENCE.findall(text) if found == language]


@pytest.fixture(scope="module")
def generated():
    return generate.pages()


# ------------------------------------------------------------------ generated
def test_every_component_has_a_page_with_all_of_its_card(generated):
    for entry in entries().values():
        page = generated[f"techniques/{entry.room}/{entry.short}.md"]
        assert f"# {markdown.plain(entry.card.name)}\n" in page
        for text in (entry.card.cost, entry.card.use_when, *entry.card.limits, *entry.card.differs):
            assert markdown.plain(text) in page, (entry.id, text)
        for parameter in entry.parameters:
            assert f"| `{parameter.name}` |" in page, (entry.id, parameter.name)


def test_recipes_of_generated_pages_pass_the_check_and_name_their_component(generated):
    seen = 0
    for entry in entries().values():
        page = generated[f"techniques/{entry.room}/{entry.short}.md"]
        for _, text in blocks(page, "yaml"):
            seen += 1
            assert faults_of(text) == [], entry.id
            assert entry.short in text or entry.id == "reward.combine.weighted"
        for _, code in blocks(page, "python"):
            seen += 1
            exec(compile(code, entry.id, "exec"), {})
    assert seen >= len(entries())


def test_links_between_generated_pages_exist(generated):
    written = {p.relative_to(DOCS).as_posix() for p in WRITTEN if p.is_relative_to(DOCS)}
    for path, text in generated.items():
        for _, target in LINK.findall(text):
            if not target.startswith("https://arxiv.org/abs/"):
                parts = (Path(path).parent / target).as_posix()
                assert os.path.normpath(parts) in {*generated, *written}, (path, target)


def test_the_index_of_papers_names_all_of_them_and_what_serves_each(generated):
    page = generated["papers.md"]
    for paper in papers().values():
        (row,) = re.findall(rf"^\| {paper.id} \|.*$", page, re.M)
        served = serving()[paper.id]
        assert all(f"[{e.short}]" in row for e in served)
        assert ("none yet" in row) == (not served)


def test_verdicts_are_shown_with_their_numbers_and_changed_code_is_told(monkeypatch):
    entry = entries()["objectives.preference.dpo"]
    result = {
        "expect": "dpo > a",
        "measure": "reward",
        "difference": 0.25,
        "low": 0.125,
        "high": 0.375,
        "verdict": "holds",
    }
    found = {"claim": "dpo", "says": "It helps.", "world": "a tree", "seeds": [0, 1, 2, 3, 4], "result": result, "also": [],
             "note": "", "seconds": 3.5, "versions": {"luthier": "0.1.0"}, "hashes": {"component": "0" * 16}}  # fmt: skip
    monkeypatch.setattr("luthier.catalogue.index.verdicts", lambda: {"dpo": found})
    text = technique.verdict_lines(entry)
    assert "| **holds** | `dpo > a` | reward | +0.25 | [+0.125, +0.375] |" in text
    assert "component has changed" in text


def test_the_site_builds_strictly_and_asks_for_nothing_from_elsewhere(tmp_path):
    for needed in ("mkdocs", "material"):
        pytest.importorskip(needed, reason="the site needs the docs extra")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("techniques", "papers.md", "__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    made = generate.write(tmp_path / "docs")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "-s", "-q", "-d", "site"], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = list((tmp_path / "site").rglob("*.html"))
    assert len(shown) >= made
    loads = re.compile(
        r"""<(?:script|img|iframe)[^>]+src=["']?https?:|<link[^>]+href=["']?https?:|@import|url\(["']?https?:"""
    )
    asking = [
        p.name for p in (*shown, *(tmp_path / "site").rglob("*.css")) if loads.search(p.read_text(encoding="utf-8"))
    ]
    assert not asking


def test_the_matrix_of_compositions_is_what_the_check_says(generated):
    """Every technique of the three slots has its row or column; every cell is the verdict of `refusals`."""
    page = generated["composition.md"]
    adapt, objectives, hooks = (techniques(slot) for slot in ("adapt", "objective", "regularise"))
    tables = {"Adaptations and objectives": (adapt, objectives, lambda r, c: refusals([r], [c])),
              "Adaptations and regularisers": (adapt, hooks, lambda r, c: refusals([r], [], [c])),
              "Objectives and regularisers": (objectives, hooks, lambda r, c: refusals([], [r], [c]))}  # fmt: skip
    reasons = dict(re.findall(r"^(\d+)\. .*?: requires (.*)\.$", page, re.M))
    for title, (rows, columns, asked) in tables.items():
        section = page.split(f"## {title}\n")[1].split("\n## ")[0]
        legend = {
            letter: re.findall(r"\[(\w+)\]", names) for letter, names in re.findall(r"^- ([A-Z]): (.*)$", section, re.M)
        }
        head, _, *body = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
        members = [legend.get(h) or re.findall(r"\[(\w+)\]", h) for h in head]
        assert sorted(m for group in members for m in group) == sorted(c.short for c in columns)
        assert [re.findall(r"\[(\w+)\]", line[0]) for line in body] == [[r.short] for r in rows]
        short = {c.short: c for c in columns}
        for row, (_, *cells) in zip(rows, body, strict=True):
            for cell, group in zip(cells, members, strict=True):
                for told in (asked(row, short[name]) for name in group):
                    assert (cell == "yes") == (not told), (row.short, group)
                    assert cell == "yes" or reasons[cell.removeprefix("no ")].replace("\\_", "_") in told[0]


@pytest.mark.parametrize("path", ["composition.md", "trust.md"])
def test_generated_pages_that_are_kept_are_those_of_the_source(path, generated):
    assert (DOCS / path).read_text(encoding="utf-8") == generated[path], "run python docs/generate.py"


def test_the_table_of_mechanisms_is_that_of_the_source():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert mechanisms.with_mechanisms(page) == page, "docs/architecture.md is stale: run `make docs`"
    members = re.findall(r"(\w+) \(\d+\)", mechanisms.mechanisms())
    assert {e.short for e in entries().values() if e.card.mechanism} <= set(members)
    with pytest.raises(ValueError, match="requires the marks"):
        mechanisms.with_mechanisms("# A page without them")


def test_examples_of_the_generator_run():
    assert doctest.testmod(source) == (0, 4)


# -------------------------------------------------------------------- written
def faults_of(text):
    plain = load_yaml(text, "example")
    return merge_faults(plain) if "merge" in plain else recipe_faults(plain)


@pytest.mark.parametrize("path", [p for p in WRITTEN if blocks(p.read_text(encoding="utf-8"), "python")], ids=name_of)
def test_python_blocks_run(path, capsys):
    """In order, in one namespace for each file; `no-run` needs a reason, and a title names a file shown whole."""
    namespace = {}
    for info, code in blocks(path.read_text(encoding="utf-8"), "python"):
        if "no-run" in info:
            assert code.startswith("# not run:"), f"{path.name}: say why in the first line of the block"
        elif "title=" not in info:
            exec(compile(code, str(path), "exec"), namespace)
    capsys.readouterr()


@pytest.mark.parametrize("path", [p for p in WRITTEN if blocks(p.read_text(encoding="utf-8"), "yaml")], ids=name_of)
def test_recipes_pass_the_check(path):
    for _, text in blocks(path.read_text(encoding="utf-8"), "yaml"):
        assert faults_of(text) == [], text


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/*.yaml")), ids=name_of)
def test_examples_pass_the_check_and_are_listed(path):
    assert recipe_faults(read(path)) == []
    assert path.name in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


def commands(path):
    """Words of each line that calls `luthier` or `make` in the shell blocks of a page."""
    for _, code in blocks(path.read_text(encoding="utf-8"), "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] in ("luthier", "make"):
                yield words


@pytest.mark.parametrize("path", [p for p in WRITTEN if list(commands(p))], ids=name_of)
def test_commands_exist_with_their_options(path):
    import typer

    from luthier.cli.main import _spread_sets, app

    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for tool, *words in commands(path):
        if tool == "make":
            assert set(words) <= targets
            continue
        command, words = typer.main.get_command(app), _spread_sets(words)
        while hasattr(command, "commands"):
            assert words and words[0] in command.commands, f"{path.name}: {tool} {words}"
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_links_lead_somewhere(path, generated):
    for image, target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "#")) or image:
            continue
        file, _, anchor = target.partition("#")
        at = (path.parent / file).resolve()
        made = at.is_relative_to(DOCS) and at.relative_to(DOCS).as_posix() in generated
        assert at.exists() or made, f"{path.name}: {target}"
        if anchor and at.is_file():
            heads = re.findall(r"^#+ (.+)$", at.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w-]+", "", h.lower().replace(" ", "-")) for h in heads}, target


def test_the_pictures_are_there():
    for path in WRITTEN:
        for image, target in LINK.findall(path.read_text(encoding="utf-8")):
            if image:
                assert (path.parent / target).is_file(), f"{path.name} shows {target}, which is not there"


# --------------------------------------------------------------- single facts
def test_the_import_table_of_the_page_is_the_one_that_is_tested():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    section = page.split("### Who may import whom")[1].split("\n## ")[0]
    told = {}
    for rooms, may in re.findall(r"^\| (`.+?) \| (.+?) \|$", section, re.M):
        allowed = set()
        for also, name in re.findall(r"(as )?`(\w+)`", may):
            allowed |= told[name] if also else {name}
        told.update(dict.fromkeys(re.findall(r"`(\w+)`", rooms), allowed))
    assert told == {room: set(allowed) for room, allowed in ALLOWED.items()}


def test_files_shown_whole_are_the_files_of_the_tree():
    shown = [(m.group(1), code) for info, code in blocks((DOCS / "architecture.md").read_text(encoding="utf-8"), "python")
             if (m := re.search(r'title="([^"]+)"', info))]  # fmt: skip
    assert len(shown) == 3
    for path, code in shown:
        compile(code, path, "exec")
    there = [(p, code) for p, code in shown if (ROOT / p).is_file()]
    for path, code in there:
        assert (ROOT / path).read_text(encoding="utf-8") == code, f"docs/architecture.md shows another {path}"
    if not there:
        pytest.skip("the example of docs/architecture.md is not part of this tree")


def test_the_verdict_told_of_the_example_is_the_recorded_one():
    if "aligned_sft" not in verdicts():
        pytest.skip("no run of the example's claim is recorded")
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    found = verdicts()["aligned_sft"]
    result = found["result"]
    told = re.findall(r"on reward \*\*(\w+)\*\* \((\S+), 95 % interval (\S+) to\s+(\S+)\)", page)
    assert told == [(found["verdict"], *(f"{result[k]:+.3f}" for k in ("difference", "low", "high")))]


@pytest.mark.parametrize("section", [Recipe, Data, Training, Rollout, ImageSampling], ids=lambda c: c.__name__)
def test_the_page_on_recipes_names_every_key_with_its_default(section):
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    title = {
        "Recipe": "## All keys",
        "Data": "### data",
        "Training": "### train",
        "Rollout": "### rollout",
        "ImageSampling": "### sampling",
    }[section.__name__]
    rows = {}
    for keys, default in re.findall(r"^\| (`.+?) \| (.*?) \|", page.split(f"{title}\n")[1].split("\n#")[0], re.M):
        names, values = re.findall(r"`(\w+)`", keys), re.findall(r"`([^`]*)`", default)
        rows.update(dict(zip(names, values or [None] * len(names), strict=False)))
    assert set(rows) == {f.name for f in dataclasses.fields(section)}
    for field in dataclasses.fields(section):
        if rows[field.name] is not None:
            known = field.default if field.default != () else []
            assert rows[field.name] == str(known), field.name


def test_all_forty_pains_are_there_and_their_tests_exist():
    page = (DOCS / "pains.md").read_text(encoding="utf-8")
    assert {int(n) for n in re.findall(r"^\| (\d+)\w? \|", page, re.M)} == set(range(1, 41))
    for row in re.findall(r"^\| \d+\w? \|.*$", page, re.M):
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named or "not yet" in row, row
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert test in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, f"{file}::{test}"


def test_the_readme_does_not_promise_more_papers_than_are_served():
    ((stated, total),) = re.findall(
        r"began with (\d+) of the (\d+) papers", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert int(total) == len(papers())
    assert int(stated) <= sum(bool(v) for v in serving().values())


def test_every_skill_of_the_language_world_is_described():
    from luthier.lab.language import World

    page = (DOCS / "worlds.md").read_text(encoding="utf-8")
    assert not [name for name in World().skills if f"`{name}`" not in page]


# ------------------------------------------------------------------- doctests
def modules():
    package = ROOT / "src" / "luthier"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[-1] != "__main__" and ">>>" in path.read_text(encoding="utf-8"):
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert tried
    assert failed == 0
