"""The reward world: utilities that are known, rewards and annotators that depart from them in a stated way.

A utility is a function of rows and of images or texts, `utility(rows, things) -> (N,)`. True ones are `image_utility` and
`story_utility`; `Distorted` adds a liking that should not count and a ceiling; an `Annotator` of stated sharpness, noise and
bias turns utilities into verdicts of known probability. So hacking is the true utility that is lost while the distorted one
rises, and calibration has an exact value: no reward model can be better than `best_log_loss`.

    rows = image_preferences(500, "train", 0, Annotator(noise=0.1, bias=0.5))  # likes bright images too much
    reward = Distorted(reader_reward, image_quirk(seed=1), weight=0.5)         # differentiable, and wrong
    image_utility(rows, images)                                                # what it was worth in truth
"""

from luthier.lab.reward._annotator import Annotator, Distorted, Utility, Verdicts, best_accuracy, best_log_loss, pairs
from luthier.lab.reward._images import (
    brightness,
    clarity,
    image_quirk,
    image_utility,
    reader_reward,
    redness,
    template_reward,
)
from luthier.lab.reward._painter import image_preferences, image_scores
from luthier.lab.reward._texts import sameness, story_utility, text_quirk, wordiness

__all__ = ["Annotator", "Distorted", "Utility", "Verdicts", "best_accuracy", "best_log_loss", "brightness", "clarity",
           "image_preferences", "image_quirk", "image_scores", "image_utility", "pairs", "reader_reward", "redness", "sameness",
           "story_utility", "template_reward", "text_quirk", "wordiness"]  # fmt: skip
