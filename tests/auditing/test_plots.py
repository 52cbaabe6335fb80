"""The report's figures as other programs take them."""

import pandas as pd
import pytest

from feathide.auditing.plots import drawing, plot
from feathide.report.drawing import Figure, Panel, line

FRAME = pd.DataFrame({"value": [0.2, 0.9], "low": [0.1, 0.8], "high": [0.4, 1.0]})
BAR = {
    "type": "bar",
    "x": [1.0],
    "y": ["a"],
    "orientation": "h",
    "marker": {"color": "--c0"},
}
GRID = {
    "type": "heatmap",
    "x": ["a", "b"],
    "y": ["c"],
    "z": [[0.0, 1.0]],
    "zmin": 0,
    "zmax": 1,
    "colorscale": [[0, "--paper"], [1, "--hfc"]],
}


@pytest.fixture
def figure() -> Figure:
    traces = [line([1, 2], FRAME, "A & B", 0), line([1, 2], FRAME, "hidden", 1)]
    traces[1]["visible"] = "legendonly"
    panels = [Panel(f"guard {i}", traces, marks=[(1.5, "threshold")]) for i in range(4)]
    return Figure("f", "A figure", "", panels, FRAME, x={"title": "eps", "nticks": 3})


def test_plotly_gets_every_trace_in_the_colours_of_the_light_page(figure: Figure) -> None:
    made = plot(figure).to_dict()
    assert len(made["data"]) == 8
    assert made["data"][0]["line"]["color"] == "rgba(0,114,178,1)"
    assert made["data"][0]["error_y"]["array"] == pytest.approx([0.2, 0.1])
    assert [bool(t["showlegend"]) for t in made["data"]] == [True, True, *[False] * 6]
    assert len(made["layout"]["shapes"]) == 4
    assert "--" not in str(made["data"])


def test_matplotlib_draws_what_is_visible(figure: Figure) -> None:
    pytest.importorskip("matplotlib", reason="needs feathide[tensorboard]")
    places = drawing(figure).axes
    assert [p.get_title() for p in places[:4]] == [f"guard {i}" for i in range(4)]
    assert [len(p.containers) for p in places] == [1, 1, 1, 1, 0, 0]
    assert places[0].containers[0].get_label() == "A & B"


@pytest.mark.parametrize("trace", [BAR, GRID], ids=["bar", "heatmap"])
def test_bars_and_heat_maps_can_be_drawn_too(trace: dict) -> None:
    figure = Figure("f", "A figure", "", [Panel("", [trace])], FRAME)
    assert "--" not in str(plot(figure).to_dict()["data"])
    pytest.importorskip("matplotlib", reason="needs feathide[tensorboard]")
    place = drawing(figure).axes[0]
    assert place.patches or place.images
