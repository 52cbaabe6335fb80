"""Attacks: one loop, update rules, threat models, presets."""
