"""The first training images as the model will see them: each beside itself at several noise levels, with what it is told of it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.report.preview import visible

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

Pixels = Sequence[Sequence[tuple[int, int, int]]]


@dataclass(frozen=True)
class Look:
    """One image at one noise level: a PNG in base64, and its pixels, few enough for a terminal (rows of red, green, blue)."""

    png: str
    pixels: Pixels


@dataclass(frozen=True)
class Shown:
    """A training image: title, size in words, caption, what the model reads of it, and how it looks at every level."""

    title: str
    size: str
    caption: str
    tokens: str
    looks: Sequence[Look]


@dataclass(frozen=True)
class ImagePreview:
    """What there is to see. lines: facts in sentences. levels: of the columns, the first is the clean image."""

    lines: Sequence[str]
    levels: Sequence[str]
    rows: Sequence[Shown]


STYLE = """
:root{color-scheme:light dark;--ink:#1d2330;--soft:#6b7280;--paper:#fff;--card:#f6f7f9;--line:#dfe3e8}
@media (prefers-color-scheme:dark){:root{--ink:#e7eaf0;--soft:#98a1b0;--paper:#14171c;--card:#1c2027;--line:#323945}}
*{box-sizing:border-box} body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:72rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif} h1{font-size:1.4rem;margin:0 0 .75rem} ul{margin:.5rem 0 1.25rem;padding-left:1.2rem}
.wide{overflow-x:auto} table{border-collapse:collapse} th{font-size:.8rem;font-weight:600;color:var(--soft);padding:.2rem .4rem;
text-align:center;white-space:nowrap}
td{padding:.4rem;border-top:1px solid var(--line);vertical-align:top} td.words{min-width:15rem;max-width:20rem}
img{display:block;width:7.5rem;height:auto;border:1px solid var(--line);border-radius:.25rem;image-rendering:pixelated;
background:var(--card)} .title{font-weight:600}
.size,.label{color:var(--soft);font-size:.85rem} code{font:13px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}
"""


def image_preview_html(shown: ImagePreview, title: str = "Preview") -> str:
    """One self-contained page: no script, nothing loaded, all text escaped."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    facts = "".join(f"<li>{_safe(line)}</li>" for line in shown.lines)
    head = "".join(f'<th scope="col">{_safe(one).replace(chr(10), "<br>")}</th>' for one in ("image", *shown.levels))
    body = "".join(f"<tr>{_words(row)}{_cells(row, shown.levels)}</tr>\n" for row in shown.rows)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{_safe(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{_safe(title)}</h1>\n<ul>{facts}</ul>\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n</body></html>\n'
    )


def _words(row: Shown) -> str:
    told = [("caption", row.caption, "span"), ("read as", row.tokens, "code")]
    lines = "".join(f'<div><span class="label">{k}</span> <{tag}>{_safe(v)}</{tag}></div>' for k, v, tag in told if v)
    return f'<td class="words"><div class="title">{_safe(row.title)}</div><div class="size">{_safe(row.size)}</div>{lines}</td>'


def _cells(row: Shown, levels: Sequence[str]) -> str:
    return "".join(f'<td><img alt="{_safe(f"{row.title}, {level}")}" src="data:image/png;base64,{look.png}"></td>'
                   for level, look in zip(levels, row.looks, strict=False))  # fmt: skip


def _safe(text: str) -> str:
    return html.escape(visible(text), quote=True)


def image_preview_terminal(shown: ImagePreview, colours: bool = True) -> Group:
    """For `rich.print`: facts, then for every image its words and, where there are colours, its looks as blocks of two pixels."""
    from rich.console import Group
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    blocks: list[Any] = [Text(visible(line)) for line in shown.lines]
    for row in shown.rows:
        blocks.append(Rule(Text(visible(f"{row.title}: {row.size}")), align="left", style="dim"))
        blocks += [Text(visible(f"{k}: {v}")) for k, v in (("caption", row.caption), ("read as", row.tokens)) if v]
        if row.looks and colours:
            table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False)
            for level in shown.levels:
                table.add_column(Text(level, style="dim"), no_wrap=True)
            table.add_row(*(half_blocks(look.pixels) for look in row.looks))
            blocks.append(table)
    if not colours and len(shown.levels) > 1:
        levels = "; ".join(one.replace("\n", ", ") for one in shown.levels[1:])
        blocks.append(Text(f"Levels: {levels}. Images need colours, or --html."))
    return Group(*blocks)


def half_blocks(pixels: Pixels) -> Text:
    """Pixels (rows of red, green, blue) as text: each sign shows one pixel above another."""
    from rich.text import Text

    out = Text()
    for at in range(0, len(pixels), 2):
        upper = pixels[at]
        lower = pixels[at + 1] if at + 1 < len(pixels) else upper
        for top, bottom in zip(upper, lower, strict=True):
            out.append("▀", f"rgb({top[0]},{top[1]},{top[2]}) on rgb({bottom[0]},{bottom[1]},{bottom[2]})")
        out.append("\n")
    return out
