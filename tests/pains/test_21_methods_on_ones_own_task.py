"""peft #2310, #3327: a benchmark over methods for one's own task; #1555: how to choose among merges."""

from __future__ import annotations

import re

from tests.cli.shell import luthier, write_recipe
from tests.pains.parts import plain


def test_one_command_compares_methods_on_ones_own_rows(place, tmp_path):
    arms = {"lora": {"lora": {"rank": 2}}, "full": "full"}
    files = [
        write_recipe(tmp_path / f"{name}.yaml", plain(place, adapt=adapt, measure=["likelihood"], data={"holdout": 6}))
        for name, adapt in arms.items()
    ]
    ran = luthier("compare", *files, "--seeds", "2", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    report = (tmp_path / "out" / "report.html").read_text()
    assert all(name in report and name in ran.out for name in arms)
    assert len(list((tmp_path / "out" / "runs").glob("*.json"))) == 4
    assert re.search(r"undecided|better|worse", ran.out)
