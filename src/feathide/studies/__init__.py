"""Programmes of many plans, with claims that can fail."""
