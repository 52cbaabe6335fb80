"""Classifiers: networks, their layers, weights and memory."""
