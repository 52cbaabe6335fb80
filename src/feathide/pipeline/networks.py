"""The networks of a plan, with their weights: the classifier under audit, as its detectors read
it, and the reference network that some detectors ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import nn

from feathide.detectors.residuals import statistics
from feathide.detectors.squeezing import SQUEEZERS
from feathide.execution.store import Store
from feathide.models.classifier import FeatureClassifier
from feathide.models.packaged import upright
from feathide.pipeline.data import Data
from feathide.pipeline.recipe import NEEDS, Recipe
from feathide.pipeline.steps import Steps
from feathide.plans.plan import Plan

__all__ = ["Networks"]


@dataclass(frozen=True, eq=False)
class Networks:
    """The classifier of one plan and its reference network; ``store`` is where trained weights
    lie.
    """

    plan: Plan
    store: Store
    data: Data
    recipe: Recipe
    steps: Steps

    @cached_property
    def classifier(self) -> FeatureClassifier:
        """The classifier under audit, without dropout draws."""
        n, about = self.plan.network, self.recipe.about
        mean = tuple(n.mean or about.get("mean") or ())
        std = tuple(n.std or about.get("std") or ())
        model = self.recipe.network()
        if n.own:
            model = upright(model, self.data.cases.channels, self.data.cases.shape)
        if self.recipe.trains:
            mean, std = self.restored(model, self.steps.train.key)
        shown = self.shown(model, n.layers, mean, std)
        return self._compiled(self.defended(shown))

    def defended(self, classifier: FeatureClassifier) -> FeatureClassifier:
        """A network behind the purifier of the plan, averaged over the draws of what is
        random.
        """
        recipe = self.recipe
        return replace(classifier, purify=recipe.purify, draws=recipe.draws)

    @cached_property
    def bare(self) -> FeatureClassifier:
        """The classifier without its purifier, as an attacker knows it who does not know that."""
        return replace(self.classifier, purify=None, draws=())

    def drawn(self, draw: int) -> FeatureClassifier:
        """The classifier at one draw of what is random in it."""
        return replace(self.classifier, draws=(draw,))

    @cached_property
    def reference_network(self) -> FeatureClassifier:
        """A robust network of the same classes, for the detectors that ask one."""
        model = self.recipe.empty_reference_network()
        mean, std = self.restored(model, self.steps.reference_network.key)
        robust = self.shown(model, "blocks", mean, std)
        return self._compiled(replace(robust, output="logits"))

    @property
    def observer(self) -> FeatureClassifier:
        """The classifier as the detectors of the plan read it."""
        return self.observing(self.plan.detectors)

    def observing(self, detectors: tuple[str, ...]) -> FeatureClassifier:
        """The classifier as these detectors read it: with dropout draws, a reference network and
        readings of the image where one of them needs them.
        """
        return _observing(self, detectors)

    def restored(
        self, model: nn.Module, key: str
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Give ``model`` the weights that a task of training has stored; mean and std of what it
        saw.
        """
        arrays = self.store.load(key)
        weights = {
            k.removeprefix("w/"): torch.from_numpy(v)
            for k, v in arrays.items()
            if k.startswith("w/")
        }
        model.load_state_dict(weights)
        return tuple(arrays["mean"].tolist()), tuple(arrays["std"].tolist())

    def shown(
        self,
        model: nn.Module,
        layers: str | Sequence[str],
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> FeatureClassifier:
        """A network as the plan's images, head and precision make it a classifier."""
        n, finding = self.plan.network, self.data.finding
        head: str | tuple[str, int] = n.head if finding is None else ("finding", finding)
        return FeatureClassifier(
            # attacks differentiate with respect to images only
            model.to(self.data.device).eval().requires_grad_(False),
            layers,
            box=self.data.cases.box,
            mean=mean,
            std=std,
            window=self.recipe.window,
            head=head,
            seed=self.plan.seed,
            precision=n.precision,
            layout=n.layout,
            tokens=n.tokens,
            output=n.output,
            outputs=self.recipe.outputs_count,
        )

    def _compiled(self, classifier: FeatureClassifier) -> FeatureClassifier:
        """Compiled if the plan wants it: only what is run often is worth the wait."""
        if not self.plan.network.compile:
            return classifier
        return replace(classifier, compile="inductor")


@lru_cache(maxsize=16)
def _observing(networks: Networks, detectors: tuple[str, ...]) -> FeatureClassifier:
    recipe = networks.recipe
    dropout, reference_network, image, squeezed, guards = (
        recipe.needs(what, detectors) for what in NEEDS
    )
    if not any((dropout, reference_network, image, squeezed, guards)):
        return networks.classifier
    return replace(
        networks.classifier,
        dropout_samples=networks.plan.dropout_samples if dropout else 0,
        reference_network=networks.reference_network if reference_network else None,
        statistics=statistics if image else None,
        squeezers=SQUEEZERS if squeezed else (),
        guards={n: g.look for n, g in recipe.frozen(detectors).items()} if guards else {},
    )
