"""Reading rows: files, folders and hub names, their formats recognised and stated. Free of torch."""

from luthier.data.formats._convert import convert, suggest
from luthier.data.formats._join import join
from luthier.data.formats._load import Fault, Loaded, load, peek
from luthier.data.formats._recognise import KIND

FORMATS = tuple(KIND)
"""Names that `format` may have."""

__all__ = ["FORMATS", "Fault", "Loaded", "convert", "join", "load", "peek", "suggest"]
