"""Edits that change the weights at a chosen place."""
