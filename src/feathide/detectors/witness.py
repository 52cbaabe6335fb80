"""Witness: a detector that asks a second, robust network what it makes of the class that the guarded classifier predicts."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from feathide.detectors.base import Detector
from feathide.detectors.uncertainty import MaxSoftmax
from feathide.errors import expected
from feathide.types import Evidence, Outputs, Space

__all__ = ["Witness"]


@dataclass(frozen=True)
class Witness(Detector):
    """``inner``, shown what the witness sees, with the class that the *guarded* classifier predicts in place of the witness's own.

    With ``MaxSoftmax`` the score is the log-odds of the witness against that class, log((1 - p) / p). Who wants to slip through must bring a network that
    was trained to withstand him to his class, within the budget that he fools the guarded one with: he is held back by the
    witness's robustness, not by a gradient that he cannot see. ``inner`` learns from the witness's outputs on the evidence.
    """

    needs_witness: ClassVar[bool] = True
    name: str = "witness"
    inner: Detector = field(default_factory=MaxSoftmax)

    @property
    def reads(self) -> tuple[Space, ...]:
        """Those of ``inner``, of the second network."""
        return self.inner.reads

    def fit(self, evidence: Evidence) -> "Witness":
        train, *trials = map(testimony, (evidence.train, evidence.clean, evidence.noisy, evidence.adversarial))
        return replace(self, inner=self.inner.fit(Evidence(train, evidence.train_labels, *trials)))

    def score(self, out: Outputs) -> Tensor:
        return self.inner.score(testimony(out))


def testimony(out: Outputs) -> Outputs:
    """What the witness sees, taken for the class that the classifier predicts."""
    if out.witness is None:
        raise expected(
            "outputs must hold those of a witness",
            got="none",
            do="make the FeatureClassifier with witness=..., a robust network of the same classes",
        )
    return replace(out.witness, assumed=out.predicted)
