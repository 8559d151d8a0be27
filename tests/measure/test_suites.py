from __future__ import annotations

import subprocess
import sys

from luthier.core import MeasureContext
from luthier.core.config import build_component
from luthier.core.registry import entries
from luthier.measure.suites import SUITES, have, lacks, split
from tests.measure.fakes import Fake


def test_reading_the_table_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'transformers'}"
    code = f"import sys; import luthier.measure.suites; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_have_counts_a_field_only_where_every_row_has_it():
    subject = Fake(lambda p: {"a": 1.0})
    rows = [{"prompt": "p", "answer": "a", "response": "x"}, {"prompt": "q", "answer": "", "response": "y"}]
    assert have(rows, MeasureContext(), subject) == {"prompt", "response", "tokens", "gradients", "blocks"}
    full = MeasureContext(verify=lambda r, t: 1.0, old=rows, cost={"x": 1.0}, truth=lambda r: {"a": 1.0})
    assert have(rows, full) == {"prompt", "response", "verify", "old", "cost", "truth"}
    assert have([], MeasureContext(truth=lambda r: {"a": 1.0})) == set()


def test_a_suite_runs_where_the_data_allow_and_says_what_the_others_lack():
    """Instruction data with responses but no known answers: the usual case."""
    there = have([{"prompt": "p", "response": "r"}], MeasureContext(cost={"x": 1.0}))
    asked = [
        build_component(s, "measure", "measure") for name in ("quality", "forgetting", "cost") for s in SUITES[name]
    ]
    can, left = split(asked, there)
    assert [m.id for m in can] == ["measure.quality.likelihood", "measure.cost.cost"]
    assert left == {
        "measure.quality.pair_accuracy": "chosen, rejected",
        "measure.quality.exact_match": "answer or verify",
        "measure.quality.pass_at_k": "answer or verify",
        "measure.forgetting.old_data": "old",
    }


def test_a_measure_without_an_entry_is_never_left_out():
    assert lacks("measure.own.thing", set()) == ""


def test_suite_names_are_no_short_names_of_other_components():
    """`cost` is both the suite and its only member; every other name means one thing."""
    shorts = {e.short: e.id for e in entries().values() if e.room == "measure"}
    both = {name: shorts[name] for name in SUITES if name in shorts}
    assert both == {"cost": "measure.cost.cost"}
    assert [list(s) for s in SUITES["cost"]] == [["measure.cost.cost"]]
