"""``render``: one self-contained HTML page from the results of a run. It reads the results only,
never the network.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from feathide.report.advice import advice
from feathide.report.card import card
from feathide.report.document import document, plain
from feathide.report.figures import figures
from feathide.report.file_copy import for_the_file
from feathide.report.glossary import Glossary
from feathide.report.groups import group_line, group_tables
from feathide.report.naming import class_name, label, layer_name, relabelled
from feathide.report.pictures import Album, pairs, triple
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
    verdict,
)
from feathide.report.visibility import budget_in_words, most_visible

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
    amplify, found, visible = _amplify(run), verdict(run), most_visible(run)
    return document(
        "page.html.j2",
        SCRIPTS,
        data,
        run=run,
        eps=float(run.threat["eps"]),
        classes=[class_name(str(name)) for name in run.class_names],
        scale=run.scale,
        head=head(run),
        verdict=found,
        advice=advice(found.word, quick=str((run.quick or {}).get("command", ""))),
        budget=budget_in_words(run),
        visible=visible,
        visible_pictures=visible and triple(visible.case, run.scale, amplify),
        checks=[_checked(run, check) for check in run.sanity_checks],
        knowledge=_knowledge(run),
        budgets=list(by_budget(run)),
        matrices=list(matrices(run)),
        attacks=attacks(run),
        classifiers=classifiers(run.table),
        guards=guards(run),
        parts=parts(run),
        variants=list(variants(run)),
        groups=list(group_tables(run)),
        group_line=group_line(run),
        for_the_file=for_the_file(run),
        pairs=list(pairs(run.cases, run.scale, amplify=amplify)),
        amplify=amplify,
        shown=len(album.pictures) - len(album.clean),
        total=sum(map(len, run.cases.values())),
        limits=[*limits(run), *(_named(run, line) for line in run.caveats)],
        figures=drawn,
        plan=yaml.safe_dump(plain(run.plan), sort_keys=False, allow_unicode=True),
        card=json.dumps(plain(made), indent=1, ensure_ascii=False),
        words={**WORDS, "invalid": INVALID},
        levels=LEVELS,
        reads=bool(run.reads),
        rule={"holds": HOLDS, "fails": FAILS, "strong": STRONG, "alarms": ALARMS},
        glossary=Glossary(run.about.docs),
    )


@dataclass(frozen=True)
class Entry:
    """A line of the page's head, with the digest of what it names, if it has one."""

    name: str
    value: str
    digest: str = ""


def head(run: Run) -> list[Entry]:
    """Who audited what, when and with which version."""
    about, unsaid = run.about, "not stated in the plan"
    entries = [
        Entry("Date", about.date),
        Entry("Made by", about.made_by or unsaid),
        Entry("Made for", about.made_for or unsaid),
        Entry("Classifier", about.model, about.model_digest),
        Entry("Images", about.data, about.data_digest),
        Entry("feathide", str(run.versions.get("feathide", ""))),
    ]
    return [entry for entry in entries if entry.value]


def _named(run: Run, text: str) -> str:
    """``text`` with the names of attacks and guards as the page writes them."""
    attacks = zip(run.table["attack"], run.table["objective"], strict=True)
    conditions = {f"{a}+{o}" for a, o in attacks if a and o}
    return relabelled(text, sorted(conditions | set(run.table["detector"]) - {""}))


def _checked(run: Run, check: Mapping[str, str]) -> dict[str, str]:
    """A sanity check as the page shows it."""
    return {**check, "detail": _named(run, check["detail"])}


def _knowledge(run: Run) -> str:
    """What each attacker knows: "plain: oblivious" as "PGD that does not hide"."""
    said = str(run.threat["knowledge"])
    parts = [part.partition(": ") for part in said.split("; ")]
    if not all(knows for _, _, knows in parts):
        return said
    return "; ".join(
        f"{'without hiding' if name == 'plain' else label(name)}: {knows}"
        for name, _, knows in parts
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
        {
            "key": f"{name}/{case.id}",
            "condition": label(name),
            **_facts(case),
            "picture": album.add(case),
        }
        for _, _, name, case in found
    ]
    s = run.scale
    return {
        "cases": cases,
        "pictures": album.pictures,
        "classes": [class_name(str(name)) for name in run.class_names],
        "thresholds": plain(run.thresholds),
        "names": {d: label(d) for d in run.thresholds},
        "layers": {n: layer_name(n) for _, _, _, case in found for n in case.energies},
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
