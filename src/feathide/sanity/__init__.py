"""Sanity checks of an evaluation."""
