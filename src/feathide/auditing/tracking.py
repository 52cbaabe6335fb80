"""A finished audit in an experiment tracker: TensorBoard (``feathide[tensorboard]``), MLflow
(``feathide[mlflow]``) or Weights & Biases (``feathide[wandb]``).
"""

import importlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from feathide.auditing.compare import flat, run_again
from feathide.auditing.plots import drawing, plot
from feathide.auditing.run import Audit
from feathide.errors import choose, expected
from feathide.report.drawing import Figure
from feathide.report.figures import figures

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
    for each number (the step counts the budgets from 0 up), the plan, the verdict and the table
    as text, an attacked image of each attack, and the report's figures, drawn by matplotlib.
    MLflow: a run at the tracking server that MLFLOW_TRACKING_URI names, with the plan as
    parameters, the numbers as metrics, and the report, table, plan, sanity checks, model card,
    images and plotly figures as artifacts. Where no server is named and MLflow is the small
    package, which has no database, the run lies in ``<run>/mlruns``.
    W&B: a run of the project that WANDB_PROJECT names (else "feathide"), with the plan as its
    configuration, numbers, table, images and plotly figures, and the files as an artifact. With
    ``WANDB_MODE=offline`` nothing is sent: it lies in ``<run>/wandb``."""
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


def _plan(found: Audit) -> dict[str, Any]:
    """The plan as it was run, one level deep."""
    text = (found.folder / "plan.yaml").read_text(encoding="utf-8")
    return dict(flat(yaml.safe_load(text)))


def _pictures(found: Audit) -> Iterator[tuple[str, np.ndarray]]:
    """A name and the first attacked image of each attack, grey levels (H, W, C) of the bytes that
    screens show; of a volume its middle slice.
    """
    for path in sorted(found.folder.glob("adversarial/*/test-0000.npz")):
        with np.load(path) as stored:
            image = stored["image"][0].astype(np.float64)  # (C, *S)
        while image.ndim > 3:
            image = image[:, image.shape[1] // 2]
        low, width = image.min(), np.ptp(image) or 1.0
        shown = (255 * (image - low) / width).round().astype(np.uint8)
        yield path.parent.name, np.moveaxis(shown, 0, -1)


def _figures(found: Audit) -> list[Figure]:
    """The figures of the report."""
    return list(figures(run_again(found.folder)))


def _tensorboard(module: ModuleType, found: Audit) -> None:
    with module.SummaryWriter(log_dir=str(found.folder / "tensorboard")) as writer:
        for name, value, step in _numbers(found):
            writer.add_scalar(name, value, step)
        writer.add_text("verdict", f"{found.verdict.headline} {found.verdict.slipped}")
        writer.add_text(
            "plan", f"```\n{(found.folder / 'plan.yaml').read_text(encoding='utf-8')}\n```"
        )
        writer.add_text("results", f"```\n{found.table.to_csv(index=False)}```")
        for name, image in _pictures(found):
            writer.add_image(name, image, dataformats="HWC")
        for figure in _figures(found) if find_spec("matplotlib") else ():
            writer.add_figure(f"figures/{figure.id}", drawing(figure))


def _mlflow(module: ModuleType, found: Audit) -> None:
    with _somewhere(module, found), module.start_run(run_name=found.folder.name):
        module.log_params(
            {name: str(value)[:LONGEST] for name, value in _plan(found).items()}
        )
        for name, value, step in _numbers(found):
            module.log_metric(_plain(name), value, step=step)
        module.set_tag("verdict", found.verdict.headline)
        for name in FILES:
            module.log_artifact(str(found.folder / name))
        for name, image in _pictures(found):
            # it takes one channel without its axis
            module.log_image(
                image[..., 0] if image.shape[-1] == 1 else image, f"{name}.png"
            )
        for figure in _figures(found):
            module.log_figure(plot(figure), f"figures/{figure.id}.html")
        module.log_table(found.table, "results.json")


@contextmanager
def _somewhere(module: ModuleType, found: Audit) -> Iterator[None]:
    """A folder for MLflow where nobody named a server and its default, a database, needs packages
    that are not there.
    """
    if module.is_tracking_uri_set() or (find_spec("sqlalchemy") and find_spec("alembic")):
        yield
        return
    here = {
        "MLFLOW_TRACKING_URI": (found.folder.resolve() / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    before = {name: os.environ.get(name) for name in here}
    os.environ.update(here)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wandb(module: ModuleType, found: Audit) -> None:
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for name, value, step in _numbers(found):
        rows[step][name] = value
    plan = {name: str(value) for name, value in _plan(found).items()}
    project = os.environ.get("WANDB_PROJECT", "feathide")
    place = str(found.folder)
    with module.init(
        project=project, name=found.folder.name, dir=place, config=plan
    ) as run:
        for step, values in sorted(rows.items()):
            run.log(values, step=step)
        images = {name: module.Image(image) for name, image in _pictures(found)}
        plots = {f"figures/{f.id}": module.Plotly(plot(f)) for f in _figures(found)}
        run.log({"results": module.Table(dataframe=found.table), **images, **plots})
        run.summary["verdict"] = found.verdict.headline
        files = module.Artifact(f"audit-{_plain(found.folder.name)}", type="audit")
        for name in FILES:
            files.add_file(str(found.folder / name))
        run.log_artifact(files)


def _plain(name: str) -> str:
    return re.sub(r"[^\w./ -]", "-", name)


TRACKERS: dict[str, tuple[str, Callable[[ModuleType, Audit], None]]] = {
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "mlflow": ("mlflow", _mlflow),
    "wandb": ("wandb", _wandb),
}
