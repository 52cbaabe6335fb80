"""The date of an audit, which the record of its folder keeps: an audit that goes on, or whose
page is made again, keeps the day on which it began.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from feathide.errors import InputError
from feathide.execution.digests import digest
from feathide.pipeline.context import Context
from feathide.plans.plan import load_plan

__all__ = ["begun_on", "date_of"]


def begun_on(context: Context) -> str:
    """The day on which this audit began, as 2026-05-31: that of the record, where the folder
    holds one of the same plan, and today otherwise (UTC).
    """
    path = _plan_of(context.store.folder)
    if os.path.isfile(path):
        try:
            same = digest([load_plan(path)]) == digest([context.plan])
        except InputError:
            same = False
        if same and (date := date_of(context)):
            return date
    return datetime.now(UTC).date().isoformat()


def date_of(context: Context) -> str:
    """The date in the record of a folder; "" where it holds none."""
    path = _plan_of(context.store.folder)
    if not os.path.isfile(path):
        return ""
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(document["record"]["date"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ""


def _plan_of(folder: Path) -> Path:
    return Path(folder) / "plan.yaml"
