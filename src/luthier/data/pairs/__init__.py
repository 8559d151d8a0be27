"""Builders of preference pairs."""
