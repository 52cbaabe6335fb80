"""Reference network: a detector that asks a second, robust network what it makes of the class
that the guarded classifier predicts.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from feathide.detectors.base import Detector
from feathide.detectors.uncertainty import MaxSoftmax
from feathide.errors import expected
from feathide.types import Evidence, Outputs, Space

__all__ = ["ReferenceNetwork"]


@dataclass(frozen=True)
class ReferenceNetwork(Detector):
    """``inner``, shown what the reference network sees, with the class that the *guarded*
    classifier predicts in place of the reference network's own.

    With ``MaxSoftmax`` the score is the log-odds of the reference network against that class,
    log((1 - p) / p). To slip through, attackers must also bring a network that was trained to
    withstand them to their class, within the same budget: the reference network's robustness holds
    them back, not a hidden gradient. ``inner`` learns from
    the reference network's outputs on the evidence."""

    needs_reference_network: ClassVar[bool] = True
    name: str = "reference-network"
    inner: Detector = field(default_factory=MaxSoftmax)

    @property
    def reads(self) -> tuple[Space, ...]:
        """Those of ``inner``, of the second network."""
        return self.inner.reads

    def fit(self, evidence: Evidence) -> "ReferenceNetwork":
        train, *trials = map(
            testimony,
            (evidence.train, evidence.clean, evidence.noisy, evidence.adversarial),
        )
        return replace(
            self, inner=self.inner.fit(Evidence(train, evidence.train_labels, *trials))
        )

    def score(self, out: Outputs) -> Tensor:
        return self.inner.score(testimony(out))


def testimony(out: Outputs) -> Outputs:
    """What the reference network sees, taken for the class that the classifier predicts."""
    if out.reference_network is None:
        raise expected(
            "outputs must hold those of a reference network",
            got="none",
            do=(
                "make the FeatureClassifier with reference_network=..., a robust network of "
                "the same classes"
            ),
        )
    return replace(out.reference_network, assumed=out.normal_class)
