"""Conditions on the numbers of an audit, and its sanity checks and conditions as JUnit XML, for
build servers.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt
from pathlib import Path
from xml.etree import ElementTree as Xml

import pandas as pd

from feathide.errors import expected, unknown
from feathide.execution.store import write_whole
from feathide.metrics.registry import METRICS, metric_of

__all__ = ["Condition", "Judged", "write_junit"]

SIGNS = {"<": lt, "<=": le, ">": gt, ">=": ge}


@dataclass(frozen=True)
class Judged:
    """A condition beside the numbers of a run: whether it holds, and the row that decides."""

    text: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Condition:
    """``slips_through_fpr10 > 0.05``: a metric of the table, a sign of ``SIGNS`` and a number."""

    metric: str
    sign: str
    number: float

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """The condition that ``text`` says. Raises ``InputError`` for any other form and for a
        metric that no table has.
        """
        found = re.fullmatch(r"\s*(\w+)\s*([<>]=?)\s*([-+.\deE]+)\s*", text)
        try:
            number = float(found[3]) if found else math.nan
        except ValueError:
            number = math.nan
        if found is None or not math.isfinite(number):
            do = 'write it as "slips_through_fpr10 > 0.05"'
            raise expected(
                "a condition must be a metric, one of < <= > >=, and a number",
                got=repr(text),
                do=do,
            )
        if metric_of(found[1]) is None:
            raise unknown("metric", found[1], METRICS)
        return cls(found[1], found[2], number)

    def judge(self, table: pd.DataFrame) -> Judged:
        """Whether it holds for the worst row: the largest for > and >=, the smallest for < and
        <=, of all attacks and detectors.

        It holds, too, where the run has no number of that metric: what was not measured cannot
        pass."""
        text = f"{self.metric} {self.sign} {self.number:g}"
        rows = table[(table.metric == self.metric) & table.value.notna()]
        if rows.empty:
            return Judged(text, True, f"this run has no {self.metric}")
        values = rows.value.to_numpy()
        row = rows.iloc[int(values.argmax() if ">" in self.sign else values.argmin())]
        place = (
            ", ".join(str(row[c]) for c in ("attack", "objective", "detector") if row[c])
            or "clean"
        )
        detail = f"{row.value:.4g} ({place}), n = {int(row.n)}"
        return Judged(text, bool(SIGNS[self.sign](row.value, self.number)), detail)


def write_junit(run: str | Path, conditions: Sequence[Judged] = ()) -> Path:
    """``audit.junit.xml`` of a finished audit: a test case per sanity check and per condition. A
    warning passes and is told in its output.

    A condition fails its case if it is met, as with ``--fail-if``. If a sanity check failed, one
    that is not met is an error: the numbers are not evidence, so it is unknown whether it is
    met."""
    folder = Path(run)
    sanity_checks = json.loads((folder / "sanity_checks.json").read_text(encoding="utf-8"))
    suite = Xml.Element("testsuite", name="feathide audit")
    for check in sanity_checks:
        reason = f"{check['detail']}\nraised if {check['raised_if']}; {check['why']}; {check['do']}"
        _case(
            suite,
            "sanity_checks",
            check["name"],
            check["status"] == "fail",
            reason,
            loud=check["status"] != "pass",
        )
    failed = [check["name"] for check in sanity_checks if check["status"] == "fail"]
    void = (
        f"not evidence: sanity check{'s' * (len(failed) > 1)} {', '.join(failed)} failed"
        if failed
        else ""
    )
    for judged in conditions:
        _case(
            suite, "fail-if", judged.text, judged.holds, judged.detail, loud=True, void=void
        )
    suite.set("tests", str(len(suite)))
    for kind in ("failure", "error"):
        suite.set(f"{kind}s", str(sum(case.find(kind) is not None for case in suite)))
    path = folder / "audit.junit.xml"
    write_whole(path, Xml.tostring(suite, encoding="utf-8", xml_declaration=True))
    return path


def _case(
    suite: Xml.Element,
    group: str,
    name: str,
    failed: bool,
    text: str,
    *,
    loud: bool,
    void: str = "",
) -> None:
    case = Xml.SubElement(
        suite, "testcase", classname=f"feathide.{group}", name=_legal(name)
    )
    if failed or void:
        said = "\n".join(filter(None, ("" if failed else void, text)))
        kind = "failure" if failed else "error"
        Xml.SubElement(
            case, kind, message=_legal(said.splitlines()[0] if said else "")
        ).text = _legal(said)
    elif loud:
        Xml.SubElement(case, "system-out").text = _legal(text)


def _legal(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c.isprintable() or c == "\n")
