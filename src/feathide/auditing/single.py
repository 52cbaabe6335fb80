"""One attack on the images of one split, without detectors: the images as files like their
sources, and a small table.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from feathide.auditing.export import Choice, as_csv, check_format, file_name, writer_of
from feathide.auditing.run import checked
from feathide.data import read_back
from feathide.errors import expected
from feathide.execution.digests import digest
from feathide.execution.engine import Progress, run
from feathide.execution.store import open_folder, write_whole
from feathide.pipeline.attacking import attack_rows
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells, needed, tasks
from feathide.pipeline.rows import with_needs
from feathide.pipeline.stored_images import decode
from feathide.plans.plan import Cell, Plan

__all__ = ["COLUMNS", "attack_images"]

COLUMNS = (
    "id",
    "file",
    "label",
    "target",
    "before",
    "prediction",
    "fooled",
    "linf",
    "gradients",
)


def attack_images(
    plan: Plan,
    out: Path | str,
    *,
    split: Literal["train", "val", "test", "all"] = "test",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Attack the images of ``split`` with the one attack, objective and budget of ``plan``; the
    files stand in ``out/images``.

    What the attacker needs (a trained classifier, mixtures) is made first and kept in ``out``.
    Gives, and writes as ``out/attack.csv``, a row for each image: id, file (empty for those that
    are wrong already, which are not attacked), label, target, before (prediction of the clean
    image), prediction (of the file, read back from the disk), fooled (it is the target), linf
    (box units) and gradients. Raises ``InputError`` for a plan with several attacks, objectives
    or budgets, and for a split without images."""
    context, folder = checked(plan, Path(out)), Path(out)
    chosen = cells(context)
    if len(chosen) != 1:
        got = f"{len(chosen)}: {', '.join(c.name for c in chosen)}"
        raise expected(
            "this needs one attack with one objective at one budget",
            got=got,
            do="name them; one-step attacks cannot hide",
        )
    rows = np.arange(len(context.cases)) if split == "all" else context.cases.where(split)
    if not len(rows):
        raise expected(
            f"the split {split} must have images",
            got="none",
            do="choose another split, or all",
        )
    check_format(context, Choice())
    open_folder(out, digest([plan, context.cases.digest]))
    known = {context.steps.train.key, *needed(context, chosen[0])} | (
        {context.steps.tune(chosen[0]).key}
        if chosen[0].objective.weight == "auto"
        else set()
    )
    audit = tasks(context)
    run(
        with_needs([t for t in audit if t.key in known], audit),
        context.store,
        progress=progress,
    )
    table = pd.DataFrame(
        _attacked(context, chosen[0], rows, folder / "images"), columns=list(COLUMNS)
    )
    write_whole(folder / "attack.csv", as_csv(table))
    return table


def _attacked(
    context: Context, cell: Cell, rows: np.ndarray, place: Path
) -> Iterator[dict[str, Any]]:
    place.mkdir(parents=True, exist_ok=True)
    write = writer_of(context, place, Choice())
    for batch in np.split(
        rows, range(context.plan.batch_size, len(rows), context.plan.batch_size)
    ):
        before = context.networks.classifier.observe(
            context.data.images(batch)
        ).predicted.numpy()
        right = before == context.data.labels[batch]
        for row, guess in zip(batch[~right], before[~right], strict=True):
            yield {
                "id": str(context.cases.ids[row]),
                "label": int(context.data.labels[row]),
                "before": int(guess),
            }
        if not right.any():
            continue
        found = attack_rows(context, cell, batch[right])
        images = decode(found["image"], context.limits.grid, context.cases.box).numpy()
        files = [
            write(int(r), x, file_name(str(i), False))
            for r, x, i in zip(found["rows"], images, found["id"], strict=True)
        ]
        again = np.stack([read_back(f, box=context.plan.data.box) for f in files])
        x = torch.from_numpy(again).to(context.data.device)
        prediction = context.networks.classifier.observe(x).predicted.numpy()
        for i, file in enumerate(files):
            yield {
                "id": str(found["id"][i]),
                "file": file.relative_to(place.parent).as_posix(),
                "label": int(found["label"][i]),
                "target": int(found["target"][i]),
                "before": int(found["label"][i]),
                "prediction": int(prediction[i]),
                "fooled": bool(prediction[i] == found["target"][i]),
                "linf": float(found["linf"][i]),
                "gradients": int(found["gradients"][i]),
            }
