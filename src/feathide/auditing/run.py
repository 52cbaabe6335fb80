"""An audit: from a plan to a folder with the table, the images, the plan as run and the
report.
"""

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

from feathide.auditing.ci import Condition, Judged, write_junit
from feathide.auditing.disk_space import check_room
from feathide.auditing.forecast import FINISH, foreseen
from feathide.auditing.machines import write_machine_files
from feathide.auditing.record import begun_on
from feathide.auditing.report_data import run_of, versions
from feathide.auditing.tasks import audit_tasks
from feathide.auditing.visibility import visibility_of
from feathide.data.budgets import format_eps
from feathide.errors import InputError, check_kind, expected
from feathide.execution.digests import digest
from feathide.execution.engine import Progress
from feathide.execution.engine import run as work_off
from feathide.execution.log import Logged
from feathide.execution.ray import run_on_ray
from feathide.execution.remote import near
from feathide.execution.store import Store, open_folder, write_whole
from feathide.models.classifier import FeatureClassifier
from feathide.models.memory import activations, batch_for
from feathide.pipeline.accuracy import check_learnt, has_network, learnt_of
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import unhidden
from feathide.pipeline.network_checks import check_classifier, check_untrained
from feathide.pipeline.smallest import curve_of
from feathide.pipeline.subgroups import check_subgroups, subgroups_of
from feathide.pipeline.survival import check_archives
from feathide.pipeline.table import comparisons_of, table_of
from feathide.pipeline.variants import held_out_of, seeds_of
from feathide.plans.plan import Plan
from feathide.report import Verdict, card, render, verdict
from feathide.sanity.checks import sanity_checks_of
from feathide.sanity.fitness import check_fitness, check_hiding

__all__ = ["Audit", "audit", "checked"]


@dataclass(frozen=True)
class Audit:
    """A finished audit.

    Args:
        folder: The output folder, with tables, report, plan and adversarial images.
        table: The rows of ``results.csv``: one number per row, with its 95 % interval.
        report: The path of ``report.html``.
        verdict: The verdict of every guard, in words and numbers.
        failed: The names of the sanity checks that failed; the numbers are not evidence unless this
            is empty.
        judged: The conditions of ``fail_if`` and whether they hold.
        quick: Whether it is a quick look.
    """

    folder: Path
    table: pd.DataFrame
    report: Path
    verdict: Verdict
    failed: tuple[str, ...] = ()
    judged: tuple[Judged, ...] = ()
    quick: bool = False


def checked(plan: Plan, out: Path) -> Context:
    """Everything that can be refused is refused here, before any long work: data, network,
    layers, budgets.
    """
    context = context_of(plan.model_dump_json(), Store(Path(out)))
    _ = (
        context.data.device,
        context.limits.budgets,
        context.data.parts,
        context.data.class_names,
        context.limits.region,
        context.limits.organ,
    )
    check_archives(context)
    check_hiding(context)
    check_subgroups(context)
    _check_head(context)
    _check_units(context)
    if context.recipe.trains:
        context.recipe.taken()
        check_fitness(context, check_untrained(context))
    else:
        check_classifier(context)
        check_fitness(context, context.networks.classifier)
    if not plan.batch_size:
        context = context_of(_with_batch(context).model_dump_json(), context.store)
    if has_network(context):
        check_learnt(context, learnt_of(context))
    return context


def _with_batch(context: Context) -> Plan:
    """The plan with the batch size that suits its images and network."""
    model = (
        context.recipe.empty_network().eval().to(context.data.device)
        if context.recipe.trains
        else context.networks.classifier.model
    )
    x = FeatureClassifier(model, (), box=context.cases.box).prepared(
        context.data.images(context.data.rows("train")[:1])
    )
    return context.plan.model_copy(update={"batch_size": batch_for(activations(model, x))})


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
    """Run the audit of a plan: train or load, attack, fit the detectors, measure, report.

    Finished work in ``out`` is kept: after an interruption, the same call continues.

    Args:
        plan: What to audit; see ``load_plan``.
        out: The output folder, or an fsspec URL such as s3://bucket/run.
        progress: Is called with the state of the run whenever a step is done.
        workers: The number of parallel processes on this machine, at least 1.
        shard: (i, n) with 0 <= i < n: start with part i of n, for several machines on one folder.
        engine: "local", or "ray" for a Ray cluster whose machines all see ``out``.
        address: The address of the Ray cluster; None starts a local one.
        gpus: GPUs per task on Ray; 0.25 lets four tasks share one.
        reuse: Continue in a folder that holds another plan: shared work is kept, the table is
            replaced.
        fail_if: Conditions such as "slips_through_fpr10 > 0.05", judged by the worst row; the
            answers are in ``Audit.judged`` and in ``audit.junit.xml``.

    Returns:
        The table, the verdict and the path of the report.

    Raises:
        InputError: Before any long work, for whatever cannot be used, and for a folder that holds a
            different plan.

    Examples:
        ```python
        found = audit(load_plan("plan.yaml"), "runs/chest", workers=2)
        found.table.query("metric == 'slips_through_fpr10'")
        ```
    """
    check_kind("the plan", plan, Plan, do='say load_plan("plan.yaml")')
    conditions = [Condition.parse(text) for text in fail_if]
    context = checked(plan, near(out))
    order = audit_tasks(context)
    check_room(context, order)
    store = open_folder(out, digest([context.plan, context.cases.digest]), reuse=reuse)
    write_plan(context)
    finish = None
    if progress is not None:
        progress = Logged(progress, store.folder / "audit.log")
        if told := unhidden(context):
            progress.say(told)
        # what is done already needs no forecast
        if not all(context.store.done(t.key) for t in order):
            order, finish = foreseen(context, order), FINISH
    if engine == "ray":
        run_on_ray(order, context.store, address=address, progress=progress, gpus=gpus)
    else:
        work_off(
            order,
            context.store,
            progress=progress,
            workers=workers,
            shard=shard,
            finish=finish,
        )
    table = _write_tables(context)
    return _write_judgements(context, table, conditions)


def _write_tables(context: Context) -> pd.DataFrame:
    """``results.csv`` and ``results.parquet``, which is given back, and the tables beside it."""
    folder, table = context.store.folder, table_of(context)
    frames = {"results": table, "comparisons": comparisons_of(context)}
    if context.plan.network.seeds:
        frames["seeds"] = seeds_of(context, table)
    if context.plan.held_out:
        frames["held_out"] = held_out_of(context)
    frames["visibility"] = visibility_of(context)
    if context.plan.smallest_change:
        frames["smallest_change"] = curve_of(context)
    if context.plan.subgroups.columns:
        frames["subgroups"] = subgroups_of(context)
    for name, frame in frames.items():
        write_whole(folder / f"{name}.csv", frame.to_csv(index=False).encode())
    _write_parquet(table, folder / "results.parquet")
    return table


def _write_judgements(
    context: Context, table: pd.DataFrame, conditions: Sequence[Condition]
) -> Audit:
    """Sanity checks, the conditions of a build, the model card and the report."""
    folder, sanity_checks = context.store.folder, sanity_checks_of(context)
    _write_json(sanity_checks, folder / "sanity_checks.json")
    judged = tuple(condition.judge(table) for condition in conditions)
    write_junit(folder, judged)
    found = run_of(context, table, sanity_checks=sanity_checks)
    _write_json(card(found), folder / "model-card.json")
    report = folder / "report.html"
    write_whole(report, render(found).encode())
    write_machine_files(folder, found, judged)
    return Audit(
        folder,
        table,
        report,
        verdict(found),
        failed=tuple(c["name"] for c in sanity_checks if c["status"] == "fail"),
        judged=judged,
        quick=context.plan.quick is not None,
    )


def write_plan(context: Context) -> None:
    """``plan.yaml``: the full plan with versions, seeds and hashes; it can be run again as it
    is.
    """
    record = {
        "date": begun_on(context),
        "versions": versions(),
        "hardware": {
            "machine": platform.machine(),
            "device": str(context.data.device),
            "threads": torch.get_num_threads(),
        },
        "eps_in_box_units": list(context.limits.budgets),
        "eps_in_words": [format_eps(e, context.cases) for e in context.limits.budgets],
        "data": {
            "digest": context.cases.digest,
            "images": len(context.cases),
            "skipped": [f"{s.path}: {s.reason}" for s in context.cases.skipped],
        },
        "classifier": {
            "digest": context.steps.classifier.digest,
            "trained_here": context.recipe.trains,
        },
    }
    text = yaml.safe_dump(
        # a run may be looked at, or go on, where there is no such device
        {**context.plan.model_dump(mode="json", exclude={"device"}), "record": record},
        sort_keys=False,
        allow_unicode=True,
    )
    write_whole(context.store.folder / "plan.yaml", text.encode())


def _check_head(context: Context) -> None:
    head = context.plan.network.head
    if head not in ("softmax", "sigmoid") and not head.startswith("finding:"):
        raise InputError(
            f"head must be softmax, sigmoid or finding:NAME, got {head!r}; correct network.head"
        )
    if head == "sigmoid" and len(context.data.class_names) != 2:
        raise InputError(
            f"a sigmoid head decides between 2 classes, got {len(context.data.class_names)}; say "
            "head: softmax"
        )


def _check_units(context: Context) -> None:
    """Refuse mean and std of images in [0, 1] for images that the network sees otherwise."""
    n, (low, high) = context.plan.network, context.data.cases.box
    width = high - low if context.recipe.window is None else 1.0
    if n.std is None or max(n.std) > width / 500:
        return
    raise expected(
        f"network.mean and std must be in the units that the network sees, [{low:g}, {high:g}]",
        got=f"mean {list(n.mean or ())}, std {list(n.std)}",
        do=f"say window: [{low:g}, {high:g}], which shows the images to the network as [0, 1]",
    )


def _write_json(content: object, path: Path) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_whole(path, text.encode() + b"\n")


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_whole(path, buffer.getvalue())
