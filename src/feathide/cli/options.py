"""The options that several verbs share, and the plan that they make."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feathide.cli.running import now
from feathide.execution.remote import near

if TYPE_CHECKING:
    from feathide.plans.plan import Plan

__all__ = [
    "Json",
    "Layers",
    "Out",
    "PlanFile",
    "Run",
    "SkipBad",
    "Trust",
    "Weights",
    "plan_of",
    "with_plan_flags",
]

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        parser=near,
        metavar="PATH",
        help=(
            "Folder of the results, or an fsspec URL such as s3://bucket/run; a stopped "
            "run continues there."
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
        "--network",
        "--arch",
        help="A name of the zoo (resnet18, ...) or your own package.module:callable.",
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
    typer.Option("--skip-bad", help="Leave out unusable files, and count and list them."),
]
Head = Annotated[
    str | None, typer.Option(help="softmax, sigmoid (one output) or finding:NAME.")
]
Layers = Annotated[
    str | None,
    typer.Option(help="Feature layers: names, globs or conv, blocks, stages, last."),
]
Eps = Annotated[str | None, typer.Option(help="Budgets: '4/255', '2 HU', '1/255,4/255'.")]
Attacks = Annotated[
    str | None, typer.Option("--attacks", "--recipe", help="For example fgsm,bim,pgd,cw.")
]
Objectives = Annotated[
    str | None, typer.Option("--objectives", "--objective", help="For example plain,hfc.")
]
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
        help="Continue although the classifier looks untrained; nothing can be concluded then.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Run = Annotated[
    Path,
    typer.Argument(
        parser=near, metavar="RUN", help="The folder or URL of a finished audit."
    ),
]


def plan_of(source: Path | None, **changes: Any) -> "Plan":
    """The plan of a file with flags in the place of its fields."""
    from feathide.errors import InputError
    from feathide.plans.plan import load_merged

    given = {k: v for k, v in changes.items() if v is not None}
    if now().device is not None:
        given["device"] = now().device
    if source is None and "data" not in given:
        raise InputError(
            "an audit needs images, got neither a plan nor --data; give one of them"
        )
    return load_merged(source, given)


def changes_of(
    *,
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
) -> dict[str, Any]:
    """What the flags change of a plan: its fields, those that no flag names as None."""
    from feathide.registry.specs import separated

    named = {
        "arch": network,
        "weights": weights,
        "trust": trust or None,
        "head": head,
        "layers": separated(layers) if layers else None,
    }
    return {
        "data": _given({"path": data, "skip_bad": skip_bad or None}),
        "network": _given(named),
        "eps": eps,
        "attacks": attacks,
        "objectives": objectives,
        "detectors": detectors,
        "schedule": None if steps is None else {"steps": steps},
        "seed": seed,
        "even_so": even_so or None,
    }


def _given(fields: dict[str, Any]) -> dict[str, Any] | None:
    return {k: v for k, v in fields.items() if v is not None} or None


def with_plan_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """``verb`` with the flags that change a plan in the place of its parameter ``changes``, which
    is given what ``changes_of`` makes of them.
    """
    signature = inspect.signature(verb, eval_str=True)
    flags = inspect.signature(changes_of, eval_str=True).parameters
    listed: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        listed += flags.values() if name == "changes" else [parameter]

    @functools.wraps(verb)
    def called(*args: Any, **given: Any) -> None:
        said = {name: given.pop(name) for name in flags}
        verb(*args, **given, changes=changes_of(**said))

    called.__signature__ = signature.replace(parameters=listed)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in listed}
    return called
