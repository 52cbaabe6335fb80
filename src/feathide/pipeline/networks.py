"""The networks of a plan: the classifier under audit, as its guards read it, and the reference
network that some guards ask.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from feathide.catalog import DETECTORS
from feathide.data.budgets import parse_eps
from feathide.detectors.base import needs_of
from feathide.detectors.residuals import VERSION as OF_STATISTICS
from feathide.detectors.residuals import statistics
from feathide.detectors.squeezing import SQUEEZERS
from feathide.detectors.squeezing import VERSION as OF_SQUEEZERS
from feathide.errors import InputError, expected, first_line
from feathide.execution.digests import FORMAT, digest
from feathide.models.classifier import FeatureClassifier
from feathide.models.loading import check_network, load_network
from feathide.models.logits import logits_of
from feathide.models.packaged import upright
from feathide.models.weights import (
    Taken,
    file_digest,
    load_weights,
    read_about,
    start_from,
    weights_digest,
)
from feathide.models.zoo import Stem, build
from feathide.pipeline.images import Subjects
from feathide.pipeline.moved import file_near
from feathide.plans.plan import slug
from feathide.training.adversarial import Adversary
from feathide.types import Box

__all__ = ["Networks"]

TRIED, NUMBERS = 8, 2**24  # images that a network is tried on, and the most numbers in them
Need = Literal["dropout", "reference_network", "statistics", "squeezed"]
NEEDS: tuple[Need, ...] = get_args(Need)


@dataclass(frozen=True)
class Networks(Subjects):
    """The classifier of one plan and its reference network; its ``store`` also holds the weights
    that are trained here.
    """

    @cached_property
    def weights(self) -> str | None:
        """The file of the classifier's weights, wherever it is now."""
        return file_near(self.plan.network.weights, self.store.folder)

    @cached_property
    def begins_with(self) -> str | None:
        """The file of weights that a training starts from, wherever it is now."""
        return file_near(self.plan.network.start_from, self.store.folder)

    @property
    def outputs_count(self) -> int:
        return 1 if self.plan.network.head == "sigmoid" else len(self.cases.class_names)

    @property
    def trains(self) -> bool:
        """Whether the classifier is trained here."""
        return not self.plan.network.own and self.plan.network.weights is None

    @property
    def network_seed(self) -> int:
        seed = self.plan.network.seed
        return self.plan.seed if seed is None else seed

    @cached_property
    def network_digest(self) -> str:
        """What the classifier is: the recipe of its training, or the content of its weights."""
        n = self.plan.network
        if self.trains:
            begun = (
                []
                if self.begins_with is None
                else [file_digest(self.begins_with), n.rename]
            )
            return digest(
                [
                    FORMAT,
                    self.cases.digest,
                    n.arch,
                    n.head,
                    n.train,
                    n.window,
                    self.network_seed,
                    *begun,
                ]
            )
        return digest([FORMAT, n.arch, n.arguments, weights_digest(self._network())])

    @cached_property
    def base(self) -> str:
        """The digest that everything below depends on: images, where they may change, classifier
        and what is read from it.
        """
        n = self.plan.network
        region = None if self.region is None else self.region.digest
        own: list[Any] = [
            n.head,
            n.layers,
            n.mean,
            n.std,
            self.window,
            self.plan.dropout_samples,
            self.plan.seed,
            region,
        ]
        own += [] if n.precision == "float32" else [n.precision]
        own += ["compiled"] if n.compile else []
        own += [] if n.output == "logits" else [n.output]
        own += [] if (n.layout, n.tokens) == ("auto", "mean") else [n.layout, n.tokens]
        return digest([FORMAT, self.cases.digest, self.network_digest, *own])

    @property
    def classifier_key(self) -> str:
        return f"classifier/{slug(self.plan.network.arch)}-{self.network_digest}"

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What a file of weights written by ``feathide train`` says about its network; empty for
        others.
        """
        weights = self.weights
        found = (
            read_about(weights)
            if weights is not None and weights.endswith(".safetensors")
            else {}
        )
        arch = found.get("arch") or self.plan.network.arch
        if arch != self.plan.network.arch and not self.plan.network.own:
            raise expected(
                f"{weights} holds a {arch}",
                got=f"network.arch: {self.plan.network.arch}",
                do="name the architecture of the weights",
            )
        return found

    @property
    def window(self) -> Box | None:
        """The part of the box that the classifier sees: as planned, or as its file of weights
        says.
        """
        low, high = self.plan.network.window or self.about.get("window") or (None, None)
        return None if low is None or high is None else (float(low), float(high))

    def empty_network(self) -> nn.Module:
        n = self.plan.network
        return self._built(n.arch, self.about.get("stem", n.train.stem))

    def _built(self, arch: str, stem: Stem) -> nn.Module:
        size, outputs = self.cases.shape, self.outputs_count
        return build(
            arch,
            channels=self.cases.channels,
            outputs=outputs,
            size=size,
            stem=stem,
            seed=self.plan.seed,
        )

    def _network(self) -> nn.Module:
        n = self.plan.network
        if n.own:
            return load_network(
                n.arch,
                weights=self.weights,
                kwargs=n.arguments,
                trust=n.trust,
                rename=n.rename,
            )
        model = self.empty_network()
        if self.weights is not None:
            load_weights(model, self.weights, rename=n.rename)
        return model.eval()

    def taken(self) -> Taken | None:
        """What a look into the file of weights finds, without keeping it; None where the plan
        names no file for a network of the zoo.
        """
        n = self.plan.network
        if n.own or (n.weights is None and n.start_from is None):
            return None
        take = load_weights if n.weights is not None else start_from
        file = self.weights or self.begins_with or ""
        return take(self.empty_network(), file, rename=n.rename)

    @cached_property
    def classifier(self) -> FeatureClassifier:
        """The classifier under audit, without dropout draws."""
        n = self.plan.network
        mean, std = (
            tuple(getattr(n, k) or self.about.get(k) or ()) for k in ("mean", "std")
        )
        model = self._network()
        if n.own:
            model = upright(model, self.cases.channels, self.cases.shape)
        if self.trains:
            mean, std = self.restored(model, self.classifier_key)
        return self._compiled(self.shown(model, n.layers, mean, std))

    def _compiled(self, classifier: FeatureClassifier) -> FeatureClassifier:
        """Compiled if the plan wants it: only what is run often is worth the wait."""
        return (
            replace(classifier, compile="inductor")
            if self.plan.network.compile
            else classifier
        )

    def restored(
        self, model: nn.Module, key: str
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Give ``model`` the weights that a task of training has stored; mean and std of what it
        saw.
        """
        arrays = self.store.load(key)
        model.load_state_dict(
            {
                k.removeprefix("w/"): torch.from_numpy(v)
                for k, v in arrays.items()
                if k.startswith("w/")
            }
        )
        return tuple(arrays["mean"].tolist()), tuple(arrays["std"].tolist())

    def shown(
        self,
        model: nn.Module,
        layers: str | Sequence[str],
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> FeatureClassifier:
        """A network as the plan's images, head and precision make it a classifier."""
        head: str | tuple[str, int] = (
            self.plan.network.head if self.finding is None else ("finding", self.finding)
        )
        return FeatureClassifier(
            # attacks differentiate with respect to images only
            model.to(self.device).eval().requires_grad_(False),
            layers,
            box=self.cases.box,
            mean=mean,
            std=std,
            window=self.window,
            head=head,
            seed=self.plan.seed,
            precision=self.plan.network.precision,
            layout=self.plan.network.layout,
            tokens=self.plan.network.tokens,
            output=self.plan.network.output,
            outputs=self.outputs_count,
        )

    def check_classifier(self) -> list[str]:
        """Refuse a network that cannot be audited, or not soundly; the caveats of one that can.
        Only for networks that exist before the run.
        """
        return list(self._caveats)

    @cached_property
    def _caveats(self) -> tuple[str, ...]:
        x = self.images(self._tried)
        classifier, output = self.classifier, self.plan.network.output
        classifier.check(x)
        classes = max(len(self.class_names), 2)
        found = check_network(
            classifier.model,
            classifier.prepared(x),
            classes,
            classifier.head,
            output=output,
        )
        for caveat in found:
            if "probabilities" in caveat:
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
        self._refuse_random(found)
        classifier.names(x)
        return tuple(found)

    def check_untrained(self) -> FeatureClassifier:
        """The same of a network that is trained here, before it has learnt: what is wrong with
        its outputs then is wrong later. Gives what it has checked.
        """
        network = self.shown(self.empty_network(), self.plan.network.layers)
        x = self.images(self._tried)
        network.check(x)
        classes = max(len(self.class_names), 2)
        self._refuse_random(
            check_network(network.model, network.prepared(x), classes, network.head)
        )
        _check_in_training(network.model, network.prepared(x), self.outputs_count)
        network.names(x)
        return network

    @property
    def _tried(self) -> np.ndarray:
        """Training images that the network is tried on: eight, of all classes in turn, or as many
        as hold so many numbers; two at least.
        """
        rows = self.rows("train")
        by_class = np.argsort(self.labels[rows], kind="stable")
        _, first, count = np.unique(
            self.labels[rows][by_class], return_index=True, return_counts=True
        )
        # the how manieth of its class
        turn = np.arange(len(rows)) - np.repeat(first, count)
        return rows[
            by_class[np.argsort(turn, kind="stable")][
                : max(
                    2,
                    min(
                        TRIED,
                        NUMBERS // (self.cases.channels * math.prod(self.cases.shape)),
                    ),
                )
            ]
        ]

    def _refuse_random(self, caveats: Sequence[str]) -> None:
        if any("random" in caveat for caveat in caveats):
            raise expected(
                "the network must give the same outputs for the same images",
                got="different ones at every pass",
                do=(
                    "switch off what is random in it at inference, such as a dropout in "
                    "forward, or average it inside"
                ),
            )

    @property
    def observer(self) -> FeatureClassifier:
        """The classifier as the guards of the plan read it."""
        return self.observing(self.plan.detectors)

    @lru_cache(maxsize=16)  # noqa: B019
    def observing(self, detectors: tuple[str, ...]) -> FeatureClassifier:
        """The classifier as these detectors read it: with dropout draws, a reference network and
        readings of the image where one of them needs them.
        """
        dropout, reference_network, image, squeezed = (
            self.needs(what, detectors) for what in NEEDS
        )
        if not any((dropout, reference_network, image, squeezed)):
            return self.classifier
        return replace(
            self.classifier,
            dropout_samples=self.plan.dropout_samples if dropout else 0,
            reference_network=self.reference_network if reference_network else None,
            statistics=statistics if image else None,
            squeezers=SQUEEZERS if squeezed else (),
        )

    def needs(self, what: Need, detectors: Sequence[str] | None = None) -> bool:
        """Whether a detector, of the plan's unless said, reads dropout draws, a reference
        network, statistics of the image or squeezed images.
        """
        made = [
            DETECTORS[d]()
            for d in (self.plan.detectors if detectors is None else detectors)
        ]
        return any(what in needs_of(d) for d in made)

    # --- reference network ----------------------------------------------------------------------

    @property
    def small_arch(self) -> str:
        """The smallest network of the zoo for these images."""
        return "tiny" if len(self.cases.shape) == 2 else "tiny3d"

    @property
    def reference_network_arch(self) -> str:
        return self.plan.reference_network.arch or self.small_arch

    @cached_property
    def adversary(self) -> Adversary:
        """What the reference network learns to withstand."""
        w = self.plan.reference_network
        eps = max(self.budgets) if w.eps is None else float(parse_eps(w.eps, self.cases))
        return Adversary(self.threat(eps), w.steps, self.plan.seed)

    @cached_property
    def reference_network_key(self) -> str:
        p, w = self.plan, self.plan.reference_network
        recipe = [
            w.train,
            w.steps,
            p.norm,
            float(self.adversary.threat.eps),
            self.window,
            p.network.head,
            p.seed,
        ]
        arch = self.reference_network_arch
        return (
            f"reference_network/{arch}-{digest([FORMAT, self.cases.digest, arch, *recipe])}"
        )

    def empty_reference_network(self) -> nn.Module:
        """The reference network before its training."""
        stem = self.plan.reference_network.train.stem
        return self._built(self.reference_network_arch, stem)

    @cached_property
    def reference_network(self) -> FeatureClassifier:
        """A robust network of the same classes, for the guards that ask one."""
        model = self.empty_reference_network()
        reference_network = self.shown(
            model, "blocks", *self.restored(model, self.reference_network_key)
        )
        return self._compiled(replace(reference_network, output="logits"))

    @property
    def sight(self) -> list[str]:
        """What the guards read beyond a forward pass with its dropout draws."""
        dropout = [] if self.needs("dropout") else ["no dropout"]
        return [*dropout, *self.beside()]

    def beside(self, detectors: Sequence[str] | None = None) -> list[str]:
        """What decides that which detectors, of the plan's unless said, read beside the
        classifier's own outputs.
        """
        kinds: Mapping[Need, str] = {"statistics": OF_STATISTICS, "squeezed": OF_SQUEEZERS}
        reference_network = (
            [self.reference_network_key]
            if self.needs("reference_network", detectors)
            else []
        )
        return [
            *reference_network,
            *(version for need, version in kinds.items() if self.needs(need, detectors)),
        ]


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
