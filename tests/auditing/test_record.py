"""Who ran an audit, for whom and when: in its record and on its page, and in no key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from feathide.auditing.record import begun_on, date_of
from feathide.auditing.report_data import about_of
from feathide.auditing.run import write_plan
from feathide.errors import InputError
from feathide.execution.digests import digest
from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.plans.plan import load_plan

PLAN: dict[str, Any] = {
    "data": {"path": "phantoms", "limit": 40, "size": 16},
    "network": {"arch": "tiny", "train": {"epochs": 1}},
    "batch_size": 16,
}
ABOUT = {"title": "Guard of ward 3", "made_by": "Audit office", "made_for": "Radiology"}


def context(folder: Path, **changes: Any) -> Context:
    return Context(load_plan({**PLAN, **changes}), Store(folder))


def test_the_record_keeps_the_day_on_which_the_audit_began(tmp_path: Path) -> None:
    first = context(tmp_path)
    write_plan(first)
    path = tmp_path / "plan.yaml"
    day = yaml.safe_load(path.read_text())["record"]["date"]
    assert date_of(first) == day == begun_on(first)
    path.write_text(path.read_text().replace(day, "2020-02-29"))
    write_plan(context(tmp_path, about=ABOUT))
    assert date_of(first) == "2020-02-29", "the same audit, called otherwise"
    write_plan(context(tmp_path, seed=1))
    assert date_of(first) != "2020-02-29", "another audit"


def test_the_page_has_its_head_from_plan_and_record(tmp_path: Path) -> None:
    begun = context(tmp_path, about=ABOUT)
    assert about_of(begun).date == ""
    write_plan(begun)
    found = about_of(begun)
    assert (found.made_by, found.made_for) == ("Audit office", "Radiology")
    assert found.date == date_of(begun) and found.model == "tiny"
    digests = (found.model_digest, found.data_digest)
    assert digests == (begun.steps.classifier.digest, begun.cases.digest)


def test_who_ran_it_changes_no_digest_of_the_plan() -> None:
    assert digest([load_plan(PLAN)]) == digest([load_plan({**PLAN, "about": ABOUT})])


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"author": "me"}, "about.author"),
        ({"docs": "javascript:alert(1)"}, "about.docs"),
        ({"title": "x" * 201}, "about.title"),
    ],
)
def test_a_wrong_field_is_named(about: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_plan({**PLAN, "about": about})
