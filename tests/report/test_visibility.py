"""Whether the change is visible: structural similarity, and the case that shows most."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from feathide.report import Run, render
from feathide.report.visibility import budget_in_words, most_visible, similarity


def by_loops(a: np.ndarray, b: np.ndarray, span: float, window: int = 7) -> float:
    """Structural similarity of one plane by its definition, window for window."""
    half = window // 2
    x, y = (np.pad(image, half, mode="symmetric") for image in (a, b))
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    found = []
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            p, q = (v[i : i + window, j : j + window] for v in (x, y))
            cov = ((p - p.mean()) * (q - q.mean())).mean()
            top = (2 * p.mean() * q.mean() + c1) * (2 * cov + c2)
            found.append(
                top / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (p.var() + q.var() + c2))
            )
    return float(np.mean(found))


@pytest.mark.parametrize("span", [1.0, 255.0])
def test_similarity_is_that_of_its_definition(span: float) -> None:
    rng = np.random.default_rng(0)
    a = rng.random((12, 10)) * span
    b = np.clip(a + 0.2 * span * rng.standard_normal(a.shape), 0, span)
    assert similarity(a[None], b[None], span) == pytest.approx(
        by_loops(a, b, span), abs=1e-9
    )
    assert similarity(a[None], a[None], span) == pytest.approx(1.0)


def test_a_volume_of_depth_one_is_an_image() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 1, 9, 8))
    flat = similarity(a, b, 1.0)
    assert similarity(a[:, None], b[:, None], 1.0) == pytest.approx(flat)


def test_the_case_that_shows_most_is_found_and_stands_on_page_one(
    make: Callable[..., Run],
) -> None:
    run = make(count=6)
    cases = list(run.cases["pgd+plain"])
    loud = np.clip(
        cases[2].clean + np.random.default_rng(0).normal(0, 0.3, cases[2].clean.shape), 0, 1
    )
    cases[2] = replace(cases[2], adversarial=loud.astype(np.float32))
    run = replace(run, cases={"pgd+plain": cases, "pgd+hfc": run.cases["pgd+hfc"]})
    found = most_visible(run)
    assert found is not None
    assert (found.condition, found.case.id) == ("pgd+plain", cases[2].id)
    assert found.similarity < found.median <= 1 and found.count == 10
    page = render(run)
    first = page[page.index('id="verdict"') : page.index('id="limits"')]
    assert first.count("<img ") == 3 and cases[2].id in first
    silent = {"pgd+plain": [replace(c, fooled=False) for c in cases]}
    assert most_visible(replace(run, cases=silent)) is None
    assert "there is none to look at" in render(replace(run, cases=silent))


def test_the_budget_is_told_in_the_units_of_the_images(make: Callable[..., Run]) -> None:
    run = make(count=2)
    assert "at most 4 grey levels, on a range of 255 (1.6 %)" in budget_in_words(run)
    threat = {**run.threat, "norm": "L2", "eps": 0.5}
    assert "all pixels together by at most 128 grey levels" in budget_in_words(
        replace(run, threat=threat)
    )
