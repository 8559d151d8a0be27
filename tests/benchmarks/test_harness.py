"""The benchmark harness: names of cells, clock, memory by the allocator, and the table of figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from generator import figures

from benchmarks.__main__ import CELLS, FLOORS, code, missing
from benchmarks.clock import Clock
from benchmarks.memory import MIB, Watch, allocated, status
from benchmarks.work import SHAPES, SIZES, Cell
from luthier.core.config import build_component


def test_every_cell_can_be_made() -> None:
    trained = [Cell.of(n) for n in CELLS if n.split("/")[0] in ("sft", "dpo", "grpo")]
    assert len(trained) >= 20
    for cell in trained:
        assert (cell.kind, cell.size) in SHAPES and cell.model in SIZES
        assert build_component(cell.adapt, "adapt", "adapt")
    assert set(FLOORS) <= set(CELLS)


def test_a_name_says_model_length_packing_and_what_trains() -> None:
    cell = Cell.of("sft/30m-long-packed+s2ft", limit=2)
    assert (cell.model, cell.packed, cell.adapt, cell.width, cell.steps) == ("30m", True, "s2ft", 2 * (1024 + 17), 2)
    assert Cell.of("sft/lab").width is None


def test_an_interrupted_table_goes_on_with_cells_of_other_code_or_fewer_repeats() -> None:
    held = {"a": {"code": "new", "repeats": 5}, "b": {"code": "old", "repeats": 5}, "c": {"repeats": 5},
            "d": {"code": "new", "repeats": 1}}  # fmt: skip
    assert missing(["a", "b", "c", "d", "e"], held, 5, "new") == ["b", "c", "d", "e"]
    assert code() == code() and len(code()) == 16


def test_the_clock_leaves_out_the_first_steps_and_counts_their_tokens_apart() -> None:
    clock = Clock([0.0, 10.0, 11.0, 13.0], [50, 100, 200, 300])
    found = clock.figures()
    assert found["step"] == 1.5
    assert found["kilotoken"] == 1000 * 3 / 200


def test_the_allocators_peak_is_exact() -> None:
    with allocated() as found:
        a = torch.ones(256, 1024)
        b = torch.cat([a, a])
        del a
        c = torch.ones(256, 1024)
        del b, c
    assert found["allocator_mib"] == pytest.approx(3, abs=0.01)


def test_what_grew_is_seen() -> None:
    with Watch(0.001) as watch:
        held = torch.ones(64, 1024, 1024 // 4)
        del held
    assert 60 < watch.grown < 80
    assert status()["VmHWM"] * MIB > 64 * MIB


def test_the_table_says_whether_targets_are_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {
        "sft/lab": {"ours": {"step": 0.4, "peak_mib": 300.0}, "peer": {"step": 1.0, "peak_mib": 600.0}, "floor": {"step": 0.3},
                    "ratio": {"step": 0.4, "peak_mib": 0.5}, "floor_ratio": {"step": 0.3}},
        "sft/lab-packed": {"ours": {"step": 1.0, "kilotoken": 3.0}, "peer": {"step": 9.0, "kilotoken": 2.0},
                           "ratio": {"step": 0.1, "kilotoken": 1.5}},
        "merge/linear-30m": {"ours": {"merge": 1.0, "grown_mib": 90.0, "bound_mib": 80.0},
                             "peer": {"merge": 4.0, "grown_mib": 100.0}, "ratio": {"merge": 0.25, "grown_mib": 0.9}},
        "startup": {"help": 0.6, "date": "today"},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(cells))
    (tmp_path / "targets.json").write_text((figures.BENCHMARKS / "targets.json").read_text())
    monkeypatch.setattr(figures, "BENCHMARKS", tmp_path)
    lines = figures.figures()
    text = "\n".join(lines)
    assert "| sft/lab | s a step | 0.4 | 1 | 0.40 | 0.30 | 0.45 | yes |" in text
    assert "| sft/lab-packed | s per 1,000 tokens | 3 | 2 | 1.50 | 1 | no |" in text
    assert "s a step | 1 | 9" not in text
    assert "| merge/linear-30m | of it since the model was there | 90 | 100 | 0.90 | 80 MiB | no |" in text
    assert "| help | 0.60 | 0.50 | no |" in text and "today" not in text
    assert text.index("| sft/lab |") < text.index("Long and packed") < text.index("| sft/lab-packed |")
    (tmp_path / "results.json").unlink()
    assert figures.figures() == []
