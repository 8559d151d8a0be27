"""The image world: 16x16 pictures of coloured shapes whose captions, attributes and distances are known exactly.

    world = World()
    rows = world.rows("train", 256, seed=0)          # image, caption, attributes, asked, key, split, jitter
    seen = world.oracle(images)                      # attributes, jitter, rmse to the nearest picture that can be drawn
    seen.accuracy([row["caption"] for row in rows])  # per attribute, and all of them
    luthier.models.denoiser.load_denoiser(str(world.model_folder()))

A caption is up to six words in this order: count, size, colour, shape, position, background ("two small red cross left
grey"); words that are missing leave the attribute open. The base was shown part of the captions with words missing, and
none at all in a tenth. Splits are made by hash: `train`, `stop` and `test` are disjoint in their combinations, and
`novel` holds three pairs of a colour and a shape that no other split contains. `flag`, `zebra` and `chess` are objects
in two colours that the base never saw.

`Digits` is a variant on real data, with a class-conditional base of its own.
"""

from luthier.lab.image._digits import Digits
from luthier.lab.image._oracle import Readings
from luthier.lab.image._reader import Reader
from luthier.lab.image._shapes import ATTRIBUTES, CONCEPTS, SHAPES, SPLITS, VERSION, draw, parse, to_bytes, to_float
from luthier.lab.image._world import World

__all__ = ["ATTRIBUTES", "CONCEPTS", "Digits", "Reader", "Readings", "SHAPES", "SPLITS", "VERSION", "World", "draw", "parse",
           "to_bytes", "to_float"]  # fmt: skip
