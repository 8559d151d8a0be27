"""What comes from outside stays data: no code of it runs, no link leads out, no small file fills the memory."""

from __future__ import annotations

import ast
import gzip
import json
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import luthier
from luthier.core import config
from luthier.core.errors import DataError, LuthierError, ModelError
from luthier.core.registry import entries
from luthier.data.formats import _bounds, load
from luthier.models.loading import load_causal_lm, load_tokenizer
from luthier.recipes.recipe import parse, read
from tests.recipes.parts import model_folder

SOURCES = sorted(Path(luthier.__file__).parent.rglob("*.py"))


class Trap:
    """A pickle that makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("security") / "model"
    model_folder(at)
    return at


# -------------------------------------------------------------------------- pickle
def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.safetensors"])
def test_weights_that_are_a_pickle_are_refused_and_not_read(model, tmp_path, name):
    there = tmp_path / "model"
    shutil.copytree(model, there)
    (there / "model.safetensors").unlink()
    (there / name).write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    with pytest.raises(ModelError, match="pickle files" if name != "model.safetensors" else "."):
        load_causal_lm(str(there))
    assert not (tmp_path / "mark").exists()


def test_a_pickle_beside_good_weights_is_not_read(model, tmp_path):
    there = tmp_path / "model"
    shutil.copytree(model, there)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (there / name).write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    load_causal_lm(str(there))
    load_tokenizer(str(there))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("suffix", [".pkl", ".bin", ".pt", ".jsonl", ".json", ".csv", ".txt", ".parquet", ".jsonl.gz"])
def test_data_that_are_a_pickle_are_refused_and_not_read(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    raw = pickle.dumps(Trap(tmp_path / "mark"))
    path.write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
    with pytest.raises(LuthierError):
        load(str(path))
    assert not (tmp_path / "mark").exists()


# --------------------------------------------------------------------- foreign code
@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_that_ships_with_a_model_is_never_run(model, tmp_path, part):
    there, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(model, there)
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    (there / "own.py").write_text(code + "class Own:\n    pass\n")
    told = json.loads((there / part).read_text())
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    (there / part).write_text(
        json.dumps({**told, "model_type": "own-kind", "tokenizer_class": "OwnKind", "auto_map": names})
    )
    work = load_causal_lm if part == "config.json" else load_tokenizer
    with pytest.raises(ModelError) as told_to_user:
        work(str(there))
    assert not mark.exists()
    assert "Traceback" not in str(told_to_user.value)


RUNS = {"eval", "exec", "compile", "__import__"}
READS = {("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("os", "system"), ("os", "popen"),
         ("yaml", "load"), ("yaml", "unsafe_load"), ("marshal", "loads"), ("shelve", "open"), ("joblib", "load")}  # fmt: skip
DOTTED = "|".join(re.escape(f"{owner}.{name}") for owner, name in READS)
HINTS = re.compile(rf"(?<![\w.])({'|'.join(RUNS)})\(|{DOTTED}|(shell|allow_pickle|trust_remote_code)=True")
ALLOWED = {
    "compare/_ray.py": {"pickle.loads"},  # what its own workers send through pipes that it made
    "compare/_workers.py": {"pickle.loads"},
    "core/config.py": {"eval", "yaml.load"},  # annotations of the package's own sources; a loader below yaml.SafeLoader
}


def risks(source: str) -> list[str]:
    """Calls that could run what a file or a model wrote, with their lines."""
    found: list[str] = []
    if not HINTS.search(source):
        return found
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if name in RUNS:
                found.append(f"{node.lineno} {name}")
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in READS:
                found.append(f"{node.lineno} {owner}.{name}")
        for given in node.keywords:
            on = isinstance(given.value, ast.Constant) and given.value.value is True
            if on and given.arg in ("shell", "allow_pickle", "trust_remote_code"):
                found.append(f"{node.lineno} {given.arg}=True")
    return found


def test_nothing_in_the_package_runs_what_it_reads():
    root = Path(luthier.__file__).parent
    found = {str(p.relative_to(root)): risks(p.read_text(encoding="utf-8")) for p in SOURCES}
    assert len(found) > 200
    assert {n: {r.split()[1] for r in lines} for n, lines in found.items() if lines} == ALLOWED
    assert issubclass(config._loader(), yaml.SafeLoader)


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [touch MARK]", "!!python/name:os.system"])
def test_yaml_makes_no_objects(tmp_path, text):
    mark = tmp_path / "mark"
    with pytest.raises(LuthierError):
        config.load_yaml(text.replace("MARK", str(mark)), "recipe")
    assert not mark.exists()


@pytest.mark.parametrize("annotation", ["__import__('os')", "open('x')", "().__class__.__mro__[9]", "os.system"])
def test_annotations_know_a_closed_vocabulary(annotation):
    with pytest.raises((TypeError, IndexError)):
        config.annotation_of(annotation)


def test_aliases_in_a_recipe_that_multiply_are_refused_in_time(tmp_path):
    lines = ["l0: &l0 [x, x]"] + [f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]" for i in range(1, 40)]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join([*lines, "model: *l39", "seed: *l39"]))
    began = time.perf_counter()
    with pytest.raises(LuthierError):
        parse(read(path))
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    "line", ["eval(x)", "torch.load(p)", "pickle.loads(b)", "f(trust_remote_code=True)", "run(x, shell=True)"]
)
def test_the_search_finds_what_it_looks_for(line):
    assert risks(line)


def test_no_reward_runs_code_of_a_completion():
    """There is no verifier that executes code. One that comes needs a sandbox, and this test then asks for its checks."""
    cards = {i: e.load().card for i, e in entries().items() if e.room == "reward"}
    assert len(cards) >= 5
    running = [i for i, card in cards.items() if "executes" in f"{card.name} {card.cost} {card.mechanism}".lower()]
    assert running == []


# ----------------------------------------------------------------- links and bombs
def test_links_out_of_a_folder_of_data_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"prompt": "a", "response": "secret"}\n')
    (tmp_path / "in" / "good.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert len(load(str(tmp_path / "in")).rows) == 1
    (tmp_path / "in" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError, match=r"link\.jsonl.*a file inside"):
        load(str(tmp_path / "in"))
    (tmp_path / "in" / "link.jsonl").unlink()
    (tmp_path / "in" / "link.jsonl").symlink_to(tmp_path / "in" / "good.jsonl")
    assert len(load(str(tmp_path / "in")).rows) == 2


@pytest.fixture
def small_floor(monkeypatch):
    monkeypatch.setattr(_bounds, "FLOOR", 1 << 20)


def rows(n: int) -> str:
    return "".join(
        json.dumps({"prompt": f"{i} and {i * i}?", "response": f"{i * 7919 % 1009}"}) + "\n" for i in range(n)
    )


def test_a_gzip_bomb_is_refused_after_its_bound(tmp_path, small_floor):
    line = json.dumps({"prompt": "a", "response": "b" * 1000}) + "\n"
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress((line * 20_000).encode(), 9))
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz requires a file that unpacks to at most"):
        load(str(tmp_path / "bomb.jsonl.gz"))
    (tmp_path / "good.jsonl.gz").write_bytes(gzip.compress(rows(30_000).encode()))
    assert len(load(str(tmp_path / "good.jsonl.gz")).rows) == 30_000


def test_parquet_bombs_are_refused(tmp_path, small_floor):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    few = pyarrow.table({"prompt": ["a"] * 3_000_000, "response": ["b"] * 3_000_000})
    parquet.write_table(few, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet.*3,000,000 rows of 2 columns"):
        load(str(tmp_path / "rows.parquet"))
    wide = pyarrow.table({"prompt": ["a"] * 4000, "response": ["b" * 10_000] * 4000})
    parquet.write_table(wide, tmp_path / "wide.parquet")
    with pytest.raises(DataError, match=r"wide\.parquet.*more than that in the first"):
        load(str(tmp_path / "wide.parquet"))
    good = [json.loads(line) for line in rows(20_000).splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(good), tmp_path / "good.parquet")
    assert len(load(str(tmp_path / "good.parquet")).rows) == 20_000


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, '{"prompt": ' + "9" * 100_000 + "}"])
def test_json_that_is_deep_or_long_is_named(tmp_path, text):
    for suffix in (".json", ".jsonl"):
        path = tmp_path / f"x{suffix}"
        path.write_text(text)
        with pytest.raises(DataError):
            load(str(path))
