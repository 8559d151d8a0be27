"""Reading rows: every format and every kind of file; mapping, peeking, converting."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ConfigError, DataError
from luthier.data.formats import FORMATS, convert, load, peek, suggest
from tests.data.written import A, U, write

CASES: dict[str, tuple[dict[str, Any], str, str, dict[str, Any]]] = {
    "messages": ({"messages": [U, A]}, "messages", "text", {"messages": [U, A]}),
    "conversations with roles": ({"conversations": [U, A], "id": 3}, "messages", "text", {"messages": [U, A], "id": 3}),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Yes"},
            ]
        },
        "sharegpt",
        "text",
        {"messages": [{"role": "system", "content": "S"}, U, A]},
    ),
    "system column": (
        {"system": "S", "messages": [U, A]},
        "messages",
        "text",
        {"messages": [{"role": "system", "content": "S"}, U, A]},
    ),
    "prompt and response": (
        {"prompt": "Hi", "response": "Yes"},
        "prompt/response",
        "text",
        {"prompt": "Hi", "response": "Yes"},
    ),
    "prompt and completion": (
        {"prompt": "Hi", "completion": " Yes"},
        "prompt/response",
        "text",
        {"prompt": "Hi", "response": " Yes"},
    ),
    "question and answer": (
        {"question": "Hi", "answer": "Yes"},
        "prompt/response",
        "text",
        {"prompt": "Hi", "response": "Yes"},
    ),
    "input and output": (
        {"input": "Hi", "output": "Yes"},
        "prompt/response",
        "text",
        {"prompt": "Hi", "response": "Yes"},
    ),
    "worked solution": (
        {"problem": "Hi", "solution": "so Yes", "answer": "Yes"},
        "prompt/response",
        "text",
        {"prompt": "Hi", "response": "so Yes", "answer": "Yes"},
    ),
    "alpaca": (
        {"instruction": "Hi", "input": "there", "output": "Yes"},
        "alpaca",
        "text",
        {"prompt": "Hi\n\nthere", "response": "Yes"},
    ),
    "alpaca without input": (
        {"instruction": "Hi", "input": "", "output": "Yes"},
        "alpaca",
        "text",
        {"prompt": "Hi", "response": "Yes"},
    ),
    "dolly": (
        {"instruction": "Hi", "context": "there", "response": "Yes", "category": "qa"},
        "alpaca",
        "text",
        {"prompt": "Hi\n\nthere", "response": "Yes", "category": "qa"},
    ),
    "text": ({"text": "Once"}, "text", "text", {"text": "Once"}),
    "labelled text": ({"text": "Once", "label": 3}, "text", "text", {"text": "Once", "label": 3}),
    "pairs": (
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        "preference",
        "preference",
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
    ),
    "pairs of messages": (
        {"prompt": "Hi", "chosen": [U, A], "rejected": [U, {**A, "content": "No"}]},
        "preference",
        "preference",
        {"prompt": "Hi", "chosen": [A], "rejected": [{**A, "content": "No"}]},
    ),
    "pairs that share their prompt": (
        {"chosen": [U, A], "rejected": [U, {**A, "content": "No"}]},
        "preference",
        "preference",
        {"prompt": [U], "chosen": [A], "rejected": [{**A, "content": "No"}]},
    ),
    "pairs of transcripts": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
        "preference",
        "preference",
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " a", "rejected": " b"},
    ),
    "pairs after a chat": (
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": "a", "rejected": "b"},
        "preference",
        "preference",
        {"prompt": [U], "chosen": "a", "rejected": "b"},
    ),
    "scored": (
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 0.5]},
        "scored",
        "scored",
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [1.0, 0.5]},
    ),
    "scored objects": (
        {
            "instruction": "Hi",
            "completions": [{"response": "a", "overall_score": 7}, {"response": "b", "overall_score": 2}],
        },
        "scored",
        "scored",
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [7.0, 2.0]},
    ),
    "feedback": (
        {"prompt": "Hi", "completion": "a", "label": False},
        "feedback",
        "feedback",
        {"prompt": "Hi", "response": "a", "label": False},
    ),
    "judged chat": (
        {"messages": [U, A], "label": True},
        "feedback",
        "feedback",
        {"prompt": [U], "response": "Yes", "label": True},
    ),
    "judged": (
        {"prompt": "Hi", "response": "a", "judgment": " too short "},
        "judged",
        "judged",
        {"prompt": "Hi", "response": "a", "judgment": "too short"},
    ),
    "set": (
        {"prompt": "Hi", "tags": ["<1>", "<2>"], "responses": ["a", "b", "c"]},
        "set",
        "set",
        {"prompt": "Hi", "tags": ["<1>", "<2>"], "responses": ["a", "b", "c"]},
    ),
    "weights": (
        {"prompt": "Hi", "answers": ["a", "b"], "weights": [1, 3]},
        "scored",
        "scored",
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [1.0, 3.0]},
    ),
    "prompts": ({"prompt": "Hi"}, "prompts", "prompts", {"prompt": "Hi"}),
    "prompts with answers": ({"prompt": "Hi", "answer": 42}, "prompts", "prompts", {"prompt": "Hi", "answer": 42}),
    "open chat": ({"messages": [U], "ground_truth": "x"}, "prompts", "prompts", {"prompt": [U], "answer": "x"}),
}


@pytest.mark.parametrize("case", CASES)
def test_formats_are_recognised_and_made_canonical(case, tmp_path):
    record, fmt, kind, want = CASES[case]
    loaded = load(write(tmp_path / "rows.jsonl", [record] * 2))
    assert (loaded.format, loaded.kind) == (fmt, kind)
    assert loaded.rows == [want, want]
    assert loaded.statement.startswith(f"{tmp_path}/rows.jsonl: 2 rows read as {fmt}: ")
    assert loaded.faults == ()
    assert loaded.where(1) == "rows.jsonl line 2"


@pytest.mark.parametrize("case", CASES)
def test_the_format_can_be_asked_for(case, tmp_path):
    record, fmt, _, want = CASES[case]
    if case != "input and output":
        assert load(write(tmp_path / "rows.jsonl", [record]), format=fmt).rows == [want]
    assert fmt in FORMATS


def test_the_statement_names_columns_and_what_is_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "i", "input": "x", "output": "o", "topic": 1}])
    assert load(path).statement == (
        f"{path}: 1 row read as alpaca: instruction + input (where given, after a blank line) is the user turn, "
        "output the assistant turn; kept beside them: topic."
    )


def test_tool_turns_become_calls_and_answers(tmp_path):
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "w", "arguments": {"city": "Köln"}}'},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "Sunny."},
    ]
    (row,) = load(write(tmp_path / "a.jsonl", [{"conversations": turns, "tools": '[{"name": "w"}]'}])).rows
    call = {"type": "function", "function": {"name": "w", "arguments": {"city": "Köln"}}}
    assert row["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert row["messages"][2] == {"role": "tool", "content": "sun"}
    assert row["tools"] == [{"name": "w"}]


@pytest.mark.parametrize(
    ("key", "value", "want"), [("train", False, False), ("weight", 0, False), ("loss", True, True), ("weight", 1, True)]
)
def test_turns_can_be_switched_off_in_three_spellings(key, value, want, tmp_path):
    (row,) = load(write(tmp_path / "a.jsonl", [{"messages": [U, {**A, key: value}]}])).rows
    assert row["messages"] == [U, {**A, "train": want}]


def test_text_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert load(write(tmp_path / "a.jsonl", [{"messages": [{**U, "content": parts}, A]}])).rows == [
        {"messages": [U, A]}
    ]


# ------------------------------------------------------------------ kinds of files
ROWS = [{"prompt": "Grüße, 'Welt'\n", "response": 'a "b", c'}, {"prompt": "漢", "response": "🦊"}]


def make(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file of the kind that the suffix says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if name.endswith((".csv", ".tsv")):
        import csv
        import io

        out = io.StringIO(newline="")
        table = csv.DictWriter(out, list(rows[0]), delimiter="," if ".csv" in name else "\t")
        table.writeheader()
        table.writerows(rows)
        text = out.getvalue()
    elif name.endswith(".json"):
        text = json.dumps(rows, indent=1)
    else:
        text = "\r\n\r\n".join(json.dumps(r) for r in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


NAMES = ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_gives_the_same_rows_and_fingerprint(name, tmp_path):
    loaded = load(make(tmp_path / name, ROWS))
    assert loaded.rows == ROWS
    assert loaded.fingerprint == load(write(tmp_path / "other.jsonl", ROWS)).fingerprint


def test_the_fingerprint_changes_with_content_order_and_kind(tmp_path):
    digests = {
        load(write(tmp_path / f"{i}.jsonl", rows)).fingerprint
        for i, rows in enumerate([ROWS, ROWS[::-1], ROWS[:1], [{**ROWS[0], "x": 1}, ROWS[1]]])
    }
    assert len(digests) == 4


def test_json_of_columns_splits_wrappers_lines_and_lists(tmp_path):
    path = tmp_path / "a.json"
    columns = {"prompt": [r["prompt"] for r in ROWS], "response": [r["response"] for r in ROWS]}
    for value in (columns, {"data": ROWS}, {"train": ROWS}):
        path.write_text(json.dumps(value))
        assert load(path).rows == ROWS
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert load(path).rows == ROWS
    path.write_text(json.dumps({"messages": [U, A]}))
    assert load(path).rows == [{"messages": [U, A]}]
    path.write_text(json.dumps({"train": ROWS[:1], "test": ROWS[1:]}))
    assert load(path, split="test").rows == ROWS[1:]
    with pytest.raises(DataError, match=r"one split.*test, train.*data\.split"):
        load(path)
    lines = tmp_path / "b.jsonl"
    lines.write_text(json.dumps(ROWS))
    assert load(lines).rows == ROWS


def test_table_cells_may_hold_json(tmp_path):
    rows = [{"messages": json.dumps([U, A]), "label": "true"}]
    assert load(make(tmp_path / "a.csv", rows)).rows == [{"prompt": [U], "response": "Yes", "label": True}]
    scored = [{"prompt": "Hi", "responses": '["a", "b"]', "scores": "[1, 2]"}]
    assert load(make(tmp_path / "b.csv", scored)).rows == [
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [1.0, 2.0]}
    ]


def test_plain_text_is_split_as_asked(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\r\nthree\r\n")
    assert load(path).rows == [{"text": "one\ntwo"}, {"text": "three"}]
    assert load(path).places == ("a.txt line 1", "a.txt line 5")
    assert "split into paragraphs" in load(path).statement
    assert [r["text"] for r in load(path, format="text:lines").rows] == ["one", "two", "three"]
    assert len(load(path, format="text:document")) == 1
    with pytest.raises(ConfigError, match=r"for \.txt files"):
        load(write(tmp_path / "b.jsonl", ROWS), format="text:lines")
    with pytest.raises(ConfigError, match="paragraphs"):
        load(path, format="text:words")


# ------------------------------------------------------------------ folders and hubs
def test_a_folder_is_all_its_files_in_order(tmp_path):
    write(tmp_path / "b.jsonl", ROWS[1:])
    make(tmp_path / "a.csv", ROWS[:1])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden" / "c.jsonl", ROWS)
    loaded = load(tmp_path)
    assert loaded.rows == ROWS
    assert loaded.places == ("a.csv line 2", "b.jsonl line 1")


def test_splits_of_a_folder_are_never_mixed(tmp_path):
    write(tmp_path / "train-00000.jsonl", ROWS[:1])
    (tmp_path / "dev").mkdir()
    write(tmp_path / "dev" / "x.jsonl", ROWS[1:])
    with pytest.raises(DataError, match="one split, so that test rows are not trained on; got train, validation"):
        load(tmp_path)
    assert load(tmp_path, split="train").rows == ROWS[:1]
    assert load(tmp_path, split="val").rows == ROWS[1:]
    with pytest.raises(DataError, match="a split named 'test'; got train, validation"):
        load(tmp_path, split="test")
    with pytest.raises(ConfigError, match=r"data\.split"):
        load(tmp_path / "train-00000.jsonl", split="train")


def test_links_that_leave_the_folder_are_refused(tmp_path):
    inside = tmp_path / "data"
    inside.mkdir()
    write(tmp_path / "secret.jsonl", ROWS)
    (inside / "a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError, match=r"a file inside .*data; got a link to .*secret\.jsonl"):
        load(inside)
    (inside / "a.jsonl").unlink()
    write(inside / "b.jsonl", ROWS)
    (inside / "c.jsonl").symlink_to(inside / "b.jsonl")
    assert len(load(inside)) == 4


def test_a_folder_saved_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one").rows == ROWS
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "two")
    assert load(tmp_path / "two", split="test").rows == ROWS[:1]
    with pytest.raises(DataError, match="one split"):
        load(tmp_path / "two")


def test_a_saved_folder_cannot_point_outside(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../etc/passwd"}]}))
    with pytest.raises(DataError, match="inside"):
        load(tmp_path)


def test_a_hub_name_goes_to_the_hub_and_says_so_when_it_fails(monkeypatch):
    asked: list[Any] = []
    fake = types.SimpleNamespace(load_dataset=lambda *a, **k: asked.append((a, k)) or ROWS)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    loaded = load("somebody/pairs:small")
    assert loaded.rows == ROWS
    assert asked == [(("somebody/pairs", "small"), {"split": "train"})]
    assert loaded.where(0) == "somebody/pairs:small row 1"

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nlong trace")

    fake.load_dataset = offline
    with pytest.raises(
        DataError, match="no such path here, and the hub answered ConnectionError: Couldn't reach the Hub"
    ):
        load("somebody/pairs")


def test_a_missing_file_offers_the_nearest_name(tmp_path):
    write(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(DataError, match=r"an existing file or folder; got none. Did you mean pairs\.jsonl\."):
        load(tmp_path / "pair.jsonl")
    other = tmp_path / "a.xlsx"
    other.write_text("x")
    with pytest.raises(DataError, match=r"one of \.jsonl"):
        load(other)


# ------------------------------------------------------------------ mapping, peeking, converting
def test_fields_map_columns_and_patterns(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"premise": "P", "claim": "C", "label": 2, "prompt": "other"}])
    loaded = load(path, fields={"prompt": "{premise}; {claim}?", "response": "claim"})
    assert loaded.rows == [{"prompt": "P; C?", "response": "C", "premise": "P", "label": 2, "prompt_": "other"}]
    assert loaded.fields == {"prompt": "{premise}; {claim}?", "response": "claim"}
    assert "mapped prompt = '{premise}; {claim}?', response = 'claim'" in loaded.statement


def test_a_mapped_column_joins_those_that_are_recognised(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "Q", "best_answer": "B"}])
    assert load(path, fields={"response": "best_answer"}).rows == [{"prompt": "Q", "response": "B"}]


def test_faults_of_the_mapping(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"src": "Q", "tgt": None}])
    with pytest.raises(DataError, match=r"data\.fields\.prompt: unknown column 'scr'; did you mean 'src'"):
        load(path, fields={"prompt": "scr"})
    with pytest.raises(ConfigError, match=r"data\.fields\.promt: .*did you mean 'prompt'"):
        load(path, fields={"promt": "src"})
    for pattern in ("{src", "{}", "{src!z}"):
        with pytest.raises((ConfigError, DataError), match=r"data\.fields\.prompt"):
            load(path, fields={"prompt": pattern})
    with pytest.raises(DataError, match="tgt is null"):
        load(path, fields={"prompt": "src", "response": "<{tgt}>"})


def test_unknown_formats_and_policies_offer_the_nearest(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match="did you mean 'alpaca'"):
        load(path, format="alpacca")
    with pytest.raises(ConfigError, match=r"data\.on_bad"):
        load(path, on_bad="skip")  # type: ignore[arg-type]


def test_peek_reads_only_the_first_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", [*ROWS, {"prompt": "p"}])
    assert peek(path, rows=1).rows == ROWS[:1]
    assert not peek(path, rows=1).complete
    assert "the first 1 row" in peek(path, rows=1).statement
    assert peek(path).complete
    assert len(peek(path).faults) == 1
    large = write(tmp_path / "b.jsonl", [{"prompt": "x" * 9_000, "response": "y"}] * 1_000)
    assert len(peek(large, rows=900)) < 600, "only the first megabytes are read"
    assert not peek(large, rows=900).complete


def test_conversions_say_what_they_do(tmp_path):
    pairs = load(write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "id": 1}]))
    assert pairs.kinds == ("preference", "text", "prompts", "feedback")
    assert convert(pairs, "text").rows == [{"prompt": "p", "response": "a", "id": 1}]
    assert [r["label"] for r in convert(pairs, "feedback").rows] == [True, False]
    assert convert(pairs, "text").statement.endswith("Used as text: the chosen side is kept.")
    assert convert(pairs, "text").fingerprint != pairs.fingerprint
    scored = load(
        write(tmp_path / "b.jsonl", [{"prompt": "p", "responses": ["a", "b"], "scores": s} for s in ([1, 2], [3, 3])])
    )
    made = convert(scored, "preference")
    assert made.rows == [{"prompt": "p", "chosen": "b", "rejected": "a"}]
    assert "1 row gave none" in made.statement
    talk = load(write(tmp_path / "c.jsonl", [{"messages": [U, A, U, {**A, "content": "End"}]}]))
    assert convert(talk, "prompts").rows == [{"prompt": [U, A, U], "answer": "End"}]
    assert convert(talk, "text") is talk
    judged = load(write(tmp_path / "d.jsonl", [{"prompt": "p", "response": x, "label": x == "a"} for x in "ab"]))
    assert convert(judged, "text").rows == [{"prompt": "p", "response": "a"}]
    with pytest.raises(DataError, match="scored data requires prompt, responses and scores"):
        convert(pairs, "scored")


def test_advice_for_an_objective_that_needs_other_data(tmp_path):
    chat = load(write(tmp_path / "a.jsonl", [{"messages": [U, A]}]))
    told = suggest("preference", chat)
    assert "preference data requires prompt, chosen and rejected" in told
    assert "has messages (messages)" in told
    assert "nll" in told
    assert "Set data.kind: prompts" in suggest("prompts", chat)


# ------------------------------------------------------------------ real sets, speed
REAL = {
    "alpaca/train.jsonl": ("alpaca", 8525),
    "dolly/train.jsonl": ("alpaca", 2696),
    "gsm8k/train.jsonl": ("prompt/response", 7473),
    "hh_harmless/train.jsonl": ("preference", 2008),
    "kto_demo/train.jsonl": ("feedback", 270),
    "glaive_toolcall/train.jsonl": ("sharegpt", 270),
    "bfcl/train.jsonl": ("prompts", 1198),
    "banking77/train.jsonl": ("text", 10003),
    "humaneval/test.jsonl": ("prompts", 164),
    "mbpp/train.jsonl": ("prompts", 120),
    "truthfulqa/test.jsonl": ("prompts", 817),
    "counterfact/train.jsonl": ("prompts", 3982),
    "tiny_shakespeare/train.txt": ("text", 6283),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_recognised_whole(name, shared):
    path = shared / "data" / name
    if not path.is_file():
        pytest.skip(f"{name} is not present")
    loaded = load(path)
    assert (loaded.format, len(loaded)) == REAL[name]
    assert loaded.faults == ()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("esnli/test.jsonl", {"prompt": "{premise} | {hypothesis}", "response": "label"}),
        ("multi30k/test.jsonl", {"prompt": "en", "response": "de"}),
        ("adult/test.csv", {"prompt": "{age}, {workclass}", "response": "income"}),
        ("banking77/test.jsonl", {"prompt": "text", "response": "label_name"}),
        ("zsre/test.jsonl", {"prompt": "src", "response": "alt"}),
    ],
)
def test_real_sets_of_no_known_shape_ask_for_fields_and_take_them(name, fields, shared):
    path = shared / "data" / name
    if not path.is_file():
        pytest.skip(f"{name} is not present")
    if "banking" not in name:
        with pytest.raises(DataError, match=r"data\.fields"):
            load(path)
    assert load(path, fields=fields).format == "prompt/response"


def test_reading_needs_no_torch():
    heavy = "{'torch', 'datasets', 'pyarrow', 'transformers'}"
    code = f"import sys, luthier.data.formats; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")})
