"""The preview shows trained and masked tokens as they are, and nothing that data wrote is markup or a command."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import StringIO
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from luthier.models.encode import Settings, encode
from luthier.report.preview import counts, pieces, preview_html, preview_terminal, visible
from tests.models.made import byte_level, dummy_space, template

CHATML = ("<|im_start|>", "<|im_end|>")


def chatml() -> Any:
    return byte_level(None, "<|im_end|>", CHATML, template("chatml"))


def shown(renderable: Any) -> str:
    out = StringIO()
    Console(file=out, width=200, color_system=None, force_terminal=False).print(renderable)
    return out.getvalue()


class Text(HTMLParser):
    """Collects the tags of a page, and the text of each state inside <pre>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.parts: list[tuple[str, str]] = []
        self.state = ""
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = self.inside or tag == "pre"
        self.state = dict(attrs).get("class") or "" if tag == "span" else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "pre"
        self.state = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.parts.append((self.state, data))


TALK = {"messages": [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "Hi, é 漢 🦊!"}]}


def test_pieces_are_the_sequence_in_its_states():
    t = chatml()
    data = encode([TALK], "text", t)
    got = list(pieces(data.examples[0][0], t))
    assert "".join(p.text for p in got) == t.decode(data.examples[0][0].ids)
    assert [p.text for p in got if p.trained] == ["Hi, é 漢 🦊!", "<|im_end|>"]
    assert [p.text for p in got if p.control] == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]


def test_pieces_keep_the_spaces_of_sentence_piece_tokens():
    t = dummy_space()
    data = encode([{"prompt": "hello", "response": "the world"}], "text", t)
    assert [(p.text, p.trained) for p in pieces(data.examples[0][0], t)] == [
        ("hello", False), (" the world", True), ("</s>", True),
    ]  # fmt: skip


def test_terminal_shows_statement_counts_titles_and_text():
    t = chatml()
    rows = [{"prompt": "abcdefgh" * 9, "response": "yes"}, {"prompt": "q", "response": "z" * 300}]
    data = encode(rows, "text", t, Settings(max_length=60, truncation="prompt"))
    out = shown(preview_terminal(data, t, 2, "rows.jsonl: 2 rows read as prompt/response."))
    wanted = ("rows.jsonl: 2 rows read", "1 row cut", "0 rows without a trained token", "1 row dropped",
              "row 1: 60 tokens, 4 trained", "tokens cut off", "yes<|im_end|>", "Legend")  # fmt: skip
    for said in wanted:
        assert said in out


def test_terminal_styles_tell_trained_from_masked():
    t = chatml()
    group = preview_terminal(encode([TALK], "text", t), t)
    body: Any = list(group.renderables)[-1]
    styles = {body.plain[s.start : s.end]: str(s.style) for s in body.spans}
    assert styles["Hi, é 漢 🦊!"] == "bold green underline"
    assert styles["assistant\n"] == "dim"
    assert styles["<|im_end|>"] in ("dim reverse", "bold green underline reverse")


def test_parts_of_a_pair_are_named():
    t = chatml()
    data = encode([{"prompt": "q", "chosen": "good", "rejected": "bad"}], "preference", t)
    out = shown(preview_terminal(data, t))
    assert "row 1, chosen" in out
    assert "row 1, rejected" in out


def test_only_the_first_examples_are_shown():
    t = chatml()
    data = encode([{"prompt": f"question {i}", "response": "r"} for i in range(9)], "text", t)
    out = shown(preview_terminal(data, t, 2))
    assert "question 1" in out
    assert "question 2" not in out


def test_html_marks_trained_text_and_is_self_contained():
    t = chatml()
    page = preview_html(encode([TALK], "text", t), t, 1, "one < two")
    seen = Text(page)
    assert [text for state, text in seen.parts if "t" in state.split()] == ["trained", "Hi, é 漢 🦊!", "<|im_end|>"]
    assert "one &lt; two" in page
    assert not re.search(r"https?://|<script|<img|<link|@import|url\(", page)
    assert "default-src 'none'" in page


def test_nothing_that_data_writes_becomes_markup_or_a_command():
    t = chatml()
    evil = (
        "</pre><script>alert(1)</script><img src=x onerror=y> \x1b[2J\x1b]0;title\x07 "
        '\u202eevil [red]bold[/red] &amp; "q" \x00'
    )
    data = encode([{"prompt": evil, "response": evil}], "text", t)
    plain = Text(preview_html(encode([TALK], "text", t), t, 1))
    seen = Text(preview_html(data, t, 1, evil, title=evil))
    assert set(seen.tags) == set(plain.tags)
    assert evil.replace("\x1b", "\u241b").replace("\x07", "\u2407").replace("\u202e", "\ufffd").replace(
        "\x00", "\u2400"
    ) in "".join(text for _, text in seen.parts)
    out = shown(preview_terminal(data, t, 1, evil))
    assert not set(out) & {"\x1b", "\x07", "\x00", "\u202e"}
    assert "[red]bold[/red]" in out


@settings(max_examples=60, deadline=None)
@given(said=st.text(min_size=1).filter(str.strip))
def test_any_text_can_be_shown(said):
    t = CHAT
    data = encode([{"prompt": said, "response": said}], "text", t)
    seen = Text(preview_html(data, t, 1, said))
    whole = "".join(text for _, text in seen.parts)
    assert visible(said).replace("\r", "\u240d") in whole
    assert shown(preview_terminal(data, t, 1, said))


CHAT = chatml()


def test_visible_keeps_line_breaks_and_tabs_only():
    assert visible("a\tb\n\r\x7f\x85\u2028\ud800") == "a\tb\n\u240d\u2421\ufffd\ufffd\ufffd"


def test_counts_are_numbers():
    t = chatml()
    data = encode([TALK], "text", t)
    assert counts(data.report)["rows"] == 1
    assert counts(data.report)["zero_rows"] == 0


def test_it_reads_anything_that_looks_like_encoded_data():
    sequence = SimpleNamespace(ids=[1, 2], mask=[0, 1], row=4, truncated=0)
    data = SimpleNamespace(parts=("text",), examples=[(sequence,)], report=SimpleNamespace(lines=lambda: ["a line"]))
    out = shown(preview_terminal(data, chatml(), 1))  # type: ignore[arg-type]
    assert "row 5: 2 tokens, 1 trained" in out
    assert "a line" in out
