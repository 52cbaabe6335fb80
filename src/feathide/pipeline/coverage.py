"""Which layers HFC constrains, of those that the guards of an audit read, and of those that the
network has.
"""

from dataclasses import replace

from feathide.catalog import OBJECTIVES
from feathide.errors import InputError
from feathide.pipeline.attacker import Attacker
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.plans.sections import ObjectivePlan

__all__ = ["coverage_of", "left_out", "share_constrained"]

NAMED = 5  # layers that are named in a sentence


def left_out(context: Context, objective: ObjectivePlan) -> tuple[str, ...]:
    """The layers that the guards of a finished audit can read and that an objective with mixtures
    does not constrain.
    """
    make = OBJECTIVES[objective.kind].make
    assert make is not None
    constrained = make(
        Attacker(context, context.limits.budgets[0]), dict(objective.options)
    ).reads.layers
    return (
        ()
        if constrained is None
        else tuple(n for n in context.outputs.train()[0].features if n not in constrained)
    )


def share_constrained(context: Context, objective: ObjectivePlan) -> tuple[float, int]:
    """The share of the layers that the guards can read which the objective constrains, and how
    many these are.
    """
    n = len(context.outputs.train()[0].features)
    return 1 - len(left_out(context, objective)) / n, n


def coverage_of(context: Context) -> list[str]:
    """The caveats of a finished audit about layers where hiding can be seen."""
    hiding = {
        c.objective.name: c.objective
        for c in cells(context)
        if OBJECTIVES[c.objective.kind].needs == "bank"
    }
    found, read = [], tuple(context.outputs.train()[0].features)
    for name, objective in hiding.items():
        if left := left_out(context, objective):
            more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
            found.append(
                f"{name} constrains {len(read) - len(left)} of the {len(read)} layers that "
                f"the guards read, not {', '.join(left[:NAMED])}{more}: "
                "guards see it there; leave layers and widest out of its options"
            )
    every = _units(context) if hiding else ()
    if missed := [n for n in every if n not in read]:
        found.append(
            f"HFC and guards look at {len(read)} layers; {len(missed)} of the network's "
            f"{len(every)} convolution units are not among them: "
            "a guard that reads these may see HFC, which did not constrain them; say "
            "network: {layers: conv} for the paper's choice"
        )
    return found


def _units(context: Context) -> tuple[str, ...]:
    """Every conv-norm-activation unit of the network; none where it has no such units."""
    whole = replace(
        context.networks.classifier,
        layers="conv",
        dropout_samples=0,
        reference_network=None,
    )
    try:
        return whole.names(context.data.images(context.data.rows("test")[:1]))
    except InputError:
        return ()
