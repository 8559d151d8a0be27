"""Broken input: every fault is named with its file, its place, its reason and what to do."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.data.formats import load
from tests.data.written import A, U, write


def bad(path: Path, text: str | bytes, match: str, **options: Any) -> DataError:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=match) as found:
        load(path, **options)
    return found.value


GOOD = json.dumps({"prompt": "p", "response": "r"})


def test_broken_json_names_the_line_and_the_column(tmp_path):
    fault = bad(
        tmp_path / "a.jsonl",
        f'{GOOD}\n\n{{"prompt": \n{GOOD}\n',
        r"1 of 3 does not:\n  a\.jsonl line 3: broken JSON: .*column 12",
    )
    assert "data.on_bad: drop" in str(fault)
    bad(
        tmp_path / "b.json",
        '[\n{"prompt": "p"},\n{"prompt" "q"}]',
        r"b\.json requires valid JSON; got .* on line 3, column 11",
    )


def test_pain_37_the_first_five_faults_are_listed_and_all_are_counted(tmp_path):
    """LLaMA-Factory #4236, #7777: 'cannot find valid samples', without saying which row and why."""
    lines = [
        GOOD,
        '{"prompt": "p"}',
        '{"prompt": "p", "response": null}',
        '{"prompt": "p", "response": " "}',
        '{"prompt": "p", "response": 3}',
        "[1]",
        "nonsense",
        GOOD,
    ]
    fault = str(bad(tmp_path / "a.jsonl", "\n".join(lines), "6 of 8 do not"))
    assert "line 2: the column 'response' is missing" in fault
    assert "line 3: response is null" in fault
    assert "line 4: response is empty" in fault
    assert "line 5: response is a int, not text" in fault
    assert "line 6: holds a list, not an object" in fault
    assert "... and 1 more" in fault
    kept = load(tmp_path / "a.jsonl", on_bad="drop")
    assert len(kept) == 2
    assert [f.where for f in kept.faults] == [f"a.jsonl line {n}" for n in range(2, 8)]
    assert "6 rows left out, first: a.jsonl line 2" in kept.statement


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "p", "response": "r", "prompt": "q"}', "key 'prompt' stands twice"),
        ('{"prompt": "p", "response": "r", "x": NaN}', "NaN is not a JSON value"),
        ('{"prompt": "p", "response": "r", "x": [{"y": -Infinity}]}', "-Infinity is not a JSON value"),
        ('{"prompt": "p", "response": "half \\ud83d"}', "a lone surrogate"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"prompt": "p", "response": "r", "x": ' + "[" * 400 + "]" * 400 + "}", "nested too deeply"),
    ],
)
def test_json_that_python_would_let_pass(line, reason, tmp_path):
    bad(tmp_path / "a.jsonl", f"{GOOD}\n{line}\n", f"line 2: .*{reason}")
    if not line.startswith("["):
        bad(tmp_path / "a.json", f"[{GOOD},\n{line}]", f"item 2: .*{reason}")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.jsonl.gz"])
def test_an_empty_file_is_said_to_be_empty(name, tmp_path):
    empty = gzip.compress(b"") if name.endswith("gz") else b" \n" if "parquet" not in name else b""
    bad(tmp_path / name, empty, "at least one row; got an empty file|a readable parquet file")
    bad(tmp_path / "head.csv", "prompt,response\n", "at least one row; got none")
    bad(tmp_path / "none.json", "[]", "at least one row; got none")


def test_a_wrong_encoding_names_the_byte_and_a_guess(tmp_path):
    text = f"{GOOD}\n" + json.dumps({"prompt": "caf\u00e9", "response": "r"}, ensure_ascii=False)
    raw = text.encode("cp1252")
    bad(tmp_path / "a.jsonl", raw, rf"byte 0xe9 at offset {raw.index(0xE9)} \(line 2\).*cp1252.*iconv -f cp1252")
    bad(tmp_path / "b.jsonl", text.encode("utf-16"), "look like UTF-16.*iconv -f utf-16")
    bad(tmp_path / "c.jsonl", text.encode("utf-16-le"), "look like UTF-16")
    bad(tmp_path / "d.csv", b"\xef\xbb\xbfprompt,response\n\xff,b\n", "byte 0xff at offset 19")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    for name, text in (("a.jsonl", GOOD), ("a.json", f"[{GOOD}]"), ("a.csv", "prompt,response\np,r\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert load(tmp_path / name).rows == [{"prompt": "p", "response": "r"}]


def test_tables_with_faults(tmp_path):
    bad(tmp_path / "a.csv", "prompt,prompt\n1,2\n", "distinct column names; got 'prompt' twice")
    bad(
        tmp_path / "b.csv",
        'prompt,response\np,r\np\n"x\ny",r,more\n',
        r"2 of 3 do not:\n.*line 3: has 1 fields, the header has 2\n.*line 4: has 3",
    )
    bad(tmp_path / "c.csv", 'prompt,response\np,r\n"open,r\n', r"c\.csv line 3: broken csv")


def test_broken_archives_and_parquet(tmp_path):
    whole = gzip.compress(GOOD.encode() * 50)
    bad(tmp_path / "a.jsonl.gz", whole[:-12], "a whole gzip file")
    bad(tmp_path / "b.jsonl.gz", GOOD, "a whole gzip file")
    bad(tmp_path / "a.parquet", b"PAR1 nonsense PAR1", "a readable parquet file")


def test_missing_columns_say_which_and_how_to_map(tmp_path):
    fault = str(bad(tmp_path / "a.jsonl", '{"src": "a", "tgt": "b"}', "requires columns that tell"))
    assert "got src, tgt" in fault
    assert "data.fields" in fault
    bad(
        tmp_path / "a.jsonl",
        GOOD,
        r"as preference requires the columns chosen \+ rejected; got prompt, response",
        format="preference",
    )


def test_two_formats_in_one_file_are_told_apart(tmp_path):
    rows = [{"prompt": "p", "response": "r"}] * 2 + [{"messages": [U, A]}]
    fault = bad(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)), r"line 3: the column 'prompt' is missing")
    assert "it looks like messages; the file is prompt/response" in str(fault)


def test_unreadable_files(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="data files"):
        load(tmp_path / "folder.jsonl")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "an empty list"),
        ("hello", "requires a list"),
        ([U, "x"], "message 2 is a str"),
        ([{"role": "robot", "content": "x"}, A], "'robot'"),
        ([U, {"role": "assistant"}], "message 2 content is null"),
        ([U, {**A, "content": " "}], "message 2 content is empty"),
        ([U, {**A, "content": 5}], "content is a int"),
        ([U, {**A, "weight": 0.5}], "weight is 0.5"),
        ([{**U, "train": True}, A], "asks to train a user turn"),
        ([U, {**A, "train": True, "weight": 0}], "says both"),
        ([U, {**A, "content": [{"type": "image_url"}]}], "only text"),
        ([U, {**A, "tool_calls": [{"x": 1}]}], "requires {name, arguments}"),
        ([U, {"from": "function_call", "value": "{broken"}], "looks like JSON but is not"),
    ],
)
def test_messages_that_do_not_fit(turns, reason, tmp_path):
    rows = [{"messages": [U, A]}, {"messages": turns}]
    bad(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)), f"line 2: .*{reason}")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "rejected is empty"),
        ({"prompt": "p", "chosen": [A], "rejected": "b"}, "not both text or both messages"),
        ({"prompt": "p", "chosen": [U], "rejected": [A]}, "chosen does not end with an assistant message"),
        ({"chosen": "a", "rejected": "b"}, "prompt"),
    ],
)
def test_pairs_that_do_not_fit(record, reason, tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, record]
    bad(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)), f"line 2: .*{reason}")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "p", "responses": ["a"], "scores": [1, 2]}, "1 responses need as many scores; got 2"),
        ({"prompt": "p", "responses": ["a"], "scores": ["x"]}, "score 1 requires a number"),
        ({"prompt": "p", "responses": ["a"], "scores": [1e999]}, "score 1 requires a finite number|Infinity is not"),
        ({"prompt": "p", "responses": [], "scores": []}, "at least one text"),
        ({"prompt": "p", "responses": ["a"], "scores": [True]}, "requires a number"),
    ],
)
def test_scores_that_do_not_fit(record, reason, tmp_path):
    rows = [{"prompt": "p", "responses": ["a"], "scores": [1]}, record]
    bad(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)), f"line 2: .*({reason})")


def test_equal_pairs_are_counted(tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "p", "chosen": "a", "rejected": "b"}]
    assert "1 pair is equal on both sides" in load(write(tmp_path / "a.jsonl", rows)).statement


@pytest.mark.parametrize(("name", "header", "said", "do"), [
    ("a.csv", "prompt;response", "separated by semicolons: 'prompt', 'response'", "delimiter=';'"),
    ("a.csv", '"prompt";"response"', "separated by semicolons: 'prompt', 'response'", "delimiter=';'"),
    ("a.csv", "prompt\tresponse", "separated by tabs: 'prompt', 'response'", "Name the file .tsv."),
    ("a.csv", "prompt|response", "separated by bars: 'prompt', 'response'", "delimiter='|'"),
    ("a.tsv", "prompt,response", "separated by commas: 'prompt', 'response'", "Name the file .csv."),
])  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_with_another_separator_names_it_and_what_to_do(tmp_path, name, header, said, do, end):
    mark = next(sign for sign in ";\t|," if sign in header)
    fault = str(bad(tmp_path / name, f"{header}{end}a{mark}b{end}", f"a header that looks {re.escape(said)}"))
    assert fault.startswith(f"{name} requires columns separated by {'commas' if name == 'a.csv' else 'tabs'}; got")
    assert do in fault


def test_the_conversion_that_the_message_names_gives_a_table_that_loads(tmp_path):
    fault = str(bad(tmp_path / "a.csv", 'prompt;response\n"a, b";c\nd;e\n', "semicolons"))
    command = fault.partition("Convert it: python ")[2].rstrip(".").removesuffix(".")
    subprocess.run(f"{sys.executable} {command}", shell=True, cwd=tmp_path, check=True)
    assert [row["response"] for row in load(tmp_path / "comma.csv").rows] == ["c", "e"]


@pytest.mark.parametrize(
    "text", ["text\na; b\nc\n", "text\na\tb\n", "prompt,response; or none\na,b\n", '"text"\n"a;b"\n']
)
def test_signs_of_another_separator_elsewhere_are_no_fault(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert load(tmp_path / "a.csv", fields={"text": "text"} if "text" in text else
                {"prompt": "prompt", "response": "response; or none"}).rows  # fmt: skip
