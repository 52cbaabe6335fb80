"""The verdict is the worst case, and honest in both directions."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from feathide.errors import InputError
from feathide.plans.sections import ObjectivePlan
from feathide.report import Run, render, verdict
from feathide.report.card import card
from feathide.report.naming import label
from feathide.report.tables import guards
from feathide.report.verdict import by_budget

EPS = 4 / 255
Row = tuple[str, str, str, str, float, float, float]


def table_of(
    *rows: Row, success: float = 1.0, eps: float = EPS, n: int = 200
) -> pd.DataFrame:
    """Rows (attack, objective, knowledge, detector, value, low, high) of slips-through at 10 %
    false alarms.
    """
    head = ("chest", "resnet18")
    found = [
        (
            *head,
            "pgd",
            "plain",
            "oblivious",
            eps,
            "",
            "success",
            success,
            success,
            success,
            n,
            0,
        )
    ]
    for attack, objective, knowledge, detector, *values in rows:
        found.append(
            (
                *head,
                attack,
                objective,
                knowledge,
                eps,
                detector,
                "slips_through_fpr10",
                *values,
                n,
                0,
            )
        )
    columns = (
        "dataset classifier attack objective knowledge eps detector metric value low high n "
        "seed"
    )
    return pd.DataFrame(found, columns=columns.split())


PLAIN = ("pgd", "plain", "oblivious", "kd")
AWARE = ("pgd", "evade", "detector-aware", "kd")


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([(*PLAIN, 0.0, 0.0, 0.02), (*AWARE, 0.01, 0.0, 0.04)], "holds"),
        ([(*PLAIN, 0.0, 0.0, 0.02)], "unproven"),
        ([(*PLAIN, 0.0, 0.0, 0.02), (*AWARE, 0.01, 0.0, 0.09)], "undecided"),
        ([(*PLAIN, 0.0, 0.0, 0.02), (*AWARE, 0.2, 0.15, 0.3)], "leaks"),
        ([(*PLAIN, 0.0, 0.0, 0.02), (*AWARE, 0.6, 0.52, 0.7)], "fails"),
        # an attack that knows more may do worse
        ([(*PLAIN, 0.9, 0.8, 0.95), (*AWARE, 0.0, 0.0, 0.01)], "fails"),
        # without an interval nothing holds
        ([(*PLAIN, 0.0, 0.0, 0.02), (*AWARE, 0.01, np.nan, np.nan)], "undecided"),
    ],
)
def test_word_of_a_guard_is_that_of_its_worst_attack(
    make: Callable[..., Run], rows: list[Row], word: str
) -> None:
    found = verdict(make(count=2, table=table_of(*rows)))
    assert found.word == found.findings[0].word == word


def test_upper_end_of_any_attack_counts_not_that_of_the_largest_value(
    make: Callable[..., Run],
) -> None:
    rows = [(*PLAIN, 0.03, 0.02, 0.04), (*AWARE, 0.02, 0.0, 0.2)]
    finding = verdict(make(count=2, table=table_of(*rows))).findings[0]
    assert (finding.worst[10].value, finding.worst[10].low, finding.worst[10].high) == (
        0.03,
        0.02,
        0.2,
    )
    assert finding.word == "undecided"


def test_weak_attacks_and_failed_sanity_checks_forbid_holds_but_not_fails(
    make: Callable[..., Run],
) -> None:
    good, bad = (*AWARE, 0.0, 0.0, 0.02), (*AWARE, 0.9, 0.8, 0.95)
    check = {
        "name": "Converged",
        "status": "fail",
        "raised_if": "",
        "why": "",
        "do": "",
        "detail": "",
    }
    assert verdict(make(count=2, table=table_of(good, success=0.4))).word == "undecided"
    assert (
        "fool the classifier in 40.0 % of the cases"
        in verdict(make(count=2, table=table_of(good, success=0.4))).headline
    )
    for row, word in ((good, "undecided"), (bad, "fails")):
        found = verdict(make(count=2, table=table_of(row), sanity_checks=[check]))
        assert (found.word, found.evidence, found.findings[0].word) == (
            "invalid",
            False,
            word,
        )
        assert "not evidence" in found.headline and "Converged" in found.headline
    assert (
        "Converged"
        in verdict(make(count=2, table=table_of(good), sanity_checks=[check])).sanity_checks
    )


def test_a_failed_sanity_check_is_told_at_every_budget_of_the_page(
    make: Callable[..., Run],
) -> None:
    check = {
        "name": "Converged",
        "status": "fail",
        "raised_if": "",
        "why": "",
        "do": "",
        "detail": "",
    }
    good = (*AWARE, 0.0, 0.0, 0.02)
    table = pd.concat([table_of(good), table_of(good, eps=2 * EPS)])
    run = make(count=2, table=table, sanity_checks=[check], budgets=(EPS, 2 * EPS))
    assert [(v.word, v.evidence) for _, v in by_budget(run)] == [("invalid", False)] * 2
    assert render(run).count('<span class="word invalid">no evidence</span>') == 2


@pytest.mark.parametrize(
    ("objective", "word"),
    [
        ("evade", "holds"),
        ("evade:kd", "holds"),
        ("kde", "holds"),
        ("evade:svm", "unproven"),
        ("lid", "unproven"),
    ],
)
def test_who_knows_another_guard_proves_nothing_for_this_one(
    make: Callable[..., Run], objective: str, word: str
) -> None:
    rows = [
        (*PLAIN, 0.0, 0.0, 0.02),
        ("pgd", objective, "detector-aware", "kd", 0.01, 0.0, 0.04),
        ("worst", "any", "detector-aware", "kd", 0.01, 0.0, 0.04),
    ]
    assert verdict(make(count=2, table=table_of(*rows))).word == word


@pytest.mark.parametrize(("slips", "word"), [(0.0, "unproven"), (0.8, "fails")])
def test_a_guard_through_which_no_gradient_leads_does_not_hold(
    make: Callable[..., Run], slips: float, word: str
) -> None:
    table = table_of(
        (*AWARE, slips, slips, slips + 0.02), (*AWARE[:3], "svm", 0.0, 0.0, 0.02)
    )
    found = {
        f.detector: f
        for f in verdict(make(count=2, table=table, masked={"kd": "it is flat"})).findings
    }
    assert (found["kd"].word, found["svm"].word) == (word, "holds")
    assert ("it is flat" in found["kd"].why) == (word == "unproven")


def test_only_the_audited_budget_counts(make: Callable[..., Run]) -> None:
    whole_box = table_of((*AWARE, 1.0, 0.98, 1.0), eps=1.0)
    audited = table_of((*AWARE, 0.0, 0.0, 0.02))
    assert verdict(make(count=2, table=pd.concat([audited, whole_box]))).word == "holds"
    with pytest.raises(InputError, match="audited budget"):
        verdict(make(count=2, table=whole_box))


def test_best_guard_first_and_named(make: Callable[..., Run]) -> None:
    other = ("pgd", "evade", "detector-aware", "svm")
    found = verdict(
        make(count=2, table=table_of((*AWARE, 0.9, 0.8, 0.95), (*other, 0.01, 0.0, 0.03)))
    )
    assert [f.detector for f in found.findings] == ["svm", "kd"]
    assert found.headline == "1 of 2 guards holds: SVM."
    assert "1.0 % (0.0–3.0) at 10 % false alarms" in found.slipped


@pytest.mark.parametrize(
    ("reads", "kind"),
    [
        ({"kd": ("features",)}, ""),  # nobody knows what SVM reads
        ({"kd": ("features",), "svm": ("features",)}, "feature-space "),
        ({"kd": ("logits",), "svm": ("features", "logits")}, "feature- and logit-space "),
        ({"kd": ("logits",), "svm": ("logits",)}, "logit-space "),
        ({"kd": ("features",), "svm": ("image",)}, ""),
    ],
)
def test_headline_speaks_of_the_guards_that_were_audited_only(
    make: Callable[..., Run], reads: dict[str, tuple[str, ...]], kind: str
) -> None:
    def found(*values: float) -> str:
        other = ("pgd", "evade", "detector-aware", "svm")
        return verdict(
            make(count=2, table=table_of((*AWARE, *values), (*other, *values)), reads=reads)
        ).headline

    assert found(0.9, 0.8, 0.95) == f"No {kind}guard holds. All 2 fail."
    assert found(0.2, 0.1, 0.3) == f"No {kind}guard holds. The best of 2, KD, leaks."
    assert found(0.01, 0.0, 0.03) == f"2 of 2 {kind}guards hold: KD, SVM."
    assert (
        found(0.01, 0.0, 0.2)
        == f"No {kind}guard is shown to hold, and not every guard is shown to fail."
    )
    table = table_of(
        (*PLAIN, 0.01, 0.0, 0.03), ("pgd", "plain", "oblivious", "svm", 0.01, 0.0, 0.03)
    )
    unproven = verdict(make(count=2, table=table, reads=reads)).headline
    assert unproven.startswith("Not broken, not proven") and (
        f"Only {kind}guards" in unproven
    ) == bool(kind)


def test_page_and_card_say_what_each_guard_reads(make: Callable[..., Run]) -> None:
    reads = {
        d: ("image", "logits") if d == "svm" else ("features",)
        for d in ("kd", "bu", "kd+bu", "lid", "maha", "svm", "dnn")
    }
    page = render(make(count=2, reads=reads))
    assert (
        page.count('<td data-label="Reads">features</td>') == 6
        and '<td data-label="Reads">image, logits</td>' in page
    )
    assert "space guards were audited" not in page
    run = make(count=2, reads=dict.fromkeys(reads, ("features",)))
    assert "Only feature-space guards were audited" in render(run)
    assert card(run)["reads"]["svm"] == ["features"]
    harmless = ("", "", "", "kd", 0.1, 0.05, 0.2)
    table = pd.concat(
        [
            table_of(harmless).replace("slips_through_fpr10", "false_alarms_fpr10"),
            table_of((*PLAIN, 0.1, 0.0, 0.2)),
        ]
    )
    known = guards(make(count=2, table=table, reads=reads))
    assert known.columns[0] == "Reads" and [c.text for c in known.rows[0][1]] == [
        "features",
        "10.0 %",
    ]
    assert guards(make(count=2, table=table)).columns == known.columns[1:]
    assert 'data-label="Reads"' not in render(make(count=2))


def test_first_screen_says_what_was_attacked_and_how_strongly(run: Run) -> None:
    found = verdict(run)
    assert "resnet18 on phantoms" in found.attacked and "synthetic" in found.attacked
    assert "4 grey levels" in found.strength and "PGD + HFC" in found.strength
    assert found.sanity_checks.startswith(
        "3 of 4 sanity checks passed, 1 gave a warning, 0 failed"
    )


def test_images_of_few_patients_are_few_calibrate_cases(make: Callable[..., Run]) -> None:
    table = table_of((*AWARE, 0.0, 0.0, 0.02))
    for patients, word in ((99, "undecided"), (100, "holds")):
        counts = {"calibration": {"images": 990, "patients": patients, "correct": 990}}
        found = verdict(make(count=2, table=table, counts=counts))
        assert found.findings[0].word == word
        assert ("990 calibration images of 99 patients are too few" in found.headline) == (
            word == "undecided"
        )


@pytest.mark.parametrize(("images", "word"), [(99, "undecided"), (100, "holds")])
def test_a_threshold_from_few_calibrate_images_forbids_holds(
    make: Callable[..., Run], images: int, word: str
) -> None:
    counts = {"calibration": {"images": images, "patients": images, "correct": images}}
    table = table_of((*AWARE, 0.0, 0.0, 0.02))
    found = verdict(make(count=2, table=table, counts=counts))
    assert found.word == found.findings[0].word == word
    if word == "undecided":
        assert (
            "99 calibration images are too few" in found.headline
            and "needs 100" in found.headline
        )
        assert "From 99 calibration images a threshold is uncertain" in found.slipped
    bad = verdict(make(count=2, table=table_of((*AWARE, 0.9, 0.8, 0.95)), counts=counts))
    assert bad.word == "fails"  # that it fails is known all the same


def test_labels() -> None:
    assert [label(n) for n in ("pgd+plain", "pgd+hfc", "kd+bu", "my_guard")] == [
        "PGD",
        "PGD + HFC",
        "KD+BU",
        "my_guard",
    ]


def test_who_is_aimed_at_is_what_the_options_say_not_the_name(
    make: Callable[..., Run],
) -> None:
    table = table_of(
        (*AWARE[:3], "dnn", 0.0, 0.0, 0.02), (*AWARE[:3], "kd", 0.0, 0.0, 0.02)
    )
    words = {
        f.detector: f.word
        for f in verdict(make(count=2, table=table, aims={"evade": ("kd",)})).findings
    }
    assert words == {"kd": "holds", "dnn": "unproven"}


def test_one_function_resolves_the_aim_of_an_objective() -> None:
    audited = ("kd", "maha", "dnn")
    plans = {
        "all": ObjectivePlan(name="evade"),
        "by name": ObjectivePlan(name="evade:maha"),
        "by option": ObjectivePlan(name="selective", options={"detectors": ["dnn"]}),
        "built for": ObjectivePlan(name="kde"),
        "nobody": ObjectivePlan(name="evade", weight=0),
    }
    aims = {key: plan.aimed_at(audited) for key, plan in plans.items()}
    assert aims == {
        "all": audited,
        "by name": ("maha",),
        "by option": ("dnn",),
        "built for": ("kd",),
        "nobody": (),
    }


@pytest.mark.parametrize(
    ("metric", "low", "word"),
    [
        ("false_alarms_fpr10_shifted_rotation", 0.98, "undecided"),
        ("false_alarms_fpr10_noise", 0.98, "undecided"),
        ("false_alarms_fpr10", 0.98, "undecided"),
        # what many images leave possible
        ("false_alarms_fpr10_shifted_gamma", 0.29, "holds"),
        # an archive that spoils images is not harmless
        ("false_alarms_fpr10_jpeg-10", 0.98, "holds"),
        ("false_alarms_fpr5_noise", 0.98, "holds"),
    ],
)
@pytest.mark.parametrize(("slips", "bad"), [(0.0, "undecided"), (0.8, "fails")])
def test_a_guard_that_rejects_harmless_images_does_not_hold(
    make: Callable[..., Run], metric: str, low: float, word: str, slips: float, bad: str
) -> None:
    row = (*AWARE, slips, slips, slips + 0.02)
    table = table_of(row)
    alarms = {
        "knowledge": "none",
        "attack": "",
        "objective": "",
        "metric": metric,
        "value": 1.0,
        "low": low,
        "high": 1.0,
    }
    table = pd.concat([table, table.iloc[[-1]].assign(**alarms)])
    finding = verdict(make(count=2, table=table)).findings[0]
    assert finding.word == (bad if slips else word)
    if (slips, word) == (0.0, "undecided"):
        assert finding.why.startswith(
            "it also rejects harmlessly changed images: 100.0 % (98.0–100.0) "
        )
