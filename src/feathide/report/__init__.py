"""The report: one self-contained HTML page from the results of a run."""

from feathide.report.card import card
from feathide.report.page import render
from feathide.report.results import About, Case, Run
from feathide.report.verdict import Finding, Rate, Verdict, verdict

__all__ = [
    "About",
    "Case",
    "Finding",
    "Rate",
    "Run",
    "Verdict",
    "card",
    "render",
    "verdict",
]
