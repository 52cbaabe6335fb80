"""The command line. torch is imported inside a verb only, so that ``--help`` is instant.

Exit codes: 0 done; 1 a failure of the program; 2 input that cannot be used, said in one sentence;
3 a sanity check failed, with ``--strict``; 4 a condition of ``--fail-if`` holds (and 3 does not),
or a conformance check is broken; 5 ``verify`` found a difference; 130 stopped with Ctrl-C,
finished work kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feathide.cli.analysis import explain, ood
from feathide.cli.arms_race import arms_race
from feathide.cli.attack import attack, bench
from feathide.cli.checks import conformance
from feathide.cli.ending import said
from feathide.cli.export import export
from feathide.cli.results import compare, report, verify
from feathide.cli.study import study
from feathide.execution.remote import near
from feathide.models.heap import keep_freed_memory

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from feathide.auditing.run import Audit
    from feathide.data import Cases
    from feathide.plans.plan import Plan

__all__ = ["app", "main"]

app = typer.Typer(
    help=(
        "Does the detector that guards your medical-image classifier hold against an attacker "
        "who hides in its feature space?"
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        parser=near,
        metavar="PATH",
        help=(
            "Folder of the results, or an fsspec URL such as s3://bucket/run; a run that was "
            "stopped goes on there."
        ),
    ),
]
PlanFile = Annotated[
    Path | None, typer.Argument(help="A YAML plan; flags replace its fields.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="npz in MedMNIST layout, folder of images per class, CSV manifest, or 'phantoms'."
    ),
]
Network = Annotated[
    str | None,
    typer.Option(
        help="A name of the zoo (resnet18, ...) or your own package.module:callable."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="Weights: .pt state dict, .safetensors or a Lightning checkpoint."),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the Python code that --network names.")
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out files that cannot be used, and count and name them."
    ),
]
Head = Annotated[
    str | None, typer.Option(help="softmax, sigmoid (one output) or finding:NAME.")
]
Layers = Annotated[
    str | None,
    typer.Option(help="Feature layers: names, globs or conv, blocks, stages, last."),
]
Eps = Annotated[str | None, typer.Option(help="Budgets: '4/255', '2 HU', '1/255,4/255'.")]
Attacks = Annotated[str | None, typer.Option(help="For example fgsm,bim,pgd,cw.")]
Objectives = Annotated[str | None, typer.Option(help="For example plain,hfc.")]
Detectors = Annotated[
    str | None,
    typer.Option(help="For example kd,bu,kd+bu,lid,maha,svm,dnn,maha-two-sided."),
]
Steps = Annotated[int | None, typer.Option(help="Steps of the iterative attacks.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all randomness.")]
EvenSo = Annotated[
    bool,
    typer.Option(
        "--even-so",
        help="Go on although the classifier looks untrained; nothing can be concluded then.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]


@app.command(
    epilog=(
        "Example: `feathide audit --data chest.npz --network resnet18 --eps 4/255 --out "
        "runs/chest`"
    )
)
def audit(
    plan: PlanFile = None,
    *,
    out: Out = Path("runs/audit"),
    data: Data = None,
    skip_bad: SkipBad = False,
    network: Network = None,
    weights: Weights = None,
    trust: Trust = False,
    head: Head = None,
    layers: Layers = None,
    eps: Eps = None,
    attacks: Attacks = None,
    objectives: Objectives = None,
    detectors: Detectors = None,
    steps: Steps = None,
    seed: Seed = None,
    even_so: EvenSo = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of parallel processes on this machine.")
    ] = 1,
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/n: start with part i of n; run one per machine on the same folder."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray for a Ray cluster (feathide[ray]).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster's address; a local one by default.")
    ] = None,
    gpus: Annotated[
        float,
        typer.Option(min=0, help="GPUs per task on Ray; 0.25 lets four tasks share one."),
    ] = 0.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 when a sanity check fails.")
    ] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Exit with 4 if this holds for any attack and guard: 'slips_through_fpr10 > "
                "0.05'."
            )
        ),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(
            help=(
                "Also log the numbers and the report to tensorboard, mlflow or wandb (extras of "
                "these names)."
            )
        ),
    ] = None,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse",
            help=(
                "Continue in a folder that holds another plan: shared work is kept, the table "
                "is replaced."
            ),
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Audit a guarded classifier: train or load it, attack it with and without hiding, and count
    what slips through.
    """
    with said():
        if engine not in ("local", "ray"):
            from feathide.errors import unknown

            raise unknown("engine", engine, ("local", "ray"))
        put = None
        if track is not None:
            from feathide.auditing.tracking import tracker

            put = tracker(track)
        chosen = _plan(
            plan,
            data=_data(data, skip_bad),
            network=_network(network, weights, trust, head, layers),
            eps=eps,
            attacks=attacks,
            objectives=objectives,
            detectors=detectors,
            schedule=None if steps is None else {"steps": steps},
            seed=seed,
            even_so=even_so or None,
        )
        found = _audit(
            chosen,
            out,
            workers=workers,
            shard=_part(shard),
            engine=engine,
            address=address,
            gpus=gpus,
            reuse=reuse,
            fail_if=fail_if or (),
        )
        if put is not None:
            put(found)
        _show(found, json)
        if found.failed:
            typer.secho(
                f"feathide: sanity checks failed: {', '.join(found.failed)}; {_void(found)}",
                err=True,
                fg="red",
            )
            if strict:
                raise typer.Exit(3)
        if holds := [f"{j.text}: {j.detail}" for j in found.judged if j.holds]:
            typer.secho(f"feathide: {'; '.join(holds)}", err=True, fg="red")
            raise typer.Exit(4)


@app.command(epilog="Example: `feathide demo --out runs/demo`")
def demo(*, out: Out = Path("runs/demo"), json: Json = False) -> None:
    """Run the whole audit on synthetic radiograph-like images: a few minutes, no data needed."""
    with said():
        _show(_audit(_plan(Path(__file__).parent / "demo.yaml"), out), json)


@app.command(epilog="Example: `feathide check plan.yaml`")
def check(
    plan: PlanFile = None,
    *,
    out: Out = Path("runs/audit"),
    data: Data = None,
    skip_bad: SkipBad = False,
    network: Network = None,
    weights: Weights = None,
    trust: Trust = False,
    head: Head = None,
    layers: Layers = None,
    eps: Eps = None,
    attacks: Attacks = None,
    objectives: Objectives = None,
    detectors: Detectors = None,
    steps: Steps = None,
    seed: Seed = None,
    even_so: EvenSo = False,
    json: Json = False,
) -> None:
    """Check a plan and its data, try a few attack steps, and estimate time and memory."""
    with said():
        chosen = _plan(
            plan,
            data=_data(data, skip_bad),
            network=_network(network, weights, trust, head, layers),
            eps=eps,
            attacks=attacks,
            objectives=objectives,
            detectors=detectors,
            schedule=None if steps is None else {"steps": steps},
            seed=seed,
            even_so=even_so or None,
        )
        from feathide.auditing.preflight import check_plan

        forecast = check_plan(chosen, out)
        if json:
            from json import dumps

            told = {
                "seconds": forecast.seconds,
                "stages": dict(forecast.stages),
                "mebibytes": forecast.mebibytes,
            }
            typer.echo(dumps({**told, "says": forecast.says}))
            return
        typer.echo("\n".join(forecast.says))


@app.command(
    epilog="Example: `feathide train --data chest.npz --arch resnet18 --out chest.safetensors`"
)
def train(
    *,
    data: Annotated[
        str,
        typer.Option(
            help=(
                "npz in MedMNIST layout, folder of images per class, CSV manifest, or "
                "'phantoms'."
            )
        ),
    ],
    arch: Annotated[
        str,
        typer.Option(
            help=(
                "A name of the zoo: resnet18, resnet34, resnet50, vgg16_bn, densenet121, tiny, "
                "..."
            )
        ),
    ] = "resnet18",
    weights: Annotated[
        str | None,
        typer.Option(help="Pretrained weights to start from: a file, or package:NAME."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file of weights (.safetensors).")
    ] = Path("classifier.safetensors"),
    epochs: Annotated[
        int, typer.Option(help="The largest number of passes over the training split.")
    ] = 15,
    batch_size: Annotated[int, typer.Option(help="Images per training step.")] = 16,
    lr: Annotated[float, typer.Option(help="The peak learning rate.")] = 1e-3,
    patience: Annotated[
        int,
        typer.Option(help="Stop after this many epochs without a better validation loss."),
    ] = 5,
    freeze: Annotated[
        str | None,
        typer.Option(
            help="What does not learn: backbone, or globs such as 'layer1|layer2.*'."
        ),
    ] = None,
    lr_backbone: Annotated[
        float | None, typer.Option(help="Learning rate of all but the head.")
    ] = None,
    balance: Annotated[
        str, typer.Option(help="How rare classes count: weights, sampling or none.")
    ] = "weights",
    schedule: Annotated[
        str, typer.Option(help="Of the learning rate: one-cycle, cosine or constant.")
    ] = "one-cycle",
    stop_on: Annotated[
        str, typer.Option(help="What of the validation decides: loss or auc.")
    ] = "loss",
    augment: Annotated[
        bool, typer.Option(help="Change training images at random: shift, intensity.")
    ] = True,
    flips: Annotated[
        list[int] | None, typer.Option(help="Mirror this axis, too; 0 is the first one.")
    ] = None,
    crop: Annotated[
        float, typer.Option(min=0, max=0.9, help="Cut away up to this share of each axis.")
    ] = 0.0,
    rotate: Annotated[
        float, typer.Option(min=0, max=180, help="Turn by up to so many degrees.")
    ] = 0.0,
    head: Annotated[
        str | None,
        typer.Option(
            help="softmax, sigmoid or findings; what the labels call for by default."
        ),
    ] = None,
    stem: Annotated[
        str, typer.Option(help="standard, or small for images below 64 pixels.")
    ] = "standard",
    size: Annotated[
        int | None, typer.Option(help="Resize images to this many pixels.")
    ] = None,
    box: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Legal values in the images' own units: -1024 3071."),
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="The part of the box that the network sees."),
    ] = None,
    skip_bad: SkipBad = False,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
) -> None:
    """Train a classifier on the training split, with early stopping on validation."""
    with said():
        if out.exists():
            from feathide.errors import expected

            raise expected(
                f"{out} must not exist", got="a file", do="choose another name or remove it"
            )
        from feathide.data import load_cases
        from feathide.training.judging import judge
        from feathide.training.trainer import Augment, train_classifier

        cases = load_cases(data, size=size, box=box, skip_bad=skip_bad, seed=seed)
        _tell_skipped(cases)
        with _bar() as bar:
            result = train_classifier(
                cases,
                arch,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                patience=patience,
                freeze=freeze,
                lr_backbone=lr_backbone,
                balance=balance,  # type: ignore[arg-type]
                schedule=schedule,  # type: ignore[arg-type]
                stop_on=stop_on,  # type: ignore[arg-type]
                augment=augment
                and Augment(flips=tuple(flips or ()), crop=crop, rotate=rotate),
                head=head,  # type: ignore[arg-type]
                stem=stem,  # type: ignore[arg-type]
                window=window,
                seed=seed,
                out=out,
                weights=weights,
                progress=bar,
            )
        if result.begun is not None:
            typer.echo(f"started from {weights}: {result.begun.words}")
        typer.echo(
            f"{arch}: validation accuracy {result.val_accuracy:.3f}, AUC "
            f"{result.val_auc:.3f}, calibration error {result.val_calibration_error:.3f}, "
            f"epoch {result.epoch + 1} of {len(result.history)}, {result.seconds:.0f} s"
        )
        tested = judge(
            result.model,
            cases,
            "test",
            head=result.head,
            mean=result.mean,
            std=result.std,
            window=window,
            batch_size=batch_size,
        )
        if tested:
            typer.echo(
                f"{tested['n']:.0f} test images: accuracy {tested['accuracy']:.3f}, AUC "
                f"{tested['auc']:.3f}, calibration error {tested['calibration_error']:.3f}"
            )
        typer.echo(
            f"mean {list(result.mean)}, std {list(result.std)}: stored in the file, where "
            "feathide finds them"
        )
        typer.echo(str(out))


@app.command(
    epilog=(
        "Examples: `feathide datasets chest.npz`, `feathide datasets --fetch pneumoniamnist "
        "--size 64`"
    )
)
def datasets(
    path: Annotated[
        str | None, typer.Argument(help="The data, as for `feathide audit --data`.")
    ] = None,
    *,
    kind: Annotated[
        str,
        typer.Option(
            help="The kind of data set, such as kermany; docs/datasets.md lists the kinds."
        ),
    ] = "auto",
    size: Annotated[
        int | None,
        typer.Option(
            help="Resize to this many pixels; with --fetch, the size to fetch (28 by default)."
        ),
    ] = None,
    fetch: Annotated[
        str | None, typer.Option(help="Download this set of MedMNIST (extra medmnist).")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for what is fetched.")
    ] = Path("images"),
    skip_bad: SkipBad = False,
) -> None:
    """Describe a data set (images, classes, splits, patients, range), or fetch one of
    MedMNIST.
    """
    with said():
        from feathide.data import load_cases
        from feathide.data.public import fetch_medmnist
        from feathide.errors import expected

        if fetch is not None:
            typer.echo(str(fetch_medmnist(fetch, size or 28, out)))
            return
        if path is None:
            raise expected(
                "datasets needs a path, or --fetch and a name",
                got="neither",
                do="say which data",
            )
        cases = load_cases(path, kind=kind, size=size, skip_bad=skip_bad)  # type: ignore[arg-type]
        _tell_skipped(cases)
        typer.echo(
            f"{cases.name}: {len(cases)} images, {cases.channels} x "
            f"{' x '.join(map(str, cases.shape))}, box {cases.box}, unit {cases.unit}"
        )
        if cases.orientation:
            typer.echo(
                f"  orientation {cases.orientation}: the side of the patient that each axis "
                "runs towards"
            )
        for split in ("train", "val", "test"):
            rows = cases.where(split)
            labels = cases.labels[rows]
            per_class = {
                n: int((labels[:, i] if labels.ndim == 2 else labels == i).sum())
                for i, n in enumerate(cases.class_names)
            }
            typer.echo(
                f"  {split}: {len(rows)} images, {len(set(cases.patients[rows]))} patients, "
                f"{per_class}"
            )
        for note in cases.notes:
            typer.echo(f"  {note}")


app.command(
    epilog="Example: `feathide study paper --scale small --data images --out runs/study`"
)(study)
app.command(
    epilog=(
        "Example: `feathide attack chest.npz --network resnet18 --weights chest.safetensors "
        "--recipe pgd --eps 4/255`"
    )
)(attack)
app.command(epilog="Example: `feathide bench`")(bench)
app.command(epilog="Example: `feathide arms-race plan.yaml --out runs/chest --rounds 3`")(
    arms_race
)
app.command(epilog="Example: `feathide conformance my_package.detectors:MyDetector`")(
    conformance
)
app.command(
    epilog="Example: `feathide export runs/chest --out exported --attack pgd --objective hfc`"
)(export)
app.command(epilog="Example: `feathide report runs/chest`")(report)
app.command(epilog="Example: `feathide compare runs/chest runs/chest-more-steps`")(compare)
app.command(epilog="Example: `feathide verify runs/chest --sample 200`")(verify)


app.add_typer(explain, name="explain")
app.command(epilog="Example: `feathide ood plan.yaml --out runs/chest`")(ood)


def main() -> None:
    """The entry point of the ``feathide`` command."""
    keep_freed_memory()
    app()


def _plan(source: Path | None, **changes: Any) -> "Plan":
    from feathide.errors import InputError
    from feathide.plans.plan import load_plan, merged

    given = {k: v for k, v in changes.items() if v is not None}
    if source is None and "data" not in given:
        raise InputError(
            "an audit needs images, got neither a plan nor --data; give one of them"
        )
    return load_plan(merged(source or {}, given))


def _data(path: str | None, skip_bad: bool) -> dict[str, Any] | None:
    given = {"path": path, "skip_bad": skip_bad or None}
    return {k: v for k, v in given.items() if v is not None} or None


def _tell_skipped(cases: "Cases") -> None:
    for skipped in cases.skipped:
        typer.secho(f"left out {skipped.path}: {skipped.reason}", err=True, fg="yellow")


def _network(
    arch: str | None, weights: str | None, trust: bool, head: str | None, layers: str | None
) -> dict[str, Any] | None:
    named = {
        "arch": arch,
        "weights": weights,
        "trust": trust or None,
        "head": head,
        "layers": layers.split(",") if layers else None,
    }
    return {k: v for k, v in named.items() if v is not None} or None


def _audit(plan: "Plan", out: Path, *, workers: int = 1, **how: Any) -> "Audit":
    import torch

    from feathide.auditing.run import audit as run_audit
    from feathide.execution.engine import RichProgress

    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    with RichProgress() as progress:
        return run_audit(plan, out, progress=progress, workers=workers, **how)


def _part(shard: str | None) -> tuple[int, int] | None:
    """``1/4`` -> (0, 4): people count from one."""
    from feathide.errors import expected

    if shard is None:
        return None
    i, slash, n = shard.partition("/")
    if not (slash and i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise expected(
            "--shard must be i/n with i from 1 to n",
            got=shard,
            do="say 1/4 for the first of four",
        )
    return int(i) - 1, int(n)


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    """One progress bar on a terminal, silence elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("train", total=None)
        yield lambda done, total, what: bars.update(
            task, completed=done, total=total, description=what
        )


def _show(found: "Audit", json: bool) -> None:
    if json:
        typer.echo(_as_json(found))
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    # nothing fooled the classifier where there is none
    if (found.table.metric == "auc").any():
        console.print(_summary(found.table, "auc"))
    console.print(_summary(found.table, "slips_through_fpr10"))
    reads: dict[str, list[str]] = {}
    for f in found.verdict.findings:
        reads.setdefault(" and ".join(f.reads), []).append(f.detector)
    spaces = "; ".join(
        f"{', '.join(names)} ({where})" for where, names in reads.items() if where
    )
    console.print(escape(f"The guards read: {spaces}."), highlight=False)
    style = "bold" if found.verdict.evidence else "bold red"
    console.print(f"[{style}]{escape(found.verdict.headline)}[/{style}]", highlight=False)
    for sentence in (found.verdict.attacked, found.verdict.strength, found.verdict.slipped):
        console.print(escape(sentence), highlight=False)
    from feathide.models.memory import peak

    typer.echo(f"memory  {peak():.0f} MiB at the peak of a process")
    typer.echo(f"table   {found.folder / 'results.csv'}")
    typer.echo(f"report  {found.report.resolve()}")


def _void(found: "Audit") -> str:
    """What the numbers of a run with a failed sanity check are worth, and what became of its
    conditions.
    """
    open_ = [j.text for j in found.judged if not j.holds]
    told = f", and nobody knows whether {', '.join(open_)} holds" if open_ else ""
    return f"the numbers are not evidence{told}"


def _summary(table: "pd.DataFrame", metric: str) -> "Table":
    """One metric, attacks by detectors."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from feathide.metrics.registry import title_of

    rows = table[table.metric == metric]
    success = (
        table[table.metric == "success"].set_index(["attack", "objective", "eps"]).value
    )
    detectors = list(dict.fromkeys(rows.detector))
    shown = Table(
        title=title_of(metric),
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    shown.add_column("attack", min_width=6, overflow="fold")
    for column in ("eps", "success"):
        shown.add_column(column, justify="right", no_wrap=True)
    for column in detectors:
        shown.add_column(escape(column), justify="right", min_width=4, overflow="fold")
    for (name, hidden, eps), part in rows.groupby(
        ["attack", "objective", "eps"], sort=False
    ):
        value = part.set_index("detector").value
        fooled = success.get((name, hidden, eps))
        shown_as = "worst of all" if name == "worst" else f"{name}+{hidden}"
        cells = [f"{value[d]:.2f}" if d in value else "-" for d in detectors]
        shown.add_row(
            shown_as, f"{eps:.3g}", "-" if fooled is None else f"{fooled:.2f}", *cells
        )
    return shown


def _as_json(found: "Audit") -> str:
    import json

    rows = json.loads(found.table.to_json(orient="records"))
    return json.dumps(
        {
            "folder": str(found.folder),
            "report": str(found.report),
            "verdict": found.verdict.headline,
            "reads": {f.detector: list(f.reads) for f in found.verdict.findings},
            "evidence": found.verdict.evidence,
            "gates_failed": list(found.failed),
            "table": rows,
        }
    )


if __name__ == "__main__":
    main()
