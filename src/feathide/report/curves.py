"""The figures made from ``Run.curves``: features, settings, rounds, substitutes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from feathide.report.drawing import (
    MARKERS,
    SHARE,
    Figure,
    Panel,
    Style,
    bars,
    errors,
    gap,
    line,
    looks,
    say,
    ticks,
)
from feathide.report.naming import class_name, label, layer_name

__all__ = ["features", "search", "stress_curve", "transfer", "transfer_curve"]

Curves = Mapping[str, pd.DataFrame]
LAYERS: Style = {
    "tickangle": -35,
    "nticks": 24,
    "automargin": True,
    "type": "category",
    "title": "layer, in network order",
}
METHODS = {
    "pca": ("principal component", "principal components"),
    "umap": ("UMAP axis", "UMAP"),
}
MOST = 12  # panels of a figure with one panel a layer


def features(curves: Curves) -> Iterable[Figure]:
    """Where the features lie: outlierness by layer, the picture in two dimensions, the stress
    test.
    """
    if "outlierness" in curves:
        yield _outlierness(curves["outlierness"])
    if "embedding" in curves:
        yield _embedding(curves["embedding"])
    if "stress" in curves:
        groups = curves["stress"].groupby("group", sort=False)
        yield Figure(
            id="stress",
            title="How easily each layer is moved",
            caption="Stress test: how far an attacker can drive the mean activation of a layer "
            "within the same budget, in "
            "standard deviations over clean images. Bars are 95 % intervals.",
            panels=[
                Panel(
                    "",
                    [bars(part, str(group), i) for i, (group, part) in enumerate(groups)],
                )
            ],
            data=curves["stress"],
            x=LAYERS,
            y={"title": "change, in clean standard deviations"},
            height=340,
        )


def _outlierness(frame: pd.DataFrame) -> Figure:
    traces = []
    for condition, style in looks(dict.fromkeys(frame["condition"])).items():
        part = frame[frame["condition"] == condition]
        values = {
            "x": [say(layer_name(str(v))) for v in part["layer"]],
            "y": part["value"].tolist(),
            "error_y": errors(part),
        }
        traces.append({"type": "scatter", "mode": "lines+markers", **style, **values})
        if condition == "noisy":
            traces[-1]["visible"] = True
    return Figure(
        id="outlierness",
        title="How far the features leave the normal range",
        caption="Outlierness of the features of each layer under the clean model of the target "
        "class, in network order. "
        "Features that stay near the clean line cannot be told from clean ones by this "
        "layer. Bars are 95 % intervals.",
        panels=[Panel("", traces)],
        data=frame,
        x=LAYERS,
        y={"title": "outlierness (clean: about 1)"},
        height=360,
    )


def _embedding(frame: pd.DataFrame) -> Figure:
    traces = []
    for i, (condition, style) in enumerate(
        looks(dict.fromkeys(frame["condition"])).items()
    ):
        part = frame[frame["condition"] == condition]
        marker = {**style["marker"], "opacity": 0.7, "symbol": MARKERS[i % len(MARKERS)]}
        values = {"x": part["x"].tolist(), "y": part["y"].tolist(), "marker": marker}
        traces.append({"type": "scatter", "mode": "markers", **style, **values})
    layer, how = layer_name(str(frame["layer"].iloc[0])), str(frame["method"].iloc[0])
    axis, method = METHODS.get(how, (how, how))
    hidden = {"showticklabels": False, "ticks": ""}
    return Figure(
        id="embedding",
        title=f"A picture of the features of {_the_layer(layer)}",
        caption=f"The features of {_the_layer(layer)}, the last that the guards read, one point "
        f"per image, in two dimensions by {method}. Distances in such a picture are only a hint; "
        "the scores above decide.",
        panels=[Panel("", traces)],
        data=frame,
        x={**hidden, "title": f"first {axis}"},
        y={**hidden, "title": f"second {axis}"},
        height=440,
        gap=34,
    )


def _the_layer(name: str) -> str:
    return name if name.startswith("layer ") else f"layer {name}"


def search(curves: Curves, class_names: Sequence[str] = ()) -> Iterable[Figure]:
    """How the settings were found and what the defender's answer changes: components, weight,
    rounds.
    """
    if "mixture" in curves:
        yield _mixture(curves["mixture"], class_names)
    if "lambda" in curves:
        shown = curves["lambda"][curves["lambda"]["weight"] > 0]  # the axis is logarithmic
        yield Figure(
            id="lambda",
            title="Hiding against fooling",
            caption=(
                "What the weight of the hiding term buys and costs; tuned on the "
                "detector-training split only. Bars are 95 % intervals."
            ),
            panels=[Panel("", _lines(shown, "weight", "metric"))],
            data=curves["lambda"],
            x={"title": "weight of the hiding term", **ticks(shown["weight"])},
            y={**SHARE, "title": "share"},
            height=320,
        )
    if "arms_race" in curves:
        yield Figure(
            id="arms_race",
            title="The defender's next move",
            caption="Slips-through at 10 % false alarms by round: the defender refits with the "
            "attacker's last images, then "
            "the attacker attacks again. Bars are 95 % intervals.",
            panels=[Panel("", _lines(curves["arms_race"], "round", "detector"))],
            data=curves["arms_race"],
            x={"title": "round", "dtick": 1},
            y={**SHARE, "title": "slips through"},
            height=320,
        )


def _lines(frame: pd.DataFrame, x: str, by: str) -> list[Style]:
    return [
        line(part[x], part, label(str(n)), i)
        for i, (n, part) in enumerate(frame.groupby(by, sort=False))
    ]


def _mixture(frame: pd.DataFrame, class_names: Sequence[str]) -> Figure:
    layers = list(dict.fromkeys(frame["layer"]))
    chosen = [
        layers[i]
        for i in sorted(
            set(np.linspace(0, len(layers) - 1, min(MOST, len(layers))).round().astype(int))
        )
    ]
    shown = frame.assign(
        value=frame["heldout"],
        low=np.nan,
        high=np.nan,
        name=[_class_name(c, class_names) for c in frame["class"]],
    )
    few = (
        f" {len(chosen)} of {len(layers)} layers are drawn; the download has all."
        if len(chosen) < len(layers)
        else ""
    )
    return Figure(
        id="mixture",
        title="How many components the clean features need",
        caption="Held-out log-likelihood of the clean features by the number of mixture "
        "components, for each layer and class. "
        f"The best number is the highest point.{few}",
        panels=[
            Panel(
                layer_name(str(n)), _lines(shown[shown["layer"] == n], "components", "name")
            )
            for n in chosen
        ],
        data=frame,
        x={"title": "mixture components", **ticks(frame["components"])},
        y={"title": "log-likelihood per image"},
        height=230,
        gap=56,
    )


def _class_name(number: object, names: Sequence[str]) -> str:
    """A class as the user calls it; its number where it has no name."""
    at = int(str(number)) if str(number).isdigit() else -1
    return class_name(str(names[at] if 0 <= at < len(names) else number))


def transfer(curves: Curves) -> Figure | None:
    """Substitutes by victims, one heat map a condition."""
    if "transfer" not in curves:
        return None
    frame, panels = curves["transfer"], []
    look = {
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "--paper"], [1, "--c0"]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    for condition, part in frame.groupby("condition", sort=False):
        cells = part.pivot_table(
            index="substitute", columns="victim", values="value", sort=False
        )
        names = {"x": [say(v) for v in cells.columns], "y": [say(v) for v in cells.index]}
        numbers = {"z": cells.to_numpy(float).tolist(), "texttemplate": "%{z:.1f} %"}
        panels.append(
            Panel(label(str(condition)), [{"type": "heatmap", **names, **numbers, **look}])
        )
    return Figure(
        id="transfer",
        title="An attacker who does not have the network",
        caption="Share of images crafted on the substitute (row) that fool the victim (column). "
        "Where both are the same, "
        "the attacker has the network itself.",
        panels=panels,
        data=frame,
        x={"title": "victim", "nticks": 40},
        y={"title": "substitute", "autorange": "reversed", "nticks": 40},
        height=110 + 46 * frame["substitute"].nunique(),
        gap=gap(frame["substitute"]) + 14,
    )


def stress_curve(table: pd.DataFrame) -> pd.DataFrame:
    """The rows ``drift_away`` of one or several studies as the report's curve "stress": one group
    for each data set, network and seed.
    """
    away = table[table.metric == "drift_away"]
    several = table.seed.nunique() > 1
    group = (
        away.dataset
        + ", "
        + away.classifier
        + (", seed " + away.seed.astype(str) if several else "")
    )
    return away.assign(group=group)[["group", "layer", "value", "low", "high"]].reset_index(
        drop=True
    )


def transfer_curve(table: pd.DataFrame) -> pd.DataFrame:
    """The success of a ``transfer_frame`` as the report's curve "transfer"."""
    part = table[table.metric == "success"]
    named = {
        "condition": part.attack + "+" + part.objective,
        "substitute": part.versus,
        "victim": part.classifier,
    }
    return part.assign(**named)[["condition", "substitute", "victim", "value"]].reset_index(
        drop=True
    )
