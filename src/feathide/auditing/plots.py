"""The report's figures for other programs: as plotly figures, and drawn by matplotlib for a
tracker that only shows pictures.

The report names its colours (``--hfc``, ``--hfc/0.2``) and leaves the place of the panels to the
page. Here they get the colours of the page's light theme, and stand side by side."""

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from feathide.report.drawing import Figure, Style
from feathide.report.text import asset

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from plotly.graph_objects import Figure as Plot

__all__ = ["drawing", "plot"]

COLUMNS = 3  # panels in a row
WIDE, ROOM = 360, 70  # pixels of a panel, and between rows
DASHES = {"dash": "--", "dot": ":", "dashdot": "-."}
SYMBOLS = {
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "cross": "P",
    "x": "X",
    "star": "*",
    "hexagon": "h",
}


def plot(figure: Figure) -> "Plot":
    """``figure`` as plotly shows it, with one entry of the legend for each condition."""
    from plotly.graph_objects import Figure as Plot
    from plotly.subplots import make_subplots

    panels = figure.spec()["panels"]
    rows, columns = _shape(len(panels))
    made: Plot = make_subplots(
        rows,
        columns,
        subplot_titles=[p["title"] for p in panels],
        vertical_spacing=0.3 / rows,
    )
    named = set[str]()
    for i, panel in enumerate(panels):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        for trace in panel["traces"]:
            entry = str(trace.get("legendgroup", ""))
            shown = {"showlegend": bool(entry) and entry not in named}
            named.add(entry)
            made.add_trace({**_painted(trace), **shown}, **at)
        made.update_xaxes(_axis(panel["x"]), **at)
        made.update_yaxes(_axis(panel["y"]), **at)
        for place, text in panel["marks"]:
            made.add_vline(place, line_dash="dot", annotation_text=text, **at)
    made.update_layout(
        title=figure.title,
        template="plotly_white",
        width=WIDE * columns + 200,
        height=rows * (figure.height + ROOM) + ROOM,
    )
    return made


def drawing(figure: Figure) -> "Drawing":
    """``figure`` drawn by matplotlib, without a window."""
    from matplotlib.figure import Figure as Drawing

    panels = figure.spec()["panels"]
    rows, columns = _shape(len(panels))
    made = Drawing(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    made.suptitle(figure.title)
    places = np.ravel(made.subplots(rows, columns, squeeze=False))
    for place, panel in zip(places, panels, strict=False):
        for trace in panel["traces"]:
            if trace.get("visible", True) is True:
                _draw(place, _painted(trace))
        for at, _ in panel["marks"]:
            place.axvline(at, color="black", linestyle=":", linewidth=1)
        _label(place, panel)
    for place in places[len(panels) :]:
        place.axis("off")
    return made


def _shape(panels: int) -> tuple[int, int]:
    """Rows and columns."""
    columns = max(1, min(COLUMNS, panels))
    return max(1, math.ceil(panels / columns)), columns


def _axis(style: Mapping[str, Any]) -> Style:
    """Without the page's own settings for narrow screens."""
    return {k: v for k, v in _painted(style).items() if k != "nticks"}


# --- colours ------------------------------------------------------------------------------------


def _painted(value: Any) -> Any:
    """``value`` with the names of colours replaced."""
    if isinstance(value, str) and value.startswith("--"):
        name, _, alpha = value.partition("/")
        red, green, blue = _colours()[name]
        return f"rgba({red},{green},{blue},{alpha or 1})"
    if isinstance(value, Mapping):
        return {key: _painted(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_painted(inner) for inner in value]
    return value


@cache
def _colours() -> dict[str, tuple[int, int, int]]:
    """The colours of the page's light theme."""
    found = re.findall(r"(--[\w-]+): light-dark\(#([0-9a-f]{6}),", asset("page.css"))
    return {
        name: (int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16))
        for name, code in found
    }


def _ink(colour: str) -> tuple[float, ...]:
    """``rgba(r,g,b,a)`` as matplotlib takes it."""
    *rgb, alpha = (float(part) for part in colour[5:-1].split(","))
    return (*(part / 255 for part in rgb), alpha)


# --- by matplotlib ------------------------------------------------------------------------------


def _draw(place: Any, trace: Style) -> None:
    name = html.unescape(str(trace.get("name", "")))
    if trace["type"] == "heatmap":
        place.imshow(trace["z"], vmin=trace["zmin"], vmax=trace["zmax"], cmap="Oranges")
        place.set_xticks(range(len(trace["x"])), list(_said(trace["x"])))
        place.set_yticks(range(len(trace["y"])), list(_said(trace["y"])))
        return
    marker = trace.get("marker", {})
    colour = _ink(marker.get("color") or trace["line"]["color"])
    x, y = list(_said(trace["x"])), list(_said(trace["y"]))
    if trace["type"] == "bar":
        bar = place.barh if trace.get("orientation") == "h" else place.bar
        pair = (y, x) if trace.get("orientation") == "h" else (x, y)
        bar(*pair, color=colour, label=name)
        return
    mode = trace.get("mode", "lines")
    style = {
        "color": colour,
        "label": name,
        "linestyle": DASHES.get(trace.get("line", {}).get("dash"), "-"),
        "marker": SYMBOLS.get(marker.get("symbol"), "o") if "markers" in mode else "",
        "markersize": 4,
    }
    if "lines" not in mode:
        style["linestyle"] = ""
    ends = trace.get("error_y")
    # an end that is missing is drawn as none
    reach = None if ends is None else np.nan_to_num([ends["arrayminus"], ends["array"]])
    place.errorbar(x, y, yerr=reach, elinewidth=1, **style)


def _said(values: Sequence[Any]) -> Iterator[Any]:
    """Names as they are; numbers, too."""
    return (html.unescape(v) if isinstance(v, str) else v for v in values)


def _label(place: Any, panel: Style) -> None:
    place.set_title(html.unescape(panel["title"]), fontsize=9)
    place.set_xlabel(html.unescape(str(panel["x"].get("title", ""))))
    place.set_ylabel(html.unescape(str(panel["y"].get("title", ""))))
    if panel["x"].get("type") == "log":
        place.set_xscale("log")
    if "tickangle" in panel["x"]:
        place.tick_params(axis="x", rotation=-panel["x"]["tickangle"])
    handles, _ = place.get_legend_handles_labels()
    if len(handles) > 1:
        place.legend(fontsize=6)
