"""Builders that change what rows teach: new targets for the same prompts."""
