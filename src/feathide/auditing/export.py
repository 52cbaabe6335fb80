"""The adversarial images of a finished audit as files like their sources, each read back from the
disk and judged again.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from PIL import Image

from feathide.data import read_back, write_like
from feathide.data.files import is_picture
from feathide.errors import expected, unknown
from feathide.execution.packing import linf_distance
from feathide.execution.remote import near
from feathide.execution.store import Store, check_version, refresh, write_whole
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import cells
from feathide.pipeline.stored import Found, found_in, scores_in, thresholds_of
from feathide.pipeline.stored_images import decode, encode
from feathide.plans.plan import Cell, load_plan, slug

__all__ = [
    "Choice",
    "as_csv",
    "check_format",
    "export_images",
    "file_name",
    "finished",
    "writer_of",
]


class Writer(Protocol):
    """Writes the image (C, *S) of a row under a name without ending, and gives the file."""

    def __call__(self, row: int, image: np.ndarray, name: str) -> Path: ...


@dataclass(frozen=True)
class Choice:
    """Which images are exported, and how."""

    slipped_only: bool = False
    deidentify: bool = False
    quality: int | None = None


def finished(run: str | Path) -> Context:
    """the context of a finished audit. Raises ``InputError`` for a folder without one."""
    folder = near(run)
    refresh(folder)
    if not all(os.path.isfile(folder / name) for name in ("plan.yaml", "results.csv")):
        do = "give the folder of a finished audit"
        raise expected(f"{run} must hold plan.yaml and results.csv", got="not both", do=do)
    check_version(folder)
    return context_of(load_plan(folder / "plan.yaml").model_dump_json(), Store(folder))


def export_images(
    run: str | Path,
    out: str | Path,
    *,
    attack: str | None = None,
    objective: str | None = None,
    slipped_only: bool = False,
    deidentify: bool = False,
    jpeg: int | None = None,
) -> pd.DataFrame:
    """Write the adversarial test images of the audit in ``run`` into the new folder ``out``, read
    them back, predict again.

    Files have the format of their source (``write_like``): bit depth, slope, header. Images of an
    npz become PNG where they are pictures of whole numbers, else NIfTI. ``jpeg``: pictures of 8
    bits as JPEG of this quality instead, to see what survives an archive that compresses.
    ``attack``, ``objective``: only these, else all. ``slipped_only``: only images taken for the
    target that at least one guard accepts at 10 % false alarms. ``deidentify``: headers as
    ``write_like`` does it, and names and ids hashed.

    Gives, and writes as ``export.csv``, a row per file: id, file, attack, objective, eps (box
    units), label, target, prediction (as stored), file_prediction, linf (largest change of the
    file, box units), accepted_by (guards), survived: the stored image fooled the classifier and
    so does the file. Raises ``InputError`` for an unknown attack, an unfinished audit, a folder
    that is not empty."""
    context, folder = finished(run), Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise expected(
            f"{folder} must be a new or empty folder",
            got="a folder with files",
            do="choose another --out",
        )
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise expected("the JPEG quality must be 1 to 100", got=jpeg, do="95 is common")
    how = Choice(slipped_only, deidentify, jpeg)
    chosen = _chosen(context, attack, objective)
    check_format(context, how)
    rows: list[dict[str, object]] = []
    for cell in chosen:
        place = folder / (
            f"{slug(cell.name)}-{cell.eps:.4g}"
            if len(context.limits.budgets) > 1
            else slug(cell.name)
        )
        place.mkdir(parents=True, exist_ok=True)
        for row in _cell(context, cell, place, how):
            rows.append(
                {**row, "file": Path(str(row["file"])).relative_to(folder).as_posix()}
            )
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_whole(folder / "export.csv", as_csv(table))
    return table


COLUMNS = [
    *("id", "file", "attack", "objective", "eps", "label", "target"),
    *("prediction", "file_prediction", "linf", "accepted_by", "survived"),
]


def as_csv(table: pd.DataFrame) -> bytes:
    """A table with ids as CSV. An id that a spreadsheet would take for a formula has an
    apostrophe before it, which spreadsheets take for text.
    """
    formula = r"^(?=[=+\-@\t\r])(?![-+]?[\d.]+$)"
    return bytes(
        table.assign(id=table.id.str.replace(formula, "'", regex=True))
        .to_csv(index=False)
        .encode()
    )


def _chosen(context: Context, attack: str | None, objective: str | None) -> list[Cell]:
    chosen = cells(context)
    if attack is not None:
        if attack not in {c.attack.name for c in chosen}:
            raise unknown(
                "attack of this audit", attack, dict.fromkeys(c.attack.name for c in chosen)
            )
        chosen = [c for c in chosen if c.attack.name == attack]
    if objective is not None:
        if objective not in {c.objective.name for c in chosen}:
            raise unknown(
                "objective of this attack",
                objective,
                dict.fromkeys(c.objective.name for c in chosen),
            )
        chosen = [c for c in chosen if c.objective.name == objective]
    return chosen


def _cell(
    context: Context, cell: Cell, place: Path, how: Choice
) -> Iterator[dict[str, object]]:
    """The rows of one attack, batch by batch as it was stored."""
    found = found_in(context, cell)
    accepted = _accepted(context, cell, found)
    write = writer_of(context, place, how)
    where = {int(r): i for i, r in enumerate(found.rows)}
    for index in range(context.data.batches("test", attacked=True)):
        stored = context.store.load(context.steps.attack(cell, "test").keys[index])
        images = decode(stored["image"], context.limits.grid, context.cases.box).numpy()
        at = [where[int(r)] for r in stored["rows"]]
        keep = [
            k
            for k, i in enumerate(at)
            if not how.slipped_only or (found.fooled[i] and accepted[i])
        ]
        if not keep:
            continue
        rows = stored["rows"][keep]
        names = [file_name(str(context.cases.ids[r]), how.deidentify) for r in rows]
        files = [
            write(int(r), images[k], n) for r, k, n in zip(rows, keep, names, strict=True)
        ]
        again = np.stack([read_back(f, box=context.plan.data.box) for f in files])
        x = torch.from_numpy(again).to(context.data.device)
        prediction = context.networks.classifier.observe(x).predicted.numpy()
        linf = linf_distance(again, context.cases.images(rows), context.limits.grid)
        for j, k in enumerate(keep):
            i = at[k]
            yield {
                "id": names[j] if how.deidentify else str(found.id[i]),
                "file": files[j],
                "attack": cell.attack.name,
                "objective": cell.objective.name,
                "eps": cell.eps,
                "label": int(found.label[i]),
                "target": int(found.target[i]),
                "prediction": int(found.prediction[i]),
                "file_prediction": int(prediction[j]),
                "linf": float(linf[j]),
                "accepted_by": " ".join(accepted[i]),
                "survived": bool(found.fooled[i] and prediction[j] == found.target[i]),
            }


def _accepted(context: Context, cell: Cell, found: Found) -> list[list[str]]:
    """The guards that accept each image at 10 % false alarms."""
    names = context.plan.detectors
    passes = {
        d: scores_in(
            context, d, cell.eps, context.steps.condition(cell), "test", found.rows
        )
        <= thresholds_of(context, d, cell.eps)["fpr10"]
        for d in names
    }
    return [[d for d in names if passes[d][i]] for i in range(len(found.rows))]


def file_name(case: str, deidentify: bool) -> str:
    """A file name, without ending, of its own for each id."""
    if deidentify:
        return sha256(case.encode()).hexdigest()[:16]
    # file systems count bytes
    plain = re.sub(r"^-|[^\w-]+", "_", case).encode()[:80].decode(errors="ignore")
    return plain if plain == case else f"{plain}-{sha256(case.encode()).hexdigest()[:8]}"


# --- files --------------------------------------------------------------------------------------


def check_format(context: Context, how: Choice) -> None:
    """Refuse what cannot be written before anything is."""
    cases = context.cases
    if how.quality is not None:
        pictures = (
            _png(context) == np.uint8
            if not cases.paths
            else all(is_picture(Path(p)) for p in cases.paths)
        )
        if not pictures:
            raise expected(
                "JPEG holds 8-bit pictures",
                got=f"images of {cases.name}",
                do="leave --jpeg out",
            )
    if not cases.paths and _png(context) is None and cases.channels != 1:
        what = (
            "images of an npz must be pictures of whole numbers or have one channel to be "
            "written"
        )
        raise expected(
            what,
            got=f"{cases.channels} channels of {cases.shape}",
            do="keep them in the audit's own files",
        )


def writer_of(context: Context, place: Path, how: Choice) -> Writer:
    if context.cases.paths:
        return partial(_like_source, context, place, how)
    kind = _png(context)
    return (
        partial(_nifti, context, place)
        if kind is None
        else partial(_picture, context, place, how, kind)
    )


def _like_source(
    context: Context, place: Path, how: Choice, row: int, image: np.ndarray, name: str
) -> Path:
    source = Path(context.cases.paths[row])
    gzipped = source.name.lower().endswith(".nii.gz")
    ending = "" if source.is_dir() else ".nii.gz" if gzipped else source.suffix or ".dcm"
    if is_picture(source):
        # a JPEG source would lose the change again
        ending = ".png" if how.quality is None else ".jpg"
    quality = {} if how.quality is None else {"quality": how.quality}
    box = context.plan.data.box
    return write_like(
        source,
        image,
        place / f"{name}{ending}",
        deidentify=how.deidentify,
        box=box,
        **quality,
    )


def _png(context: Context) -> type[np.unsignedinteger] | None:
    """The type of a PNG that holds the stored numbers of an npz, or None where none does."""
    cases, given = context.cases, context.plan.data.box
    if len(cases.shape) != 2 or context.limits.grid is None:
        return None
    if given is None:
        scaled = {1 / 255: np.uint8, 1 / 65535: np.uint16 if cases.channels == 1 else None}
        return scaled.get(cases.step) if cases.box == (0.0, 1.0) else None
    low, high = given
    if low < 0 or high > 65535 or (high > 255 and cases.channels == 3):
        return None
    return np.uint8 if high <= 255 else np.uint16


def _picture(
    context: Context,
    place: Path,
    how: Choice,
    kind: type[np.unsignedinteger],
    row: int,
    image: np.ndarray,
    name: str,
) -> Path:
    numbers = np.rint(image.astype(np.float64) / context.cases.step).astype(kind)
    pixels = Image.fromarray(
        numbers[0] if len(numbers) == 1 else np.moveaxis(numbers, 0, -1)
    )
    file = place / f"{name}{'.png' if how.quality is None else '.jpg'}"
    if how.quality is None:
        pixels.save(file)
    else:
        pixels.save(file, quality=how.quality)
    return file


def _nifti(context: Context, place: Path, row: int, image: np.ndarray, name: str) -> Path:
    """An image of one channel as NIfTI: the levels above the box's floor with slope and
    intercept, or float32.
    """
    cases = context.cases
    numbers = encode(torch.from_numpy(image), context.limits.grid, cases.box)[0]
    spacing = (*(cases.spacing or ()), *[1.0] * 3)[:3]
    volume = nib.Nifti1Image(numbers, np.diag([*spacing, 1.0]))
    if context.limits.grid is not None:
        volume.header.set_slope_inter(context.limits.grid.step, cases.box[0])
    file = place / f"{name}.nii.gz"
    nib.save(volume, file)
    return file
