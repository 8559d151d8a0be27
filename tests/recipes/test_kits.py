"""A run asks its kind of model for all that differs between kinds, and for nothing else."""

from __future__ import annotations

import pytest

from luthier.core import Reading
from luthier.core.errors import Refused
from luthier.recipes import kits
from luthier.recipes.image_kit import Images
from luthier.recipes.kits import kind_of
from luthier.recipes.pair_kit import Pairs
from luthier.recipes.plan import plan
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from luthier.recipes.text_kit import Texts
from tests.recipes.parts import chat_rows, model_folder, write


class NewKit:
    """A kit of a kind that no part of the program knows."""

    subject = "what measures see"

    def __init__(self):
        self.asked = []

    def faults(self, prepared):
        self.asked.append("faults")
        return ["a new kind says this"]

    def measure(self, prepared, cost):
        self.asked.append("measure")
        return [Reading("new", 1.0)]

    def samples(self, prepared):
        self.asked.append("samples")
        return [{"prompt": "p", "reference": "", "outputs": ["o"]}]

    def write_merged(self, prepared, folder, main=True):
        self.asked.append("write_merged")
        raise Refused("a new kind has no merged form")


class NewKind(Texts):
    """Language models under another name."""

    def prepare(self, recipe, out, on_event, accelerator):
        made = super().prepare(recipe, out, on_event, accelerator)
        made.kit = NewKit()
        return made

    def plan(self, recipe):
        return "a plan"


@pytest.fixture
def recipe(tmp_path):
    model_folder(tmp_path / "model")
    write(tmp_path / "chat.jsonl", chat_rows())
    return parse({"model": str(tmp_path / "model"), "data": {"train": str(tmp_path / "chat.jsonl"), "test_rows": 2},
                  "objective": "nll", "measure": ["cost"], "train": {"steps": 1, "batch": 2, "lr": 1e-3}})  # fmt: skip


def test_a_new_kind_of_model_is_a_new_kit(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(kits, "kind_of", lambda _: NewKind())
    done = run(recipe, tmp_path / "run")
    assert done.prepared.kit.asked == ["faults", "measure", "samples", "write_merged"]
    assert [r.name for r in done.readings] == ["new"]
    assert "a new kind says this" in done.notes
    assert not (tmp_path / "run" / "model").exists()
    assert "a new kind has no merged form" in (tmp_path / "run" / "README.md").read_text()
    assert plan(recipe) == "a plan"


@pytest.mark.parametrize(("model", "objective", "want"), [("lab:language", "nll", Texts), ("any", "info_nce", Pairs),
                                                          ("lab:image", "denoise", Images), ("any", "denoise", Images)])  # fmt: skip
def test_kinds_are_told_by_the_model_and_the_objective(model, objective, want):
    assert type(kind_of(parse({"model": model, "data": {"train": "rows.jsonl"}, "objective": objective}))) is want
