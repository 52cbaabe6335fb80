"""``render``: one self-contained HTML page from the results of a run. It reads the results only,
never the network.
"""

import json
import math
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from feathide.report.card import card
from feathide.report.document import asset, document, plain
from feathide.report.figures import figures
from feathide.report.pictures import Album, pairs
from feathide.report.results import Case, Run
from feathide.report.tables import attacks, classifiers, guards, matrices, parts, variants
from feathide.report.verdict import (
    ALARMS,
    FAILS,
    HOLDS,
    INVALID,
    LEVELS,
    STRONG,
    WORDS,
    at_budget,
    by_budget,
    kind_of,
    label,
    verdict,
)

__all__ = ["Case", "Run", "render"]

SCRIPTS = ("page.js", "figures.js", "cases.js")


def render(run: Run) -> str:
    """The report of ``run`` as HTML text; write it with ``encoding="utf-8"``.

    Raises InputError if the table has no rows at the audited budget or no detector in it.
    """
    album, made = Album(run.scale), card(run)
    drawn = list(figures(run))
    data = {
        "figures": [f.spec() for f in drawn],
        "browser": _browser(run, album),
        "csv": {"results": run.table.to_csv(index=False)},
        "card": made,
    }
    amplify = _amplify(run)
    return document(
        "page.html.j2",
        SCRIPTS,
        data,
        run=run,
        eps=float(run.threat["eps"]),
        scale=run.scale,
        verdict=verdict(run),
        budgets=list(by_budget(run)),
        matrices=list(matrices(run)),
        attacks=attacks(run),
        classifiers=classifiers(run.table),
        guards=guards(run),
        parts=parts(run),
        variants=list(variants(run)),
        pairs=list(pairs(run.cases, run.scale, amplify=amplify)),
        amplify=amplify,
        shown=len(album.pictures) - len(album.clean),
        total=sum(map(len, run.cases.values())),
        limits=limits(run),
        figures=drawn,
        plan=yaml.safe_dump(plain(run.plan), sort_keys=False, allow_unicode=True),
        card=json.dumps(plain(made), indent=1, ensure_ascii=False),
        words={**WORDS, "invalid": INVALID},
        levels=LEVELS,
        reads=bool(run.reads),
        rule={"holds": HOLDS, "fails": FAILS, "strong": STRONG, "alarms": ALARMS},
        browser=Markup(asset("browser.html")),
    )


def limits(run: Run) -> list[str]:
    """What the run does not show, one sentence each."""
    rows = at_budget(run)
    out = []
    if run.synthetic:
        out.append(
            "The images are synthetic. The numbers say how the method behaves, nothing "
            "about patients."
        )
    if not (rows["knowledge"] == "detector-aware").any():
        out.append(
            "No attack knew the guards. What they catch here is an upper bound on what "
            "they are worth."
        )
    if not (rows["knowledge"] == "transfer").any():
        out.append(
            "Every attacker had the classifier itself; an attacker with a substitute was "
            "not tried."
        )
    out.append(
        f"{run.budget}: larger, local or physical changes, and attacks on the data before "
        "training, were not tried."
    )
    if (
        rows["classifier"].nunique() == 1
        and rows["seed"].nunique() == 1
        and run.seeds is None
    ):
        out.append(
            "One classifier, trained once: the intervals cover the choice of test images, "
            "not of networks."
        )
    if rows.loc[rows["detector"] != "", "detector"].nunique() > 1:
        out.append(
            "The best guard was picked on the images that measure it; on new images it may "
            "look worse."
        )
    if kind := kind_of(verdict(run).findings):
        out.append(
            f"Only {kind}guards were audited: what hides from them may still show in the "
            "image itself, where no guard looked."
        )
    out.append(
        "An attack that gets through is proof; that none got through would not prove that "
        "none can."
    )
    return out


def _browser(run: Run, album: Album) -> dict[str, Any]:
    """What the case browser knows: conditions in turn, fooled cases first, so that these have
    pictures if not all fit.
    """
    found = [
        (not case.fooled, i, name, case)
        for name, part in run.cases.items()
        for i, case in enumerate(part)
    ]
    found.sort(key=lambda item: item[:2])
    cases = [
        {"condition": label(name), **_facts(case), "picture": album.add(case)}
        for _, _, name, case in found
    ]
    s = run.scale
    return {
        "cases": cases,
        "pictures": album.pictures,
        "classes": list(run.class_names),
        "thresholds": plain(run.thresholds),
        "names": {d: label(d) for d in run.thresholds},
        "scale": {
            "levels": s.levels,
            "bits": album.bits,
            "low": s.native_low,
            "high": s.native_high,
            "unit": s.unit,
        },
        "amplify": _amplify(run),
    }


def _facts(case: Case) -> dict[str, Any]:
    keep = (
        "id",
        "label",
        "target",
        "predicted",
        "fooled",
        "clean_predicted",
        "scores",
        "clean_scores",
        "energies",
    )
    return {name: plain(getattr(case, name)) for name in keep}


def _amplify(run: Run) -> float:
    """The power of two that makes the largest change of any case nearly saturate."""
    changes = [
        float(np.abs(c.adversarial - c.clean).max())
        for part in run.cases.values()
        for c in part
    ]
    largest = max(
        [change for change in changes if change > 0], default=float(run.threat["eps"])
    )
    return 2.0 ** max(
        0, min(10, math.floor(math.log2((run.scale.high - run.scale.low) / largest)))
    )
