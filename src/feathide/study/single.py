"""One attack on the images of one split, without detectors: the images as files like their sources, and a small table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from feathide.analysis.rows import with_needs
from feathide.data import read_back
from feathide.errors import expected
from feathide.study.digest import digest
from feathide.study.engine import Progress, run
from feathide.study.export import Choice, as_csv, check_format, file_name, writer_of
from feathide.study.lab import Lab
from feathide.study.plan import Cell, Plan
from feathide.study.run import checked
from feathide.study.stages import attack_rows, cells, decode, needed, observe, tasks
from feathide.study.store import open_folder, write_whole

__all__ = ["COLUMNS", "attack_images"]

COLUMNS = ("id", "file", "label", "target", "before", "prediction", "fooled", "linf", "gradients")


def attack_images(
    plan: Plan,
    out: Path | str,
    *,
    split: Literal["train", "val", "test", "all"] = "test",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Attack the images of ``split`` with the one attack, objective and budget of ``plan``; the files stand in ``out/images``.

    What the attacker needs (a trained classifier, mixtures) is made first and kept in ``out``. Gives, and writes as ``out/attack.csv``, a row for
    each image: id, file (empty for those that are wrong already, which are not attacked), label, target, before (prediction of the clean image),
    prediction (of the file, read back from the disk), fooled (it is the target), linf (box units) and gradients. Raises ``InputError`` for a plan with
    several attacks, objectives or budgets, and for a split without images.
    """
    lab, folder = checked(plan, Path(out)), Path(out)
    chosen = cells(lab)
    if len(chosen) != 1:
        got = f"{len(chosen)}: {', '.join(c.name for c in chosen)}"
        raise expected(
            "this needs one attack with one objective at one budget",
            got=got,
            do="name them; one-step attacks cannot hide",
        )
    rows = np.arange(len(lab.cases)) if split == "all" else lab.cases.where(split)
    if not len(rows):
        raise expected(f"the split {split} must have images", got="none", do="choose another split, or all")
    check_format(lab, Choice())
    open_folder(out, digest([plan, lab.cases.digest]))
    known = {lab.classifier_key, *needed(lab, chosen[0])} | (
        {lab.tune_key(chosen[0])} if chosen[0].objective.weight == "auto" else set()
    )
    audit = tasks(lab)
    run(with_needs([t for t in audit if t.key in known], audit), lab.store, progress=progress)
    table = pd.DataFrame(_attacked(lab, chosen[0], rows, folder / "images"), columns=list(COLUMNS))
    write_whole(folder / "attack.csv", as_csv(table))
    return table


def _attacked(lab: Lab, cell: Cell, rows: np.ndarray, place: Path) -> Iterator[dict[str, Any]]:
    place.mkdir(parents=True, exist_ok=True)
    write = writer_of(lab, place, Choice())
    for batch in np.split(rows, range(lab.plan.batch_size, len(rows), lab.plan.batch_size)):
        before = observe(lab.classifier, lab.images(batch)).predicted.numpy()
        right = before == lab.labels[batch]
        for row, guess in zip(batch[~right], before[~right], strict=True):
            yield {"id": str(lab.cases.ids[row]), "label": int(lab.labels[row]), "before": int(guess)}
        if not right.any():
            continue
        found = attack_rows(lab, cell, batch[right])
        images = decode(found["image"], lab.grid, lab.cases.box).numpy()
        files = [
            write(int(r), x, file_name(str(i), False))
            for r, x, i in zip(found["rows"], images, found["id"], strict=True)
        ]
        again = np.stack([read_back(f, box=lab.plan.data.box) for f in files])
        prediction = observe(lab.classifier, torch.from_numpy(again).to(lab.device)).predicted.numpy()
        for i, file in enumerate(files):
            yield {
                "id": str(found["id"][i]), "file": file.relative_to(place.parent).as_posix(), "label": int(found["label"][i]),
                "target": int(found["target"][i]), "before": int(found["label"][i]), "prediction": int(prediction[i]),
                "fooled": bool(prediction[i] == found["target"][i]), "linf": float(found["linf"][i]), "gradients": int(found["gradients"][i]),
            }  # fmt: skip
