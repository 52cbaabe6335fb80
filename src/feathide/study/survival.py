"""What becomes of attacked images on their way into files: rounded after the attack, or kept by an archive that compresses with loss."""

from functools import partial

import numpy as np
import torch

from feathide.data.archive import Codec
from feathide.errors import expected
from feathide.study.engine import Task
from feathide.study.lab import PLAIN, Lab, lab_of
from feathide.study.packing import packed
from feathide.study.plan import Cell
from feathide.study.stages import Arrays, attack_of, cells, decode, encode, observe, score_tasks
from feathide.study.store import Store

__all__ = ["archived", "archives", "check_archives", "rounding_key", "survival_tasks"]

TRIED = 32  # images of the fit part


def survival_tasks(lab: Lab) -> list[Task]:
    """One attack a budget without a storage grid, rounded afterwards; and every stored test image through each archive of the plan."""
    json, found = lab.plan.model_dump_json(), []
    for eps in lab.budgets if lab.grid is not None else ():
        cell = Cell(lab.plan.learnt_from, PLAIN, eps)
        needs = lab.outputs_keys("clean", "fit")
        passes = attack_of(lab, cell, None).passes
        found.append(
            Task(rounding_key(lab, cell), needs, partial(_round, json, cell), "round afterwards", cell.name, passes)
        )
    conditions = ["clean", *(lab.condition(c) for c in cells(lab))]
    for codec in archives(lab):
        for source in conditions:
            for i in range(lab.batches("test", attacked=source != "clean")):
                before = (lab.outputs_key if source == "clean" else lab.images_key)(source, "test", i)
                key = lab.outputs_key(archived(source, codec), "test", i)
                work = partial(_archive, json, source, codec, i)
                found.append(Task(key, (before,), work, "archive", f"{source}, {codec.name}"))
    for eps in lab.budgets if lab.plan.archive else ():
        judged = ["clean", *(lab.condition(c) for c in cells(lab) if c.eps == eps)]
        found += score_tasks(lab, eps, [(archived(c, codec), "test") for c in judged for codec in archives(lab)])
    return found


def archives(lab: Lab) -> list[Codec]:
    """The archives of the plan."""
    return [Codec.parse(text) for text in lab.plan.archive]


def check_archives(lab: Lab) -> None:
    """Refuse images that the archives of the plan cannot hold."""
    if lab.plan.archive and lab.grid is None:
        raise expected("an archive holds whole grey levels", got=f"floats in {lab.cases.name}", do="leave archive out")
    for codec in archives(lab):
        codec(encode(torch.from_numpy(lab.cases.images([0])), lab.grid, lab.cases.box))


def archived(condition: str, codec: Codec) -> str:
    """The condition of a condition's images as they come back from an archive."""
    return f"{condition}-{codec.name}"


def rounding_key(lab: Lab, cell: Cell) -> str:
    return f"rounding/{lab.condition(cell)}"


def _round(json: str, cell: Cell, store: Store) -> Arrays:
    """Who is fooled by the floating-point images of an attack that knows of no grid, and who still is once they are rounded to it."""
    lab = lab_of(json, store)
    rows = lab.right("fit")[:TRIED]
    if not len(rows):
        return {"before": np.zeros(0, bool), "after": np.zeros(0, bool), "rows": rows}
    x, goal = lab.images(rows), lab.goal(rows)
    loose = attack_of(lab, cell, None)(lab.classifier, x, goal, **{**lab.terms(rows, x), "grid": None}).adversarial
    rounded = decode(encode(loose, lab.grid, lab.cases.box), lab.grid, lab.cases.box).to(x)
    wanted = goal.target.cpu()
    before, after = ((observe(lab.classifier, image).predicted == wanted).numpy() for image in (loose, rounded))
    return {"before": before, "after": after, "rows": rows}


def _archive(json: str, source: str, codec: Codec, index: int, store: Store) -> Arrays:
    """The outputs on the images of a condition after compression."""
    lab = lab_of(json, store)
    box, rows = lab.cases.box, lab.batch("test", index)
    if source == "clean":
        image = encode(torch.from_numpy(lab.cases.images(rows)), lab.grid, box)
    else:
        stored = store.load(lab.images_key(source, "test", index))
        image, rows = stored["image"], stored["rows"]
    top = round((box[1] - box[0]) / lab.cases.step)
    x = decode(codec(image).clip(max=top), lab.grid, box)
    if len(x) == 0:
        return packed(observe(lab.observer, lab.images(lab.rows("test")[:1]))[:0], rows)
    return packed(observe(lab.observer, x.to(lab.device)), rows)
