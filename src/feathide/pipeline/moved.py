"""A run that goes on elsewhere: its images and weights, where the paths of its plan lead nowhere.

Looked for, by the end of their path, beside the run, in its folder, and in the folders that
FEATHIDE_DATA names. Images are taken if they have the digest that the run has recorded."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePath, PureWindowsPath

import yaml

from feathide.data import Cases, load_cases
from feathide.data.load import DATASETS
from feathide.errors import InputError, expected
from feathide.plans.sections import DataPlan

__all__ = ["FOLDERS", "cases_of", "file_near", "loaded"]

FOLDERS = "FEATHIDE_DATA"  # the variable that names folders, separated as in PATH
ENDS = 3  # parts of a path's end that are tried, the longest first
GENERATED = ("phantoms", "phantoms3d")


def cases_of(data: DataPlan, seed: int, run: Path) -> Cases:
    """The cases of a plan, wherever they are now. Raises ``InputError``, which says where it
    looked.
    """
    given = data.path
    data = data.model_copy(update={"patients": file_near(data.patients, run)})
    if given in GENERATED or given in DATASETS or os.path.exists(given):
        return loaded(data, seed)
    wanted, other = _recorded(run), list[Path]()
    for place in _places(given, run):
        moved = {"path": str(place), "name": data.name or PurePath(given).stem}
        cases = loaded(data.model_copy(update=moved), seed)
        if wanted in (None, cases.digest):
            note = f"{given} is not there; the images are read from {place}"
            return replace(cases, notes=(*cases.notes, note))
        other.append(place)
    held = f", but other images in {', '.join(map(str, other))}" if other else ""
    raise _lost(given, run, f"nothing of that name{held}")


def file_near(path: str | None, run: Path) -> str | None:
    """``path``, or where the file lies now; ``path`` again if nothing is found."""
    if path is None or os.path.exists(path) or path.startswith("package:"):
        return path
    return next((str(place) for place in _places(path, run)), path)


@lru_cache(maxsize=8)  # a programme asks several plans in turn
def loaded(data: DataPlan, seed: int) -> Cases:
    """The cases of a plan; plans that differ in other things share them."""
    return load_cases(**data.model_dump(), seed=seed)


def _recorded(run: Path) -> str | None:
    """The digest of the images that the run in this folder saw; None where none was begun."""
    try:
        record = yaml.safe_load((run / "plan.yaml").read_text(encoding="utf-8"))["record"]
        return str(record["data"]["digest"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _folders(run: Path) -> list[Path]:
    """Where is looked: beside a run that was begun, and where the variable says."""
    named = [Path(f) for f in os.environ.get(FOLDERS, "").split(os.pathsep) if f]
    begun = [run.absolute(), run.absolute().parent] if _recorded(run) else []
    return [*named, *begun]


def _places(path: str, run: Path) -> Iterator[Path]:
    """What there is under the last parts of ``path`` in the folders."""
    pure = PureWindowsPath(path) if "\\" in path else PurePath(path)
    parts = [p for p in pure.parts if p not in ("..", pure.anchor)]
    for folder in _folders(run):
        for n in range(min(ENDS, len(parts)), 0, -1):
            place = folder.joinpath(*parts[-n:])
            if os.path.exists(place):
                yield place


def _lost(path: str, run: Path, got: str) -> InputError:
    looked = _folders(run)
    where = f", nor in {', '.join(map(str, looked))}" if looked else ""
    return expected(
        f"{path} must be a file or folder",
        got=f"{got}{where}",
        do=f'correct the path, name the folder that holds it in {FOLDERS}, or use "phantoms"',
    )
