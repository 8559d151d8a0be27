"""transformers #34631; ms-swift #5235; torchtune #1142: safe unpickling broke resume, and users were told to switch it off."""

from __future__ import annotations

import pickle

import torch

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import plain
from tests.trust.resuming import cut_after, same_end


def test_a_run_is_saved_and_resumed_where_nothing_can_be_unpickled(place, tmp_path, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(torch, "save", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    recipe = plain(place, train={"save_every": 1, "keep": 9, "steps": 4}, optimiser="adamw", regularise=["neftune"])
    run(parse(recipe), tmp_path / "whole")
    cut_after(tmp_path / "whole", tmp_path / "cut", 2)
    run(parse(recipe), tmp_path / "cut", resume=True)
    same_end(tmp_path / "whole", tmp_path / "cut")
    heads = {p.read_bytes()[:2] for p in (tmp_path / "whole").rglob("*") if p.is_file()}
    assert not heads & {b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"}
