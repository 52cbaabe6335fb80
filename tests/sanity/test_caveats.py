"""What is said of a plan before anything is attacked."""

from pathlib import Path

import pytest

from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.pipeline.listing import unhidden
from feathide.plans.plan import load_plan
from feathide.sanity.caveats import foreseen


def context(place: Path, **changes: object) -> Context:
    plan = {"data": {"path": "phantoms", "limit": 60, "size": 16}, "network": "tiny"}
    return Context(load_plan({**plan, **changes}), Store(place))


@pytest.mark.parametrize(
    ("eps", "used"), [("2.5 grey levels", "2"), ("3.9/255", "3"), ("1.5 levels", "1")]
)
def test_a_budget_between_two_grey_levels_is_rounded_down_and_it_is_said(
    tmp_path: Path, eps: str, used: str
) -> None:
    (told,) = (c for c in foreseen(context(tmp_path, eps=eps)) if "rounded down" in c)
    assert f"({used} grey level" in told.partition("rounded down to")[2]


@pytest.mark.parametrize("changes", [{"eps": "4/255"}, {"eps": 0.5, "norm": "l2"}])
def test_no_other_budget_is_rounded_down(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    found = foreseen(context(tmp_path, **changes))
    assert not any("rounded down" in caveat for caveat in found)


def test_attacks_without_steps_to_hide_in_are_named(tmp_path: Path) -> None:
    assert unhidden(context(tmp_path, attacks=["fgsm", "noise", "pgd"])) == (
        "fgsm, noise are run without hiding only: they have no steps to hide in"
    )
    assert unhidden(context(tmp_path, attacks=["fgsm", "pgd"])) == (
        "fgsm is run without hiding only: it has no steps to hide in"
    )
    assert unhidden(context(tmp_path, attacks=["pgd"])) == ""
    assert unhidden(context(tmp_path, attacks=["fgsm"], objectives=["plain"])) == ""
