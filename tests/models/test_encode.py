"""Ids and masks of every kind of row: what is trained, what is cut, what is counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import ConfigError, DataError, LuthierError
from luthier.models.encode import EncodedData, Settings, encode, stops
from tests.models.made import Letters, byte_level, dummy_space, template, word_level

CHATML = ("<|im_start|>", "<|im_end|>")


def chatml(**extra: Any) -> Any:
    return byte_level(None, "<|im_end|>", CHATML, template("chatml"), **extra)


def trained_text(tokenizer: Any, sequence: Any) -> str:
    return tokenizer.decode([i for i, m in zip(sequence.ids, sequence.mask, strict=True) if m])


def only(data: EncodedData) -> Any:
    (example,) = data.examples
    (sequence,) = example
    return sequence


PAIR = {"prompt": "What is six times seven?", "response": "It is 42."}
TALK = {
    "messages": [
        m for i in range(3) for m in ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"})
    ]
}


def test_an_empty_answer_is_its_end_token_where_a_model_may_have_given_it():
    row = {"prompt": "q", "response": ""}
    with pytest.raises(DataError, match=r"row 1: message 2 \(assistant\) is empty"):
        encode([row], "text", chatml())
    made = only(encode([row], "text", chatml(), Settings(blank=True)))
    assert trained_text(chatml(), made) == "<|im_end|>"
    told = only(encode([PAIR | {"prompt": "q"}], "text", chatml()))
    first, end = told.mask.index(1), len(told.mask) - 1 - told.mask[::-1].index(1)
    assert made.ids == told.ids[:first] + told.ids[end:]


# ------------------------------------------------------------------ one row of each kind
def test_prompt_and_response_without_a_template():
    t = byte_level(adds_bos=True)
    s = only(encode([PAIR], "text", t))
    assert list(s.ids) == [
        t.bos_token_id,
        *t.encode(PAIR["prompt"] + " " + PAIR["response"], add_special_tokens=False),
        t.eos_token_id,
    ]
    assert trained_text(t, s) == " It is 42.</s>"
    assert s.mask[: 1 + len(PAIR["prompt"])] == (0,) * (1 + len(PAIR["prompt"]))


@pytest.mark.parametrize(("prompt", "response"), [("Q: ", "A"), ("Q:", " A"), ("Q:\n", "A"), ("Q:", "\nA")])
def test_no_space_is_added_where_white_space_stands(prompt, response):
    data = encode([{"prompt": prompt, "response": response}], "text", t := byte_level())
    assert t.decode(only(data).ids) == f"{prompt}{response}</s>"
    assert not any("space" in note for note in data.report.notes)


def test_an_added_space_is_said():
    assert any("in 1 row a space was put" in note for note in encode([PAIR], "text", byte_level()).report.notes)


def test_plain_text_is_trained_whole_but_for_the_begin_token():
    t = byte_level(adds_bos=True)
    s = only(encode([{"text": "Once."}], "text", t))
    assert t.decode(s.ids) == "<s>Once.</s>"
    assert s.mask == (0, *[1] * 6)
    first = only(encode([{"text": "Once."}], "text", byte_level()))
    assert first.mask == (0, *[1] * 5), "a first token has nothing to be predicted from"


def test_a_chat_is_tokenised_as_the_tokenizer_itself_does():
    for t in (chatml(), byte_level("<s>", "</s>", ("[INST]", "[/INST]"), template("mistral_v3"), adds_bos=True)):
        s = only(encode([TALK], "text", t))
        assert list(s.ids) == t.apply_chat_template(TALK["messages"], tokenize=True, return_dict=False)


def test_pairs_are_two_parts_with_one_prompt():
    data = encode([{"prompt": "Q", "chosen": "good", "rejected": "bad"}], "preference", t := chatml())
    assert data.parts == ("chosen", "rejected")
    chosen, rejected = data.examples[0]
    assert trained_text(t, chosen) == "good<|im_end|>"
    assert trained_text(t, rejected) == "bad<|im_end|>"


def test_pairs_of_messages_train_all_turns_after_the_prompt():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    chosen = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "two"},
    ]
    asked = [{"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "old"), ("user", "R"))]
    row = {"prompt": asked, "chosen": chosen, "rejected": [{"role": "assistant", "content": "no"}]}
    t = byte_level(None, "<|im_end|>", CHATML, template("qwen2_5"))
    (a, b) = encode([row], "preference", t).examples[0]
    assert trained_text(t, a).count("<|im_end|>") == 2
    assert "old" not in trained_text(t, a)
    assert trained_text(t, b) == "no<|im_end|>"


def test_scored_rows_become_one_example_per_response_with_columns():
    rows = [
        {"prompt": "Q", "responses": ["a", "bb", "c"], "scores": [1, 0.5, -2]},
        {"prompt": "R", "responses": ["d"], "scores": [3]},
    ]
    data = encode(rows, "scored", t := chatml())
    assert [trained_text(t, e[0]) for e in data.examples] == [f"{x}<|im_end|>" for x in ("a", "bb", "c", "d")]
    assert data.columns == {"score": [1.0, 0.5, -2.0, 3.0], "group": [0.0, 0.0, 0.0, 1.0]}
    assert [r["prompt"] for r in data.meta(rows)] == ["Q", "Q", "Q", "R"]


def test_scores_stay_with_their_responses_when_rows_are_dropped():
    rows = [
        {"prompt": "Q", "responses": ["x" * 90], "scores": [9]},
        {"prompt": "Q", "responses": ["a", "b"], "scores": [1, 2]},
    ]
    data = encode(rows, "scored", chatml(), Settings(max_length=80, truncation="drop"))
    assert data.columns == {"score": [1.0, 2.0], "group": [1.0, 1.0], "share": [1 / 3, 2 / 3]}


def test_feedback_keeps_its_label():
    rows = [{**PAIR, "label": True}, {**PAIR, "label": False}]
    assert encode(rows, "feedback", chatml()).columns == {"label": [1.0, 0.0]}


def test_prompts_are_what_training_puts_before_the_answer():
    """Rollouts begin with exactly the tokens that training shows before a response."""
    for t in (chatml(), byte_level(adds_bos=True), byte_level(merges=True), dummy_space()):
        trained = only(encode([PAIR], "text", t))
        asked = only(encode([PAIR], "prompts", t))
        assert trained.ids[: len(asked.ids)] == asked.ids
        assert trained.mask[: len(asked.ids)] == asked.mask == (0,) * len(asked.ids)
        assert trained.mask[len(asked.ids)] == 1


def test_numbers_of_a_column_named_weight_travel_with_the_rows():
    assert encode([{**PAIR, "weight": 2}, {**PAIR, "weight": 0.5}], "text", chatml()).columns == {"weight": [2.0, 0.5]}


# ------------------------------------------------------------------ which turns
@pytest.mark.parametrize(("train_on", "want"), [
    ("assistant", "a0<|im_end|>a1<|im_end|>a2<|im_end|>"), ("last", "a2<|im_end|>"), ("completion", "a2<|im_end|>"),
])  # fmt: skip
def test_turns_chosen_by_train_on(train_on, want):
    t = chatml()
    assert trained_text(t, only(encode([TALK], "text", t, Settings(train_on=train_on)))) == want


def test_train_on_all_trains_every_token_but_the_first():
    s = only(encode([TALK], "text", chatml(), Settings(train_on="all")))
    assert s.mask == (0, *[1] * (len(s.ids) - 1))


def test_completion_is_everything_after_the_last_question():
    turns = [*TALK["messages"], {"role": "assistant", "content": "more"}]
    s = only(encode([{"messages": turns}], "text", t := chatml(), Settings(train_on="completion")))
    assert trained_text(t, s) == "a2<|im_end|>more<|im_end|>"


def test_pain_06_turns_switched_off_train_nothing_of_theirs_not_even_the_end_token():
    """LLaMA-Factory #10827, #9630: masks per turn, and no end token of a masked turn is left over."""
    turns = [{**m, "train": False} if m["content"] in ("a0", "a1") else m for m in TALK["messages"]]
    t = chatml()
    assert trained_text(t, only(encode([{"messages": turns}], "text", t))) == "a2<|im_end|>"
    s = only(encode([{"messages": turns}], "text", t, Settings(train_on="all")))
    assert "a1" not in trained_text(t, s)
    assert trained_text(t, s).count("<|im_end|>") == 4


# ------------------------------------------------------------------ begin and end tokens
@pytest.mark.parametrize("pad", [None, "</s>", "<pad>"])
def test_pain_09_10_the_end_token_is_trained_whatever_the_pad_token_is(pad):
    """trl #931 ... #3091, unsloth #416: with pad = eos the end token was masked, and models never stopped."""
    t = byte_level(adds_bos=True, more=("<pad>",), pad_token=pad)
    s = only(encode([PAIR], "text", t))
    assert (s.ids[-1], s.mask[-1]) == (t.eos_token_id, 1)
    chat = chatml(pad_token="<|im_end|>" if pad == "</s>" else None)
    s = only(encode([TALK], "text", chat))
    assert [m for i, m in zip(s.ids, s.mask, strict=True) if i == chat.eos_token_id] == [0, 1, 0, 1, 0, 1]


def test_there_is_one_begin_token():
    t = byte_level(adds_bos=True)
    for row in (PAIR, {"text": "<s>Once."}, {"prompt": "<s>Q", "response": "A"}):
        assert only(encode([row], "text", t)).ids.count(t.bos_token_id) == 1
    own = byte_level("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), template("gemma2"), adds_bos=True)
    assert only(encode([TALK], "text", own)).ids.count(own.bos_token_id) == 1
    assert only(encode([PAIR], "prompts", own)).ids.count(own.bos_token_id) == 1


def test_no_second_end_token_and_none_on_request():
    t = byte_level()
    assert only(encode([{"text": "Once.</s>"}], "text", t)).ids.count(t.eos_token_id) == 1
    assert t.decode(only(encode([PAIR], "text", t, Settings(add_end=False))).ids).endswith("42.")


def test_the_last_turn_gets_an_end_where_the_template_has_none():
    t = byte_level(None, "<|endoftext|>", ("<|user|>", "<|assistant|>", "<sop>"), template("glm4"))
    assert trained_text(t, only(encode([TALK], "text", t))) == "\na0<|user|>\na1<|user|>\na2<|endoftext|>"


def test_a_tokenizer_without_end_token_is_an_error_that_says_so():
    with pytest.raises(DataError, match=r"end token.*add_end: false"):
        encode([PAIR], "text", byte_level(None, None))
    assert encode([PAIR], "text", byte_level(None, None), Settings(add_end=False)).report.examples == 1


def test_stop_tokens_are_those_that_training_puts_behind_an_answer():
    gemma = byte_level("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), template("gemma2"))
    assert set(stops(gemma)) == {gemma.eos_token_id, gemma.convert_tokens_to_ids("<end_of_turn>")}
    plain = byte_level()
    assert stops(plain) == (plain.eos_token_id,)
    assert stops(chatml()) == (chatml().eos_token_id,)


# ------------------------------------------------------------------ templates and system texts
def test_messages_without_a_template_name_the_setting():
    with pytest.raises(DataError, match=r"data\.template to plain"):
        encode([TALK], "text", byte_level())
    t = byte_level(adds_bos=True)
    assert trained_text(t, only(encode([TALK], "text", t, Settings(template="plain")))) == " a0</s> a1</s> a2</s>"


def test_template_none_ignores_the_tokenizers_own():
    t = chatml()
    assert (
        t.decode(only(encode([PAIR], "text", t, Settings(template="none"))).ids)
        == f"{PAIR['prompt']} {PAIR['response']}<|im_end|>"
    )


def test_system_texts_come_from_the_row_then_from_the_settings_and_never_twice():
    t = chatml()
    default = Settings(system="Default.")

    def shown(row: Any) -> str:
        return t.decode(only(encode([row], "text", t, default)).ids)

    assert shown(PAIR).startswith("<|im_start|>system\nDefault.<|im_end|>")
    assert shown({**PAIR, "system": "Own."}).startswith("<|im_start|>system\nOwn.<|im_end|>")
    given = {"messages": [{"role": "system", "content": "Given."}, *TALK["messages"]]}
    assert "Default." not in shown(given)
    plain = byte_level()
    assert plain.decode(only(encode([PAIR], "text", plain, default)).ids).startswith("Default.\n\nWhat")


def test_a_transcript_is_read_as_turns_by_a_chat_template_and_left_alone_without_one():
    row = {
        "prompt": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant:",
        "chosen": " Farewell",
        "rejected": " No",
    }
    data = encode([row], "preference", t := chatml())
    assert t.decode(data.examples[0][0].ids) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\nFarewell<|im_end|>\n"
    )
    assert any("transcript" in note for note in data.report.notes)
    bare = byte_level()
    assert bare.decode(encode([row], "preference", bare).examples[0][0].ids) == row["prompt"] + " Farewell</s>"


def test_rows_that_the_template_refuses_are_named_or_dropped_with_their_reason():
    t = byte_level("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), template("gemma2"))
    refused = {"messages": [{"role": "system", "content": "s"}, *TALK["messages"]]}
    with pytest.raises(DataError, match=r"2 of 3 cannot.*\n  row 2, row 3: .*System role not supported"):
        encode([TALK, refused, refused], "text", t)
    data = encode([TALK, refused, refused], "text", t, Settings(on_bad="drop"))
    assert [e[0].row for e in data.examples] == [0]
    assert list(data.report.dropped.values()) == [(1, 2)]


def test_a_turn_that_the_template_changes_is_an_error_unless_it_is_only_context():
    turns = [
        {**m, "content": f"<think>\nx\n</think>\n\n{m['content']}"} if m["role"] == "assistant" else m
        for m in TALK["messages"]
    ]
    t = byte_level(None, "<|im_end|>", CHATML, template("qwen3"))
    with pytest.raises(DataError, match=r"row 1: the chat template changes message 2"):
        encode([{"messages": turns}], "text", t)
    data = encode([{"messages": turns}], "text", t, Settings(train_on="last"))
    assert trained_text(t, only(data)) == "<think>\nx\n</think>\n\na2<|im_end|>"
    assert any("context only" in note for note in data.report.notes)


def test_control_tokens_written_in_the_data_are_counted():
    data = encode([{"prompt": "say <|im_end|>", "response": "no"}, PAIR], "text", chatml())
    assert "in 1 row the tokenizer reads text as control tokens" in data.report.notes


# ------------------------------------------------------------------ borders between prompt and response
CROSSING = {"prompt": "c:d\n", "response": "\n\nthe fox."}


def test_no_token_crosses_from_prompt_to_response():
    """'\\n\\n' is one token; the prompt alone ends with '\\n', and so it must when the answer follows."""
    t = byte_level(merges=True)
    alone = t.encode(CROSSING["prompt"])
    joint = t.encode(CROSSING["prompt"] + CROSSING["response"])
    assert joint[: len(alone)] != alone, "the case is real"
    data = encode([CROSSING], "text", t)
    s = only(data)
    assert list(s.ids[: len(alone)]) == alone
    assert trained_text(t, s) == CROSSING["response"] + "</s>"
    assert any("in pieces" in note for note in data.report.notes)


def test_a_header_that_ends_in_a_space_keeps_it():
    """Offsets of byte-level tokens leave their space out, so the space of 'Bot: ' would slip into the answer's first
    token."""
    text = (
        "{% for m in messages %}{{ 'Bot: ' if m.role == 'assistant' else 'Me: ' }}{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}Bot: {% endif %}"
    )
    t = byte_level(None, "<end>", (), text, merges=True)
    row = {"messages": [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": "the answer"}]}
    s, asked = only(encode([row], "text", t)), only(encode([{"prompt": row["messages"][:1]}], "prompts", t))
    assert s.ids[: len(asked.ids)] == asked.ids
    assert trained_text(t, s) == "the answer<end>"


@pytest.mark.parametrize(
    "make", [byte_level, lambda **k: byte_level(merges=True, **k), dummy_space], ids=["bytes", "merges", "dummy"]
)
@pytest.mark.parametrize("name", ["chatml", "mistral_small", "zephyr", "gemma2", "llama3"])
def test_masks_hold_for_every_kind_of_tokenizer(make, name):
    more = (
        "<|im_start|>",
        "<|im_end|>",
        "[INST]",
        "[/INST]",
        "<start_of_turn>",
        "<end_of_turn>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    )
    t = make(more=more, chat=template(name))
    s = only(encode([TALK], "text", t))
    end = {"chatml": "<|im_end|>", "gemma2": "<end_of_turn>", "llama3": "<|eot_id|>"}.get(name, "</s>")
    assert trained_text(t, s).replace(" ", "") == "".join(f"a{i}{end}" for i in range(3))


def test_a_tokenizer_without_offsets_gets_the_same_care():
    t = Letters()
    assert not t.is_fast
    assert trained_text(t, only(encode([PAIR], "text", t))) == " It is 42.</s>"
    s = only(encode([CROSSING], "text", t))
    assert trained_text(t, s) == CROSSING["response"] + "</s>"
    alone = t.encode(CROSSING["prompt"])
    assert t.encode(CROSSING["prompt"] + CROSSING["response"])[: len(alone)] != alone, "the case is real"
    assert list(s.ids[: len(alone)]) == alone


def test_text_that_a_tokenizer_cannot_keep_is_said():
    t = word_level("What is six times seven? It 42.")
    data = encode([PAIR, {"prompt": "What is", "response": "strange"}], "text", t)
    assert [t.decode([i for i, m in zip(e[0].ids, e[0].mask, strict=True) if m]) for e in data.examples] == [
        "It is 42. <end>",
        "<unk> <end>",
    ]
    assert any(note.startswith("1 row holds text that the tokenizer does not keep") for note in data.report.notes)


# ------------------------------------------------------------------ length
LONG = {"prompt": "abcdefghij", "response": " 0123456789"}


def cut(way: Any, limit: int, row: Any = LONG, kind: str = "text", t: Any = None) -> list[list[str]]:
    t = t or byte_level(adds_bos=True)
    return [
        [t.decode(p.ids) for p in e]
        for e in encode([row], kind, t, Settings(max_length=limit, truncation=way)).examples
    ]


def test_pain_11_a_row_that_is_too_long_stops_by_default_and_is_named():
    """ms-swift #6591, trl #3927: a length limit that is silently ignored, or an error that does not say which row."""
    with pytest.raises(
        DataError, match=r"at most 10 tokens.*1 of 2 rows is longer: b.jsonl line 7 has 23.*data\.truncation"
    ):
        encode([LONG, {"prompt": "a", "response": "b"}], "text", byte_level(adds_bos=True), Settings(max_length=10),
               where=lambda i: f"b.jsonl line {7 + i}")  # fmt: skip


def test_the_limit_defaults_to_the_tokenizers_own():
    with pytest.raises(DataError, match="at most 12 tokens"):
        encode([LONG], "text", byte_level(model_max_length=12))
    assert encode([LONG], "text", byte_level()).report.max_length is None


@pytest.mark.parametrize(("way", "limit", "want"), [
    ("right", 13, "<s>abcdefghij 0"), ("left", 13, "<s> 0123456789</s>"), ("left", 5, "<s>789</s>"),
    ("prompt", 15, "<s>ij 0123456789</s>"),
])  # fmt: skip
def test_what_each_way_of_cutting_keeps(way, limit, want):
    assert cut(way, limit) == [[want]]


def test_cut_tokens_are_counted():
    data = encode(
        [LONG, {"prompt": "a", "response": "b"}],
        "text",
        byte_level(adds_bos=True),
        Settings(max_length=15, truncation="prompt"),
    )
    assert (data.report.truncated_rows, data.report.truncated_tokens) == (1, 8)
    assert [e[0].truncated for e in data.examples] == [8, 0]


def test_a_response_that_alone_is_too_long_is_dropped_with_its_reason():
    data = encode(
        [LONG, {"prompt": "a", "response": "b"}], "text", byte_level(), Settings(max_length=8, truncation="prompt")
    )
    assert data.report.dropped == {"the response alone is longer than 8 tokens": (0,)}
    assert "1 row dropped: the response alone is longer than 8 tokens (first: row 1)." in data.report.lines()


def test_rows_left_without_trained_tokens_are_counted_and_all_of_them_is_an_error():
    """trl #6668, unsloth #2900, axolotl #3098: everything masked, loss 0, and the run goes on."""
    short = {"prompt": "a", "response": "b"}
    data = encode([LONG, short], "text", byte_level(), Settings(max_length=9, truncation="right"))
    assert data.report.zero_rows == 1
    assert data.report.dropped == {"no trained token is left after cutting": (0,)}
    with pytest.raises(
        DataError, match=r"at least one trained token; none of 1 row has one: 1 row: no trained token is left"
    ):
        encode([LONG], "text", byte_level(), Settings(max_length=9, truncation="right"))


def test_pain_01_03_05_a_mask_of_zeros_is_an_error():
    off = {"messages": [{**m, "train": False} if m["role"] == "assistant" else m for m in TALK["messages"]]}
    with pytest.raises(DataError, match="no trained token"):
        encode([off], "text", chatml())
    assert encode([off, TALK], "text", chatml()).report.dropped == {"no trained token": (0,)}


def test_split_loses_nothing_of_a_text():
    t = byte_level(adds_bos=True)
    data = encode([{"text": "abcdefghijklmnopq"}], "text", t, Settings(max_length=5, truncation="split"))
    blocks = [e[0] for e in data.examples]
    assert [len(b.ids) for b in blocks] == [5, 5, 5, 4]
    assert t.decode([i for b in blocks for i in b.ids]) == "<s>abcdefghijklmnopq</s>"
    assert all(b.mask == (0, *[1] * (len(b.ids) - 1)) for b in blocks)
    with pytest.raises(ConfigError, match="split is for rows of plain text"):
        encode([PAIR], "text", t, Settings(truncation="split"))


SIDES = st.text("ab :\n", min_size=1, max_size=30).filter(str.strip)
TOKENIZERS = {
    "plain": byte_level(merges=True, adds_bos=True),
    "dummy": dummy_space(),
    "chat": byte_level(None, "<|im_end|>", CHATML, template("chatml"), merges=True),
}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(TOKENIZERS)), prompt=SIDES, chosen=SIDES, rejected=SIDES, limit=st.integers(4, 60),
    way=st.sampled_from(["prompt", "left", "right", "drop"]),
)  # fmt: skip
def test_pain_12_13_both_sides_of_a_pair_keep_the_same_prompt_tokens(name, prompt, chosen, rejected, limit, way):
    """trl #2538, LLaMA-Factory #4617: truncation that did nothing, or that cut the sides of a pair differently."""
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    try:
        data = encode([row], "preference", TOKENIZERS[name], Settings(max_length=limit, truncation=way))
    except DataError:
        return  # nothing is left, which is said
    a, b = data.examples[0]
    assert max(len(a.ids), len(b.ids)) <= limit
    at, bt = a.mask.index(1), b.mask.index(1)
    assert a.ids[:at] == b.ids[:bt]
    assert all(a.mask[at:][: a.trained])
    if way in ("prompt", "left"):
        assert a.truncated == b.truncated


def test_pairs_cannot_train_their_prompt():
    with pytest.raises(ConfigError, match="train_on"):
        encode([{"prompt": "q", "chosen": "a", "rejected": "b"}], "preference", byte_level(), Settings(train_on="all"))


# ------------------------------------------------------------------ settings, reports, fuzz
def test_settings_are_checked_with_nearest_names():
    with pytest.raises(ConfigError, match="did you mean 'assistant'"):
        Settings(train_on="asistant")  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as both:
        Settings(max_length=1, truncation="cut")  # type: ignore[arg-type]
    assert len(both.value.faults) == 2
    with pytest.raises(ConfigError, match="did you mean 'preference'"):
        encode([], "preferences", byte_level())


def test_no_rows_is_an_error():
    with pytest.raises(DataError, match="none of 0 rows"):
        encode([], "text", byte_level())


def test_the_report_adds_up():
    data = encode([PAIR, LONG, TALK], "text", chatml())
    r = data.report
    assert r.rows == r.examples == 3
    assert r.tokens == sum(len(e[0].ids) for e in data.examples)
    assert r.trained == sum(sum(e[0].mask) for e in data.examples)
    assert r.longest == max(len(e[0].ids) for e in data.examples)
    assert f"3 rows gave 3 examples: {r.tokens} tokens" in r.lines()[0]
    assert r.lines()[1] == "The tokenizer's own chat template."


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text(max_size=20)},
    optional={
        "train": st.booleans(),
        "tool_calls": st.just([{"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}]),
    },
)
NAMES = ("chatml", "qwen3", "gemma2", "mistral_v3", "llama3_2", "phi3", "llama2")
CHATS = {
    n: byte_level("<s>", "</s>", (*CHATML, "<|eot_id|>", "<end_of_turn>", "[INST]", "[/INST]"), template(n))
    for n in NAMES
}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES), turns=st.lists(MESSAGE, min_size=1, max_size=5),
    on_bad=st.sampled_from(["error", "drop"]),
    way=st.sampled_from(["error", "drop", "right", "left", "prompt"]), limit=st.none() | st.integers(2, 200),
    train_on=st.sampled_from(["assistant", "last", "completion", "all"]),
)  # fmt: skip
def test_whatever_the_messages_are_no_row_is_lost_and_no_fault_is_a_traceback(
    name, turns, on_bad, way, limit, train_on
):
    rows = [
        {"messages": turns},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ]
    try:
        data = encode(rows, "text", CHATS[name], Settings(limit, train_on, way, on_bad=on_bad))
    except LuthierError:
        return
    left = {i for at in data.report.dropped.values() for i in at}
    assert {e[0].row for e in data.examples} | left == {0, 1}
    assert all(len(e[0].ids) == len(e[0].mask) and e[0].trained and e[0].mask[0] == 0 for e in data.examples)
    if limit:
        assert all(len(e[0].ids) <= limit for e in data.examples)


def test_real_rows_on_a_real_tokenizer(shared):
    import json

    from transformers import AutoTokenizer

    t = AutoTokenizer.from_pretrained(shared / "models/stories260k")
    lines = (shared / "data/hh_harmless/test.jsonl").read_text(encoding="utf-8").split("\n")[:100]
    rows = [json.loads(line) for line in lines]
    data = encode(rows, "preference", t, Settings(truncation="prompt"))
    assert data.report.max_length == 512
    for chosen, rejected in data.examples:
        row = rows[chosen.row]
        assert trained_text(t, chosen).replace(" ", "").removesuffix("</s>") == row["chosen"].replace(" ", "")
        assert chosen.ids[0] == t.bos_token_id
        assert chosen.ids.count(t.bos_token_id) == 1
        assert (chosen.ids[-1], chosen.mask[-1]) == (t.eos_token_id, 1)
        assert chosen.ids[: chosen.mask.index(1)] == rejected.ids[: rejected.mask.index(1)]
