"""Edits of a trained model: local changes of weights, and wrappers that leave the weights alone."""
