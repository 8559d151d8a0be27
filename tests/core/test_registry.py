"""Components are found by their place, read as text, and offered by their nearest names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core import Needs
from luthier.core.errors import UnknownComponent
from luthier.core.registry import PACKAGE, ROOMS, Entry, entries, find, read_card

CARD = """CARD = Card(
    name="Probe",
    source="arXiv 2305.18290",
    papers=(1, 2),
    needs=Needs(batch=("text",), signals=("logp",)),
    cost="little",
    limits=("a" " and b",),
    use_when="always",
)
"""


def test_every_entry_lies_where_its_id_says():
    found = entries()
    assert len(found) > 100
    for ident, entry in found.items():
        assert entry.path == PACKAGE.joinpath(*ident.split(".")).with_suffix(".py")
        assert (entry.id, entry.room, entry.short) == (ident, ident.split(".")[0], ident.split(".")[-1])
        assert entry.room in ROOMS
        assert not entry.short.startswith("_")
        assert entry.summary, f"{ident} has no first line"


def test_listing_and_reading_parameters_import_no_technique():
    code = (
        "import sys\nfrom luthier.core.registry import entries, find\n"
        "assert all(e.parameters is not None for e in entries().values())\nfind('dpo')\n"
        "seen = [m for m in sys.modules if m == 'torch' or m.startswith('luthier.') and not m.startswith('luthier.core')]\n"
        "assert not seen, seen"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": str(PACKAGE.parent)})  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_name_is_its_id_its_end_or_its_short_form():
    want = entries()["objectives.preference.dpo"]
    for name in ("objectives.preference.dpo", "preference.dpo", "dpo"):
        assert find(name) is want
        assert find(name, "objectives") is want
    assert want.load().__name__ == "DPO"


@pytest.mark.parametrize(
    ("name", "room", "words"),
    [
        ("dop", "objectives", "unknown component 'dop'; did you mean 'dpo' or"),
        ("objectives.preference.dop", None, "did you mean 'objectives.preference.dpo'"),
        ("neftun", "regularise", "did you mean 'neftune'? `luthier methods` lists all"),
        ("dpo", "adapt", "'dpo' is 'objectives.preference.dpo', which is not in the room 'adapt'"),
        ("reference.dpo", "objectives", "did you mean"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, room, words):
    with pytest.raises(UnknownComponent) as caught:
        find(name, room)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["", "qqqqqqqq", "日本", "\n"])
def test_a_name_like_none_is_answered_in_one_short_line(name):
    with pytest.raises(UnknownComponent) as caught:
        find(name)
    assert str(caught.value) == f"unknown component {name!r}, and none is like it; `luthier methods` lists all"


def test_an_ambiguous_name_lists_its_candidates(monkeypatch: pytest.MonkeyPatch):
    real = entries()["optim.rules.adamw"]
    twins = {i: Entry(i, real.path, real.card, "") for i in ("optim.rules.twin", "optim.gradients.twin")}
    monkeypatch.setattr("luthier.core.registry.entries", lambda: twins)
    with pytest.raises(UnknownComponent, match=r"ambiguous; write one of: optim\.rules\.twin, optim\.gradients\.twin"):
        find("twin")
    assert find("gradients.twin").id == "optim.gradients.twin"


def test_a_card_is_read_as_text_whatever_else_the_module_does():
    card = read_card('"""Doc."""\nraise SystemExit("never run")\n\n' + CARD + "\nx = CARD.name\n", "here.py")
    assert card is not None
    assert (card.name, card.papers, card.limits) == ("Probe", (1, 2), ("a and b",))
    assert card.needs == Needs(batch=("text",), signals=("logp",))
    assert read_card("x = 1\n", "here.py") is None


@pytest.mark.parametrize(
    "bad",
    [
        CARD.replace('"Probe"', "NAME"),
        CARD.replace('"little"', 'f"{1 + 1}"'),
        CARD.replace('"little"', 'open("x").read()'),
        CARD.replace("    papers", "    peppers"),
        CARD.replace('    cost="little",\n', ""),
        CARD.replace("Needs(", "Wants("),
        CARD.replace("\n)\n", ")\n"),
        CARD.replace('"Probe",', '"Probe"'),
    ],
)
def test_a_card_that_is_no_literal_is_refused_with_its_file(bad):
    with pytest.raises(ValueError, match=r"here\.py: CARD must be one literal Card"):
        read_card("\n" + bad, "here.py")


def test_parameters_are_the_fields_of_the_decorated_class_only(tmp_path: Path):
    path = tmp_path / "probe.py"
    path.write_text(
        "@dataclass\nclass Helper:\n    no: int\n\n@component(CARD)\n@dataclass(frozen=True)\nclass Probe:\n"
        "    room: ClassVar[str] = 'adapt'\n    rank: Annotated[int, Gt(0)]\n    on: Literal['a','b'] = 'a'\n    x = 3\n"
    )
    parameters = Entry("adapt.probe", path, entries()["objectives.preference.dpo"].card, "").parameters
    assert [(p.name, p.annotation, p.default) for p in parameters] == [
        ("rank", "Annotated[int, Gt(0)]", None),
        ("on", "Literal['a', 'b']", "'a'"),
    ]
