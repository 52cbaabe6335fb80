"""The pages of the analyses: which figures are drawn from which rows of their tables, and how to
read them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from feathide.report.curves import features, stress_curve, transfer, transfer_curve
from feathide.report.drawing import Figure, Panel, Style, errors, looks, say
from feathide.report.pictures import data_uri, view
from feathide.report.results import Scale
from feathide.report.sheet import Plate, Sheet

__all__ = ["direction_page", "ood_page", "outlier_page", "stress_page", "transfer_page"]

INTERVALS = "Bars are 95 % intervals over patients of the test split."
LAYERS: Style = {"tickangle": -35, "nticks": 24, "automargin": True, "type": "category"}


def direction_page(table: pd.DataFrame) -> Sheet:
    """The fixed direction."""
    shown = {
        "cosine_steps": "Steps of one attack",
        "cosine_images": "Images of different patients",
        "cosine_means": "With the difference of class means",
    }
    last = table[
        table.metric.isin(["cosine_weights", "correlation_weights", "cosine_gradient"])
    ]
    figures = [
        _lines(
            table[table.metric.isin(list(shown))],
            shown,
            id="direction",
            title="Is it always the same direction?",
            caption="Mean cosine similarity of feature changes, by layer: between "
            "stretches of one attack's path, between "
            "images with the same source and target, and with the path from the mean of the "
            f"source to that of the target class. {INTERVALS}",
            y={"title": "cosine", "range": [-1.05, 1.05]},
        ),
        _by_metric(
            last,
            id="weights",
            title="The last layer follows the head's weights",
            caption="Similarity of the change of the penultimate features with w_t - w_y (cosine, "
            "and correlation over channels) and with minus "
            f"the closed-form gradient at the clean image. {INTERVALS}",
        ),
    ]
    says = [
        (
            "A change is the feature of an attacked image minus that of the clean image. 1: "
            "the same direction, 0: unrelated."
        ),
        (
            "The condition noise is random noise of the same budget: what an attack must "
            "exceed for its direction to mean anything."
        ),
        (
            "If changes point along w_t - w_y but not along the difference of class means, the "
            "features leave the range of both classes."
        ),
    ]
    return Sheet("Do attacks push features in one fixed direction?", says, figures, table)


def stress_page(table: pd.DataFrame) -> Sheet:
    """The stress test of one or several studies."""
    says = [
        (
            "Each layer's mean activation is driven as far as the budget allows, by the same "
            "loop and steps as the attacks."
        ),
        "Compare two studies only where architecture, image size, number of training "
        "images and recipe are the same. The table shows accuracy and "
        "mean activation beside the drift, since a small clean standard deviation makes "
        "every change look large.",
    ]
    return Sheet(
        "How far can each layer be driven?",
        says,
        list(features({"stress": stress_curve(table)})),
        table,
    )


def outlier_page(table: pd.DataFrame, curves: Mapping[str, pd.DataFrame]) -> Sheet:
    """Outlierness by layer, and the picture in two dimensions."""
    attacked = table[table.metric.isin(["caught_fpr10", "most_suspicious", "auc_density"])]
    titles = {
        "auc_density": "AUC of this layer",
        "caught_fpr10": "Caught by this layer",
        "most_suspicious": "Most suspicious layer",
    }
    caught = _lines(
        attacked,
        titles,
        id="caught",
        title="Which layer catches it",
        caption="For the images that fool the classifier: AUC of the layer's log-density alone, "
        "share caught by it at 10 % false alarms, and share for "
        f"which it is the most suspicious of all layers. {INTERVALS}",
        y={"title": "share", "range": [-0.02, 1.02]},
    )
    says = [
        "Every image is measured under the clean model of the class that the network predicts.",
        "Clean images have one standard deviation per channel on average.",
    ]
    return Sheet(
        "Where do attacked features lie?", says, [*features(curves), caught], table
    )


def transfer_page(table: pd.DataFrame) -> Sheet:
    """Substitutes by victims."""
    figure = transfer({"transfer": transfer_curve(table)})
    slips = table[table.metric == "slips_through_fpr10"]
    panels = []
    for detector, part in slips.groupby("detector", sort=False):
        away = part[part.classifier != part.versus]
        mean = away.groupby(["attack", "objective"], sort=False).value.mean().reset_index()
        names = [say(f"{a}+{o}") for a, o in zip(mean.attack, mean.objective, strict=True)]
        panels.append(
            Panel(str(detector), [{"type": "bar", "x": names, "y": mean.value.tolist()}])
        )
    through = Figure(
        id="slips",
        title="What slips past the victim's guards",
        caption="Share of images crafted on another network that fool the victim and pass its "
        "guard at 10 % false alarms, mean over all pairs of "
        "different networks.",
        panels=panels,
        data=slips,
        x={"type": "category", "automargin": True, "tickangle": -35},
        y={"title": "slips through", "range": [0, 1.02]},
    )
    says = [
        (
            "Rates are over the test images that both networks classify correctly. The attacker "
            "never sees the victim or its guards, only the training data."
        ),
        (
            '"all others": one image against every other network at once, the sum of their '
            "objectives."
        ),
    ]
    return Sheet(
        "An attacker who does not have the network",
        says,
        [f for f in (figure, through) if f is not None],
        table,
    )


def ood_page(
    table: pd.DataFrame, pictures: Mapping[str, Sequence[np.ndarray]], scale: Scale
) -> Sheet:
    """Out-of-distribution detection."""
    part = table[(table.metric == "auc") & (table.versus != "mean")]
    panels = []
    for kind, rows in part.groupby("kind", sort=False):
        looked = looks(dict.fromkeys(rows.detector))
        traces = []
        for detector, style in looked.items():
            of = rows[rows.detector == detector]
            marks = {
                "x": [say(v) for v in of.versus],
                "y": of.value.tolist(),
                "error_y": errors(of),
            }
            traces.append({"type": "scatter", "mode": "lines+markers", **style, **marks})
        panels.append(Panel(str(kind), traces))
    figure = Figure(
        id="ood",
        title="What the scores tell apart from the test images",
        caption="AUC of each score, each fitted to clean images alone, against all clean test "
        "images; 0.5 is a coin toss. For acquisition shifts, which "
        f"do not change the diagnosis, a high value may be unwanted. {INTERVALS}",
        panels=panels,
        data=part,
        x={"type": "category", "automargin": True, "tickangle": -35},
        y={"title": "AUC", "range": [-0.02, 1.02]},
        height=380,
    )
    middle = [x.shape[1] // 2 if x.ndim > 3 else 0 for x in pictures["clean"]]
    plates = [
        Plate(
            name,
            [data_uri(view(x, scale, at)) for x, at in zip(images, middle, strict=True)],
        )
        for name, images in pictures.items()
    ]
    says = [
        (
            "Lesions are generated: soft, textured ellipsoids with an irregular border, seeded "
            "by the image's id."
        ),
        "near: images of the same kind from another source; far: images of another kind.",
    ]
    return Sheet("What else the score sees", says, [figure], table, plates)


def _condition(table: pd.DataFrame) -> pd.Series:
    return table.attack + ("+" + table.objective).where(table.objective != "", "")


def _lines(
    table: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    id: str,
    title: str,
    caption: str,
    y: Mapping[str, object],
) -> Figure:
    """One panel a metric, one line a condition, over the layers in network order."""
    named = table.assign(condition=_condition(table))
    style, panels = looks(dict.fromkeys(named.condition)), []
    for metric, says in titles.items():
        traces = []
        for condition, look in style.items():
            of = named[(named.metric == metric) & (named.condition == condition)]
            marks = {
                "x": [say(v) for v in of.layer],
                "y": of.value.tolist(),
                "error_y": errors(of),
            }
            if len(of):
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers",
                        **look,
                        **marks,
                        "visible": True,
                    }
                )
        panels.append(Panel(says, traces))
    return Figure(
        id=id,
        title=title,
        caption=caption,
        panels=panels,
        data=table,
        x=LAYERS,
        y=y,
        height=340,
    )


def _by_metric(table: pd.DataFrame, *, id: str, title: str, caption: str) -> Figure:
    """One group of bars a condition, one bar a metric."""
    named = table.assign(condition=_condition(table))
    traces = []
    for condition, look in looks(dict.fromkeys(named.condition)).items():
        of = named[named.condition == condition]
        marks = {
            "x": [say(v.replace("_", " ")) for v in of.metric],
            "y": of.value.tolist(),
            "error_y": errors(of),
        }
        traces.append(
            {
                "type": "bar",
                "name": look["name"],
                "legendgroup": condition,
                "marker": {"color": look["marker"]["color"]},
                **marks,
            }
        )
    axis: Style = {"title": "similarity", "range": [-1.05, 1.05]}
    x: Style = {"type": "category", "automargin": True}
    return Figure(
        id=id,
        title=title,
        caption=caption,
        panels=[Panel("", traces)],
        data=table,
        x=x,
        y=axis,
        height=320,
    )
