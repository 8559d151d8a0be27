"""What the terminal shows: no advice of the libraries below, and figures written for people."""

from __future__ import annotations

import importlib
import json

import pytest

from luthier.cli._run import quiet
from tests.cli.shell import luthier

ERROR, INFO = 40, 20


@pytest.fixture(params=["transformers", "diffusers"])
def logging(request, monkeypatch):
    module = importlib.import_module(f"{request.param}.utils.logging")
    name = f"{request.param.upper()}_VERBOSITY"
    monkeypatch.delenv(name, raising=False)
    before = module.get_verbosity()
    module.set_verbosity(INFO)
    yield name, module
    module.set_verbosity(before)


def test_a_library_that_was_imported_before_is_quiet_too(logging):
    quiet()
    assert logging[1].get_verbosity() == ERROR


def test_who_asks_for_more_gets_it(logging, monkeypatch):
    name, module = logging
    monkeypatch.setenv(name, "info")
    quiet()
    assert module.get_verbosity() == INFO


def test_figures_are_written_for_people(tmp_path):
    rows = [
        ("nll", 1.25, "nats per token"),
        ("perplexity", 4702.0393, "per token"),
        ("train_tokens", 1761.0, "tokens"),
        ("peak_bytes", 476053504.0, "bytes"),
        ("total_seconds", 86.39641, "s"),
        ("loss", "inf", ""),
    ]
    readings = [{"axis": "cost", "name": n, "value": v, "unit": u, "items": []} for n, v, u in rows]
    (tmp_path / "result.json").write_text(json.dumps({"readings": readings}))
    told = [line.split(maxsplit=2)[2] for line in luthier("measure", tmp_path).out.splitlines()]
    assert told == ["1.2500 nats per token", "4,702.0393 per token", "1,761 tokens", "454 MiB", "86.3964 s", "inf"]
