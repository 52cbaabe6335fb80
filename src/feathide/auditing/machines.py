"""The files of an audit that machines read: ``audit.json``, ``audit.sarif``,
``identifiers.csv``.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from feathide.auditing.ci import Judged
from feathide.auditing.result import result_of
from feathide.auditing.sarif import sarif_of
from feathide.execution.store import write_whole
from feathide.identifiers import COLUMNS, identifiers_of
from feathide.report import Run

__all__ = ["MACHINE_FILES", "machine_files", "write_machine_files"]

MACHINE_FILES = ("audit.json", "audit.sarif", "identifiers.csv")


def write_machine_files(folder: Path, run: Run, judged: Sequence[Judged]) -> None:
    """Write the files into the folder of the run, whose plan is there already."""
    for name, content in machine_files(folder, run, judged).items():
        write_whole(folder / name, content)


def machine_files(folder: Path, run: Run, judged: Sequence[Judged]) -> dict[str, bytes]:
    """What the files hold.

    Args:
        folder: Of the run, with ``plan.yaml``.
        run: What the report is made from.
        judged: The conditions of ``--fail-if``, judged.

    Returns:
        The content of each of ``MACHINE_FILES``.
    """
    plan = (folder / "plan.yaml").read_bytes()
    table = run.table.to_csv(index=False).encode()
    digests = {"plan.yaml": _sha256(plan), "results.csv": _sha256(table)}
    record = yaml.safe_load(plan)["record"]
    result = result_of(run, record=record, judged=judged, digests=digests)
    return {
        "audit.json": _json(result),
        "audit.sarif": _json(sarif_of(result)),
        "identifiers.csv": _csv(result),
    }


def _sha256(content: bytes) -> str:
    return sha256(content).hexdigest()


def _json(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _csv(result: Mapping[str, Any]) -> bytes:
    """A row for each name of the audit and each of its identifiers."""
    attacks = result["attacks"]
    rows = identifiers_of(
        attacks=[a["attack"] for a in attacks],
        objectives=[a["objective"] for a in attacks],
        knowledge=[a["knowledge"] for a in attacks],
        detectors=[g["name"] for g in result["guards"]],
        sanity_checks=[c["name"] for c in result["sanity_checks"]],
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
