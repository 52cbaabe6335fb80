"""The verbs ``feathide attack``: one attack on the images of a split, without detectors; and
``feathide bench``: what a step costs here.
"""

from pathlib import Path
from typing import Annotated

import typer

from feathide.cli.ending import said
from feathide.cli.options import Json, Trust, Weights, plan_of
from feathide.cli.running import progress_display

__all__ = ["attack", "bench"]


AttackedNetwork = Annotated[
    str,
    typer.Option(
        "--network",
        "--arch",
        help=(
            "A name of the zoo (trained here without --weights) or your own "
            "package.module:callable."
        ),
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        "--attacks",
        "--recipe",
        help="The attack: fgsm, bim, pgd, mim, dim, tim, cw, apgd, ...",
    ),
]
HidingObjective = Annotated[
    str,
    typer.Option(
        "--objectives",
        "--objective",
        help="plain, or the hiding objective: hfc, random, closest, ...",
    ),
]


def attack(
    data: Annotated[str, typer.Argument(help="Images, as for audit --data.")],
    *,
    network: AttackedNetwork,
    weights: Weights = None,
    trust: Trust = False,
    layers: Annotated[
        str,
        typer.Option(help="Feature layers: names, globs or conv, blocks, stages, last."),
    ] = "blocks",
    recipe: Recipe = "pgd",
    objective: HidingObjective = "plain",
    eps: Annotated[str, typer.Option(help="The budget: '4/255', '2 HU'.")] = "4/255",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of an iterative attack.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the images and the table.")
    ] = Path("runs/attack"),
    json: Json = False,
) -> None:
    """Attack the images of one split with one recipe: write them as files like their sources, and
    a table. No detector is involved.
    """
    with said():
        from feathide.auditing.single import attack_images
        from feathide.errors import unknown
        from feathide.registry.specs import separated

        if split not in ("train", "val", "test", "all"):
            raise unknown("split", split, ("train", "val", "test", "all"))
        named = {
            "arch": network,
            "weights": weights,
            "trust": trust,
            "layers": separated(layers),
        }
        chosen = plan_of(
            None,
            data=data,
            network=named,
            eps=eps,
            attacks=recipe,
            objectives=objective,
            schedule={"steps": steps} if steps else {},
            seed=seed,
        )
        with progress_display() as progress:
            table = attack_images(
                chosen,
                out,
                split=split,  # type: ignore[arg-type]
                progress=progress,
            )
        if json:
            typer.echo(table.to_json(orient="records"))
            return
        attacked = table[table.file.notna()]
        typer.echo(
            f"{recipe}+{objective} at eps {eps}: {int(attacked.fooled.sum())} of "
            f"{len(attacked)} attacked images are classified as the target; "
            f"{len(table) - len(attacked)} were misclassified already"
        )
        typer.echo(f"images  {out / 'images'}")
        typer.echo(f"table   {out / 'attack.csv'}")


def bench(
    *,
    rounds: Annotated[
        int,
        typer.Option(min=1, help="Number of repetitions; the median is reported."),
    ] = 3,
    json: Json = False,
) -> None:
    """Measure what a step of each kind of attack costs on this machine, in multiples of a bare
    forward and backward pass.
    """
    with said():
        from feathide.attacks.cost import bench as measure

        found = measure(rounds=rounds)
        if json:
            from json import dumps

            typer.echo(
                dumps(
                    {
                        r.what: {"ratio": r.value, "low": r.low, "high": r.high}
                        for r in found
                    }
                )
            )
            return
        for r in found:
            typer.echo(f"{r.what:28} {r.value:5.2f}  ({r.low:.2f} to {r.high:.2f})")
