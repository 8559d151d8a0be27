"""Tiny worlds whose answers are exact, so that forgetting, invention, diversity and calibration are measured and not
guessed.

`luthier.lab.language` is a world of text and `luthier.lab.image` one of pictures, each with a small shipped base model;
`luthier.lab.pairs` joins pictures and captions with a dual encoder; `luthier.lab.reward` has known utilities and annotators of
stated faults; `luthier.lab.micro` holds worlds that need no network.
"""
