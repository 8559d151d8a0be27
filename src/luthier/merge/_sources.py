"""Where the tensors of a merge come from: model folders read lazily, and adapters that say what they add to the
base."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError, sentence
from luthier.core.files import read_json, read_tensors
from luthier.merge._rule import Given

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
STEMS = ("model", "diffusion_pytorch_model", "conditioner")
"""How weight files are called by transformers, by diffusers, and beside pipelines with words of their own."""
# Initialisations that also change the base's weights: their adapters are no deltas to the original base.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq")


def index_name(stem: str) -> str:
    """The file that says in which shard a tensor lies."""
    return f"{stem}.safetensors.index.json"


def stem_of(folder: Path) -> str:
    """What the weight files of a folder are called, "model" where none has a usual name."""
    named = (s for s in STEMS if (folder / f"{s}.safetensors").is_file() or (folder / index_name(s)).is_file())
    return next(named, STEMS[0])


def weight_files(folder: Path) -> dict[str, Path] | list[Path]:
    """Tensor name -> file where an index says so, else the files to look into. Raises ModelError if there are none."""
    stem = stem_of(folder)
    if (index := folder / index_name(stem)).is_file():
        listed = {str(k): folder / str(v) for k, v in read_json(index)["weight_map"].items()}
        if absent := sorted({p.name for p in listed.values() if not p.is_file()}):
            raise ModelError(
                sentence(
                    f"model folder {folder}", "every shard of its index", f"{absent[0]} missing", "Download it again"
                )
            )
        return listed
    if (folder / f"{stem}.safetensors").is_file():
        return [folder / f"{stem}.safetensors"]
    found = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter"))
    if not found:
        came = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
        raise ModelError(
            sentence(f"model folder {folder}", "weights as *.safetensors", came or "nothing", "Give a model folder")
        )
    return found


class FolderTensors(Mapping[str, Tensor]):
    """Tensors of a model folder; each is read from disk when asked for. Close it, or use it in a `with` block."""

    def __init__(self, folder: Path) -> None:
        """Opens the files and reads their headers only. Raises ModelError for damaged files and doubled names."""
        self.folder, self._stack = folder, ExitStack()
        listed = weight_files(folder)
        paths = sorted(set(listed.values())) if isinstance(listed, dict) else listed
        self.files = tuple(paths)
        self._where: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.stored: dict[str, str] = {}
        for path in paths:
            self._open(path, listed if isinstance(listed, dict) else None)
        if isinstance(listed, dict) and (absent := [n for n in listed if n not in self._where]):
            raise ModelError(
                sentence(str(listed[absent[0]]), f"the tensor {absent[0]!r} of its index", "none", "Download it again")
            )

    def _open(self, path: Path, listed: Mapping[str, Path] | None) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            handle = self._stack.enter_context(safe_open(str(path), framework="pt", device="cpu"))
            for name in handle.keys():  # noqa: SIM118 - no mapping
                if listed is not None and listed.get(name) != path:
                    continue
                if name in self._where:
                    came = f"{name!r} again in {path.name}"
                    raise ModelError(
                        sentence(f"model folder {self.folder}", "each tensor once", came, "Leave one set of files")
                    )
                cut = handle.get_slice(name)
                self._where[name] = handle
                self.shapes[name], self.stored[name] = tuple(cut.get_shape()), cut.get_dtype()
        except (SafetensorError, OSError) as fault:
            raise ModelError(
                sentence(str(path), "a readable safetensors file", str(fault), "Download it again")
            ) from fault

    def __getitem__(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def dtype(self, name: str) -> torch.dtype | None:
        """The tensor's dtype; None for formats that cannot be added (8-bit floats)."""
        return DTYPES.get(self.stored[name])

    def forget(self, names: Sequence[str]) -> None:
        """Leave these tensors out from now on."""
        for name in names:
            del self._where[name], self.shapes[name], self.stored[name]

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> FolderTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class AdapterDelta:
    """A model told as changes to the base: by the base's tensor names, what is added or put in place; the rest is the
    base's."""

    name: str
    parts: Mapping[str, Given]

    @classmethod
    def added(cls, name: str, deltas: Mapping[str, Tensor]) -> AdapterDelta:
        """From tensors to add to the base's."""
        return cls(name, {k: Given(_constant(v), full=False) for k, v in deltas.items()})

    @classmethod
    def replaced(cls, name: str, weights: Mapping[str, Tensor]) -> AdapterDelta:
        """From changed weights, as an attached adaptation's `merged()` gives them."""
        return cls(name, {k: Given(_constant(v)) for k, v in weights.items()})

    @classmethod
    def from_lora(cls, folder: Path) -> AdapterDelta:
        """From a PEFT LoRA checkpoint (adapter_config.json, adapter_model.safetensors): scale * B A, made when asked
        for.

        Modules saved whole (modules_to_save) replace the base's. Raises ModelError for anything that is no plain sum on
        the base (DoRA, trained biases, initialisations that changed the base, other methods): merge such adapters
        first.
        """
        config = read_json(folder / "adapter_config.json")
        if why := _not_plain(config):
            raise ModelError(
                sentence(f"adapter {folder}", "a plain LoRA", why, "Merge it into its base first, and give that model")
            )
        return cls(str(folder), _lora_parts(read_tensors(folder / "adapter_model.safetensors"), config, folder))


def _constant(value: Tensor) -> Callable[[], Tensor]:
    return lambda: value


def _not_plain(config: Mapping[str, Any]) -> str | None:
    """Why an adapter is no plain sum of low-rank products on the original base, or None if it is one."""
    if config.get("peft_type") != "LORA":
        return f"peft_type {config.get('peft_type')!r}"
    for key in ("use_dora", "lora_bias", "target_parameters", "alora_invocation_tokens"):
        if config.get(key):
            return f"{key} = {config[key]!r}"
    if config.get("bias", "none") != "none":
        return f"bias = {config['bias']!r}"
    init = str(config.get("init_lora_weights", True))
    return f"init_lora_weights = {init!r}, which changed the base" if init.startswith(CHANGED_BASE) else None


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value whose pattern ends the module's name, as PEFT matches rank_pattern and alpha_pattern."""
    hits = [v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", module)]
    return hits[0] if hits else default


def _lora_parts(tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> dict[str, Given]:
    """Base tensor name -> what the adapter gives there. An embedding that PEFT saved beside its factors is replaced."""
    plain = {k.removeprefix("base_model.model."): v for k, v in tensors.items()}
    parts: dict[str, Given] = {}
    for key, value in plain.items():
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?(A|B)(?:\.weight)?", key)
        if found is not None:
            module, embedding, side = found.groups()
            if side == "A":
                parts[f"{module}.weight"] = _factors(plain, key, module, bool(embedding), config, folder)
        elif ".lora_" in key:
            raise ModelError(sentence(f"adapter {folder}", "LoRA factors A and B", key, "Merge it into its base first"))
        elif not key.endswith(".base_layer.weight"):
            parts[key] = Given(_constant(value))
    return parts


def _factors(
    plain: Mapping[str, Tensor], key: str, module: str, embedding: bool, config: Mapping[str, Any], folder: Path
) -> Given:
    """What factor A at `key` and its B give: scale * B A to add, or whole weights where the base's were saved with
    it."""
    a, b = plain[key], plain.get(re.sub(r"\.lora_(embedding_)?A", r".lora_\1B", key))
    if b is None or a.ndim != 2 or b.ndim != 2:
        came = "no B" if b is None else f"factors of shape {tuple(a.shape)} and {tuple(b.shape)}"
        at = f"adapter {folder} at {module}"
        raise ModelError(sentence(at, "two matrices A and B", came, "Merge it into its base first"))
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    scale = alpha / (a.shape[0] ** 0.5 if config.get("use_rslora") else a.shape[0])
    product = _product(a, b, scale, bool(config.get("fan_in_fan_out")) != embedding)
    whole = plain.get(f"{module}.base_layer.weight")
    return Given(product, full=False) if whole is None else Given(lambda: whole + product().to(whole.dtype))


def _product(a: Tensor, b: Tensor, scale: float, turned: bool) -> Callable[[], Tensor]:
    def make() -> Tensor:
        out = scale * (b.double() @ a.double())
        return out.T if turned else out

    return make
