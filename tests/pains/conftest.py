"""One tiny model with chat rows and pairs for all tests of pains; models never ask for more than one thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.parts import chat_rows, model_folder, pair_rows, write


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, chat.jsonl, pairs.jsonl and old.jsonl; tests write elsewhere."""
    at = tmp_path_factory.mktemp("pains")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    write(at / "pairs.jsonl", pair_rows())
    write(at / "old.jsonl", chat_rows(40)[30:])
    return at
