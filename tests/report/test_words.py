"""The words of the page: every abbreviation spelled out, every name explained, one style of
numbers.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from feathide.catalog import OBJECTIVES, OUR_ATTACKS, OUR_DETECTORS
from feathide.metrics.numbers import number, percent
from feathide.report import About, Run, render
from feathide.report.advice import ADVICE, advice
from feathide.report.chapters import Claimed
from feathide.report.curves import features, search
from feathide.report.glossary import Glossary
from feathide.report.naming import class_name, label, layer_name, relabelled
from feathide.report.terms import terms
from feathide.report.verdict import INVALID, WORDS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def shown(page: str) -> str:
    """What a reader sees of a page, without its scripts, styles and attributes."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return shown(render(run))


@pytest.mark.parametrize(
    "name", [*OUR_ATTACKS, *OUR_DETECTORS, *(o for o in OBJECTIVES if o != "plain")]
)
def test_every_name_of_the_catalogue_is_explained(name: str) -> None:
    glossary = Glossary()
    glossary.tell(label(name))
    assert glossary.terms, f"{name} is shown as {label(name)}, which no term explains"
    for abbreviation in re.findall(r"\b[A-Z]{2,}\b", label(name)):
        assert any(abbreviation in t.name.split() for t in glossary.terms), abbreviation


def test_an_abbreviation_is_spelled_out_where_it_first_stands(text: str) -> None:
    for name in (
        "PGD",
        "HFC",
        "CW",
        "KD",
        "BU",
        "LID",
        "MAHA",
        "SVM",
        "DNN",
        "SSIM",
        "ROC",
        "AUC",
    ):
        full = next(term.full for term in terms() if term.name == name)
        first = re.search(rf"(?<![\w-]){name}(?![\w-])", text)
        assert first and text[first.end() :].startswith(f" ({full})"), name


def test_terms_are_told_apart() -> None:
    glossary = Glossary()
    told = str(glossary.tell("BU of the logit"))
    assert [t.name for t in glossary.terms] == ["BU of the logit"]
    assert 'href="#term-bu-of-the-logit"' in told
    assert "<b>" not in Glossary().tell("<b>PGD</b>")
    ids = [term.id for term in terms()]
    assert len(set(ids)) == len(ids)


def test_links_into_the_documentation_lead_somewhere() -> None:
    for term in terms():
        page, _, place = term.more.partition("/#")
        text = (DOCS / f"{page.rstrip('/')}.md").read_text(encoding="utf-8")
        heads = {
            re.sub(r"[^a-z0-9]+", "-", h.lower()).strip("-")
            for h in re.findall(r"^#+ (.*)$", text, re.M)
        }
        assert not place or place in heads, term


def test_links_appear_where_the_plan_says_the_address(make: Callable[..., Run]) -> None:
    assert "https://" not in shown(render(make(count=2)))
    page = render(make(count=2, about=About(docs="https://docs.example.org/feathide/")))
    assert 'href="https://docs.example.org/feathide/science/#detectors"' in page


def test_every_verdict_has_two_sentences_of_advice() -> None:
    assert set(ADVICE) == {*WORDS, "invalid"} and INVALID
    for word in ADVICE:
        for sentence in advice(word):
            assert sentence.endswith(".") and sentence.count(". ") == 0
    assert advice("fails", quick="feathide audit plan.yaml")[1].endswith(
        "feathide audit plan.yaml"
    )


def test_the_head_says_who_what_and_when(make: Callable[..., Run]) -> None:
    about = About(
        "2026-05-31", "Audit office", "Radiology", "resnet18", "ab" * 8, "chest", "cd" * 32
    )
    said = shown(render(make(count=2, about=about)))
    for part in ("2026-05-31", "Audit office", "Radiology", "ab" * 8, "cd" * 32, "0.1.0"):
        assert part in said
    assert "not stated in the plan" in shown(render(make(count=2)))


def test_numbers_have_one_style(text: str) -> None:
    assert not re.search(r"\d(\.\d+)?e[+-]?\d", text)
    assert not re.search(r"\d%", text), "a blank stands before a per cent sign"
    measured = re.findall(r"([\d.]+)\s%\s\(", text)
    assert measured and all(re.fullmatch(r"\d+\.\d", value) for value in measured)
    assert [number(v) for v in (0.0, 1020.0, 12345678.0, -0.00002, float("nan"))] == [
        *("0", "1,020", "1.23 × 10⁷", "−2 × 10⁻⁵", "–"),
    ]
    assert percent(0.0) == "0.0 %" and percent(0.99951) == "100.0 %"


def test_classes_and_layers_are_called_as_the_user_calls_them(run: Run) -> None:
    assert (class_name("0"), class_name("opacity")) == ("class 0", "opacity")
    assert (layer_name("4.2"), layer_name("layer1.0")) == ("layer 4.2", "layer1.0")
    mixture = next(f for f in search(run.curves, run.class_names) if f.id == "mixture")
    assert {t["name"] for p in mixture.panels for t in p.traces} == {"normal", "opacity"}
    picture = next(f for f in features(run.curves) if f.id == "embedding")
    assert "layer4.1" in picture.title and "principal components" in picture.caption
    assert picture.x["title"] == "first principal component"
    said = relabelled(
        "kd: beaten; bim+hfc: joint energy", ["kd", "bim+hfc", "joint", "energy"]
    )
    assert said == "KD: beaten; BIM + HFC: joint energy"


def test_every_figure_names_its_axes(run: Run) -> None:
    from feathide.report.figures import figures

    for figure in figures(run):
        for panel in figure.panels:
            x, y = {**figure.x, **panel.x}, {**figure.y, **panel.y}
            named = [axis.get("title") or axis.get("ticktext") for axis in (x, y)]
            assert all(named), figure.id


def test_a_claim_that_holds_does_not_say_that_it_does_not() -> None:
    holds = Claimed("says", "holds", "2 of 2", "MAHA at 2 grey levels")
    assert holds.word == "pass" and holds.exceptions == "Exceptions: MAHA at 2 grey levels."
    fails = replace(holds, verdict="does not hold here")
    assert fails.exceptions.startswith("Against it: ")
