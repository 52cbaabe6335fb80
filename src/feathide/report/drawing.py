"""What a figure is made of: panels of plotly traces, the looks of conditions, error bars.

Panels are placed by the page, as many in a row as fit. Colours are names of the page's style,
"--hfc", so that they follow the light and dark theme: the hue says the objective, the dash and
the marker say the attack."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from feathide.metrics.numbers import number
from feathide.report.naming import label, layer_name

__all__ = [
    "CYCLE",
    "MARKERS",
    "SHARE",
    "Figure",
    "Panel",
    "Style",
    "bars",
    "categories",
    "errors",
    "gap",
    "line",
    "looks",
    "say",
    "ticks",
]

Style = dict[str, Any]
HUES = {"clean": "--clean", "noisy": "--noisy", "plain": "--plain", "hfc": "--hfc"}
OTHERS = ("--c2", "--c4", "--c5", "--c6")
CYCLE = tuple(f"--c{i}" for i in range(8))
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
SHARE: Style = {"range": [-0.02, 1.02], "tickformat": ".0%"}


@dataclass(frozen=True)
class Panel:
    """One set of axes: its title, traces, and vertical marks (position, text)."""

    title: str
    traces: Sequence[Style]
    x: Mapping[str, Any] = field(default_factory=dict)
    y: Mapping[str, Any] = field(default_factory=dict)
    marks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Figure:
    """Panels that share the axes' settings ``x`` and ``y``, a caption, and the rows ``data`` that
    they show.

    ``height`` is that of a panel with its margins, ``gap`` the room left of each panel, in
    pixels."""

    id: str
    title: str
    caption: str
    panels: Sequence[Panel]
    data: pd.DataFrame
    x: Mapping[str, Any] = field(default_factory=dict)
    y: Mapping[str, Any] = field(default_factory=dict)
    height: int = 260
    gap: int = 48

    def spec(self) -> Style:
        """What the page needs to draw it and to offer its rows."""
        return {
            "id": self.id,
            "title": self.title,
            "panels": [
                {
                    "title": say(p.title),
                    "traces": p.traces,
                    "x": {**self.x, **p.x},
                    "y": {**self.y, **p.y},
                    "marks": p.marks,
                }
                for p in self.panels
            ],
            "height": self.height,
            "gap": self.gap,
            "data": {
                "columns": list(self.data.columns),
                "rows": self.data.to_numpy(object).tolist(),
            },
        }


def say(text: object) -> str:
    """``text`` as plotly shows it: plotly reads a little HTML."""
    return html.escape(str(text), quote=False)


def looks(conditions: Iterable[str]) -> dict[str, Style]:
    """Line, marker and visibility of each condition. Shown at first: clean images, and the attack
    that was run with most objectives.
    """
    conditions = list(conditions)
    attacks = [c.partition("+")[0] for c in conditions if "+" in c]
    first = max(attacks, key=attacks.count, default="")
    later = {c for c in conditions if "+" in c and not c.startswith(f"{first}+")}
    styles: dict[str, Style] = {}
    hues, seen = dict(HUES), dict[str, int]()
    for condition in conditions:
        objective = condition.partition("+")[2] or condition
        hue = hues.setdefault(objective, OTHERS[(len(hues) - len(HUES)) % len(OTHERS)])
        turn = seen[objective] = seen.get(objective, -1) + 1
        styles[condition] = {
            "line": {"color": hue, "dash": DASHES[turn % len(DASHES)], "width": 2},
            "marker": {"color": hue, "symbol": MARKERS[turn % len(MARKERS)], "size": 6},
            "visible": "legendonly" if condition == "noisy" or condition in later else True,
            "name": say(label(condition)),
            "legendgroup": condition,
        }
    return styles


def errors(frame: pd.DataFrame) -> Style:
    """Error bars from the interval ends, where there are any."""
    up, down = frame["high"] - frame["value"], frame["value"] - frame["low"]
    ends = {"array": up.tolist(), "arrayminus": down.tolist()}
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 3, **ends}


def line(x: Iterable[float], frame: pd.DataFrame, name: str, number: int) -> Style:
    """A line with interval bars through ``frame["value"]``; ``number`` -1 is the reference, drawn
    in the ink.
    """
    hue, symbol = (
        ("--ink" if number < 0 else CYCLE[number % len(CYCLE)]),
        MARKERS[number % len(MARKERS)],
    )
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": say(name),
        "legendgroup": name,
        "x": [float(v) for v in x],
        "y": frame["value"].tolist(),
        "error_y": errors(frame),
        "line": {"color": hue, "width": 1.8},
        "marker": {"color": hue, "symbol": symbol, "size": 6},
    }


def bars(frame: pd.DataFrame, name: str, number: int) -> Style:
    """Bars with intervals, one for each ``frame["layer"]``."""
    return {
        "type": "bar",
        "name": say(name),
        "legendgroup": name,
        "x": [say(layer_name(str(v))) for v in frame["layer"]],
        "y": frame["value"].tolist(),
        "error_y": errors(frame),
        "marker": {"color": CYCLE[number % len(CYCLE)]},
    }


def ticks(values: Iterable[float]) -> Style:
    """A logarithmic axis with a tick at each value that occurs."""
    at = sorted({float(v) for v in values})
    return {"type": "log", "tickvals": at, "ticktext": [number(v) for v in at]}


def gap(names: Iterable[object]) -> int:
    """Room for the names of a category axis on the left, in pixels."""
    return min(190, max(48, 26 + 7 * max((len(str(n)) for n in names), default=0)))


def categories(names: Iterable[object]) -> Style:
    """A category axis that says as much of each name as ``gap`` leaves room for."""
    shown = [str(n) for n in names]
    return {
        "tickvals": [say(n) for n in shown],
        "ticktext": [say(n if len(n) <= 23 else f"{n[:22]}…") for n in shown],
    }
