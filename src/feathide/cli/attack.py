"""The verbs ``feathide attack``: one attack on the images of a split, without detectors; and
``feathide bench``: what a step costs here.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from feathide.cli.ending import said
from feathide.cli.options import plan_of
from feathide.cli.running import progress_display

__all__ = ["attack", "bench"]


def attack(
    data: Annotated[str, typer.Argument(help="Images, as for audit --data.")],
    *,
    network: Annotated[
        str,
        typer.Option(
            "--network",
            "--arch",
            help=(
                "A name of the zoo (trained here without --weights) or your own "
                "package.module:callable."
            ),
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights: .pt state dict, .safetensors or a Lightning checkpoint."
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the Python code that --network names.")
    ] = False,
    layers: Annotated[
        str,
        typer.Option(help="Feature layers: names, globs or conv, blocks, stages, last."),
    ] = "blocks",
    recipe: Annotated[
        str,
        typer.Option(
            "--attacks",
            "--recipe",
            help="The attack: fgsm, bim, pgd, mim, dim, tim, cw, apgd, ...",
        ),
    ] = "pgd",
    objective: Annotated[
        str,
        typer.Option(
            "--objectives",
            "--objective",
            help="plain, or the hiding objective: hfc, random, closest, ...",
        ),
    ] = "plain",
    eps: Annotated[str, typer.Option(help="The budget: '4/255', '2 HU'.")] = "4/255",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of an iterative attack.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the images and the table.")
    ] = Path("runs/attack"),
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document for machines.")
    ] = False,
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
        plan: dict[str, Any] = {
            "data": data,
            "network": {
                "arch": network,
                "weights": weights,
                "trust": trust,
                "layers": separated(layers),
            },
            "eps": eps,
            "attacks": recipe,
            "objectives": objective,
            "schedule": {"steps": steps} if steps else {},
            "seed": seed,
        }
        chosen = plan_of(None, **plan)
        with progress_display() as progress:
            table = attack_images(
                chosen,
                out,
                split=split,  # type: ignore[arg-type]
                progress=progress,
            )
        attacked = table[table.file.notna()]
        if json:
            typer.echo(table.to_json(orient="records"))
            return
        typer.echo(
            f"{recipe}+{objective} at eps {eps}: {int(attacked.fooled.sum())} of "
            f"{len(attacked)} attacked images are taken for the target; "
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
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document for machines.")
    ] = False,
) -> None:
    """What a step of each kind of attack costs on this machine, in multiples of a bare forward
    and backward pass.
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
