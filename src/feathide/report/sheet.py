"""``sheet``: a small self-contained page around some figures, tables and pictures, in the looks
of the report.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from feathide.report.document import document
from feathide.report.drawing import Figure

__all__ = ["Plate", "Sheet", "sheet"]

SCRIPTS = ("page.js", "figures.js")


@dataclass(frozen=True)
class Plate:
    """Pictures side by side (``data:`` addresses) under one caption."""

    caption: str
    pictures: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """A page: what it is about, sentences on how to read it, figures, pictures, and the table
    that all of it comes from.
    """

    title: str
    says: Sequence[str]
    figures: Sequence[Figure]
    table: pd.DataFrame
    plates: Sequence[Plate] = ()


def sheet(page: Sheet) -> str:
    """The page as HTML text; it loads nothing and holds its numbers."""
    data = {
        "figures": [f.spec() for f in page.figures],
        "csv": {"results": page.table.to_csv(index=False)},
    }
    return document("sheet.html.j2", SCRIPTS, data, page=page)
