"""An audit: from a plan to a folder with the table, the images, the plan as run and the report."""

import io
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import yaml

from feathide.classifier import FeatureClassifier
from feathide.data.eps import format_eps
from feathide.errors import InputError
from feathide.memory import activations, batch_for
from feathide.report import Verdict, card, render, verdict
from feathide.study.conditions import Condition, Judged, write_junit
from feathide.study.digest import digest
from feathide.study.engine import Progress
from feathide.study.engine import run as work_off
from feathide.study.findings import run_of, versions
from feathide.study.fitness import check_fitness, check_hiding
from feathide.study.gates import gates_of
from feathide.study.lab import Lab, lab_of
from feathide.study.learnt import check_learnt, has_network, learnt_of
from feathide.study.order import audit_tasks
from feathide.study.plan import Plan
from feathide.study.ray_engine import run_on_ray
from feathide.study.remote import near
from feathide.study.room import check_room
from feathide.study.store import Store, open_folder, write_whole
from feathide.study.survival import check_archives
from feathide.study.table import comparisons_of, table_of
from feathide.study.variants import held_out_of, seeds_of

__all__ = ["Audit", "audit", "checked"]


@dataclass(frozen=True)
class Audit:
    """A finished audit: its folder, the table, the report's path, its verdict in words, the gates that failed, and the conditions of ``fail_if``."""

    folder: Path
    table: pd.DataFrame
    report: Path
    verdict: Verdict
    failed: tuple[str, ...] = ()
    judged: tuple[Judged, ...] = ()


def checked(plan: Plan, out: Path) -> Lab:
    """Everything that can be refused is refused here, before any long work: data, network, layers, budgets."""
    lab = lab_of(plan.model_dump_json(), Store(Path(out)))
    _ = lab.budgets, lab.parts, lab.class_names, lab.region, lab.organ
    check_archives(lab)
    check_hiding(lab)
    _check_head(lab)
    if lab.trains:
        lab.taken()
        lab.check_untrained()
    else:
        lab.check_classifier()
        check_fitness(lab)
    if not plan.batch_size:
        lab = lab_of(_with_batch(lab).model_dump_json(), lab.store)
    if has_network(lab):
        check_learnt(lab, learnt_of(lab))
    return lab


def _with_batch(lab: Lab) -> Plan:
    """The plan with the batch size that suits its images and network."""
    model = lab.empty_network().eval().to(lab.device) if lab.trains else lab.classifier.model
    x = FeatureClassifier(model, (), box=lab.cases.box).prepared(lab.images(lab.rows("train")[:1]))
    return lab.plan.model_copy(update={"batch_size": batch_for(activations(model, x))})


def audit(
    plan: Plan,
    out: Path | str,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    gpus: float = 0.0,
    reuse: bool = False,
    fail_if: Sequence[str] = (),
) -> Audit:
    """Run the audit of ``plan`` into ``out``, a folder or an fsspec URL such as s3://bucket/run (``study.remote``), and give the table and the report.

    ``workers``: processes here; ``shard`` (i, n): begin with the i-th of n parts, for several machines on one folder; ``engine`` "ray": on
    the Ray cluster at ``address``, whose machines see ``out``, with ``gpus`` for each task (0.25: four share one); ``reuse``: take a folder
    that holds another plan, where work that both share is kept; ``fail_if``: conditions such as "slips_through_fpr10 > 0.05", judged in
    ``Audit.judged`` and in ``audit.junit.xml``.

    Finished work in ``out`` is kept: after an interruption the same call goes on. Raises ``InputError`` before any long work for
    whatever cannot be used, and for a folder that holds a different plan.
    """
    conditions = [Condition.parse(text) for text in fail_if]
    lab = checked(plan, near(out))
    order = audit_tasks(lab)
    check_room(lab, order)
    open_folder(out, digest([lab.plan, lab.cases.digest]), reuse=reuse)
    write_plan(lab)
    if engine == "ray":
        run_on_ray(order, lab.store, address=address, progress=progress, gpus=gpus)
    else:
        work_off(order, lab.store, progress=progress, workers=workers, shard=shard)
    table = table_of(lab)
    folder = lab.store.folder
    write_whole(folder / "results.csv", table.to_csv(index=False).encode())
    write_whole(folder / "comparisons.csv", comparisons_of(lab).to_csv(index=False).encode())
    if plan.network.seeds:
        write_whole(folder / "seeds.csv", seeds_of(lab, table).to_csv(index=False).encode())
    if plan.held_out:
        write_whole(folder / "held_out.csv", held_out_of(lab).to_csv(index=False).encode())
    _write_parquet(table, folder / "results.parquet")
    gates = gates_of(lab)
    write_whole(folder / "gates.json", json.dumps(gates, indent=1, ensure_ascii=False).encode() + b"\n")
    judged = tuple(condition.judge(table) for condition in conditions)
    write_junit(folder, judged)
    found = run_of(lab, table, gates=gates)
    write_whole(folder / "model-card.json", json.dumps(card(found), indent=1, ensure_ascii=False).encode() + b"\n")
    write_whole(folder / "report.html", render(found).encode())
    failed = tuple(g["name"] for g in gates if g["status"] == "fail")
    return Audit(folder, table, folder / "report.html", verdict(found), failed, judged)


def write_plan(lab: Lab) -> None:
    """``plan.yaml``: the full plan with versions, seeds and hashes; it can be run again as it is."""
    record = {
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "device": str(lab.device), "threads": torch.get_num_threads()},
        "eps_in_box_units": list(lab.budgets),
        "eps_in_words": [format_eps(e, lab.cases) for e in lab.budgets],
        "data": {
            "digest": lab.cases.digest,
            "images": len(lab.cases),
            "skipped": [f"{s.path}: {s.reason}" for s in lab.cases.skipped],
        },
        "classifier": {"digest": lab.network_digest, "trained_here": lab.trains},
    }
    text = yaml.safe_dump({**lab.plan.model_dump(mode="json"), "record": record}, sort_keys=False, allow_unicode=True)
    write_whole(lab.store.folder / "plan.yaml", text.encode())


def _check_head(lab: Lab) -> None:
    head = lab.plan.network.head
    if head not in ("softmax", "sigmoid") and not head.startswith("finding:"):
        raise InputError(f"head must be softmax, sigmoid or finding:NAME, got {head!r}; correct network.head")
    if head == "sigmoid" and len(lab.class_names) != 2:
        raise InputError(f"a sigmoid head decides between 2 classes, got {len(lab.class_names)}; say head: softmax")


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_whole(path, buffer.getvalue())
