"""Identifiers: every name of the catalogue has its own, each is of a text that says its source."""

import re
from datetime import date
from typing import get_args

import pytest

from feathide.catalog import OUR_ATTACKS, OUR_OBJECTIVES, ability_of
from feathide.detectors import DETECTORS
from feathide.identifiers import identified, identifiers_of
from feathide.types import Knowledge

KNOWN = identified()


@pytest.mark.parametrize("name", OUR_ATTACKS)
def test_an_attack_has_identifiers_or_is_a_control(name: str) -> None:
    named, control = name in KNOWN.maps["attacks"], name in KNOWN.maps["controls"]
    assert named != control
    assert bool(KNOWN.of_attack(name)) == named


@pytest.mark.parametrize("name", OUR_ATTACKS)
def test_the_technique_is_that_of_what_the_attack_asks_for(name: str) -> None:
    """White-box where gradients are asked for, black-box where the attack searches without."""
    found, ability = {i.id for i in KNOWN.of_attack(name)}, ability_of(name)
    control = name in KNOWN.maps["controls"]
    assert ("AML.T0043.000" in found) == (ability.gradient and not control)
    assert ("AML.T0043.001" in found) == ability.searches
    assert ("NISTAML.025" in found) == ability.searches


def test_every_objective_knowledge_and_guard_is_known() -> None:
    assert set(KNOWN.maps["objectives"]) == set(OUR_OBJECTIVES)
    assert set(KNOWN.maps["knowledge"]) == set(get_args(Knowledge))
    assert set(KNOWN.maps["detectors"]) <= set(DETECTORS)
    assert all(KNOWN.of_detector(name) for name in DETECTORS)
    assert KNOWN.of_sanity_check() and KNOWN.of_subgroups()


def test_an_objective_that_hides_is_aimed_at_detection() -> None:
    for name, hiding in OUR_OBJECTIVES.items():
        found = [i.id for i in KNOWN.of_objective(name)]
        assert (found == ["AML.M0015"]) == (hiding.make is not None)


def test_every_identifier_of_the_maps_stands_in_a_text() -> None:
    ids = set(re.findall(r"'((?:AML|NISTAML|ML01|AISVS|CWE)[^']*)'", str(KNOWN.maps)))
    assert {i.id for i in KNOWN.called(ids)} == ids
    with pytest.raises(KeyError):
        KNOWN.called(["AML.T9999"])


def test_a_text_says_where_when_and_what_is_not_covered() -> None:
    for text in KNOWN.texts:
        assert text.title and text.edition and text.source and text.covers
        assert date.fromisoformat(text.checked) <= date.fromisoformat(KNOWN.checked)
        assert text.does_not_cover and text.identifiers


def test_nothing_claims_conformity() -> None:
    said = str(KNOWN).lower()
    assert "conform" not in said and "complian" not in said and "certified by" not in said


def test_rows_for_an_audit() -> None:
    rows = identifiers_of(
        ["pgd", "noise", "torchattacks:PGD(steps=3)"],
        ["evade:maha"],
        ["detector-aware"],
        ["squeeze"],
        ["gradient"],
    )
    ids = {
        (r["kind"], r["name"]): [x["identifier"] for x in rows if x["name"] == r["name"]]
        for r in rows
    }
    assert "AML.T0043.000" in ids["attack", "pgd"]
    assert ids["attack", "noise"] == [""]
    assert "AML.T0043" in ids["attack", "torchattacks:PGD(steps=3)"]
    assert ids["objective", "evade:maha"] == ["AML.M0015"]
    assert ids["knowledge", "detector-aware"] == ["AISVS-C11.2"]
    assert "AML.M0010" in ids["guard", "squeeze"]
    assert "AML.M0008" in ids["sanity check", "gradient"]
    assert all(r["edition"] for r in rows if r["identifier"])
