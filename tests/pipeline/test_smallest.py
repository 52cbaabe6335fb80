"""The smallest changes of an audit: what the table says of them, and the images behind it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feathide.auditing.run import audit
from feathide.execution.store import Store
from feathide.metrics.registry import METRICS
from feathide.metrics.views import LeastChange
from feathide.pipeline.context import Context
from feathide.pipeline.smallest import curve_of, searched, smallest_in, smallest_step
from feathide.pipeline.views import attacked
from feathide.plans.plan import load_plan
from worlds.audits import EPS, PLAN, write_npz

GUARD = """
def closed(x):
    return x.flatten(1).sum(1)
"""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A finished audit with an open and a closed door: a guard that never and one that always
    rejects.
    """
    folder = tmp_path_factory.mktemp("smallest")
    (folder / "doors.py").write_text(GUARD)
    plan = {"data": str(write_npz(folder / "patches.npz")), **PLAN, "smallest_change": True}
    door = {"name": f"{folder / 'doors.py'}:closed", "fit": "never"}
    plan |= {
        "network": {**PLAN["network"], "trust": True},  # type: ignore[dict-item]
        "attacks": ["pgd"],
        "objectives": ["plain"],
        "detectors": ["maha", {**door, "threshold": -1.0}, {**door, "threshold": 1e9}],
        "split": {"most": 12},
        "sanity_checks": "off",
    }
    audit(load_plan(plan), folder / "out")
    return Context(load_plan(folder / "out" / "plan.yaml"), Store(folder / "out"))


def test_who_fools_at_the_budget_has_a_smallest_change(context: Context) -> None:
    (cell,) = searched(context)
    found, view = smallest_in(context, cell), attacked(context, cell)
    assert found is not None and view.smallest is not None
    np.testing.assert_array_equal(np.isfinite(view.smallest.values), view.fooled)
    levels = view.smallest.values[view.fooled] * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    assert levels.min() >= 1 and view.smallest.values[view.fooled].max() <= EPS + 1e-9
    assert (view.smallest.values[view.fooled] <= view.linf[view.fooled] + 1e-9).all()


def test_an_open_door_asks_for_no_more_than_fooling_and_a_closed_one_for_infinity(
    context: Context,
) -> None:
    (cell,) = searched(context)
    found = smallest_in(context, cell)
    assert found is not None
    maha, closed, opened = context.plan.detectors
    assert np.isinf(found.past[closed, "own"]).all()
    np.testing.assert_array_equal(found.past[opened, "own"], found.fool)
    assert (found.past[maha, "fpr10"] >= found.fool).all()
    assert (maha, "own") not in found.past


def test_the_table_and_the_curve_say_the_same(context: Context) -> None:
    table = pd.read_csv(context.store.folder / "results.csv", keep_default_na=False)
    (row,) = table[table.metric == "eps_to_fool"].to_dict("records")
    curve = pd.read_csv(context.store.folder / "smallest_change.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(
        curve, curve_of(context), check_dtype=False, check_exact=False
    )
    fooling = curve[curve.detector == ""].sort_values("eps")
    assert (fooling.share.diff().dropna() >= 0).all()
    reached = fooling[fooling.share >= 0.5].eps
    half = float(reached.iloc[0]) if len(reached) else np.inf
    assert float(row["value"]) == pytest.approx(half)
    (success,) = table[table.metric == "success"].value.astype(float)
    (beyond,) = table[table.metric == "eps_to_fool_beyond"].value.astype(float)
    assert success + beyond == pytest.approx(1)
    assert float(fooling.share.iloc[-1]) == pytest.approx(success)


def test_every_attacked_image_says_how_visible_its_change_is(context: Context) -> None:
    table = pd.read_csv(context.store.folder / "visibility.csv")
    (cell,) = searched(context)
    view = attacked(context, cell)
    assert len(table) == len(view.rows) and table.ssim.is_monotonic_increasing
    assert table.largest_change.max() == pytest.approx(float(view.linf.max()))
    # a change of at most eps at every pixel
    assert (table.psnr >= -20 * np.log10(EPS) - 1e-6).all()
    assert table.ssim.between(0, 1).all() and table.fooled.sum() == view.fooled.sum()


def test_a_planted_change_that_is_not_in_its_ball_is_missed_by_nobody(
    context: Context, tmp_path: Path
) -> None:
    """The search judges images as files hold them: with a wrong image in place of the attack at
    the largest budget, the largest level does not count as fooled.
    """
    folder = tmp_path / "out"
    shutil.copytree(context.store.folder, folder)
    other = Context(context.plan, Store(folder))
    (cell,) = searched(other)
    key, step = other.steps.attack(cell, "test").keys[0], smallest_step(other, cell)
    arrays = dict(other.store.load(key))
    clean = other.data.images(arrays["rows"]).numpy()
    arrays["image"] = np.round(clean * 255).astype(arrays["image"].dtype)
    other.store.save(key, arrays)
    from feathide.pipeline.smallest import _search

    assert np.isinf(_search(other, cell, 0)["fool"]).all()
    assert np.isfinite(other.store.load(step.keys[0])["fool"]).any()


def test_quartiles_are_sizes_that_were_found_or_infinity(context: Context) -> None:
    (cell,) = searched(context)
    view = attacked(context, cell)
    rows = view.found.rows[:4]
    few = replace(view, found=view.found.at(np.arange(len(rows))))
    values = np.array([1.0, 2.0, 3.0, np.inf])[: len(rows)]

    class View:
        groups, seed = few.groups, 0
        smallest = LeastChange(values, 4.0)

    at = {part: METRICS[f"eps_to_fool{part}"].measure(View()) for part in ("", "_q75")}
    median, upper = at[""], at["_q75"]
    assert median is not None and upper is not None
    assert (median.value, upper.value) == (2.0, 3.0)
    assert median.low >= 1.0 and upper.high == np.inf
