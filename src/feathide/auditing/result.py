"""``audit.json``: the result of an audit for machines, in the form of a published JSON Schema.

The schema stands beside this file; its version is a part of every ``audit.json``. A field that
goes, or means something else, raises the first number; a further field raises the second."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from feathide.auditing.ci import Judged
from feathide.identifiers import Identified, Identifier, identified
from feathide.report import Finding, Rate, Run, Verdict, verdict
from feathide.report.document import plain

__all__ = ["SCHEMA_VERSION", "audit_schema", "result_of"]

SCHEMA_VERSION = "1.0"
# in the record of plan.yaml, and worth knowing of a result
SUBJECTS = ("data", "classifier")


def audit_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``audit.json``."""
    text = files("feathide.auditing").joinpath("audit.schema.json")
    return dict(json.loads(text.read_text(encoding="utf-8")))


def result_of(
    run: Run,
    *,
    record: Mapping[str, Any],
    judged: Sequence[Judged] = (),
    digests: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What ``audit.json`` holds.

    Args:
        run: What the report is made from.
        record: That of plan.yaml, with the digests of data and classifier.
        judged: The conditions of ``--fail-if``, judged.
        digests: SHA-256 of other files of the run, by name.

    Returns:
        Plain values, which JSON can hold; numbers that are not finite are None.
    """
    found, known = verdict(run), identified()
    result: dict[str, Any] = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "title": run.title,
            "marks": _marks(run),
            "tool": {"name": "feathide", "versions": run.versions},
            "subject": {
                **{name: record.get(name, {}) for name in SUBJECTS},
                "class_names": list(run.class_names),
                "counts": run.counts,
            },
            "threat": run.threat,
            "budgets": list(run.budgets),
            "verdict": _verdict(found),
            "guards": [_guard(run, known, f) for f in found.findings],
            "attacks": _attacks(run, known),
            "sanity_checks": [
                {**check, "identifiers": _ids(known.of_sanity_check())}
                for check in run.sanity_checks
            ],
            "conditions": [asdict(condition) for condition in judged],
            "caveats": list(run.caveats),
            "results": run.table.to_dict("records"),
            "subgroups": [] if run.subgroups is None else run.subgroups.to_dict("records"),
            "identifiers": _texts(known),
            "digests": dict(digests or {}),
        }
    )
    return result


def _marks(run: Run) -> list[str]:
    """What a reader must know before any number."""
    return ["synthetic data"] * run.synthetic + ["quick look"] * (run.quick is not None)


def _verdict(found: Verdict) -> dict[str, Any]:
    names = ("word", "headline", "attacked", "strength", "slipped", "sanity_checks")
    return {
        **{name: getattr(found, name) for name in names},
        "evidence": found.evidence,
        "success": _rate(found.success),
    }


def _guard(run: Run, known: Identified, finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.detector,
        "word": finding.word,
        "why": finding.why,
        "worst_attack": finding.attack,
        "attacked_by_someone_who_knows_it": finding.aware,
        "reads": list(finding.reads),
        "slips_through": {
            f"fpr{level}": _rate(rate) for level, rate in finding.worst.items()
        },
        "slips_through_without_hiding": _rate(finding.plain),
        "thresholds": run.thresholds.get(finding.detector, {}),
        "identifiers": _ids(known.of_detector(finding.detector)),
    }


def _attacks(run: Run, known: Identified) -> list[dict[str, Any]]:
    """Each attack of the table with its objective and what it knew, once."""
    rows = run.table[(run.table["attack"] != "") & (run.table["attack"] != "worst")]
    heads = rows[["attack", "objective", "knowledge"]].drop_duplicates()
    return [
        {
            "attack": attack,
            "objective": objective,
            "knowledge": knowledge,
            "identifiers": _ids(
                known.of_attack(attack)
                + known.of_objective(objective.partition(":")[0])
                + known.of_knowledge(knowledge)
            ),
        }
        for attack, objective, knowledge in heads.itertuples(index=False)
    ]


def _ids(found: Sequence[Identifier]) -> list[str]:
    return list(dict.fromkeys(identifier.id for identifier in found))


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else asdict(rate)


def _texts(known: Identified) -> dict[str, Any]:
    return {
        "version": known.version,
        "checked": known.checked,
        "texts": [asdict(text) for text in known.texts],
        "left_out": list(known.left_out),
        "says": "Identifiers name what was tried. They claim no conformity with any text.",
    }
