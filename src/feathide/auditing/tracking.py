"""A finished audit in an experiment tracker: TensorBoard (``feathide[tensorboard]``) or MLflow
(``feathide[mlflow]``).
"""

import importlib
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import yaml

from feathide.auditing.compare import flat
from feathide.auditing.run import Audit
from feathide.errors import choose, expected

__all__ = ["TRACKERS", "track", "tracker"]

FILES = ("report.html", "results.csv", "plan.yaml", "model-card.json", "sanity_checks.json")
LONGEST = 500  # characters of a parameter that every MLflow server takes


def tracker(name: str) -> Callable[[Audit], None]:
    """What puts an audit into the tracker ``name``. Raises ``InputError`` for an unknown one and
    for one that is not installed: ask before a long run.
    """
    package, put = choose("tracker", name, TRACKERS)
    try:
        module = importlib.import_module(package)
    except ImportError:
        do = f"pip install 'feathide[{name}]'"
        raise expected(
            f"tracking in {name} needs its package", got=f"no module {package!r}", do=do
        ) from None
    return lambda found: put(module, found)


def track(found: Audit, to: str) -> None:
    """Put the numbers, the plan and the report of an audit into a tracker.

    TensorBoard: events in ``<run>/tensorboard``, one scalar ``metric/attack+objective/detector``
    for each number (the step counts the budgets from 0 up), the plan and the verdict as text.
    MLflow: a run at the tracking server that MLFLOW_TRACKING_URI names, with the plan as
    parameters, the numbers as metrics, and the report, table, plan, sanity checks and model card
    as artifacts."""
    tracker(to)(found)


def _numbers(found: Audit) -> Iterator[tuple[str, float, int]]:
    """Name, value and number of the budget of each number that there is."""
    budgets = sorted(e for e in found.table.eps.dropna().unique() if e > 0)
    for row in found.table[found.table.value.notna()].to_dict("records"):
        parts = (
            row["metric"],
            f"{row['attack']}+{row['objective']}" if row["attack"] else "",
            row["detector"],
        )
        step = budgets.index(row["eps"]) if row["eps"] in budgets else 0
        yield "/".join(p for p in parts if p), float(row["value"]), step


def _tensorboard(module: ModuleType, found: Audit) -> None:
    with module.SummaryWriter(log_dir=str(found.folder / "tensorboard")) as writer:
        for name, value, step in _numbers(found):
            writer.add_scalar(name, value, step)
        writer.add_text("verdict", f"{found.verdict.headline} {found.verdict.slipped}")
        writer.add_text(
            "plan", f"```\n{(found.folder / 'plan.yaml').read_text(encoding='utf-8')}\n```"
        )


def _mlflow(module: ModuleType, found: Audit) -> None:
    plan = yaml.safe_load((found.folder / "plan.yaml").read_text(encoding="utf-8"))
    with module.start_run(run_name=found.folder.name):
        module.log_params({name: str(value)[:LONGEST] for name, value in flat(plan)})
        for name, value, step in _numbers(found):
            module.log_metric(re.sub(r"[^\w./ -]", "-", name), value, step=step)
        module.set_tag("verdict", found.verdict.headline)
        for name in FILES:
            module.log_artifact(str(found.folder / name))


TRACKERS: dict[str, tuple[str, Callable[[ModuleType, Audit], None]]] = {
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "mlflow": ("mlflow", _mlflow),
}
