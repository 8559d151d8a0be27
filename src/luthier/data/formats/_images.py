"""Images with captions or labels: a folder, a table that names files, or an npz of arrays. Free of torch.

Nothing is resized in silence: an image that does not have the size that the model takes is a fault unless `resize` says
how to make it so. Every image that cannot be used is named with its place and its reason.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import DataError, counted, sentence

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = ("caption", "text", "prompt")
FILES = ("image", "file_name", "image_path", "path", "file")
Pixels = NDArray[np.uint8]
Resize = Literal["error", "crop"]
LARGEST = 1 << 26
"""Most pixels that an image may have; more is refused before it is unpacked."""


@dataclass
class Images:
    """Images (N, C, H, W) as bytes, their rows (caption, label and other columns), and how they were read."""

    pixels: Pixels
    rows: list[dict[str, Any]]
    statement: str
    fingerprint: str
    faults: list[str] = field(default_factory=list)


def is_image_source(source: str) -> bool:
    """Whether a path means images: an npz, or a folder in which some lie (also one level down)."""
    path = Path(source).expanduser()
    if path.suffix.lower() == ".npz":
        return True
    return path.is_dir() and next(_inside(path), None) is not None


def _inside(folder: Path) -> Iterator[Path]:
    for pattern in ("*", "*/*"):
        yield from (p for p in sorted(folder.glob(pattern)) if p.suffix.lower() in SUFFIXES)


def load_images(source: str, shape: tuple[int, int, int], resize: Resize = "error", on_bad: str = "error",
                fields: Mapping[str, str] | None = None) -> Images:  # fmt: skip
    """Read a source for a model that takes images of `shape` (C, H, W), C being 1 or 3.

    fields: which column plays which part (image, caption, label). on_bad: "error" stops at images that cannot be used, "drop"
    leaves them out and counts them. Raises DataError.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            sentence("data", "an existing file or folder", f"{source!r}, which does not exist", "Check the path")
        )
    if shape[0] not in (1, 3):
        raise DataError(
            sentence("data", "a model of images with 1 or 3 channels", f"{shape[0]}", "Give latents through a VAE")
        )
    records = _arrays(path) if path.suffix.lower() == ".npz" else _listed(path, fields or {})
    pixels: list[Pixels] = []
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for where, image, row in records:
        try:
            pixels.append(_fitted(image, shape, resize))
            rows.append(row)
        except (OSError, ValueError, SyntaxError) as fault:
            faults.append(f"{where}: {fault}")
    if faults and (on_bad == "error" or not rows):
        shown = "\n".join(f"  {f}" for f in faults[:12]) + (
            f"\n  and {len(faults) - 12} more" if len(faults) > 12 else ""
        )
        raise DataError(f"{source}: {len(faults)} of {len(faults) + len(rows)} images cannot be used. Correct them, or set "
                        f"data.on_bad: drop to leave them out.\n{shown}")  # fmt: skip
    if not rows:
        raise DataError(sentence(str(path), "at least one image", "none", f"Put images ({', '.join(SUFFIXES)}) there"))
    made = np.stack(pixels)
    named = sum("caption" in r for r in rows)
    captions = "a caption" if named == 1 else "captions"
    told = f"{counted(len(rows), 'image')} of {shape[2]}x{shape[1]} from {source}, {named} with {captions}" + (
        f", {len(faults)} left out" if faults else ""
    )
    digest = hashlib.sha256(made.tobytes())
    digest.update(repr([sorted(r.items(), key=str) for r in rows]).encode())
    return Images(made, rows, told, digest.hexdigest()[:16], faults)


def load_prompts(source: str, fields: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str, str]:
    """(rows with `caption`, how they were read, their fingerprint) of a table, or of a text file with one caption a line.

    Raises DataError naming the first row without a caption.
    """
    from luthier.data.formats._files import records

    rows: list[dict[str, Any]] = []
    for record in records(Path(source).expanduser(), split=None, unit="lines", head=False)[0]:
        row = {"caption": record.value} if isinstance(record.value, str) else dict(record.value or {})
        name = (fields or {}).get("caption") or next((c for c in CAPTIONS if c in row), "caption")
        caption = row.pop(name, None)
        if record.fault or not isinstance(caption, str) or not caption.strip():
            came = record.fault or repr(caption)
            raise DataError(
                sentence(record.where, "a caption", came, "Correct the row, or name the column with data.fields")
            )
        rows.append({**row, "caption": caption.strip()})
    if not rows:
        raise DataError(sentence(source, "at least one caption", "none", "Write one a line"))
    digest = hashlib.sha256(repr([sorted(r.items(), key=str) for r in rows]).encode())
    return rows, f"{len(rows)} captions of {source}", digest.hexdigest()[:16]


def _arrays(path: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Images `x` (N, H, W[, C]) with labels `y` and names `classes`; pickled arrays are refused."""
    if not zipfile.is_zipfile(path):
        raise DataError(sentence(str(path), "an npz archive", "a file of another kind", "Write it with numpy.savez"))
    try:
        with np.load(path, allow_pickle=False) as held:
            x = held["x"]
            y = held.get("y")
            classes = [str(c) for c in held["classes"]] if "classes" in held else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as fault:
        raise DataError(
            sentence(
                str(path), "an npz with images `x` and no pickled objects", str(fault), "Write it with numpy.savez"
            )
        ) from fault
    for i, image in enumerate(x):
        label = None if y is None else int(y[i])
        row: dict[str, Any] = {} if label is None else {"label": label}
        if label is not None and classes is not None:
            row["caption"] = classes[label]
        yield f"image {i + 1}", image, row


def _listed(path: Path, fields: Mapping[str, str]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Files of a folder (captions in metadata.jsonl, in a .txt beside each, or none), or of a table that names them."""
    if path.is_file():
        yield from _table(path, path.parent, fields)
        return
    table = next(
        (path / f"metadata{s}" for s in (".jsonl", ".csv", ".parquet") if (path / f"metadata{s}").is_file()), None
    )
    if table is not None:
        yield from _table(table, path, fields)
        return
    found = list(_inside(path))
    folders = sorted({p.parent.name for p in found if p.parent != path})
    for image in found:
        row: dict[str, Any] = {}
        if image.parent != path:
            row = {"label": folders.index(image.parent.name), "caption": image.parent.name.replace("_", " ")}
        beside = image.with_suffix(".txt")
        given = _safe(image, path)
        if beside.is_file():
            try:
                row["caption"] = beside.read_text(encoding="utf-8-sig").strip()
            except UnicodeDecodeError:
                given = ValueError(f"{beside.name} beside it is no UTF-8 text")
        yield str(image.relative_to(path)), given, row


def _table(path: Path, folder: Path, fields: Mapping[str, str]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    from luthier.data.formats._files import records

    for record in records(path, split=None, unit="lines", head=False)[0]:
        if record.fault or not isinstance(record.value, Mapping):
            yield record.where, ValueError(record.fault or "a row must be a mapping"), {}
            continue
        row = dict(record.value)
        name = fields.get("image") or next((f for f in FILES if f in row), "image")
        caption = fields.get("caption") or next((c for c in CAPTIONS if c in row), None)
        image = row.pop(name, None)
        if caption is not None and caption in row:
            row["caption"] = row.pop(caption)
        if "label" in fields:
            row["label"] = row.pop(fields["label"], None)
        if isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):
            image = image["bytes"]
        given = _safe(folder / image, folder) if isinstance(image, str) else image
        yield record.where, ValueError(f"no image in column {name!r}") if given is None else given, row


def _safe(path: Path, folder: Path) -> Path | ValueError:
    inside = path.resolve().is_relative_to(folder.resolve())
    if not inside:
        return ValueError(f"{path.name} lies outside of the folder")
    return path if path.is_file() else ValueError(f"there is no file {path.name}")


def _fitted(image: Any, shape: tuple[int, int, int], resize: Resize) -> Pixels:
    """One image as (C, H, W) bytes. Raises ValueError or OSError saying what is wrong with it."""
    import io

    from PIL import Image

    if isinstance(image, ValueError):
        raise image
    if isinstance(image, np.ndarray):
        opened = _from_array(image)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            try:
                opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
            except Image.DecompressionBombError as fault:
                raise ValueError(f"its pixels are more than {LARGEST:,}") from fault
        if opened.width * opened.height > LARGEST:
            opened.close()
            raise ValueError(f"{opened.width}x{opened.height} pixels are more than {LARGEST:,}")
    channels, height, width = shape
    if opened.mode in ("RGBA", "LA", "P", "PA"):
        over = Image.new("RGBA", opened.size, "white")
        opened = Image.alpha_composite(over, opened.convert("RGBA"))
    elif opened.mode not in ("RGB", "L", "1"):
        raise ValueError(f"mode {opened.mode} is none of RGB, RGBA, grey or palette")
    opened = opened.convert("RGB" if channels == 3 else "L")
    if opened.size != (width, height):
        if resize == "error":
            raise ValueError(
                f"{opened.width}x{opened.height} instead of {width}x{height}; set data.resize: crop to fit it"
            )
        opened = _cropped(opened, width, height)
    out = np.asarray(opened, dtype=np.uint8)
    return np.moveaxis(out, -1, 0).copy() if channels == 3 else out[None].copy()


def _from_array(image: NDArray[Any]) -> Any:
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] not in (1, 3)):
        raise ValueError(f"array of {image.dtype} and shape {image.shape} instead of bytes (H, W) or (H, W, 3)")
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)


def _cropped(image: Any, width: int, height: int) -> Any:
    """The middle of the image at the asked ratio, scaled to the asked size."""
    from PIL import ImageOps

    return ImageOps.fit(image, (width, height), method=3)


def to_model(pixels: Sequence[Any]) -> NDArray[np.float32]:
    """Bytes 0..255 to the range [-1, 1].

    >>> to_model(np.array([0, 255], dtype=np.uint8)).tolist()
    [-1.0, 1.0]
    """
    return np.asarray(pixels, dtype=np.float32) / 127.5 - 1.0
