"""``sheet``: a small self-contained page around some figures, tables and pictures, in the looks of the report."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from feathide.report.drawing import Figure
from feathide.report.page import _asset, _json, _script

__all__ = ["Plate", "Sheet", "sheet"]

SCRIPTS = ("page.js", "figures.js")


@dataclass(frozen=True)
class Plate:
    """Pictures side by side (``data:`` addresses) under one caption."""

    caption: str
    pictures: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """A page: what it is about, sentences on how to read it, figures, pictures, and the table that all of it comes from."""

    title: str
    says: Sequence[str]
    figures: Sequence[Figure]
    table: pd.DataFrame
    plates: Sequence[Plate] = ()


def sheet(page: Sheet) -> str:
    """The page as HTML text; it loads nothing and holds its numbers."""
    scripts = [_script(get_plotlyjs()), *(_script(_asset(name)) for name in SCRIPTS)]
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    data = {"figures": [f.spec() for f in page.figures], "csv": {"results": page.table.to_csv(index=False)}}
    return env.from_string(_asset("sheet.html.j2")).render(
        page=page,
        style=Markup(_asset("page.css")),
        scripts=[script for script, _ in scripts],
        hashes=" ".join(f"'sha256-{digest}'" for _, digest in scripts),
        data=_json(data),
    )
