"""The chapter "For the file", and results by group, on the page and in the model card."""

import re

import pandas as pd

from feathide.report import card, render
from feathide.report.file_copy import for_the_file
from feathide.report.groups import group_line, group_tables
from worlds.runs import EPS, make_run


def groups(p: float, value: float = 0.7) -> pd.DataFrame:
    head = {"column": "site", "attack": "", "objective": "", "eps": None, "detector": ""}
    head |= {"metric": "accuracy", "low": 0.5, "high": 0.9, "n": 40, "patients": 20, "p": p}
    south = {**head, "group": "south", "value": value, "rest": 0.95, "p_holm": p}
    north = {**head, "group": "north", "value": 0.95, "rest": value, "p_holm": p}
    rare = {**head, "group": "rare", "value": None, "rest": 0.9, "p_holm": None}
    other = {**south, "eps": EPS * 2, "value": 0.1}
    return pd.DataFrame([south, north, rare, other]).astype({"eps": float, "value": float})


def test_each_text_lists_what_the_audit_tried_and_what_it_leaves_out() -> None:
    run = make_run()
    found = {listed.text.key: dict(listed.rows) for listed in for_the_file(run)}
    names = {i.id: text for rows in found.values() for i, text in rows.items()}
    assert "PGD" in names["AML.T0043.000"]
    assert "detector-aware attackers" in names["AISVS-C11.2"]
    assert names["AML.M0008"] == "the sanity checks"
    page = render(run)
    for listed in for_the_file(run):
        assert listed.text.edition in page and listed.text.does_not_cover[0] in page
    assert "claims no conformity" in page


def test_the_model_card_has_the_identifiers() -> None:
    found = card(make_run())["identifiers"]
    assert found["AML.T0015"] == "Evade AI Model" and "AML.T0040" not in found


def test_the_first_page_names_the_group_that_does_worse() -> None:
    run = make_run(subgroups=groups(0.01))
    line = group_line(run)
    assert "site south" in line and "70" in line and "95" in line and "10.0" not in line
    assert re.sub(r"\s+", " ", line).split(":")[0] == "One group does worse"
    assert "Is it the same for every group?" in render(run)


def test_it_says_so_where_none_differs_and_nothing_where_none_was_asked() -> None:
    assert group_line(make_run(subgroups=groups(0.4))).startswith("No group by site")
    assert group_line(make_run()) == ""
    assert "Is it the same for every group?" not in render(make_run())


def test_a_table_for_each_column_marks_what_differs() -> None:
    (table,) = group_tables(make_run(subgroups=groups(0.01)))
    rows = dict(table.rows)
    assert rows["south (20 patients)"][0].text.endswith("*")
    assert rows["rare (20 patients)"][0].text == "too few"
    (plain,) = group_tables(make_run(subgroups=groups(0.4)))
    assert not dict(plain.rows)["south (20 patients)"][0].text.endswith("*")
