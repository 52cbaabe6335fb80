"""A finished audit looked at again: stored files against their checksums, stored images against
the classifier, the tables against the scores.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import yaml

from feathide.auditing.ci import Condition
from feathide.auditing.export import finished
from feathide.auditing.machines import machine_files
from feathide.auditing.report_data import run_of, versions
from feathide.auditing.tasks import audit_tasks
from feathide.errors import InputError
from feathide.execution.digests import digest
from feathide.execution.packing import linf_distance
from feathide.execution.remote import home_of, near
from feathide.execution.store import Store, held_plan
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.moved import loaded
from feathide.pipeline.stored_images import decode
from feathide.pipeline.subgroups import subgroups_of
from feathide.pipeline.table import comparisons_of, stored_table, table_of
from feathide.plans.plan import Cell
from feathide.report import Run, render
from feathide.sanity.checks import sanity_checks_of

__all__ = ["TOLERANCE", "Difference", "Verified", "verify"]

# of a logit, relative to the largest one of its image: what another machine may compute otherwise
TOLERANCE = 1e-3
SHOWN = 5  # cells of a table that are named


@dataclass(frozen=True)
class Difference:
    """Something that is not as the run says: ``where`` (a file, an image) and ``what``."""

    where: str
    what: str


@dataclass(frozen=True)
class Verified:
    """What was looked at, and every difference that was found: ``files`` by checksum, ``images``
    predicted again, ``numbers`` computed again.
    """

    files: int
    images: int
    numbers: int
    differences: tuple[Difference, ...]


def verify(run: str | Path, *, sample: int = 64) -> Verified:
    """Whether the finished audit in ``run`` still is what it says. Nothing is written, nothing is
    attacked.

    The plan, the data and the classifier must be those of the run's record. Every stored file
    must be there and match its checksum. ``sample`` adversarial images of the test split, spread
    over all attacks, are read back, must differ from their source by what is stored and no more
    than eps, and must get the stored logits (``TOLERANCE``) and class. Tables, sanity checks and,
    with the same versions of the software, the report are made again from the stored scores. A
    file or source that cannot be read is a difference. Raises ``InputError`` for a folder that
    holds no finished audit."""
    with _at_hand(near(run)) as folder:
        return _verified(folder, sample)


@contextmanager
def _at_hand(folder: Path) -> Iterator[Path]:
    """The run's folder; of a run elsewhere a whole copy that is fetched now, since a near copy
    says nothing about its home.
    """
    home = home_of(folder)
    if home is None:
        yield folder
        return
    with TemporaryDirectory() as place:
        for name in home.names():
            path = Path(place, name)
            if path.resolve().is_relative_to(Path(place).resolve()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(home.get(home.folder / name) or b"")
        yield Path(place)


def _verified(run: Path, sample: int) -> Verified:
    found = finished(run)
    loaded.cache_clear()
    context = Context(found.plan, found.store)  # nothing that this process remembers
    files, damaged = _files(context.store)
    try:
        wrong = [*damaged, *_record(context)]
    except InputError as error:
        return Verified(
            files,
            0,
            0,
            (*damaged, Difference("plan.yaml", f"what it names cannot be read: {error}")),
        )
    if len(wrong) > len(damaged):  # other data or weights: nothing below is about this run
        return Verified(files, 0, 0, tuple(wrong))
    wrong += _missing(context)
    images, other = _predicted(context, sample)
    numbers, changed = _tables(context)
    return Verified(files, images, numbers, (*wrong, *other, *changed))


# --- files --------------------------------------------------------------------------------------


def _files(store: Store) -> tuple[int, list[Difference]]:
    """How many files have a checksum, and those that do not match it."""
    count, wrong = 0, []
    for path in sorted(store.folder.rglob("*.*")):
        key = path.relative_to(store.folder).with_suffix("").as_posix()
        if (
            path.suffix not in (".npz", ".json")
            or "/" not in key
            or path.name.startswith(".")
        ):
            continue
        count += 1
        try:
            sound = (
                store.sound(key)
                if path.suffix == ".npz"
                else store.load_json(key) is not None
            )
        except InputError:
            sound = False
        if not sound:
            wrong.append(Difference(f"{key}{path.suffix}", "does not match its checksum"))
    return count, wrong


def _record(context: Context) -> Iterator[Difference]:
    """Plan, data and classifier against the record of the run."""
    record = yaml.safe_load(
        (context.store.folder / "plan.yaml").read_text(encoding="utf-8")
    ).get("record", {})
    for name, now in (
        ("data", context.cases.digest),
        ("classifier", context.steps.classifier.digest),
    ):
        seen = record.get(name, {}).get("digest")
        if seen != now:
            yield Difference(
                "plan.yaml",
                f"the {name} has the digest {now[:16]}, the run saw {str(seen)[:16]}",
            )
    held, now = (
        held_plan(context.store.folder),
        digest([context.plan, context.cases.digest]),
    )
    if held != now:
        yield Difference(
            "plan.yaml", f"the plan has the digest {now}, the run began with {held}"
        )


def _missing(context: Context) -> Iterator[Difference]:
    for task in audit_tasks(context):
        if not context.store.path(task.key).exists():
            yield Difference(f"{task.key}.npz", "is missing")


# --- images -------------------------------------------------------------------------------------


def _predicted(context: Context, sample: int) -> tuple[int, list[Difference]]:
    """A sample of the stored images, each read back and predicted again."""
    count, wrong = 0, []
    places = [
        (cell, i)
        for cell in cells(context)
        for i in range(context.data.batches("test", attacked=True))
    ]
    draw = np.random.default_rng(context.plan.seed)
    share = -(-sample // max(len(places), 1))
    for cell, index in (places[k] for k in draw.permutation(len(places))):
        try:
            n, found = _batch(context, cell, index, draw, min(share, sample - count))
        except InputError as error:
            n, found = (
                0,
                [
                    Difference(
                        f"{cell.name}, batch {index}", f"cannot be predicted again: {error}"
                    )
                ],
            )
        count += n
        wrong += found
    return count, wrong


def _batch(
    context: Context, cell: Cell, index: int, draw: np.random.Generator, most: int
) -> tuple[int, list[Difference]]:
    condition = context.steps.condition(cell)
    key = context.steps.attack(cell, "test").keys[index]
    stored, out = (
        context.store.load(key),
        context.store.load(context.steps.extract(condition, "test").keys[index]),
    )
    some = np.sort(draw.permutation(len(stored["rows"]))[:most])
    if len(some) == 0:
        return 0, []
    x = decode(stored["image"][some], context.limits.grid, context.cases.box)
    now = context.networks.classifier.observe(x.to(context.data.device))
    linf = linf_distance(
        x.numpy(), context.cases.images(stored["rows"][some]), context.limits.grid
    )
    wrong = []
    for j, i in enumerate(some):
        old, new = out["logits"][i], now.logits[j].numpy()
        case = f"{key}.npz, {context.cases.ids[stored['rows'][i]]}"
        if np.abs(new - old).max() > TOLERANCE * (1 + np.abs(old).max()):
            wrong.append(
                Difference(
                    case,
                    f"the classifier gives the logits {_few(new)}, stored are {_few(old)}",
                )
            )
        elif (predicted := int(now.predicted[j])) != int(stored["prediction"][i]):
            wrong.append(
                Difference(
                    case,
                    f"is classified as {predicted}, stored is {int(stored['prediction'][i])}",
                )
            )
        limit = cell.eps if context.plan.norm == "linf" else np.inf
        if abs(linf[j] - stored["linf"][i]) > 1e-6 * max(
            1.0, abs(context.cases.box[1])
        ) or linf[j] > limit * (1 + 1e-3):
            what = (
                f"differs from its source by {linf[j]:.6g}, stored is {stored['linf'][i]:.6g}, "
                f"eps {cell.eps:.6g}"
            )
            wrong.append(Difference(case, what))
    return len(some), wrong


def _few(values: np.ndarray) -> str:
    return (
        "["
        + ", ".join(f"{v:.5g}" for v in values[:4])
        + (", ...]" if len(values) > 4 else "]")
    )


# --- tables -------------------------------------------------------------------------------------


def _tables(context: Context) -> tuple[int, list[Difference]]:
    """Tables, sanity checks and report, made again from the stored scores."""
    folder, wrong = context.store.folder, []
    try:
        table, compared, sanity_checks = (
            table_of(context),
            comparisons_of(context),
            sanity_checks_of(context),
        )
        groups = subgroups_of(context) if context.plan.subgroups.columns else None
    except InputError as error:
        return 0, [Difference("results.csv", f"cannot be computed again: {error}")]
    for name, frame in (
        ("results.csv", table),
        ("results.parquet", table),
        ("comparisons.csv", compared),
    ):
        wrong += [Difference(name, what) for what in _changed(folder / name, frame)]
    if groups is not None:
        wrong += [
            Difference("subgroups.csv", what)
            for what in _changed(folder / "subgroups.csv", groups)
        ]
    wrong += _changed_report(context, table, sanity_checks)
    return len(table) + len(compared), wrong


def _changed_report(
    context: Context, table: pd.DataFrame, sanity_checks: list[dict[str, str]]
) -> Iterator[Difference]:
    """Sanity checks, and, with the same versions of the software, report and machine files."""
    folder = context.store.folder
    try:
        if _stored_json(folder / "sanity_checks.json") != json.loads(
            json.dumps(sanity_checks)
        ):
            yield Difference(
                "sanity_checks.json",
                "differs from the sanity checks that the stored results give",
            )
        plan = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))
        if plan["record"]["versions"] != versions():
            return
        run = run_of(context, table, sanity_checks=sanity_checks)
        if (folder / "report.html").read_bytes() != render(run).encode():
            yield Difference("report.html", "is not the page that the stored results give")
        yield from _changed_for_machines(folder, run, table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Difference(
            "sanity_checks.json, report.html, audit.json", f"cannot be read: {error}"
        )


def _changed_for_machines(
    folder: Path, run: Run, table: pd.DataFrame
) -> Iterator[Difference]:
    """The machine files, with the conditions that audit.json names judged again."""
    texts = [str(c["text"]) for c in _stored_json(folder / "audit.json")["conditions"]]
    judged = [Condition.parse(text).judge(table) for text in texts]
    for name, now in machine_files(folder, run, judged).items():
        if (folder / name).read_bytes() != now:
            yield Difference(name, "is not what the stored results give")


def _stored_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _changed(path: Path, now: pd.DataFrame) -> Iterator[str]:
    """What a written table says otherwise."""
    try:
        text = (
            stored_table(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, keep_default_na=False, dtype=str)
        )
    except Exception as error:  # pandas and pyarrow raise whatever their parsers meet
        yield (
            "cannot be read: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
        return
    if list(text.columns) != list(now.columns) or len(text) != len(now):
        yield (
            f"has {len(text)} rows of {len(text.columns)} columns, the stored scores give "
            f"{len(now)} of {len(now.columns)}"
        )
        return
    cells = [
        (i, c)
        for c in now.columns
        for i in range(len(now))
        if not _same(text[c].iloc[i], now[c].iloc[i])
    ]
    for i, column in sorted(cells)[:SHOWN]:
        names = ", ".join(
            str(now[c].iloc[i])
            for c in ("attack", "objective", "detector", "metric")
            if now[c].iloc[i]
        )
        yield (
            f"row {i + 2} ({names}): {column} is {text[column].iloc[i]}, the stored scores give "
            f"{now[column].iloc[i]}"
        )
    if len(cells) > SHOWN:
        yield f"and {len(cells) - SHOWN} other cells"


def _same(written: object, now: object) -> bool:
    """A cell as written against the value; numbers to nine digits, as other versions of a library
    may add them up otherwise.
    """
    if not isinstance(now, float | int | np.number):
        return str(written) == str(now)
    try:
        return bool(
            np.isclose(
                float(str(written) or "nan"),
                float(now),
                rtol=1e-9,
                atol=1e-12,
                equal_nan=True,
            )
        )
    except ValueError:
        return False
