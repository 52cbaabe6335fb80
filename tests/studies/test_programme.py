"""Programmes: questions put to plans, claims that can fail, one store for all, and what cannot be
used refused before any work.
"""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from feathide.cli import app
from feathide.errors import InputError
from feathide.plans.plan import load_plan
from feathide.studies.claims import Claim, judge
from feathide.studies.programme import load_programme, programmes

PAPER = Path(__file__).parents[2] / "studies" / "paper"
TINY = {
    "even_so": True,
    "data": {"path": "phantoms", "size": 16, "limit": 60},
    "network": {
        "arch": "tiny",
        "layers": "conv",
        "train": {"epochs": 2, "batch_size": 16, "augment": False},
    },
    "eps": "16/255",
    "schedule": {"steps": 3},
    "detectors": ["kd", "maha"],
    "split": {"most": 12},
}
QUESTIONS = {
    "title": "A <small> study",
    "questions": {
        "hide": {
            "asks": "Does it hide?",
            "plans": ["left"],
            "change": {"attacks": ["pgd"], "objectives": ["plain", "hfc"]},
            "expect": [
                {
                    "says": "success is a share",
                    "where": {"metric": "success"},
                    "is": "<= 1",
                },
                {
                    "says": "lower",
                    "where": {"metric": "auc", "objective": "hfc"},
                    "below": {"objective": "plain"},
                },
            ],
        },
        "steps": {
            "asks": "Do steps matter?",
            "plans": ["left"],
            "change": {"attacks": ["pgd"], "objectives": ["plain"], "sanity_checks": "off"},
            "vary": {"3": {"schedule": {"steps": 3}}, "5": {"schedule": {"steps": 5}}},
        },
        "drift": {
            "asks": "How far?",
            "do": "stress",
            "plans": ["left"],
            "options": {"seeds": [0]},
        },
    },
}


def rows(*numbers: tuple[str, str, float, float, float]) -> pd.DataFrame:
    """Objective, detector, value and interval, in a table of one metric."""
    names = ["objective", "detector", "value", "low", "high"]
    return pd.DataFrame(numbers, columns=names).assign(
        metric="auc", knowledge=[n[0] for n in numbers], n=9
    )


TABLE = rows(
    ("plain", "kd", 0.9, 0.85, 0.95),
    ("hfc", "kd", 0.3, 0.2, 0.4),
    ("plain", "lid", 0.6, 0.5, 0.7),
    ("hfc", "lid", 0.55, 0.5, 0.6),
)


@pytest.mark.parametrize(
    ("claim", "verdict", "clear"),
    [
        ({"where": {"objective": "plain"}, "is": ">= 0.6"}, "holds", 1),
        ({"where": {"objective": "plain"}, "is": "> 0.6"}, "holds in part (1 of 2)", 1),
        ({"where": {"objective": "hfc"}, "is": ">= 0.9"}, "does not hold here", 0),
        ({"where": {"objective": "none"}, "is": ">= 0"}, "not tested", 0),
        ({"where": {"objective": "hfc"}, "below": {"objective": "plain"}}, "holds", 1),
        (
            {
                "where": {"objective": "hfc", "detector": "!k*"},
                "below": {"objective": "plain"},
            },
            "holds",
            0,
        ),
        (
            {"where": {"objective": "hfc"}, "above": {"objective": "plain"}},
            "does not hold here",
            0,
        ),
        (
            {"where": {"detector": ["kd"], "metric": "a*"}, "is": "<= 0.3"},
            "holds in part (1 of 2)",
            0,
        ),
    ],
)
def test_claims_are_judged_row_by_row(claim: dict, verdict: str, clear: int) -> None:
    found = judge(TABLE, Claim(says="so", **claim))
    assert (found.verdict, found.clear) == (verdict, clear)


def test_what_no_attack_achieves_is_not_tested() -> None:
    slips = rows(("hfc", "kd", 0.0, 0.0, 0.1), ("plain", "kd", 0.02, 0.0, 0.1)).assign(
        metric="slips"
    )
    success = rows(("hfc", "", 0.0, 0.0, 0.1), ("plain", "", 1.0, 0.9, 1.0)).assign(
        metric="success"
    )
    table = pd.concat([slips, success])

    def found(where: dict, **form: object) -> tuple[str, int, int]:
        judged = judge(table, Claim(says="so", where=where, **form))
        return judged.verdict, judged.n, judged.idle

    hidden = {"metric": "slips", "objective": "hfc"}
    assert found(hidden, **{"is": "<= 0.05"}) == ("not tested: no attack succeeded", 0, 1)
    assert found(hidden, below={"objective": "plain"}) == (
        "not tested: no attack succeeded",
        0,
        1,
    )
    assert found(hidden, **{"is": ">= 0.5"}) == ("does not hold here", 1, 0)
    assert found({"metric": "slips"}, **{"is": "<= 0.05"}) == ("holds", 1, 1)
    assert found({"metric": "success"}, **{"is": "<= 1"}) == ("holds", 2, 0)


def test_what_speaks_against_a_claim_is_named() -> None:
    found = judge(
        TABLE, Claim(says="so", where={"objective": "hfc"}, above={"objective": "plain"})
    )
    assert found.against == ("kd: 0.30 against 0.90", "lid: 0.55 against 0.60")
    sweep = pd.concat([TABLE.assign(eps=e / 255, variation=f"{e}/255") for e in (2, 8)])
    found = judge(sweep, Claim(says="so", where={"objective": "hfc"}, **{"is": "> 0.5"}))
    assert found.against == ("2/255 kd: 0.30", "8/255 kd: 0.30")


@pytest.mark.parametrize("claim", [{}, {"is": "0.9"}, {"is": "> 1", "above": {"a": "b"}}])
def test_a_claim_says_one_thing(claim: dict) -> None:
    with pytest.raises((InputError, ValueError)):
        Claim(says="so", where={}, **claim)


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(InputError, match="objectiv"):
        judge(TABLE, Claim(says="so", where={"objectiv": "hfc"}, **{"is": "> 0"}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump(QUESTIONS))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"plans": {"left": TINY}}))
    return tmp_path


def test_a_programme_is_answered_once(folder: Path) -> None:
    words = ["study", str(folder), "--out", str(folder / "out")]
    first = CliRunner().invoke(app, words, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    out = folder / "out"
    assert {p.name for p in out.glob("*.csv")} == {
        "hide.csv",
        "steps.csv",
        "drift.csv",
        "claims.csv",
        "sanity_checks.csv",
    }
    claims = pd.read_csv(out / "claims.csv")
    assert claims.question.tolist() == ["hide", "hide"] and claims.verdict[0] == "holds"
    steps = pd.read_csv(out / "steps.csv", dtype={"variation": str})
    assert set(steps.variation) == {"3", "5"}
    taken = steps[(steps.metric == "gradients_per_image")].set_index("variation").value
    assert taken["3"] == 3 and taken["5"] == 5
    page = (out / "study.html").read_text()
    assert (
        "A &lt;small&gt; study" in page
        and "hide-left.html" in page
        and 'id="drift"' in page
    )
    text = (out / "study.md").read_text()
    assert "Does it hide?" in text
    # one table for all chapters
    assert text.count("| Accuracy | Calibration error | Brier score |") == 1
    assert page.count(">Classifiers on clean test images") == 1

    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.npz")}
    # one network for all questions
    assert len(list((out / "classifier").glob("*.npz"))) == 1
    again = CliRunner().invoke(app, words, catch_exceptions=False)
    assert again.exit_code == 0 and before == {
        f: f.stat().st_mtime_ns for f in out.rglob("*.npz")
    }
    assert (out / "study.html").read_text() == page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hide": {"plans": ["right"]}}, "right"),
        ({"hide": {"options": {"seeds": [1]}}}, "seeds"),
        ({"hide": {"change": {"eps": -1}}}, "eps"),
        ({"ask": {}}, "ask"),
        ({"hide": {"vary": {"a": {"schedule": {"stepz": 1}}}}}, "stepz"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(
    folder: Path, change: dict, says: str
) -> None:
    (folder / "small.yaml").write_text(
        yaml.safe_dump({"plans": {"left": TINY}, "questions": change})
    )
    result = CliRunner().invoke(app, ["study", str(folder), "--out", str(folder / "out")])
    assert result.exit_code == 2 and says in result.output
    assert not list(folder.rglob("*.npz"))


def test_images_that_are_not_there_are_named_before_any_work(folder: Path) -> None:
    result = CliRunner().invoke(
        app, ["study", "paper", "--data", str(folder / "no"), "--out", str(folder / "out")]
    )
    assert result.exit_code == 2 and not (folder / "out").exists()
    text = " ".join(result.output.split())
    assert (
        "cxr_pneumonia_64.npz" in text
        and "docs/datasets.md" in text
        and "studies/prepare.py" in text
    )
    assert "--only" not in text
    plans = {"left": TINY, "right": {"data": "no.npz"}}
    (folder / "small.yaml").write_text(
        yaml.safe_dump({"plans": plans, "questions": {"drift": {"plans": ["right"]}}})
    )
    result = CliRunner().invoke(app, ["study", str(folder), "--out", str(folder / "out")])
    text = " ".join(result.output.split())
    assert (
        result.exit_code == 2 and "no data/no.npz" in text and "--only hide,steps" in text
    )


def test_the_full_scale_takes_classifiers_that_the_user_has(tmp_path: Path) -> None:
    for name in ("questions.yaml", "full.yaml"):
        (tmp_path / name).write_text(
            (PAPER / name).read_text().replace("# network: {", "network: {")
        )
    plans = load_programme(tmp_path, scale="full", data=Path("images")).plans
    networks = {name: load_plan(plan).network for name, plan in plans.items()}
    assert {name for name, network in networks.items() if network.weights} == {
        "xray",
        "xray-vgg",
        "fundus",
    }


def test_unknown_names_list_what_there_is(folder: Path) -> None:
    for words, says in (
        (["nothing"], "paper"),
        ([str(folder), "--scale", "huge"], "small"),
        ([str(folder), "--only", "x"], "hide"),
    ):
        result = CliRunner().invoke(app, ["study", *words, "--out", str(folder / "out")])
        assert result.exit_code == 2 and says in result.output


@pytest.mark.parametrize(
    "scale", [f.stem for f in PAPER.glob("*.yaml") if f.stem != "questions"]
)
def test_the_paper_is_a_programme(scale: str) -> None:
    assert "paper" in programmes()
    found = load_programme("paper", scale=scale, data=Path("images"))
    all_of_them = {"detection", "rivals", "transfer", "strangers"}
    expected = {"rivals", "too-normal"} if scale == "medium" else all_of_them
    assert expected <= set(found.questions)
    assert all(p["data"]["path"].startswith("images") for p in found.plans.values())


def test_a_scale_asks_only_the_questions_that_it_names(folder: Path) -> None:
    plans = (folder / "small.yaml").read_text()
    (folder / "few.yaml").write_text(plans + "\nonly: [hide]\n")
    assert list(load_programme(folder, scale="few", data=folder).questions) == ["hide"]
    (folder / "few.yaml").write_text(plans + "\nonly: [seek]\n")
    with pytest.raises(InputError, match="question"):
        load_programme(folder, scale="few", data=folder)
