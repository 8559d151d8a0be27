"""What one run leaves behind: a typed result, one JSON file per arm and seed, never half written, never mistaken for
another's.

A file holds the result, a digest of it, and the key of what it answers: the hash of the arm's recipe and of everything
else that must be equal for results to be compared. A damaged file is named and can be run again; a file of another
comparison is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from luthier.core.errors import CheckpointError, ConfigError, OutputError
from luthier.core.files import read_json, write_json
from luthier.core.protocols import Reading

FORMAT = 1
_FLOAT = "~float"
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One finished run of one arm with one seed.

    readings: by name. curves: name -> points (step, value). samples: [{"prompt": str, "outputs": [str, ...]}, ...].
    cost: figure -> number (seconds, tokens, peak_bytes, trained_parameters, ...). versions: package or machine part ->
    text. recipe: the arm as plain values. seconds: wall time of the run.
    """

    arm: str
    seed: int
    readings: Mapping[str, Reading] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; figures that are not finite are kept, as {"~float": "nan"}."""
        readings = {
            n: {"value": r.value, "items": r.items, "better": r.better, "unit": r.unit, "axis": r.axis}
            for n, r in self.readings.items()
        }
        plain = {
            k: getattr(self, k) for k in ("arm", "seed", "curves", "samples", "cost", "versions", "recipe", "seconds")
        }
        return _encode({**plain, "readings": readings}, f"result of {self.arm}, seed {self.seed}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunResult:
        """Read back what `as_json` gave. Raises CheckpointError when a part is missing or of another type."""
        try:
            whole = _decode(data)
            readings = {
                n: Reading(n, float(r["value"]), tuple(map(float, r["items"])), r["better"], r["unit"], r["axis"])
                for n, r in whole.pop("readings").items()
            }
            curves = {n: tuple((float(x), float(y)) for x, y in points) for n, points in whole.pop("curves").items()}
            return cls(readings=readings, curves=curves, **whole)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise CheckpointError(
                f"a run result requires all its parts; got {type(fault).__name__}: {fault}"
            ) from fault


def _encode(value: Any, where: str) -> Any:
    """JSON values; floats that JSON lacks become {"~float": "nan"}, halves of surrogate pairs U+FFFD."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(float(value))}
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(k): _encode(v, f"{where}, {k}") for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_encode(v, where) for v in value]
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "shape", None) == ():
        return _encode(value.item(), where)
    raise TypeError(f"{where} requires plain values (text, numbers, lists, mappings); got {type(value).__name__}")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value[_FLOAT]) if set(value) == {_FLOAT} else {k: _decode(v) for k, v in value.items()}
    return [_decode(v) for v in value] if isinstance(value, list) else value


def plain(value: Any, where: str = "recipe") -> Any:
    """A recipe as plain values: mappings as they are, pydantic models by model_dump, components by
    `core.config.as_dict`.

    Raises ConfigError for anything that has no plain form.
    """
    import dataclasses

    from luthier.core.component import Component
    from luthier.core.config import as_dict

    if callable(getattr(value, "model_dump", None)):
        return value.model_dump(mode="json")
    if callable(getattr(value, "as_dict", None)):
        return plain(value.as_dict(), where)
    try:
        if dataclasses.is_dataclass(value) and not isinstance(value, Component | type):
            return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
        return _encode(as_dict(value), where)
    except TypeError as fault:
        raise ConfigError(
            f"{where} requires plain values to be compared and hashed; {fault}. Give a mapping or a recipe."
        ) from fault


def digest(value: Any) -> str:
    """Hex digest of plain values; the order of keys does not matter."""
    text = json.dumps(
        _encode(value, "value"), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(arm: Any, context: Mapping[str, Any] | None = None) -> str:
    """What a result answers: hash of the arm's recipe and of everything else that must be equal (data, versions)."""
    return digest({"recipe": plain(arm), "context": plain(dict(context or {}), "context")})


def run_path(out: Path, arm: str, seed: int, failed: bool = False) -> Path:
    """Path of a result, <out>/runs/<arm>.<seed>.json; signs that file names cannot bear are escaped."""
    name = quote(arm, safe=" +-_=,@()").replace("~", "%7E").replace("%", "~")
    name = f"~2E{name[1:]}" if name.startswith(".") else name
    return Path(out) / "runs" / f"{name}.{seed}.{'failed.' if failed else ''}json"


def check_names(arms: Iterable[str]) -> None:
    """Raise ConfigError for arm names that are empty or would share a file where case does not count."""
    seen: dict[str, str] = {}
    for arm in arms:
        if not isinstance(arm, str) or not arm.strip() or len(run_path(Path(), arm, 0).name) > 200:
            raise ConfigError(
                f"an arm requires a name of 1 to about 190 signs; got {arm!r}. Name the recipe's file differently."
            )
        other = seen.setdefault(arm.casefold(), arm)
        if other != arm:
            raise ConfigError(
                f"arms require names that differ in more than case; got {other!r} and {arm!r}. Rename one of them."
            )


def write_result(out: Path, result: RunResult, key: str) -> Path:
    """Write one result atomically, its readings in the order taken; an earlier record of its failure is removed."""
    body = result.as_json()
    path = run_path(out, result.arm, result.seed)
    write_json(path, {"format": FORMAT, "key": key, "sha256": digest(body), "result": body}, in_order=True)
    run_path(out, result.arm, result.seed, failed=True).unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class Stored:
    """A result file that was read and found whole."""

    path: Path
    key: str
    result: RunResult


def read_result(path: Path, key: str | None = None) -> Stored:
    """Read one result file.

    Raises CheckpointError when it is missing, damaged or not a result; OutputError when `key` is given and the file
    answers another question (the recipe, data or versions differ).
    """
    data = read_json(path)
    if not isinstance(data, dict) or set(data) != {"format", "key", "sha256", "result"}:
        raise CheckpointError(f"{path} requires a run result; got other JSON. Delete it, and the run is done again.")
    if data["format"] != FORMAT:
        raise CheckpointError(
            f"{path} requires format {FORMAT}; got {data['format']!r}. Delete it, and the run is done again."
        )
    if digest(data["result"]) != data["sha256"]:
        raise CheckpointError(
            f"{path} is damaged: its content differs from what was written. Delete it, and the run is done again."
        )
    if key is not None and data["key"] != key:
        raise OutputError(
            f"{path} requires the result of this comparison (key {key[:12]}); got that of another one "
            f"(key {data['key'][:12]}): the recipe, its data or the versions differ. Choose another output folder, or "
            "delete the file."
        )
    return Stored(path, data["key"], RunResult.from_json(data["result"]))


def read_results(out: Path) -> tuple[list[RunResult], list[str]]:
    """All whole results under <out>/runs, by arm and seed, and a sentence for each file that could not be read."""
    found: list[RunResult] = []
    faults: list[str] = []
    for path in sorted((Path(out) / "runs").glob("*.json")):
        if path.name.startswith(".") or path.name.endswith(".failed.json"):
            continue
        try:
            found.append(read_result(path).result)
        except CheckpointError as fault:
            faults.append(str(fault))
    return sorted(found, key=lambda r: (r.arm, r.seed)), faults


def arm_of(path: Path) -> tuple[str, int]:
    """Arm and seed from the name of a result or failure file.

    >>> arm_of(run_path(Path("out"), "nll + neftune/5", 3))
    ('nll + neftune/5', 3)
    """
    name, seed = path.name.removesuffix(".json").removesuffix(".failed").rsplit(".", 1)
    return unquote(name.replace("~", "%")), int(seed)


__all__ = [
    "FORMAT",
    "RunResult",
    "Stored",
    "arm_of",
    "check_names",
    "digest",
    "key_of",
    "plain",
    "read_result",
    "read_results",
    "run_path",
    "write_result",
]
