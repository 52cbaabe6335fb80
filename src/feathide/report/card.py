"""``card``: the results of an audit as a model card, in the form that Hugging Face calls
``model-index``.
"""

from collections.abc import Iterator
from typing import Any

from feathide.metrics.registry import title_of
from feathide.report.file_copy import named_by
from feathide.report.naming import label
from feathide.report.results import Run
from feathide.report.verdict import Finding, Rate, verdict, worst

__all__ = ["card"]


def card(run: Run) -> dict[str, Any]:
    """The model card: one result with the classifier's accuracy, calibration error and Brier
    score on clean test images, the success of the strongest attack without a guard, and the
    metrics of every guard under its worst attack.

    Shares are in [0, 1]; ``args`` holds the interval at 95 %, the number of images, the guard,
    the attack and the budget. It can stand in the header of a model's ``README.md`` as YAML."""
    found = verdict(run)
    classifier, data = (
        ", ".join(dict.fromkeys(run.table[c].astype(str)))
        for c in ("classifier", "dataset")
    )
    metrics = list(_clean(run))
    if found.success is not None:
        metrics.append(
            _metric(
                "attack_success_rate",
                f"{title_of('success')}, no guard",
                found.success,
                **_budget(run),
            )
        )
    metrics += [m for finding in found.findings for m in _guard(run, finding)]
    result = {
        "task": {
            "type": "image-classification",
            "name": "Adversarial robustness of a guarded classifier",
        },
        "dataset": {"type": data, "name": data},
        "metrics": metrics,
        "source": {"name": f"feathide {run.versions.get('feathide', '')}".strip()},
    }
    return {
        "model-index": [{"name": classifier, "results": [result]}],
        "verdict": {d.detector: d.word for d in found.findings},
        "reads": {d.detector: list(d.reads) for d in found.findings if d.reads},
        "headline": found.headline,
        "evidence": found.evidence,
        "identifiers": {i.id: i.title for i in named_by(run)},
        "tags": ["synthetic data"] * run.synthetic
        + ["quick look"] * (run.quick is not None),
        **({} if run.quick is None else {"quick_look": dict(run.quick)}),
    }


def _clean(run: Run) -> Iterator[dict[str, Any]]:
    for kind in ("accuracy", "calibration_error", "brier_score"):
        rate = worst(run.table[(run.table["metric"] == kind) & (run.table["attack"] == "")])
        if rate is not None:
            yield _metric(kind, f"{title_of(kind)}, clean test images", rate)


def _guard(run: Run, finding: Finding) -> Iterator[dict[str, Any]]:
    for level, rate in finding.worst.items():
        kind = f"slips_through_fpr{level}"
        yield _metric(
            kind,
            f"{title_of(kind)}, {label(finding.detector)}, worst attack",
            rate,
            guard=finding.detector,
            attack=finding.attack,
            **_budget(run),
        )


def _budget(run: Run) -> dict[str, str]:
    return {"budget": run.size(float(run.threat["eps"]))}


def _metric(kind: str, name: str, rate: Rate, **more: str) -> dict[str, Any]:
    args = {**more, "low": rate.low, "high": rate.high, "n": rate.n}
    return {"type": kind, "name": name, "value": rate.value, "args": args}
