"""The context: what the steps of one plan share, made once per process."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

from feathide.data import Cases
from feathide.execution.store import Store
from feathide.pipeline.data import Data
from feathide.pipeline.fitted import Fitted
from feathide.pipeline.limits import Limits
from feathide.pipeline.networks import Networks
from feathide.pipeline.outputs import StoredOutputs
from feathide.pipeline.recipe import Recipe
from feathide.pipeline.steps import Steps
from feathide.plans.plan import Plan

__all__ = ["Context", "context_of"]


@dataclass(frozen=True, eq=False)
class Context:
    """Everything of one plan that is not a result. ``plan`` decides it all; ``store`` is where
    finished tasks lie. Each part knows the parts above it.
    """

    plan: Plan
    store: Store

    @cached_property
    def data(self) -> Data:
        """Images, labels, splits and batches."""
        return Data(self.plan, self.store.folder)

    @cached_property
    def limits(self) -> Limits:
        """Budgets, regions and the storage grid."""
        return Limits(self.plan, self.data)

    @cached_property
    def recipe(self) -> Recipe:
        """What is known of the networks before any is trained."""
        return Recipe(self.plan, self.data, self.limits)

    @cached_property
    def steps(self) -> Steps:
        """Every kind of step: what decides its files, and their keys."""
        return Steps(self.plan, self.data, self.limits, self.recipe)

    @cached_property
    def networks(self) -> Networks:
        """The classifier and the reference network, with their weights."""
        return Networks(self.plan, self.store, self.data, self.recipe, self.steps)

    @cached_property
    def outputs(self) -> StoredOutputs:
        """What the classifier showed of the images."""
        return StoredOutputs(self.plan, self.store, self.data, self.steps)

    @cached_property
    def fitted(self) -> Fitted:
        """Mixtures and detectors, fitted to these outputs."""
        return Fitted(self.store, self.steps, self.outputs)

    @property
    def cases(self) -> Cases:
        """The images; short for ``data.cases``."""
        return self.data.cases


@lru_cache(maxsize=2)
def context_of(plan_json: str, store: Store) -> Context:
    """The context of a plan, one per process."""
    return Context(Plan.model_validate_json(plan_json), store)
