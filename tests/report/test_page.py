"""The page: self-contained, escaped, allowed by its own policy, small enough, marked as
synthetic.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from feathide.metrics.numbers import number, percent, score
from feathide.metrics.registry import metric_of
from feathide.report import Run, card, render, verdict
from feathide.report.pictures import Album

HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"


class Page(HTMLParser):
    """The elements of a page, its scripts, and the text that is shown."""

    def __init__(self, text: str) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.text += data


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return render(run)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def data_of(text: str) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', text, re.S
    )
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_nothing_is_loaded_from_anywhere(page: Page, text: str) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (
                tag,
                name,
                value,
            )
    assert "link" not in {tag for tag, _ in page.elements}
    own = text.replace(get_plotlyjs(), "").replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in own and "https://" not in own and "@import" not in own


def test_policy_allows_exactly_the_scripts_of_the_page(page: Page) -> None:
    policy = next(
        a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv")
    )
    assert policy is not None and policy.startswith("default-src 'none';")
    kinds = [a.get("type") for t, a in page.elements if t == "script"]
    run_scripts = [s for s, kind in zip(page.scripts, kinds, strict=True) if kind is None]
    hashes = {
        base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in run_scripts
    }
    assert hashes == set(re.findall(r"'sha256-([^']+)'", policy)) and len(run_scripts) == 4
    assert not any(name.startswith("on") for _, a in page.elements for name in a)


def test_hostile_text_is_shown_not_run(make: Callable[..., Run]) -> None:
    run = make(
        count=2,
        title=HOSTILE,
        class_names=(HOSTILE, "opacity"),
        plan={HOSTILE: HOSTILE},
        caveats=[HOSTILE],
    )
    cases = {"pgd+plain": [replace(c, id=HOSTILE) for c in run.cases["pgd+plain"]]}
    sanity_checks = [dict(run.sanity_checks[0]) | {"name": HOSTILE, "detail": HOSTILE}]
    table = run.table.replace(
        {"dataset": {"phantoms": HOSTILE}, "detector": {"kd": HOSTILE}}
    )
    scores = run.scores.replace({"detector": {"kd": HOSTILE}})
    stress = run.curves["stress"].replace({"layer": {"stem": HOSTILE}})
    hostile = replace(
        run,
        cases=cases,
        sanity_checks=sanity_checks,
        table=table,
        scores=scores,
        curves={"stress": stress},
    )
    text = render(hostile)
    assert "<script>alert" not in text.replace(get_plotlyjs(), "")
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", text)[0]
    assert HOSTILE in Page(text).text
    assert data_of(text)["browser"]["classes"][0] == HOSTILE


def test_numbers_that_are_not_finite_become_null(make: Callable[..., Run]) -> None:
    run = make(count=2)
    case = replace(run.cases["pgd+plain"][0], scores={"kd": np.nan, "svm": np.inf})
    found = data_of(render(replace(run, cases={"pgd+plain": [case]})))["browser"]["cases"][
        0
    ]
    assert found["scores"] == {"kd": None, "svm": None}


def test_synthetic_data_is_marked_and_real_data_is_not(
    make: Callable[..., Run], page: Page
) -> None:
    assert page.text.lower().count("synthetic") >= 3
    assert "synthetic" not in Page(render(make(count=2, synthetic=False))).text.lower()


def test_first_page_says_what_it_does_not_show(
    make: Callable[..., Run], page: Page
) -> None:
    assert "The classifier was trained on 400 images only." in page.text
    assert "No attack knew the guards" not in page.text
    run = make(count=2)
    blind = render(
        replace(
            run,
            table=run.table[run.table["knowledge"] != "detector-aware"],
            sanity_checks=(),
        )
    )
    assert "No attack knew the guards" in blind and "No sanity check was computed" in blind


def test_model_card_stands_in_the_page(run: Run, page: Page) -> None:
    made = card(run)
    worst = verdict(run).findings[0]
    found = [
        m
        for m in made["model-index"][0]["results"][0]["metrics"]
        if m["args"].get("guard") == worst.detector
    ]
    assert [m["value"] for m in found] == [rate.value for rate in worst.worst.values()]
    assert json.dumps(made, indent=1, ensure_ascii=False) in page.text


def test_calibration_stands_beside_accuracy(run: Run, page: Page) -> None:
    assert (
        "Calibration error" in page.text and "0.041" in page.text and "0.037" in page.text
    )
    metrics = {m["type"]: m for m in card(run)["model-index"][0]["results"][0]["metrics"]}
    assert [
        metrics[k]["value"] for k in ("accuracy", "calibration_error", "brier_score")
    ] == [0.953, 0.041, 0.037]
    assert metrics["brier_score"]["args"] == pytest.approx(
        {"low": 0.027, "high": 0.047, "n": 600}
    )


def test_several_budgets_stand_side_by_side(make: Callable[..., Run], page: Page) -> None:
    assert "The verdict by budget" not in page.text
    budgets = tuple(4 / 255 * scale for scale in (0.25, 1.0, 2.0))
    text = Page(render(make(count=2, budgets=budgets))).text
    assert (
        "also audited: 1 grey level, 8 grey levels" in text
        and "The rest of this page is about 4 grey levels" in text
    )


def test_threat_model_shows_what_it_is_given(make: Callable[..., Run], page: Page) -> None:
    assert "0.0157 in units of the box" in page.text
    run = make(count=2)
    told = replace(
        run, threat={**run.threat, "where": "inside the lung", "eps_in_words": "2 HU"}
    )
    text = Page(render(told)).text
    assert "2 HU (Hounsfield units)" in text and "Inside the lung." in text


def test_every_number_of_the_table_is_on_the_page(run: Run, text: str) -> None:
    rows = run.table[
        (run.table["eps"] == run.threat["eps"]) & (run.table["detector"] != "")
    ]
    for metric, value in zip(rows["metric"], rows["value"], strict=True):
        unit = metric_of(metric).unit  # type: ignore[union-attr]
        write = {"": percent, "score": score}.get(unit, number)
        assert write(value) in text
    assert data_of(text)["csv"]["results"] == run.table.to_csv(index=False)


def test_pictures_that_do_not_fit_are_counted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "feathide.report.page.Album", lambda scale: Album(scale, budget=60_000)
    )
    text = render(run)
    cases = data_of(text)["browser"]["cases"]
    shown = [c for c in cases if c["picture"]]
    count = [sum(c["condition"] == name for c in shown) for name in ("PGD", "PGD + HFC")]
    assert (
        0 < len(shown) < len(cases)
        and abs(count[0] - count[1]) <= 2
        and all(c["fooled"] for c in shown)
    )
    assert f"Pictures of {len(shown)} of {len(cases)} cases" in text


def test_same_run_same_page(run: Run, text: str) -> None:
    assert render(run) == text


@pytest.mark.slow
def test_two_hundred_cases_stay_below_fifteen_megabytes(make: Callable[..., Run]) -> None:
    text = render(make((128, 128), 200))
    cases = data_of(text)["browser"]["cases"]
    assert len(cases) == 400 and all(c["picture"] for c in cases)
    assert len(text.encode()) < 15_000_000
