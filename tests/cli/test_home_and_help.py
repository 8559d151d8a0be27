"""What a shell leaves to us: `~` in any place, and help that can be read whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.shell import folder_with_data, luthier, refused, write_recipe

COMMANDS = ("methods", "check", "preview", "plan", "run", "compare", "merge", "generate", "measure", "trace", "export", "push",
            "reproduce", "lab", "lab build", "lab check")  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder_with_data(tmp_path)


def test_the_home_folder_is_meant_wherever_a_path_is_written(home):
    told = {"model": "~/model", "data": {"train": "~/chat.jsonl", "test": "~/chat.jsonl", "template": "~/chat.jinja"},
            "adapt": "lora", "train": {"steps": 2, "batch": 4}, "measure": ["likelihood"]}  # fmt: skip
    config = json.loads((home / "model" / "tokenizer_config.json").read_text())
    template = config.get("chat_template") or (home / "model" / "chat_template.jinja").read_text()
    (home / "chat.jinja").write_text(template)
    write_recipe(home / "recipe.yaml", told)
    write_recipe(home / "merge.yaml", {"base": "~/model", "models": ["~/run", "~/model"], "merge": "linear"})
    for words in (
        ("check", "~/recipe.yaml"),
        ("preview", "~/recipe.yaml", "--html", "~/page.html"),
        ("plan", "~/recipe.yaml"),
        ("run", "~/recipe.yaml", "--out=~/run"),
        ("run", "~/recipe.yaml", "--out=~/run", "--resume"),
        ("measure", "~/run"),
        ("trace", "~/run"),
        ("generate", "~/run", "--prompt", "w1", "--max-new", "3"),
        ("export", "~/run", "--out", "~/plain"),
        ("merge", "~/merge.yaml", "--out", "~/merged"),
        ("compare", "~/recipe.yaml", "~/again.yaml", "--seeds", "1", "--out=~/both"),
    ):
        if words[0] == "compare":
            write_recipe(home / "again.yaml", told)
        ran = luthier(*words)
        assert ran.code == 0, (words, ran.err)
    for made in (
        "page.html",
        "run/adapter",
        "run/model",
        "plain/config.json",
        "merged/config.json",
        "both/report.html",
    ):
        assert (home / made).exists(), made
    assert not list(Path().iterdir())


def test_every_command_is_told_in_one_whole_line_and_explains_its_words():
    listed = luthier("--help").out.split("Commands:")[1]
    assert "..." not in listed
    for command in COMMANDS:
        ran = luthier(*command.split(), "--help")
        assert ran.code == 0
        assert command.split()[0] in listed
        options = ran.out.split("Options:")[1]
        assert not re.search(r"<(str|int|float|path|list)", options), f"{command}: a type instead of a word"
        for line in options.splitlines():
            found = re.match(r"  (--\S+)( \S+)?(  +.*)?$", line)
            assert found is None or found[3], f"{command} {found[1]} has no help"  # type: ignore[index]


def test_a_model_without_a_name_is_no_folder(home):
    recipe = write_recipe(home / "recipe.yaml", {"model": "", "data": "../chat.jsonl"})
    refused(luthier("check", recipe), "model: string should have at least 1 character; got ''")


def test_files_beside_a_missing_one_are_named(home):
    recipe = write_recipe(home / "recipe.yaml", {"model": str(home / "model"), "data": "zz.parquet"})
    (home / "work" / "rows.jsonl").write_text("")
    refused(luthier("check", recipe), "got none. This folder holds rows.jsonl.")
