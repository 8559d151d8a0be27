"""Write the pages that say what stands in the code: one for each technique, their tables, what fits what, the index of papers.

    python docs/generate.py [FOLDER]

Everything is read from the source without importing a technique: cards, docstrings, parameters, the paper index, the
recorded verdicts of claims. `mkdocs build` loads this file as a hook, which puts the pages into the navigation.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import shutil
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.catalogue.index import Paper
    from luthier.core.registry import Entry

DOCS = Path(__file__).resolve().parent
PAGES = ("index.md", "recipes.md", "composition.md", "data.md", "image_models.md", "compare.md", "reproduce.md", "worlds.md",
         "architecture.md", "pains.md", "trust.md")  # fmt: skip
ROOMS = {
    "adapt": "What trains", "objectives": "Losses", "regularise": "Regularisers", "optim": "Optimisers, gradient transforms, "
    "schedules", "edit": "Local edits", "data": "Choosing rows", "reward": "Rewards", "merge": "Merges",
    "decode": "Decoding", "diffusion": "Diffusion", "embed": "Embedding", "vision": "Vision", "measure": "Measures",
    "loops": "Outer procedures",
}  # fmt: skip
PYTHON_ONLY = ("edit",)
PYTHON_EXAMPLES = {"phrases": '("the formula",)', "sites": '"*.3.mlp.down_proj"'}
SAMPLING = {"samplers": "sampler", "guidance": "guides"}
"""Groups of the diffusion room that the `sampling:` section of a recipe names."""
LABELS = ("Paper", "Source", "Formula", "Takes", "Gives", "Choose it when", "Rather not when", "Relatives")
EXAMPLES = {
    "keep": "100",
    "inner": "nll",
    "rewards": "[exact, format]",
    "reward": "exact",
    "builder": "divpo",
    "phrases": '["the formula"]',
    "sites": '"*.3.mlp.down_proj"',
}
"""Values for parameters without a default, as a recipe writes them."""
ADAPTED = {("factor_pair",): "lora"}
"""The usual adaptation with the tags that a regulariser asks for."""
READERS = {"divpo": "dpo", "vote_pairs": "scpo", "cream_pairs": "cream", "iterated_pairs": "dpo"}
"""The loss that reads the pairs of a builder or loop."""


# ------------------------------------------------------------------- markdown
def plain(text: str) -> str:
    """Text as markdown shows it literally; `code` in backticks stays code."""
    out = []
    for at, piece in enumerate(text.split("`")):
        out.append(f"`{piece}`" if at % 2 else re.sub(r"([\\*_\[\]|~#])", r"\\\1", piece).replace("<", "&lt;"))
    return "".join(out) if text.count("`") % 2 == 0 else plain(text.replace("`", "'"))


def code(text: str) -> str:
    """Text as inline code that may stand in a table."""
    return f"`{text.replace('|', chr(0x2223))}`" if text else ""


def linked(source: str) -> str:
    """A source with its arXiv numbers as links."""
    return re.sub(r"(?:arXiv )?\b(\d{4}\.\d{4,5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", plain(source))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def bullets(items: Sequence[str]) -> str:
    """A markdown list."""
    return "\n".join(f"- {item}" for item in items)


# -------------------------------------------------------------------- reading
def docstring(path: Path) -> str:
    """The docstring of a module, without its first line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[2].strip()


def parts(body: str) -> tuple[list[tuple[str, str]], str, str]:
    """(labelled parts, free text, example) of a docstring's body.

    >>> parts("Paper: arXiv 1.   Formula: a +\\nb\\nTakes: text.\\n\\nMore.\\n\\n>>> 1\\n1")
    ([('Paper', 'arXiv 1.'), ('Formula', 'a + b'), ('Takes', 'text.')], 'More.', '>>> 1\\n1')
    """
    prose, _, example = body.partition(">>>")
    found: list[tuple[str, str]] = []
    free: list[str] = []
    for paragraph in re.split(r"\n\s*\n", prose.strip()):
        marks = list(re.finditer(rf"(?:^|\n|\s{{2,}})({'|'.join(LABELS)}):\s*", paragraph))
        if not marks or marks[0].start() > 0:
            free.append(paragraph)
            continue
        for mark, after in zip(marks, [*marks[1:], None]):
            value = paragraph[mark.end() : after.start() if after else len(paragraph)]
            found.append((mark.group(1), " ".join(value.split())))
    return found, "\n\n".join(free), f">>>{example}".rstrip() if example else ""


def component_class(path: Path) -> tuple[str, str]:
    """(name, docstring) of the class that a module registers."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        calls = [d for d in getattr(node, "decorator_list", []) if isinstance(d, ast.Call)]
        if isinstance(node, ast.ClassDef) and any(getattr(d.func, "id", "") == "component" for d in calls):
            return node.name, ast.get_docstring(node) or ""
    raise ValueError(f"{path} registers no component")


def claim_text(entry: Entry) -> tuple[Path, Mapping[str, Any] | None, Mapping[str, str]]:
    """(claim file, recorded verdict, hashes of the files as they are now) of a technique."""
    from luthier.catalogue.index import verdicts
    from luthier.core.registry import PACKAGE

    path = PACKAGE / "reproduce" / "claims" / f"{entry.short}.py"
    files = {"claim": path, "component": entry.path}
    now = {k: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for k, p in files.items() if p.is_file()}
    return path, verdicts().get(entry.short), now


# ------------------------------------------------------------- one technique
def from_python(entry: Entry) -> bool:
    """Whether a technique is used from Python only: recipes have no slot for it."""
    return entry.room in PYTHON_ONLY or entry.id.startswith(
        ("merge.search.", "diffusion.schedules.", "data.synthesise.")
    )


def spec(entry: Entry) -> str:
    """The technique as a recipe names it, with values for the parameters that have no default."""
    required = [p.name for p in entry.parameters if p.default is None]
    given = ", ".join(f"{name}: {EXAMPLES[name]}" for name in required)
    return f"{{{entry.short}: {{{given}}}}}" if required else entry.short


def slot(entry: Entry) -> tuple[str, str]:
    """(key of a recipe, what to write there)."""
    group = entry.id.split(".")[1]
    if entry.room == "diffusion" and group in SAMPLING:
        return (
            "sampling",
            f"{{{SAMPLING[group]}: {spec(entry)}}}" if group == "samplers" else f"{{guides: [{spec(entry)}]}}",
        )
    if entry.room == "diffusion":
        return "objective", spec(entry)
    if entry.room == "optim":
        key = {"rules": "optimiser", "schedules": "schedule"}.get(group, "regularise")
    else:
        key = {"objectives": "objective", "data": "steps", "loops": "loop"}.get(entry.room, entry.room)
    several = key in ("regularise", "measure", "steps")
    return key, f"[{spec(entry)}]" if several else spec(entry)


def recipe(entry: Entry) -> str:
    """A whole recipe that uses the technique; MODEL, FILE and the like are to be filled in."""
    key, value = slot(entry)
    if entry.room == "merge":
        models = "[TUNED]" if entry.short in ("wise_ft", "lines", "half_reset") else "[TUNED, ANOTHER]"
        return f"base: MODEL\nmodels: {models}\nmerge: {value}\n"
    needs = entry.card.needs.batch
    images = entry.room == "diffusion" or any(b.startswith("image") for b in needs)
    lines = ["model: lab:image", "data: lab:image"] if images else ["model: MODEL", "data: FILE"]
    if key == "steps":
        lines[1] = f"data: {{train: FILE, steps: {value}}}"
    elif entry.id == "reward.combine.weighted":
        lines.append("reward: [exact, {format: {weight: 0.2}}]")
    else:
        lines.append(f"{key}: {value}")
    if images:
        wants = "reward" in entry.card.needs.handles
        lines += ["reward: {world_reward: {which: templates}}"] if wants else []
        lines += ["objective: draft" if key == "reward" else "objective: denoise"] if key != "objective" else []
    elif key == "reward" or "sampler" in entry.card.needs.handles:
        lines.insert(2, "objective: grpo")
    if "retain" in entry.card.needs.handles:
        lines[1] = "data: {train: FILE, retain: FILE}"
    if "ema" in entry.card.needs.handles:
        lines.append("regularise: [ema]")
    if entry.card.needs.adapt:
        lines.append(f"adapt: {ADAPTED[entry.card.needs.adapt]}")
    if entry.short in READERS:
        lines.insert(2, f"objective: {READERS[entry.short]}")
    if (key == "loop" and "reward" in entry.card.needs.handles) or needs == ("group",):
        lines.append("reward: exact")
    if "teacher" in entry.card.needs.handles:
        lines.append("teacher: MODEL")
    if "embed" in entry.card.needs.handles:
        lines.append("embedder: minilm")
    others = [h for h in entry.card.needs.handles if h != "base"] if entry.room == "decode" else []
    if others:
        lines.append(f"decode_models: {{{', '.join(f'{h}: MODEL' for h in others)}}}")
    return "\n".join([*lines, "train: {steps: 100, lr: 1.0e-4}"]) + "\n"


def usage(entry: Entry) -> str:
    """How to use the technique, in a recipe or from Python."""
    name, _ = component_class(entry.path)
    if not from_python(entry):
        kind = "a merge recipe, for `luthier merge`" if entry.room == "merge" else "a recipe"
        return f"In {kind}:\n\n```yaml\n{recipe(entry)}```\n\nFrom Python: `from luthier.{entry.id} import {name}`."
    if entry.room == "decode":
        more = (
            f"from luthier.models.generation import Sampling\n\nsampling = Sampling(max_new=64, decode=({name}(),))\n"
        )
        told = "Recipes have no slot for decoding yet; hand it to `luthier.models.generation.generate` by `Sampling`."
    elif entry.room == "merge":
        more = f"\nsearch = {name}()\n"
        told = "Merge recipes have no place for a judge yet; call it with the models' weights and a score or loss."
    else:
        given = ", ".join(f"{p.name}={PYTHON_EXAMPLES[p.name]}" for p in entry.parameters if p.default is None)
        more = f"\nmade = {name}({given})\n"
        told = ("It is a parameter of objectives and samplers, or follows from the model's scheduler."
                if entry.room == "diffusion" else "It is used from Python: see its docstring for what to hand it.")  # fmt: skip
    return f"{told}\n\n```python\nfrom luthier.{entry.id} import {name}\n{more}```"


def verdict_lines(entry: Entry) -> str:
    """What became of the technique's claim, with numbers."""
    path, found, now = claim_text(entry)
    if found is None:
        return (
            "A claim is written, but no run of it is recorded." if path.is_file() else "No claim is written for it yet."
        )
    result, lines = found["result"], [f"> {plain(found['says'])}", ""]
    lines += [f"World: {plain(found['world'])}. {len(found['seeds'])} seeds.", ""]
    rows = [[f"**{j['verdict']}**" if j is result else j["verdict"], code(j["expect"]), plain(j["measure"]),
             f"{j['difference']:+.4g}", f"[{j['low']:+.4g}, {j['high']:+.4g}]"] for j in (result, *found["also"])]  # fmt: skip
    lines += [table(("verdict", "expected", "figure", "difference", "95 % interval"), rows), ""]
    lines += ["Differences are paired over the seeds and positive in the expected direction.", ""]
    if found.get("note"):
        lines += [plain(found["note"]), ""]
    changed = [k for k, v in found.get("hashes", {}).items() if now.get(k, v) != v]
    if changed:
        lines += [f"!!! note\n    The file of the {' and the '.join(changed)} has changed since this was recorded.", ""]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if k in ("luthier", "torch", "transformers"))
    return "\n".join(
        [*lines, f"Run in {found['seconds']} s with {versions}. Again: `luthier reproduce {found['claim']}`."]
    )


def relative_link(entry: Entry, other: str, known: Mapping[str, Entry]) -> str:
    """A link from one technique's page to another's."""
    if other not in known:
        return plain(other)
    at = known[other]
    path = f"{at.short}.md" if at.room == entry.room else f"../{at.room}/{at.short}.md"
    return f"[{at.short}]({path})"


def parameter_section(entry: Entry) -> str:
    """The class docstring and the table of parameters."""
    _, told = component_class(entry.path)
    rows = [
        [code(p.name), code(p.annotation), code(p.default) if p.default is not None else "required"]
        for p in entry.parameters
    ]
    shown = "\n\n".join(plain(" ".join(p.split())) for p in re.split(r"\n\s*\n", told) if p.strip())
    return f"{shown}\n\n{table(('parameter', 'type', 'default'), rows)}" if rows else shown


def card_section(entry: Entry, known: Mapping[str, Entry]) -> str:
    """Needs, cost, limits, differences, relatives."""
    card = entry.card
    asked = (("data", card.needs.batch), ("signals", card.needs.signals), ("handles", card.needs.handles),
             ("an adaptation with the tag", card.needs.adapt))  # fmt: skip
    needs = [f"{word}: {', '.join(map(code, items))}" for word, items in asked if items]
    out = ["## When", "", f"Use it when {plain(card.use_when)}."]
    out += [f"\nRather not when {plain(card.avoid_when)}."] if card.avoid_when else []
    out += ["", "## Needs and cost", "", bullets([*needs, f"cost: {plain(card.cost)}"])]
    out += ["", "## Exact limits", "", "Tests hold it to these.", "", bullets([plain(x) for x in card.limits])]
    if card.differs:
        out += ["", "## Where it departs from its source", "", bullets([plain(x) for x in card.differs])]
    if card.relatives:
        out += ["", "## Relatives", "", ", ".join(relative_link(entry, r, known) for r in card.relatives)]
    return "\n".join(out)


def facts(entry: Entry, papers: Mapping[int, Paper]) -> str:
    """Room, id, source and papers of a technique, as a list."""
    card = entry.card
    out = [
        f"id `{entry.id}`, in recipes `{entry.short}`; room [{ROOMS.get(entry.room, entry.room).lower()}](../index.md)"
    ]
    if not re.search(r"(?:Paper|Source):", docstring(entry.path)):
        out.append(f"source: {linked(card.source)}")
    for number in card.papers:
        paper = papers.get(number)
        out.append(f"serves paper {number}: {plain(paper.title)}" if paper else f"serves paper {number}")
    out += [f"mechanism: {plain(card.mechanism)}"] if card.mechanism else []
    out += [f"contract checks: {', '.join(map(code, card.tags))}"] if card.tags else []
    return bullets(out)


def technique_page(entry: Entry, known: Mapping[str, Entry], papers: Mapping[int, Paper]) -> str:
    """The page of one technique."""
    labelled, free, example = parts(docstring(entry.path))
    shown = [f"**{label}:** {linked(value) if label in ('Paper', 'Source') else plain(value)}"
             for label, value in labelled if label not in ("Choose it when", "Rather not when", "Relatives")]  # fmt: skip
    out = [f"# {plain(entry.card.name)}", "", f"{plain(entry.summary)}.", "", facts(entry, papers), "", *_lines(shown)]
    if free:
        out += [free if "\n|" in free else plain(free), ""]
    out += [
        "## Use",
        "",
        usage(entry),
        "",
        "## Parameters",
        "",
        parameter_section(entry),
        "",
        card_section(entry, known),
        "",
    ]
    if example:
        out += [
            "## Example",
            "",
            "It runs as a test, in the module's own namespace.",
            "",
            f"```pycon\n{example}\n```",
            "",
        ]
    out += ["## Claim", "", verdict_lines(entry), "", "## Files", "", bullets([code(f) for f in files_of(entry)]), ""]
    return "\n".join(out)


def _lines(items: Sequence[str]) -> list[str]:
    return [line for item in items for line in (item, "")]


def files_of(entry: Entry) -> list[str]:
    """The technique's source, tests that name its module, and its claim, relative to the repository."""
    root = DOCS.parent
    out = [f"src/luthier/{entry.id.replace('.', '/')}.py"]
    for path in sorted((root / "tests").rglob("test_*.py")):
        if f"luthier.{entry.id} import" in path.read_text(encoding="utf-8"):
            out.append(path.relative_to(root).as_posix())
    claim = claim_text(entry)[0]
    return [*out, f"src/luthier/reproduce/claims/{claim.name}"] if claim.is_file() else out


# ------------------------------------------------------------ tables of all
def index_page(known: Mapping[str, Entry]) -> str:
    """The feature matrix: every technique by room."""
    from luthier.catalogue.index import verdict_of

    out = ["# Techniques", "", f"{len(known)} components, read from their cards. `luthier methods` lists them too; "
           "`luthier methods \"free text\"` searches.", ""]  # fmt: skip
    rooms: dict[str, list[Entry]] = defaultdict(list)
    for entry in known.values():
        rooms[entry.room].append(entry)
    for room, entries in rooms.items():
        rows = [[f"[{e.short}]({room}/{e.short}.md)", plain(e.summary), ", ".join(map(str, e.card.papers)),
                 ", ".join(e.card.needs.batch), ", ".join(map(code, (*e.card.needs.signals, *e.card.needs.handles))),
                 ", ".join(e.card.tags).replace("_", " "), verdict_of(e) or ""] for e in entries]  # fmt: skip
        head = ("name", "what it does", "papers", "data", "signals and handles", "contract", "claim")
        used = [i for i in range(len(head)) if any(row[i] for row in rows)]
        out += [
            f"## {ROOMS.get(room, room)} ({room})",
            "",
            table([head[i] for i in used], [[r[i] for i in used] for r in rows]),
            "",
        ]
    return "\n".join(out)


def papers_page(papers: Mapping[int, Paper], serving: Mapping[int, Sequence[Entry]]) -> str:
    """The index of papers: what each does, and what serves it."""
    from luthier.catalogue.index import verdict_of

    done = sum(bool(serving[i]) for i in papers)
    out = ["# Papers", "", f"{done} of {len(papers)} papers are served by a component now. The others are listed with none yet, so "
           "that nobody searches for them in vain. The descriptions are our own; an arXiv number stands where it was verified.",
           "", "core: a component of its own. recipe: a composition of components. context: its readers want the nearest "
           "component or measure.", ""]  # fmt: skip
    topics: dict[str, list[Paper]] = defaultdict(list)
    for paper in papers.values():
        topics[paper.topic].append(paper)
    for topic in sorted(topics):
        rows = []
        for p in topics[topic]:
            links = [f"[{e.short}](techniques/{e.room}/{e.short}.md)" + (f" ({v})" if (v := verdict_of(e)) else "")
                     for e in serving[p.id]]  # fmt: skip
            name = f"[{plain(p.name)}](https://arxiv.org/abs/{p.arxiv})" if p.arxiv else plain(p.name)
            rows.append([str(p.id), name, plain(p.summary), p.scope, ", ".join(links) or "none yet"])
        out += [f"## {topic}", "", table(("id", "paper", "what it does", "scope", "served by"), rows), ""]
    return "\n".join(out)


def trust_page() -> str:
    """What stands behind the promises: counts of the last long test run, and the measured figures."""
    import json

    kept = DOCS / "trust.json"
    out = [
        "# Trust",
        "",
        "Read from the results of tests and benchmarks; `make soak` and `make bench` make them anew.",
        "",
    ]
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        which = "all tests, the long forms included" if found["slow"] else "the quick tests"
        out += ["## Tests", "", f"{found['passed']} tests passed in a run of {which}. Among them, read from their names:", "",
                table(("what", "how many"), [[k, str(v)] for k, v in found["counts"].items()]), "",
                "A test may count under more than one kind. The forty pains and their tests: [pains](pains.md).", ""]  # fmt: skip
    figures = DOCS.parent / "benchmarks" / "results.json"
    if figures.is_file():
        found = json.loads(figures.read_text(encoding="utf-8"))
        rows = [[name, key, f"{value:.2f}"] for name, cell in found.items() if isinstance(cell, dict) and "ratio" in cell
                for key, value in cell["ratio"].items()]  # fmt: skip
        about = found.get("about", {})
        out += ["## Speed and memory", "", f"Ours divided by the peer's in one run, below 1 is less. {about.get('hardware', '')}, "
                f"{about.get('date', '')}.", "", table(("cell", "figure", "ours / peer"), rows) if rows else "No cell is recorded yet.",
                ""]  # fmt: skip
    return "\n".join(out)


# ------------------------------------------------------------- composition
def linked_names(members: Sequence[Entry]) -> str:
    """Techniques as links to their pages, from a page at the top."""
    return ", ".join(f"[{e.short}](techniques/{e.room}/{e.short}.md)" for e in members)


def matrix(rows: Sequence[Entry], columns: Sequence[Entry], why: Callable[[Entry, Entry], Sequence[str]],
           notes: dict[str, list[str]]) -> str:  # fmt: skip
    """A table of who fits whom: columns with one verdict on all rows stand together, a refusal is the number of its reason.

    why: the sentences of refusal of a row and a column. notes: reasons in the order of their numbers, with who asks; grows.
    """
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for column in columns:
        verdict = []
        for row in rows:
            told = [t.partition("; got ")[0].partition(" requires ") for t in why(row, column)]
            for who, _, reason in told[:1]:
                notes.setdefault(reason, [])
                notes[reason] += [who] if who not in notes[reason] else []
            verdict.append(f"no {list(notes).index(told[0][2]) + 1}" if told else "yes")
        groups[tuple(verdict)].append(column)
    heads, legend = [], []
    for letter, members in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", groups.values(), strict=False):
        heads.append(linked_names(members) if len(members) == 1 else letter)
        legend += [f"{letter}: {linked_names(members)}"] if len(members) > 1 else []
    body = [[linked_names([row]), *(verdict[i] for verdict in groups)] for i, row in enumerate(rows)]
    return f"{table(('', *heads), body)}\n\n{bullets(legend)}\n"


def composition_page() -> str:
    """Which techniques train together, by the function that `check` asks too."""
    from luthier.recipes.composition import refusals, techniques

    adapt, objectives, hooks = (techniques(slot) for slot in ("adapt", "objective", "regularise"))
    notes: dict[str, list[str]] = {}
    parts = [("Adaptations and objectives", matrix(adapt, objectives, lambda a, o: refusals([a], [o]), notes)),
             ("Adaptations and regularisers", matrix(adapt, hooks, lambda a, h: refusals([a], [], [h]), notes)),
             ("Objectives and regularisers", matrix(objectives, hooks, lambda o, h: refusals([], [o], [h]), notes))]  # fmt: skip
    out = ["# Compositions", "", f"Any of {len(adapt)} adaptations trains with any of {len(objectives)} objectives and with any of "
           f"{len(hooks)} regularisers and gradient transforms, except where a card asks for something that the other does not "
           "have. `luthier check` refuses these before any weight is loaded, with a sentence that says what to do; it asks the same "
           "function as this page (`luthier.recipes.composition.refusals`).", "",
           "Compositions of language models and of text encoders that say yes are run by tests on tiny models: three steps, a "
           "resumed run with the same bits, a merged model equal to the adapted one; all pairs and a sample of triples by `make "
           "soak`, fewer each time. Those of image models are decided from cards alone. Cards know neither your data nor your "
           "model: parallel_adapter, for one, needs sublayers with a module of their own, and says so before training where there "
           "are none. A wrapper such as mask reads what the objective in it reads.", ""]  # fmt: skip
    for title, text in parts:
        out += [f"## {title}", "", text]
    reasons = [
        f"{i}. {plain(', '.join(who))}: requires {plain(reason)}." for i, (reason, who) in enumerate(notes.items(), 1)
    ]
    unmerged = [a for a in adapt if "exact_merge" not in a.card.tags]
    return "\n".join([*out, "## Reasons", "", *reasons, "", "## Merging", "", "Trained weights fold exactly into the base, whatever "
                      f"they were trained with, except for {linked_names(unmerged)}, whose pages say when and why not.", ""])  # fmt: skip


# -------------------------------------------------------------- mechanisms
MARKS = ("<!-- mechanisms: written by docs/generate.py -->", "<!-- end of mechanisms -->")


def own_lines(path: Path) -> int:
    """Lines of code in a module: no blank lines, comments, docstrings, nor the card.

    >>> import tempfile; text = '"Doc."\\n\\nimport os  # a\\n# b\\nCARD = Card(\\n    name="x",\\n)\\nX = (\\n    1)\\n'
    >>> file = tempfile.NamedTemporaryFile("w+"); _ = file.write(text), file.flush()
    >>> own_lines(Path(file.name)); file.close()
    3
    """
    text = path.read_text(encoding="utf-8")
    quiet = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for t in found if t.type not in quiet for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        told = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        card = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CARD"
        if told or card:
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def shared_files(members: Sequence[Entry]) -> list[Path]:
    """Underscore files that members import."""
    from luthier.core.registry import PACKAGE

    found: set[Path] = set()
    for entry in members:
        for node in ast.walk(ast.parse(entry.path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.rpartition(".")[2].startswith("_"):
                found.add(PACKAGE.parent / f"{node.module.replace('.', '/')}.py")
    return sorted(p for p in found if p.is_file())


def mechanisms() -> str:
    """The table of mechanisms: members with their own lines, and the files they share."""
    from luthier.core.registry import PACKAGE, entries

    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries().values():
        groups[entry.card.mechanism].append(entry)
    alone = groups.pop("", [])
    rows, single = [], []
    for name in sorted(groups, key=str.lower):
        members = sorted(groups[name], key=lambda e: e.short)
        told = ", ".join(f"{e.short} ({own_lines(e.path)})" for e in members)
        if len(members) == 1:
            single.append(f"{plain(name)}: {told}")
            continue
        shared = ", ".join(f"`{p.relative_to(PACKAGE).as_posix()}` ({own_lines(p)})" for p in shared_files(members))
        rows.append([plain(name), told, shared])
    counted = ("Own lines are lines of code: without blank lines, comments, docstrings and the card; imports, parameters and checks of "
               "them count. Shared files are the underscore files that members import.")  # fmt: skip
    rest = f"{len(alone)} more components name no mechanism."
    return "\n\n".join([counted, table(("mechanism", "members (own lines)", "shared files (lines)"), rows),
                        f"With one member so far: {'; '.join(single)}. {rest}"])  # fmt: skip


def with_mechanisms(text: str) -> str:
    """A page with the table of mechanisms between its marks made anew. Raises ValueError for a page without both marks."""
    before, start, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise ValueError(f"architecture.md requires the marks {MARKS[0]} and {MARKS[1]}; put them back.")
    return f"{before}{MARKS[0]}\n{mechanisms()}\n{MARKS[1]}{after}"


def pages() -> dict[str, str]:
    """All generated pages by path below the docs folder. Raises ValueError where two techniques would share a page."""
    from luthier.catalogue.index import papers, serving
    from luthier.core.registry import entries

    known, index = entries(), papers()
    out = {"techniques/index.md": index_page(known), "papers.md": papers_page(index, serving()),
           "trust.md": trust_page(), "composition.md": composition_page()}  # fmt: skip
    for entry in known.values():
        path = f"techniques/{entry.room}/{entry.short}.md"
        if path in out:
            raise ValueError(f"{entry.id} requires a short name of its own in its room; {path} is taken. Rename it.")
        out[path] = technique_page(entry, known, index)
    return out


def write(folder: Path) -> int:
    """Write all generated pages below `folder` in place of older ones; returns their number."""
    made = pages()
    shutil.rmtree(folder / "techniques", ignore_errors=True)
    for path, text in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    told = folder / "architecture.md"
    if told.is_file():
        told.write_text(with_mechanisms(told.read_text(encoding="utf-8")), encoding="utf-8")
    return len(made)


# --------------------------------------------------------------------- mkdocs
def on_config(config: Any) -> Any:
    """The navigation: the written pages in the order of reading, then the generated ones by room."""
    folder = Path(config["docs_dir"])
    nav: list[Any] = [{"Start": p} if p == "index.md" else p for p in PAGES if (folder / p).is_file()]
    if not (folder / "techniques" / "index.md").is_file():
        raise SystemExit("mkdocs requires the generated pages; they are not there. Run python docs/generate.py first.")
    rooms = [r for r in ROOMS if (folder / "techniques" / r).is_dir()]
    found = {r: sorted((folder / "techniques" / r).glob("*.md")) for r in rooms}
    below = [{ROOMS[r]: [p.relative_to(folder).as_posix() for p in found[r]]} for r in rooms]
    nav.insert(1, {"Techniques": ["techniques/index.md", *below]})
    config["nav"] = [*nav, "papers.md"]
    return config


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    print(f"{write(target)} pages written below {target}")
