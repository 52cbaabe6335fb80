"""The figures of the page as plotly traces in panels, each with the rows behind it.

Panels are placed by the page, as many in a row as fit. Colours are names of the page's style, "--hfc", so that they follow the light and dark
theme: the hue says the objective, the dash and the marker say the attack. Only figures whose data the run holds are made.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from feathide.report.results import Run
from feathide.report.verdict import at_budget, label

__all__ = ["Figure", "Panel", "figures"]

HUES = {"clean": "--clean", "noisy": "--noisy", "plain": "--plain", "hfc": "--hfc"}
OTHERS = ("--c3", "--c4", "--c5", "--c6")
CYCLE = tuple(f"--c{i}" for i in range(8))
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
SHARE = {"range": [-0.02, 1.02], "tickformat": ".0%"}
Trace = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One set of axes: its title, traces, and vertical marks (position, text)."""

    title: str
    traces: Sequence[Trace]
    x: Mapping[str, Any] = field(default_factory=dict)
    y: Mapping[str, Any] = field(default_factory=dict)
    marks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Figure:
    """A figure: panels that share the axes' settings, a caption, and the rows that it shows."""

    id: str
    title: str
    caption: str
    panels: Sequence[Panel]
    data: pd.DataFrame
    x: Mapping[str, Any] = field(default_factory=dict)
    y: Mapping[str, Any] = field(default_factory=dict)
    height: int = 260

    def spec(self) -> dict[str, Any]:
        """What the page needs to draw it and to offer its rows."""
        panels = [
            {
                "title": say(p.title),
                "traces": p.traces,
                "x": {**self.x, **p.x},
                "y": {**self.y, **p.y},
                "marks": p.marks,
            }
            for p in self.panels
        ]
        table = {"columns": list(self.data.columns), "rows": self.data.to_numpy(object).tolist()}
        return {"id": self.id, "title": self.title, "panels": panels, "height": self.height, "data": table}


def say(text: object) -> str:
    """``text`` as plotly shows it: plotly reads a little HTML."""
    return html.escape(str(text), quote=False)


def looks(conditions: Iterable[str]) -> dict[str, Trace]:
    """Line, marker and visibility of each condition: hue by objective, dash and marker by attack; the first attack of an objective is shown."""
    styles: dict[str, Trace] = {}
    hues, seen = dict(HUES), dict[str, int]()
    for condition in conditions:
        objective = condition.partition("+")[2] or condition
        hue = hues.setdefault(objective, OTHERS[(len(hues) - len(HUES)) % len(OTHERS)])
        turn = seen[objective] = seen.get(objective, -1) + 1
        styles[condition] = {
            "line": {"color": hue, "dash": DASHES[turn % len(DASHES)], "width": 2},
            "marker": {"color": hue, "symbol": MARKERS[turn % len(MARKERS)], "size": 6},
            "visible": "legendonly" if turn or condition == "noisy" else True,
            "name": say(label(condition)),
            "legendgroup": condition,
        }
    return styles


def errors(frame: pd.DataFrame) -> Trace:
    """Error bars from the interval ends, where there are any."""
    up, down = frame["high"] - frame["value"], frame["value"] - frame["low"]
    return {
        "type": "data",
        "symmetric": False,
        "array": up.tolist(),
        "arrayminus": down.tolist(),
        "thickness": 1,
        "width": 3,
    }


def figures(run: Run) -> Iterable[Figure]:
    """Every figure that the run has data for."""
    made = (
        roc(run),
        histograms(run),
        budget(run),
        *features(run.curves),
        *search(run.curves),
        transfer(run.curves),
        cost(run),
    )
    return [figure for figure in made if figure is not None]


def roc(run: Run) -> Figure | None:
    """Caught among the images that fool the classifier, against false alarms among the clean ones."""
    attacked = [c for c in dict.fromkeys(run.scores["condition"]) if "+" in c]
    style, panels, rows = looks(attacked), [], []
    for detector, part in run.scores.groupby("detector", sort=False):
        clean = np.sort(part.loc[part["condition"] == "clean", "score"].to_numpy(float))[::-1]
        traces = []
        for condition in attacked:
            caught = part.loc[(part["condition"] == condition) & part["fooled"].astype(bool), "score"].to_numpy(float)
            if len(clean) == 0 or len(caught) == 0:
                continue
            cuts = np.concatenate([[np.inf], np.unique(clean)[::-1], [-np.inf]])
            x, y = ((scores[:, None] >= cuts).mean(0) for scores in (clean, caught))
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": x.round(4).tolist(),
                    "y": y.round(4).tolist(),
                    **style[condition],
                }
            )
            rows.extend((detector, condition, a, b) for a, b in zip(x, y, strict=True))
        panels.append(Panel(label(str(detector)), traces, marks=[(0.1, "")]))
    if not rows:
        return None
    data = pd.DataFrame(rows, columns=["detector", "condition", "false_alarms", "caught"])
    return Figure(
        *("roc", "What each guard catches"),
        "ROC curves: the share of images that fool the classifier and are caught, against the share of clean test images that raise a false alarm. "
        "The dotted line is 10 % false alarms. A curve on the diagonal is a coin toss; below it, the guard finds the attack more normal than normal.",
        *(panels, data, {**SHARE, "title": "false alarms"}, {**SHARE, "title": "caught"}),
    )


def histograms(run: Run) -> Figure | None:
    """Scores by condition, with the threshold at 10 % false alarms."""
    conditions = list(dict.fromkeys(run.scores["condition"]))
    style, panels, rows = looks(conditions), [], []
    for detector, part in run.scores.groupby("detector", sort=False):
        part = part[np.isfinite(part["score"].astype(float))]
        if part.empty:
            continue
        to, ticks = _axis(part)
        threshold = run.thresholds.get(str(detector), {}).get("fpr10", np.nan)
        edges = np.linspace(*np.quantile(to(part["score"].to_numpy(float)), (0.002, 0.998)), 41)
        traces = []
        for condition in conditions:
            scores = to(part.loc[part["condition"] == condition, "score"].to_numpy(float))
            share = np.histogram(scores.clip(edges[0], edges[-1]), edges)[0] / max(1, len(scores))
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": _mid(edges),
                    "y": share.round(5).tolist(),
                    **_step(style[condition]),
                }
            )
            rows.extend(
                (detector, condition, a, b, c)
                for a, b, c in zip(to.back(edges[:-1]), to.back(edges[1:]), share, strict=True)
            )
        marks = [(float(to(np.array([threshold]))[0]), "threshold")] if np.isfinite(threshold) else []
        panels.append(Panel(label(str(detector)), traces, x=ticks, marks=marks))
    if not rows:
        return None
    return Figure(
        *("histograms", "Scores, and where the threshold cuts them"),
        "Share of images by score; higher is more suspicious. The dotted line is the threshold at 10 % false alarms, taken from the calibration "
        "images: what lies left of it passes. The outermost 0.2 % are drawn at the edge; where scores span orders of magnitude the axis is compressed.",
        panels,
        pd.DataFrame(rows, columns=["detector", "condition", "from", "to", "share"]),
        *({"title": "score"}, {"rangemode": "tozero", "tickformat": ".0%", "title": "images"}),
    )


@dataclass(frozen=True)
class _Squeeze:
    """asinh((score - centre) / width), or the identity where ``width`` is 0."""

    centre: float
    width: float

    def __call__(self, score: np.ndarray) -> np.ndarray:
        return np.arcsinh((score - self.centre) / self.width) if self.width else score

    def back(self, position: np.ndarray) -> np.ndarray:
        return np.sinh(position) * self.width + self.centre if self.width else position


def _axis(part: pd.DataFrame) -> tuple[_Squeeze, dict[str, Any]]:
    """How scores are placed: as they are, or compressed where they reach far beyond the clean ones, with ticks in the scores' own units."""
    scores, clean = part["score"].to_numpy(float), part.loc[part["condition"] == "clean", "score"].to_numpy(float)
    low, centre, high = np.quantile(clean if len(clean) else scores, (0.25, 0.5, 0.75))
    far = np.abs(np.quantile(scores, (0.002, 0.998)) - centre).max()
    if high == low or far < 30 * (high - low):
        return _Squeeze(0.0, 0.0), {}
    to = _Squeeze(float(centre), float(high - low))
    at = np.linspace(*to(np.quantile(scores, (0.002, 0.998))), 5)
    return to, {"tickvals": at.tolist(), "ticktext": [f"{v:.3g}" for v in to.back(at)]}


def _mid(edges: np.ndarray) -> list[float]:
    return ((edges[1:] + edges[:-1]) / 2).round(6).tolist()


def _step(style: Trace) -> Trace:
    return {
        **style,
        "line": {**style["line"], "shape": "hvh", "width": 1.5},
        "fill": "tozeroy",
        "fillcolor": f"{style['line']['color']}/0.14",
    }


def budget(run: Run) -> Figure | None:
    """Success and slips-through against eps, where the run holds several."""
    table = run.curves.get("eps", run.table)
    table = table[table["metric"].isin(["success", "slips_through_fpr10"]) & (table["eps"].astype(float) > 0)]
    names = list(dict.fromkeys(d for d in table["detector"] if d))
    panels = []
    for (attack, objective), part in table.groupby(["attack", "objective"], sort=False):
        if part["eps"].nunique() < 2:
            continue
        traces = []
        for i, name in enumerate(["", *names]):
            metric = "slips_through_fpr10" if name else "success"
            line = (
                part[(part["detector"] == name) & (part["metric"] == metric)]
                .groupby("eps")
                .max(numeric_only=True)
                .reset_index()
            )
            hue = CYCLE[(i - 1) % len(CYCLE)] if name else "--ink"
            traces.append(
                _line(
                    run.scale.native(1) * line["eps"],
                    line,
                    label(name) if name else "no guard",
                    hue,
                    MARKERS[i % len(MARKERS)],
                )
            )
        panels.append(Panel(label(f"{attack}+{objective}"), traces))
    if not panels:
        return None
    return Figure(
        *("eps", "What slips through as the budget grows"),
        "Share of attacked images that fool the classifier and pass the guard at 10 % false alarms, by the largest change allowed; the line "
        "without a guard is the attack's success. Bars are 95 % intervals.",
        *(panels, table),
        *(
            {"title": f"eps ({say(run.threat['unit'])})", "type": "log", "dtick": "D2"},
            {**SHARE, "title": "slips through"},
        ),
    )


def _line(x: Iterable[float], frame: pd.DataFrame, name: str, hue: str, symbol: str) -> Trace:
    looks = {"line": {"color": hue, "width": 1.8}, "marker": {"color": hue, "symbol": symbol, "size": 6}}
    values = {"x": [float(v) for v in x], "y": frame["value"].tolist(), "error_y": errors(frame)}
    return {"type": "scatter", "mode": "lines+markers", "name": say(name), "legendgroup": name, **values, **looks}


def features(curves: Mapping[str, pd.DataFrame]) -> Iterable[Figure]:
    """Where the features lie: outlierness by layer, the 2D picture, the stress test."""
    if "outlierness" in curves:
        frame, traces = curves["outlierness"], []
        for condition, style in looks(dict.fromkeys(frame["condition"])).items():
            part = frame[frame["condition"] == condition]
            shown = {
                "x": [say(v) for v in part["layer"]],
                "y": part["value"].tolist(),
                "error_y": errors(part),
                "visible": True,
            }
            traces.append({"type": "scatter", "mode": "lines+markers", **style, **shown})
        text = "Outlierness of the features of each layer under the clean model of the target class, in network order; bars are 95 % intervals. "
        text += (
            "A conventional attack leaves the clean range, the more the deeper the layer; one that hides stays in it."
        )
        yield Figure(
            "outlierness",
            "How far the features leave the normal range",
            text,
            [Panel("", traces)],
            frame,
            {"tickangle": -35},
            {"title": "outlierness"},
            360,
        )
    if "embedding" in curves:
        frame, traces = curves["embedding"], []
        for condition, style in looks(dict.fromkeys(frame["condition"])).items():
            part = frame[frame["condition"] == condition]
            marker = {**style["marker"], "opacity": 0.65, "symbol": MARKERS[len(traces) % len(MARKERS)]}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    **style,
                    "marker": marker,
                    "visible": True,
                    "x": part["x"].tolist(),
                    "y": part["y"].tolist(),
                }
            )
        text = "The features in two dimensions, one point an image. Distances in such a picture are only a hint; the scores above decide."
        hidden = {"showticklabels": False, "zeroline": False}
        yield Figure(
            "embedding", "A picture of the feature space", text, [Panel("", traces)], frame, hidden, hidden, 420
        )
    if "stress" in curves:
        frame = curves["stress"]
        traces = [
            _bars(part, str(group), CYCLE[i % len(CYCLE)])
            for i, (group, part) in enumerate(frame.groupby("group", sort=False))
        ]
        text = "Stress test: how far an attacker can drive the mean activation of a layer within the same budget, in clean standard deviations."
        yield Figure(
            "stress",
            "How easily each layer is moved",
            text,
            [Panel("", traces)],
            frame,
            {"tickangle": -35},
            {"title": "change / clean s.d."},
            340,
        )


def _bars(frame: pd.DataFrame, name: str, hue: str) -> Trace:
    values = {"x": [say(v) for v in frame["layer"]], "y": frame["value"].tolist(), "error_y": errors(frame)}
    return {"type": "bar", "name": say(name), "legendgroup": name, "marker": {"color": hue}, **values}


def search(curves: Mapping[str, pd.DataFrame]) -> Iterable[Figure]:
    """How the settings were found and what the defender's answer changes: components, weight, rounds."""
    if "mixture" in curves:
        frame, panels = curves["mixture"], []
        for layer, part in frame.groupby("layer", sort=False):
            lines = [
                (str(c), p.assign(value=p["heldout"], low=np.nan, high=np.nan))
                for c, p in part.groupby("class", sort=False)
            ]
            traces = [
                _line(p["components"], p, f"class {c}", CYCLE[i % len(CYCLE)], MARKERS[i % len(MARKERS)])
                for i, (c, p) in enumerate(lines)
            ]
            panels.append(Panel(str(layer), traces))
        text = "Held-out log-likelihood of the clean features by the number of mixture components, for each layer and class. The best number is the highest point."
        ticks = sorted(set(frame["components"].tolist()))
        axis = {"title": "components", "type": "log", "tickvals": ticks, "ticktext": [str(t) for t in ticks]}
        yield Figure(
            "mixture",
            "How many components the clean features need",
            text,
            panels,
            frame,
            axis,
            {"title": "log-likelihood"},
            220,
        )
    for name, key, column, title, text, axis in (
        ("lambda", "weight", "metric", "Hiding against fooling", "The weight of the hiding term against what it buys and costs; tuned on the fit part only.",
         {"title": "weight of the hiding term", "type": "log", "dtick": "D2"}),
        ("duel", "round", "detector", "The defender's next move", "Slips-through at 10 % false alarms by round: the defender refits with the attacker's last "
         "images, then the attacker attacks again.", {"title": "round", "dtick": 1}),
    ):  # fmt: skip
        if name in curves:
            frame = curves[name]
            lines = [(label(str(n)), p) for n, p in frame.groupby(column, sort=False)]
            traces = [
                _line(p[key], p, n, CYCLE[i % len(CYCLE)], MARKERS[i % len(MARKERS)]) for i, (n, p) in enumerate(lines)
            ]
            yield Figure(
                name,
                title,
                f"{text} Bars are 95 % intervals.",
                [Panel("", traces)],
                frame,
                axis,
                {**SHARE, "title": "share"},
                320,
            )


def transfer(curves: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Substitutes by victims, one heat map a condition."""
    if "transfer" not in curves:
        return None
    frame, panels = curves["transfer"], []
    for condition, part in frame.groupby("condition", sort=False):
        grid = part.pivot(index="substitute", columns="victim", values="value")
        scale = {
            "zmin": 0,
            "zmax": 1,
            "colorscale": [[0, "--paper"], [1, "--hfc"]],
            "showscale": False,
            "texttemplate": "%{z:.0%}",
        }
        names = {
            "x": [say(v) for v in grid.columns],
            "y": [say(v) for v in grid.index],
            "z": grid.to_numpy(float).tolist(),
        }
        panels.append(Panel(label(str(condition)), [{"type": "heatmap", "xgap": 2, "ygap": 2, **names, **scale}]))
    text = "Share of images crafted on the substitute (row) that fool the victim (column). The diagonal is the attacker who has the network itself."
    return Figure(
        "transfer",
        "An attacker who does not have the network",
        text,
        panels,
        frame,
        {"title": "victim"},
        {"title": "substitute", "automargin": True},
        300,
    )


def cost(run: Run) -> Figure | None:
    """Seconds and gradients an image, by attack."""
    rows = at_budget(run)
    table = rows[rows["metric"].isin(["seconds_per_image", "gradients_per_image"]) & (rows["attack"] != "")]
    panels = []
    for metric, part in table.groupby("metric", sort=False):
        part = part.groupby(["attack", "objective"], sort=False)["value"].mean().reset_index()
        names = [label(f"{a}+{o}") for a, o in zip(part["attack"], part["objective"], strict=True)]
        bar = {
            "type": "bar",
            "orientation": "h",
            "x": part["value"].tolist(),
            "y": [say(n) for n in names],
            "marker": {"color": "--c0"},
            "showlegend": False,
        }
        panels.append(Panel(str(metric).replace("_", " "), [bar], y={"automargin": True, "autorange": "reversed"}))
    text = "What each attack costs; attacks are compared at the same number of gradients."
    return (
        Figure("cost", "Cost of the attacks", text, panels, table, {"rangemode": "tozero"}, {}, 260) if panels else None
    )
