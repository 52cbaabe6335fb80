"""An audit as SARIF 2.1.0, which code-scanning pages read: what failed, and nothing that passed.

Each sanity check that fails or warns is a result, and so is each condition of ``--fail-if`` that
holds. Pages show every result as an alert, so what passed is counted in the run's properties
only. Source: OASIS, Static Analysis Results Interchange Format 2.1.0."""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from feathide.errors import expected
from feathide.execution.remote import near
from feathide.execution.store import write_whole
from feathide.formats.safety import guarded

__all__ = ["export_sarif", "sarif_of"]

LEVELS = {"fail": "error", "warn": "warning"}
CONDITIONS = "fail-if"
# how code-scanning pages know which weakness a rule is about
CWE = {"CWE-1039": "external/cwe/cwe-1039"}
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

Result = Mapping[str, Any]


def export_sarif(run: str | Path, out: str | Path, *, plan: str = "plan.yaml") -> int:
    """Write the SARIF file of a finished audit.

    Args:
        run: The folder of a finished audit.
        out: The file to be written.
        plan: The path of the plan in the repository, to which alerts are attached.

    Returns:
        The number of results, which are the alerts.

    Raises:
        InputError: For a folder without an ``audit.json`` that can be read.
    """
    path = near(run) / "audit.json"
    if not path.is_file():
        raise expected(
            f"{run} must hold audit.json",
            got="none",
            do="give the folder of a finished audit; feathide audit writes it",
        )
    stored = guarded(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    found = guarded(path, lambda: sarif_of(stored, plan=plan))
    write_whole(Path(out), json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")
    return len(found["runs"][0]["results"])


def sarif_of(result: Result, *, plan: str = "plan.yaml") -> dict[str, Any]:
    """The SARIF log of an ``audit.json``.

    Args:
        result: What ``audit.json`` holds.
        plan: The path of the plan in the repository.

    Returns:
        A log of one run, as JSON can hold it.
    """
    rules = list(_rules(result))
    places = {rule["id"]: index for index, rule in enumerate(rules)}
    results = [_alert(found, places, plan) for found in _failures(result)]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": _driver(result, rules)},
                "taxonomies": list(_taxonomies(result)),
                "results": results,
                "columnKind": "unicodeCodePoints",
                "automationDetails": {"id": f"feathide/{result['title']}/"},
                "properties": _properties(result),
            }
        ],
    }


def _driver(result: Result, rules: Sequence[Any]) -> dict[str, Any]:
    return {
        "name": "feathide",
        "version": str(result["tool"]["versions"].get("feathide", "")),
        "rules": rules,
    }


def _properties(result: Result) -> dict[str, Any]:
    statuses = [check["status"] for check in result["sanity_checks"]]
    return {
        "verdict": result["verdict"]["headline"],
        "evidence": result["verdict"]["evidence"],
        "marks": list(result["marks"]),
        "sanity_checks": {s: statuses.count(s) for s in ("pass", "warn", "fail")},
        "conditions": {
            "fulfilled": sum(not c["holds"] for c in result["conditions"]),
            "failed": sum(c["holds"] for c in result["conditions"]),
        },
    }


def _rules(result: Result) -> Iterator[dict[str, Any]]:
    """A rule for each sanity check, and one for the conditions."""
    for check in result["sanity_checks"]:
        yield {
            "id": _slug(check["name"]),
            "name": check["name"],
            "shortDescription": {"text": f"Sanity check: {check['name']}"},
            "fullDescription": {"text": f"Raised if {check['raised_if']}."},
            "help": {"text": f"Why it matters: {check['why']}. Do: {check['do']}."},
            "defaultConfiguration": {"level": "error"},
            "properties": {"tags": ["evaluation", *check["identifiers"]]},
        }
    ids = sorted({i for guard in result["guards"] for i in guard["identifiers"]})
    yield {
        "id": CONDITIONS,
        "name": "condition of the build",
        "shortDescription": {"text": "A condition of --fail-if holds"},
        "fullDescription": {
            "text": "A number of the audit is beyond what the build allows."
        },
        "help": {
            "text": "Open report.html, look at the row that decides, and harden the guard or "
            "the classifier."
        },
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["security", *ids, *(CWE[i] for i in ids if i in CWE)]},
    }


def _failures(result: Result) -> Iterator[tuple[str, str, str, str]]:
    """Rule, level, message and what makes it the same alert next time."""
    for check in result["sanity_checks"]:
        if check["status"] in LEVELS:
            message = f"{check['name']}: {check['detail'] or check['raised_if']}"
            rule = _slug(check["name"])
            yield rule, LEVELS[check["status"]], message, rule
    void = "" if result["verdict"]["evidence"] else " A sanity check failed: no evidence."
    for condition in result["conditions"]:
        if condition["holds"]:
            message = f"{condition['text']}: {condition['detail']}.{void}"
            yield CONDITIONS, "error", message, condition["text"]


def _alert(
    found: tuple[str, str, str, str], places: Mapping[str, int], plan: str
) -> dict[str, Any]:
    rule, level, message, same = found
    return {
        "ruleId": rule,
        "ruleIndex": places[rule],
        "level": level,
        "message": {"text": message},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": Path(plan).as_posix()},
                    "region": {"startLine": 1},
                }
            }
        ],
        "partialFingerprints": {"feathide/v1": sha256(same.encode()).hexdigest()},
    }


def _taxonomies(result: Result) -> Iterator[dict[str, Any]]:
    """The public texts whose identifiers are the tags of the rules."""
    for text in result["identifiers"]["texts"]:
        yield {
            "name": text["title"],
            "version": text["edition"],
            "shortDescription": {"text": f"{text['covers']}; {text['source']}"},
            "taxa": [
                {"id": id, "shortDescription": {"text": title}}
                for id, title in text["identifiers"].items()
            ],
        }


def _slug(name: str) -> str:
    return name.replace(" ", "-")
