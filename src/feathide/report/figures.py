"""The figures of the page, each only where the run holds its data. Those of scores and table
stand here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from feathide.metrics.numbers import number
from feathide.metrics.registry import title_of
from feathide.report.curves import features, search, transfer
from feathide.report.drawing import (
    SHARE,
    Figure,
    Panel,
    Style,
    categories,
    gap,
    line,
    looks,
    say,
    ticks,
)
from feathide.report.naming import label
from feathide.report.results import Run
from feathide.report.verdict import at_budget

__all__ = ["figures"]

Rows = list[tuple[object, ...]]
EDGE = (0.002, 0.998)  # the quantiles of the scores at which a histogram ends
BINS = 30


def figures(run: Run) -> Iterable[Figure]:
    """Every figure that the run has data for."""
    made = (
        roc(run),
        histograms(run),
        budget(run),
        *features(run.curves),
        *search(run.curves, run.class_names),
        transfer(run.curves),
        cost(run),
    )
    return [figure for figure in made if figure is not None]


def roc(run: Run) -> Figure | None:
    """Caught among the images that fool the classifier, against false alarms among clean and
    noisy ones.
    """
    attacked = [c for c in dict.fromkeys(run.scores["condition"]) if "+" in c]
    style, panels = looks(attacked), list[Panel]()
    rows: Rows = []
    for detector, part in run.scores.groupby("detector", sort=False):
        negative = part.loc[part["condition"].isin(["clean", "noisy"]), "score"].to_numpy(
            float
        )
        traces = []
        for condition in attacked:
            chosen = (part["condition"] == condition) & part["fooled"].astype(bool)
            positive = part.loc[chosen, "score"].to_numpy(float)
            if len(negative) and len(positive):
                x, y = _curve(negative, positive)
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "x": x.tolist(),
                        "y": y.tolist(),
                        **style[condition],
                    }
                )
                rows += [(detector, condition, a, b) for a, b in zip(x, y, strict=True)]
        panels.append(Panel(label(str(detector)), traces, marks=[(0.1, "10 %")]))
    return (
        None
        if not rows
        else Figure(
            id="roc",
            title="What each guard catches",
            caption="ROC curves: the share of images that fool the classifier and are caught, "
            "against the share of harmless "
            "test images (clean and noisy) that raise a false alarm. The dotted line is 10 "
            "% false alarms. A curve on the "
            "diagonal is a coin toss; below it, the guard finds the attack more normal "
            "than normal.",
            panels=panels,
            data=pd.DataFrame(
                rows, columns=["detector", "condition", "false_alarms", "caught"]
            ),
            x={**SHARE, "title": "false alarms, of harmless images"},
            y={**SHARE, "title": "caught, of attacked images"},
        )
    )


def _curve(negative: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve: shares at or above each cut, for cuts at every score, corners only."""
    cuts = np.concatenate([[np.inf], np.unique(np.concatenate([negative, positive]))[::-1]])
    x, y = (
        1 - np.searchsorted(np.sort(s), cuts, "left") / len(s) for s in (negative, positive)
    )
    corner = np.ones(len(cuts), bool)
    straight = [(v[1:-1] == v[:-2]) & (v[1:-1] == v[2:]) for v in (x, y)]
    corner[1:-1] = ~(straight[0] | straight[1])
    return x[corner].round(5), y[corner].round(5)


def histograms(run: Run) -> Figure | None:
    """Scores by condition, with the threshold at 10 % false alarms."""
    styles = looks(dict.fromkeys(run.scores["condition"]))
    finite = run.scores[np.isfinite(run.scores["score"].astype(float))]
    panels, rows = list[Panel](), list[tuple[object, ...]]()
    for detector, scores in finite.groupby("detector", sort=False):
        place, axis = _axis(scores)
        edges = _edges(scores, place)
        middle = ((edges[1:] + edges[:-1]) / 2).tolist()
        traces = list[Style]()
        for condition, style in styles.items():
            chosen = scores.loc[scores["condition"] == condition, "score"]
            share = _shares(place(chosen.to_numpy(float)), edges)
            drawn = {"type": "scatter", "mode": "lines", "x": middle, "y": share.tolist()}
            traces.append({**drawn, **_steps(condition, style)})
            ends = zip(place.back(edges[:-1]), place.back(edges[1:]), share, strict=True)
            rows += [(detector, condition, *values) for values in ends]
        threshold = run.thresholds.get(str(detector), {}).get("fpr10", np.nan)
        at = float(place(np.array([threshold]))[0])
        marks = [(at, "threshold")] if np.isfinite(at) else []
        panels.append(Panel(label(str(detector)), traces, x=axis, marks=marks))
    if not rows:
        return None
    columns = ["detector", "condition", "from", "to", "share"]
    return Figure(
        id="histograms",
        title="Scores, and where the threshold cuts them",
        caption="Share of images by score; higher is more suspicious. The dotted line is the "
        "threshold at 10 % false alarms, "
        "taken from the calibration images: what lies left of it passes. The outermost "
        "0.2 % are drawn at the edge; "
        "where scores span orders of magnitude the axis is compressed.",
        panels=panels,
        data=pd.DataFrame(rows, columns=columns),
        x={"title": "score of the guard"},
        y={"rangemode": "tozero", "tickformat": ".0%", "title": "share of images"},
    )


def _edges(scores: pd.DataFrame, place: "_Squeeze") -> np.ndarray:
    """The borders of the bins (BINS + 1,), as placed, all of one width."""
    first, last = np.quantile(place(scores["score"].to_numpy(float)), EDGE)
    return np.linspace(float(first), float(last), BINS + 1)


def _shares(placed: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share of the scores in each bin; those beyond the ends count in the outermost bins."""
    counts = np.histogram(placed.clip(edges[0], edges[-1]), edges)[0]
    return counts / max(1, len(placed))


@dataclass(frozen=True)
class _Squeeze:
    """asinh((score - centre) / width), or the identity where ``width`` is 0."""

    centre: float
    width: float

    def __call__(self, score: np.ndarray) -> np.ndarray:
        return np.arcsinh((score - self.centre) / self.width) if self.width else score

    def back(self, position: np.ndarray) -> np.ndarray:
        return np.sinh(position) * self.width + self.centre if self.width else position


def _axis(part: pd.DataFrame) -> tuple[_Squeeze, Style]:
    """How scores are placed: as they are, or squeezed where they reach far beyond the clean ones,
    with ticks in their units.
    """
    scores = part["score"].to_numpy(float)
    clean = part.loc[part["condition"] == "clean", "score"].to_numpy(float)
    low, centre, high = np.quantile(clean if len(clean) else scores, (0.25, 0.5, 0.75))
    ends = np.quantile(scores, EDGE)
    if high == low or np.abs(ends - centre).max() < 30 * (high - low):
        return _Squeeze(0.0, 0.0), {}
    to = _Squeeze(float(centre), float(high - low))
    first, last = (float(v) for v in to(ends))
    at = np.linspace(first, last, 5)
    return to, {
        "tickvals": at.tolist(),
        "ticktext": [number(float(v), digits=2) for v in to.back(at)],
    }


def _steps(condition: str, look: Style) -> Style:
    """The looks of a histogram: an outline, filled for the clean images."""
    filled = (
        {"fill": "tozeroy", "fillcolor": f"{look['line']['color']}/0.2"}
        if condition == "clean"
        else {}
    )
    return {**look, "line": {**look["line"], "shape": "hvh", "width": 1.5}, **filled}


def budget(run: Run) -> Figure | None:
    """Success and slips-through against eps, where the run holds several."""
    table = run.curves.get("eps", run.table)
    table = table[
        table["metric"].isin(["success", "slips_through_fpr10"])
        & (table["eps"].astype(float) > 0)
    ]
    names = list(dict.fromkeys(d for d in table["detector"] if d))
    panels = []
    for (attack, objective), part in table.groupby(["attack", "objective"], sort=False):
        if part["eps"].nunique() < 2:
            continue
        traces = []
        for turn, name in enumerate(["", *names], start=-1):
            chosen = (part["detector"] == name) & (
                part["metric"] == ("slips_through_fpr10" if name else "success")
            )
            worst = (
                part[chosen].groupby("eps")[["value", "low", "high"]].max().reset_index()
            )
            traces.append(
                line(
                    run.scale.native(1) * worst["eps"],
                    worst,
                    label(name) if name else "no guard",
                    turn,
                )
            )
        panels.append(Panel(label(f"{attack}+{objective}"), traces))
    return (
        None
        if not panels
        else Figure(
            id="eps",
            title="What slips through as the budget grows",
            caption="Share of attacked images that fool the classifier and pass the guard at 10 % "
            "false alarms, by the largest "
            "change allowed; the line without a guard is the attack's success. Bars are 95 "
            "% intervals.",
            panels=panels,
            data=table,
            x={
                "title": f"largest change ({say(run.threat['unit'])})",
                **ticks(run.scale.native(1) * table["eps"]),
            },
            y={**SHARE, "title": "slips through"},
        )
    )


def cost(run: Run) -> Figure | None:
    """Seconds, gradients and forward passes an image, by attack."""
    rows = at_budget(run)
    table = rows[rows["metric"].str.endswith("_per_image") & (rows["attack"] != "")]
    table = table.assign(
        condition=[
            label(f"{a}+{o}")
            for a, o in zip(table["attack"], table["objective"], strict=True)
        ]
    )
    panels = []
    for metric, part in table.groupby("metric", sort=False):
        mean = part.groupby("condition", sort=False)["value"].mean()
        values = {
            "x": mean.tolist(),
            "y": [say(n) for n in mean.index],
            "marker": {"color": "--c0"},
        }
        panels.append(
            Panel(
                title_of(str(metric)),
                [{"type": "bar", "orientation": "h", **values}],
                x={"title": title_of(str(metric)).lower()},
            )
        )
    return (
        None
        if not panels
        else Figure(
            id="cost",
            title="Cost of the attacks",
            caption="What each attack costs; attacks are compared at the same number of gradients.",
            panels=panels,
            data=table,
            x={"rangemode": "tozero"},
            y={"autorange": "reversed", **categories(table["condition"].unique())},
            height=110 + 26 * table["condition"].nunique(),
            gap=gap(table["condition"]),
        )
    )
