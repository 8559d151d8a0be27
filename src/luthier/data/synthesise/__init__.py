"""Makers of rows: pipelines of samplers that write new examples from a few."""
