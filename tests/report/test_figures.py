"""Every figure is one that plotly accepts, and shows the numbers of the run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from sklearn.metrics import auc, roc_auc_score

from feathide.errors import InputError
from feathide.report import Run
from feathide.report.drawing import Figure, categories, looks
from feathide.report.figures import figures

ALL = [
    "roc",
    "histograms",
    "eps",
    "outlierness",
    "embedding",
    "stress",
    "mixture",
    "lambda",
    "arms_race",
    "transfer",
    "cost",
]


def painted(value: Any) -> Any:
    """Colour names of the page's style as a colour that plotly knows."""
    match value:
        case str():
            return "#123456" if value.startswith("--") else value
        case dict():
            return {k: painted(v) for k, v in value.items()}
        case list() | tuple():
            return [painted(v) for v in value]
        case _:
            return value


@pytest.fixture(scope="module")
def found(run: Run) -> dict[str, Figure]:
    return {f.id: f for f in figures(run)}


def test_every_figure_is_there_and_valid(found: dict[str, Figure]) -> None:
    assert list(found) == ALL
    for figure in found.values():
        spec = painted(figure.spec())
        for panel in spec["panels"]:
            go.Figure(panel["traces"], {"xaxis": panel["x"], "yaxis": panel["y"]})
        assert spec["data"]["rows"] and len(spec["data"]["rows"][0]) == len(
            spec["data"]["columns"]
        )


def test_a_figure_appears_only_with_its_data(make: Callable[..., Run]) -> None:
    run = make(count=2, curves={})
    one_budget = run.table[run.table["eps"].isin([0.0, run.threat["eps"]])]
    assert [f.id for f in figures(replace(run, table=one_budget))] == [
        "roc",
        "histograms",
        "cost",
    ]


def test_long_names_of_an_axis_are_cut() -> None:
    name = "art:ProjectedGradientDescent(max_iter=20)"
    assert categories(["PGD <x>", name]) == {
        "tickvals": ["PGD &lt;x&gt;", name],
        "ticktext": ["PGD &lt;x&gt;", "art:ProjectedGradientDe"[:22] + "…"],
    }


def test_area_under_the_curve_is_the_auc(run: Run, found: dict[str, Figure]) -> None:
    for (detector, condition), curve in found["roc"].data.groupby(
        ["detector", "condition"]
    ):
        part = run.scores[run.scores["detector"] == detector]
        chosen = part[
            part["condition"].isin(["clean", "noisy"])
            | ((part["condition"] == condition) & part["fooled"])
        ]
        expected = roc_auc_score(chosen["condition"] == condition, chosen["score"])
        assert auc(curve["false_alarms"], curve["caught"]) == pytest.approx(
            expected, abs=1e-4
        )


def test_area_is_right_with_ties(make: Callable[..., Run]) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, 80) + np.repeat([0, 1], 40)
    scores = pd.DataFrame(
        {
            "condition": ["clean"] * 40 + ["pgd+plain"] * 40,
            "detector": "kd",
            "id": "x",
            "score": values,
        }
    )
    scores["fooled"] = scores["condition"] != "clean"
    curve = next(f for f in figures(make(count=2, scores=scores)) if f.id == "roc").data
    assert auc(curve["false_alarms"], curve["caught"]) == pytest.approx(
        roc_auc_score(scores["fooled"], values), abs=1e-4
    )


def test_histograms_hold_every_image_and_the_threshold(
    run: Run, found: dict[str, Figure]
) -> None:
    sums = found["histograms"].data.groupby(["detector", "condition"])["share"].sum()
    np.testing.assert_allclose(sums, 1.0)
    kd = found["histograms"].panels[0]
    assert kd.title == "KD" and kd.marks[0][0] == pytest.approx(
        run.thresholds["kd"]["fpr10"]
    )


def test_compressed_axis_keeps_the_units(run: Run, found: dict[str, Figure]) -> None:
    rows = found["histograms"].data
    maha = rows[rows["detector"] == "maha"]
    scores = run.scores.loc[run.scores["detector"] == "maha", "score"]
    low, high = scores.quantile([0.002, 0.998])
    assert maha["from"].min() == pytest.approx(low, rel=1e-2) and maha[
        "to"
    ].max() == pytest.approx(high, rel=1e-2)
    panel = next(p for p in found["histograms"].panels if p.title == "MAHA")
    assert "ticktext" in panel.x


def test_infinite_scores_do_not_stop_the_report(make: Callable[..., Run]) -> None:
    run = make(count=2)
    scores = run.scores.copy()
    scores.loc[scores.index[:3], "score"] = [np.inf, -np.inf, np.nan]
    assert [f.id for f in figures(replace(run, scores=scores))][:2] == ["roc", "histograms"]


def test_unknown_curves_and_missing_columns_are_refused(make: Callable[..., Run]) -> None:
    with pytest.raises(InputError, match="did you mean 'outlierness'"):
        make(count=2, curves={"outliernes": pd.DataFrame()})
    with pytest.raises(InputError, match="none of heldout"):
        make(
            count=2,
            curves={"mixture": pd.DataFrame(columns=["layer", "class", "components"])},
        )
    with pytest.raises(InputError, match="none of seed"):
        make(count=2, table=make(count=2).table.drop(columns="seed"))


def test_first_shown_is_one_attack_with_all_its_objectives() -> None:
    styles = looks(["clean", "noisy", "fgsm+plain", "pgd+plain", "pgd+hfc", "cw+plain"])
    assert [name for name, style in styles.items() if style["visible"] is True] == [
        "clean",
        "pgd+plain",
        "pgd+hfc",
    ]
