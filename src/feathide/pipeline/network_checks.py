"""Whether a network can be audited: tried on a few images before any long work."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from feathide.errors import InputError, expected, first_line
from feathide.models.classifier import FeatureClassifier
from feathide.models.loading import check_network
from feathide.models.logits import logits_of
from feathide.pipeline.context import Context
from feathide.pipeline.data import Data

__all__ = ["check_classifier", "check_untrained"]

TRIED, NUMBERS = 8, 2**24  # images that a network is tried on, and the most numbers in them


def check_classifier(context: Context) -> list[str]:
    """Refuse a network that cannot be audited, or not soundly; the caveats of one that can.
    Only for networks that exist before the run.
    """
    return list(_caveats(context))


@lru_cache(maxsize=2)
def _caveats(context: Context) -> tuple[str, ...]:
    x = context.data.images(_tried(context.data))
    classifier = context.networks.classifier
    classifier.check(x)
    found = check_network(
        classifier.model,
        classifier.prepared(x),
        max(len(context.data.class_names), 2),
        classifier.head,
        output=context.plan.network.output,
    )
    if any("probabilities" in caveat for caveat in found):
        raise expected(
            "the network must return logits",
            got=(
                "outputs that lie in [0, 1] whatever the image, as those of a softmax "
                "or a sigmoid do"
            ),
            do=(
                "let it return what its last layer gives, or say network.output: "
                "probabilities"
            ),
        )
    if not context.recipe.random:
        _refuse_random(found)
    classifier.names(x)
    return tuple(found)


def check_untrained(context: Context) -> FeatureClassifier:
    """The same of a network that is trained here, before it has learnt: what is wrong with
    its outputs then is wrong later. Gives what it has checked.
    """
    empty = context.recipe.empty_network()
    shown = context.networks.shown(empty, context.plan.network.layers)
    network = context.networks.defended(shown)
    x = context.data.images(_tried(context.data))
    network.check(x)
    classes = max(len(context.data.class_names), 2)
    _refuse_random(check_network(network.model, network.prepared(x), classes, network.head))
    _check_in_training(network.model, network.prepared(x), context.recipe.outputs_count)
    network.names(x)
    return network


def _tried(data: Data) -> np.ndarray:
    """Training images that the network is tried on: eight, of all classes in turn, or as many
    as hold so many numbers; two at least.
    """
    rows = data.rows("train")
    by_class = np.argsort(data.labels[rows], kind="stable")
    _, first, count = np.unique(
        data.labels[rows][by_class], return_index=True, return_counts=True
    )
    # the how manieth of its class
    turn = np.arange(len(rows)) - np.repeat(first, count)
    in_turn = rows[by_class[np.argsort(turn, kind="stable")]]
    fit = NUMBERS // (data.cases.channels * math.prod(data.cases.shape))
    return in_turn[: max(2, min(TRIED, fit))]


def _refuse_random(caveats: Sequence[str]) -> None:
    if any("random" in caveat for caveat in caveats):
        raise expected(
            "the network must give the same outputs for the same images",
            got="different ones at every pass",
            do=(
                "say network: {draws: 16} to average over so many draws (expectation over "
                "transformation), or switch off what is random in it, such as a dropout in "
                "forward"
            ),
        )


def _check_in_training(model: nn.Module, x: Tensor, k: int) -> None:
    """Refuse a network that does not run while it is trained, or whose logits cannot be told from
    what else it gives then.
    """
    try:
        with torch.no_grad():
            logits_of(model.train()(x), len(x), k)
    except InputError:
        raise
    except Exception as error:
        got = f"{type(error).__name__}: {first_line(error)}"
        raise expected(
            "the network must run while it is trained", got=got, do="choose another network"
        ) from error
    finally:
        model.eval()
