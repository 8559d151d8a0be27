"""Data that cannot be read or does not fit is refused in one sentence that says where and what to do."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from tests.cli.shell import luthier, sound, write_recipe
from tests.recipes.parts import WORDS


def bad_data(tmp_path, name, raw):
    path = tmp_path / name
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return {"train": str(path)}


ROW = json.dumps({"prompt": "w1 w2", "response": "w3"}) + "\n"
DATA = {
    "empty": (
        "a.jsonl",
        "",
        ("a.jsonl requires at least one row; got an empty file", "Check that it was written completely"),
    ),
    "blank lines": ("a.jsonl", "\n \n", ("requires at least one row",)),
    "a header only": ("a.csv", "prompt,response\n", ("a.csv requires at least one row; got none",)),
    "broken JSON": (
        "a.jsonl",
        ROW * 3 + '{"prompt": "w1"\n' + ROW,
        ("1 of 5 does not", "a.jsonl line 4: broken JSON", "data.on_bad: drop"),
    ),
    "two broken lines": (
        "a.jsonl",
        "nonsense\n" + ROW + "{\n",
        ("2 of 3 do not", "line 1: broken JSON", "line 3: broken JSON"),
    ),
    "a broken list": (
        "a.json",
        '[{"prompt": "w1", "response": "w2"},\n {"prompt": ]',
        ("valid JSON", "line 2, column 13"),
    ),
    "missing columns": (
        "a.jsonl",
        '{"x": "w1", "y": "w2"}\n' * 3,
        ("requires columns that tell what is prompt and what is response", "got x, y", "data.fields"),
    ),
    "a row without a column": (
        "a.jsonl",
        ROW * 3 + '{"prompt": "w1"}\n',
        ("1 of 4 does not", "a.jsonl line 4", "'response' is missing"),
    ),
    "a null": ("a.jsonl", ROW * 2 + '{"prompt": "w1", "response": null}\n', ("line 3", "response")),
    "another encoding": (
        "a.jsonl",
        ROW.encode() + '{"prompt": "caf\u00e9", "response": "w"}\n'.encode("cp1252"),
        ("UTF-8 text; got byte 0xe9", "line 2", "iconv -f cp1252"),
    ),
    "UTF-16": ("a.jsonl", ROW.encode("utf-16"), ("bytes that look like UTF-16", "iconv")),
    "a short line of a table": ("a.csv", "prompt,response\nw1,w2\nw3\n", ("line 3: has 1 fields, the header has 2",)),
    "no known suffix": ("a.doc", ROW, ("one of .jsonl", "got '.doc'", "Convert or rename")),
    "a damaged archive": ("a.jsonl.gz", b"\x1f\x8b\x08\x00nonsense", ("a whole gzip file",)),
    "a damaged table": ("a.parquet", b"PAR1nonsensePAR1", ("a readable parquet file",)),
}


@pytest.mark.parametrize("what", DATA)
@pytest.mark.parametrize("command", ["check", "run"])
def test_data_that_cannot_be_read(tried, tmp_path, what, command):
    name, raw, words = DATA[what]
    tried(*words, command=command, data=bad_data(tmp_path, name, raw))


@pytest.mark.parametrize("command", ["check", "run"])
def test_missing_data_names_the_nearest_file(tried, place, command):
    tried(
        "chta.jsonl' requires an existing file or folder; got none. Did you mean chat.jsonl",
        command=command,
        data={"train": str(place / "chta.jsonl")},
    )


@pytest.mark.parametrize("command", ["check", "preview", "plan", "run"])
def test_an_objective_that_does_not_fit_the_data(tried, command):
    tried(
        "dpo requires preference data; got text data in",
        "has messages",
        "Map columns with data.fields, or choose an objective for text data",
        command=command,
        objective="dpo",
    )


def test_a_sum_of_objectives_that_read_different_batches(tried):
    tried(
        "nll requires text or preference data; got grpo, which requires group data",
        objective=["nll", "grpo"],
        reward="exact",
    )


def test_advice_can_be_followed(tried, place, tmp_path):
    pairs = {"train": str(place / "pairs.jsonl")}
    tried("nll requires text data; got preference data", "Set data.kind: text (the chosen side is kept)", data=pairs)
    recipe = write_recipe(tmp_path / "good.yaml", sound(place, data={**pairs, "kind": "text"}))
    assert luthier("run", recipe, "--out", tmp_path / "run").code == 0


def test_a_row_longer_than_the_context(tried, tmp_path, place):
    raw = ROW * 5 + json.dumps({"prompt": "w1", "response": " ".join(WORDS * 2)}) + "\n" + ROW * 5
    data = {**bad_data(tmp_path, "a.jsonl", raw), "holdout": 0}
    tried(
        "at most 64 tokens per row", "1 of 11 rows is longer: a.jsonl line 6 has 85", "set data.truncation", data=data
    )
    for how, rows in (("drop", 10), ("right", 11), ("prompt", 10)):
        recipe = write_recipe(tmp_path / "cut.yaml", sound(place, data={**data, "truncation": how}))
        ran = luthier("preview", recipe)
        assert f"11 rows gave {rows} examples" in " ".join(ran.out.split())


def test_no_trained_token_at_all(tried, tmp_path):
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", "train": False}]
    data = bad_data(tmp_path, "a.jsonl", (json.dumps({"messages": turns}) + "\n") * 4)
    tried(
        "training requires at least one trained token; none of 4 rows has one",
        "a.jsonl line 1",
        "Check data.train_on",
        data=data,
    )


def test_held_out_rows_must_leave_some(tried, place):
    tried(
        "data.holdout requires fewer than all 24 rows; got 24", data={"train": str(place / "chat.jsonl"), "holdout": 24}
    )


def test_a_measure_that_cannot_run_is_refused_before_training(tried):
    if find_spec("sentence_transformers"):
        tried(
            "the embedder 'none/such' requires a sentence-transformers folder or hub name",
            embedder="none/such",
            measure=["likelihood"],
        )
    tried(
        "measure exact_match requires answer or verify",
        "Add it to the test data, or leave this measure out",
        measure=["exact_match"],
    )
    tried("measure ngram requires prompt + max_new <= 64 tokens; got", "+ 64. Lower its max_new", measure=["ngram"])
