"""The recipe of a plan's networks: what is known of them before any is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from torch import nn

from feathide.catalog import DETECTORS
from feathide.data.budgets import parse_eps
from feathide.detectors.base import needs_of
from feathide.detectors.frozen import FrozenGuard
from feathide.detectors.purifiers import Steps as Purifying
from feathide.detectors.purifiers import purifier_named
from feathide.errors import expected
from feathide.models.loading import load_network
from feathide.models.weights import Taken, load_weights, read_about, start_from
from feathide.models.zoo import Stem, build
from feathide.pipeline.data import Data
from feathide.pipeline.limits import Limits
from feathide.plans.plan import Plan
from feathide.training.adversarial import Adversary
from feathide.types import Box

__all__ = ["NEEDS", "Need", "Recipe"]

Need = Literal["dropout", "reference_network", "statistics", "squeezed", "guards"]
NEEDS: tuple[Need, ...] = get_args(Need)
USUAL_DRAWS = 8  # of a random purifier


@dataclass(frozen=True, eq=False)
class Recipe:
    """Architectures, weights and windows of the classifier and the reference network, and what
    the detectors of the plan read.
    """

    plan: Plan
    data: Data
    limits: Limits

    # --- the classifier -------------------------------------------------------------------------

    @property
    def outputs_count(self) -> int:
        return (
            1 if self.plan.network.head == "sigmoid" else len(self.data.cases.class_names)
        )

    @property
    def trains(self) -> bool:
        """Whether the classifier is trained here."""
        return not self.plan.network.own and self.plan.network.weights is None

    @property
    def network_seed(self) -> int:
        seed = self.plan.network.seed
        return self.plan.seed if seed is None else seed

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What a file of weights written by ``feathide train`` says about its network; empty for
        others.
        """
        weights = self.data.weights
        ours = weights is not None and weights.endswith(".safetensors")
        found = read_about(weights) if ours and weights is not None else {}
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
        """The classifier of the zoo before its training."""
        n = self.plan.network
        return self._built(n.arch, self.about.get("stem", n.train.stem))

    def network(self) -> nn.Module:
        """The network with the weights of its file; without them where it is trained here."""
        n = self.plan.network
        if n.own:
            return load_network(
                n.arch,
                weights=self.data.weights,
                kwargs=n.arguments,
                trust=n.trust,
                rename=n.rename,
            )
        model = self.empty_network()
        if self.data.weights is not None:
            load_weights(model, self.data.weights, rename=n.rename)
        return model.eval()

    def taken(self) -> Taken | None:
        """What a look into the file of weights finds, without keeping it; None where the plan
        names no file for a network of the zoo.
        """
        n = self.plan.network
        if n.own or (n.weights is None and n.start_from is None):
            return None
        take = load_weights if n.weights is not None else start_from
        file = self.data.weights or self.data.begins_with or ""
        return take(self.empty_network(), file, rename=n.rename)

    def _built(self, arch: str, stem: Stem) -> nn.Module:
        return build(
            arch,
            channels=self.data.cases.channels,
            outputs=self.outputs_count,
            size=self.data.cases.shape,
            stem=stem,
            seed=self.plan.seed,
        )

    @cached_property
    def purify(self) -> Purifying | None:
        """What the product does to images before its network; None for nothing."""
        names = self.plan.network.purify
        if not names:
            return None
        return Purifying([purifier_named(name) for name in names], self.plan.seed)

    @property
    def random(self) -> bool:
        """Whether the product is random: its purifier, or the network itself."""
        if self.purify is None:
            return self.plan.network.draws is not None
        return self.purify.random

    @property
    def draws(self) -> tuple[int, ...]:
        """The draws over which the outputs are averaged; () where nothing is random."""
        return tuple(range(self.plan.network.draws or USUAL_DRAWS)) if self.random else ()

    # --- the reference network ------------------------------------------------------------------

    @property
    def small_arch(self) -> str:
        """The smallest network of the zoo for these images."""
        return "tiny" if len(self.data.cases.shape) == 2 else "tiny3d"

    @property
    def reference_network_arch(self) -> str:
        return self.plan.reference_network.arch or self.small_arch

    @cached_property
    def adversary(self) -> Adversary:
        """What the reference network learns to withstand."""
        r, limits = self.plan.reference_network, self.limits
        given = r.eps
        eps = max(limits.budgets) if given is None else parse_eps(given, self.data.cases)
        return Adversary(limits.threat(float(eps)), r.steps, self.plan.seed)

    def empty_reference_network(self) -> nn.Module:
        """The reference network before its training."""
        stem = self.plan.reference_network.train.stem
        return self._built(self.reference_network_arch, stem)

    # --- what the detectors read ----------------------------------------------------------------

    def needs(self, what: Need, detectors: Sequence[str] | None = None) -> bool:
        """Whether a detector, of the plan's unless said, reads dropout draws, a reference
        network, statistics of the image, squeezed images or a guard as shipped.
        """
        names = self.plan.detectors if detectors is None else detectors
        return any(what in needs_of(DETECTORS[name]()) for name in names)

    def own_thresholds(self) -> dict[str, float]:
        """The thresholds that detectors of the plan are shipped with, by their names."""
        found = {n: DETECTORS[n]().own_threshold for n in self.plan.detectors}
        return {name: own for name, own in found.items() if own is not None}

    def frozen(self, detectors: Sequence[str] | None = None) -> dict[str, FrozenGuard]:
        """The guards as shipped among some detectors, the plan's unless said."""
        names = self.plan.detectors if detectors is None else detectors
        found = {name: DETECTORS[name]() for name in names if ":" in name}
        return {n: guard for n, guard in found.items() if isinstance(guard, FrozenGuard)}
