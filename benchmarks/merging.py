"""Both sides of a merge cell: three models of random weights from folders to a folder, here and by mergekit.

Cells are merge/RULE-SIZE: a merge that both have on one of `work.SIZES`, float32 on disk, one output file. `merge` is the
seconds of the merge with the libraries already imported, `whole` those of the command as one types it. Of the memory, `peak_mib` is the
process's, `grown_mib` what came since the imports without the pages of mapped files (`memory.Watch`).
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.memory import MIB, Watch, status

RULES = ("linear", "task_arithmetic")
WEIGHTS = (0.5, 0.3, 0.2)
SHM = Path("/dev/shm")
HOME = (SHM if SHM.is_dir() else Path(tempfile.gettempdir())) / "luthier-benchmarks"
"""In memory where possible: a disk's moods are not measured, nor that ours flushes what it wrote and the peer does not."""


def folders(size: str) -> list[Path]:
    """A base and three models near it in a temporary place, made once for both sides; `clear` removes them."""
    from benchmarks.work import model_of, tokenizer_of

    made = [HOME / size / name for name in ("base", "a", "b", "c")]
    if (HOME / size / "complete").is_file():
        return made
    model, g = model_of(size), torch.Generator().manual_seed(1)
    for path in made:
        if path.name != "base":
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape, generator=g), alpha=0.01)
        model.save_pretrained(path)
        tokenizer_of(size).save_pretrained(path)
    (HOME / size / "complete").touch()
    return made


def clear() -> None:
    """Remove the models."""
    shutil.rmtree(HOME, ignore_errors=True)


def one(side: str, cell: str) -> dict[str, float]:
    """Figures of one merge in this process, whose libraries are imported before the clock starts."""
    rule, _, size = cell.partition("-")
    models = [HOME / size / name for name in ("base", "a", "b", "c")]
    with tempfile.TemporaryDirectory(dir=HOME) as out:
        run = (_ours if side == "ours" else _peer)(rule, models, Path(out) / "merged")
        with Watch() as watch:
            began = time.perf_counter()
            run()
            seconds = time.perf_counter() - began
    found = {"merge": seconds, "peak_mib": status()["VmHWM"], "grown_mib": watch.grown}
    return found | ({"bound_mib": _bound(models)} if side == "ours" else {})


def whole(side: str, cell: str) -> float:
    """Seconds of the side's command, from its start to its end."""
    rule, _, size = cell.partition("-")
    models = [HOME / size / name for name in ("base", "a", "b", "c")]
    with tempfile.TemporaryDirectory(dir=HOME) as folder:
        recipe, out = Path(folder) / "merge.yaml", str(Path(folder) / "merged")
        made = _recipe(rule, models) if side == "ours" else _config(rule, models)
        recipe.write_text(json.dumps(made))  # JSON is YAML
        programs = {
            "ours": ["luthier", "merge", str(recipe), "--out", out],
            "peer": ["mergekit-yaml", str(recipe), out, "--quiet"],
        }
        command, *words = programs[side]
        began = time.perf_counter()
        subprocess.run([Path(sys.executable).parent / command, *words], capture_output=True, check=True)
        return time.perf_counter() - began


def _bound(models: list[Path]) -> float:
    """MiB of the output file and one tensor, the largest, of each input."""
    with safe_open(models[0] / "model.safetensors", framework="pt") as file:
        largest = max(math.prod(file.get_slice(n).get_shape()) for n in file.keys()) * 4  # noqa: SIM118 - no mapping
    return ((models[0] / "model.safetensors").stat().st_size + len(models) * largest) / MIB


def _recipe(rule: str, models: list[Path]) -> dict[str, Any]:
    base, *others = map(str, models)
    return {"base": base, "models": others, "merge": {rule: {"weights": list(WEIGHTS)}}}


def _ours(rule: str, models: list[Path], out: Path):
    from luthier.core.config import build_component
    from luthier.merge.executor import merge_folders

    made = build_component(_recipe(rule, models)["merge"], "merge", "merge")
    return lambda: merge_folders(made, models[0], models[1:], out)


def _config(rule: str, models: list[Path]) -> dict[str, Any]:
    listed = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models[1:], WEIGHTS, strict=True)]
    config = {"merge_method": rule, "models": listed, "dtype": "float32", "parameters": {"normalize": rule == "linear"}}
    return config | ({"base_model": str(models[0])} if rule == "task_arithmetic" else {})


def _peer(rule: str, models: list[Path], out: Path):
    import mergekit.merge_methods  # noqa: F401 - part of the imports that are not measured
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(_config(rule, models))
    return lambda: run_merge(config, str(out), MergeOptions(quiet=True))
