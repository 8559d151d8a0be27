"""The world of pairs: images of shapes and their captions, with a tiny dual encoder (a transformers CLIPModel) as base.

    world = World()
    rows = world.rows("train", 256, seed=0, wrong=0.2)    # a fifth of the captions belong to other images
    world.fits(rows, rows)                                # which captions are true of which images, exactly
    world.recall(scores, rows)                            # retrieval in both directions
    CLIPModel.from_pretrained(world.model_folder())

Splits are those of the image world: `novel` holds pairs of a colour and a shape that the encoder never saw.
"""

from luthier.lab.pairs._world import VERSION, World, ids_of

__all__ = ["VERSION", "World", "ids_of"]
