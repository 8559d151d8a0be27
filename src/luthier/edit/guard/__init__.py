"""Wrappers that make a model look edited without touching it."""
