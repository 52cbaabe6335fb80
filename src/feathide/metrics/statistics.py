"""The numbers that are reported, each with its interval, gathered from the modules beside this
one. Scores: higher = more suspicious.

Negatives are images that should pass (clean, noisy), positives are those that should be caught.
Everything is float64."""

from feathide.metrics.calibration import (
    brier_score,
    calibration_error,
)
from feathide.metrics.intervals import (
    Interval,
    bootstrap,
    proportion,
)
from feathide.metrics.paired import (
    difference_at,
    paired_difference,
)
from feathide.metrics.rates import (
    above,
    cases_needed,
    enough,
    independent,
    slipping,
    slips_through,
    success,
    threshold,
    tpr_at,
)
from feathide.metrics.roc import (
    auc,
    aupr,
    fpr95,
)
from feathide.metrics.scores import (
    spearman,
)
from feathide.metrics.uncertain_threshold import (
    UncertainThreshold,
    share_at,
    uncertain_threshold,
)

__all__ = [
    "Interval",
    "UncertainThreshold",
    "above",
    "auc",
    "aupr",
    "bootstrap",
    "brier_score",
    "calibration_error",
    "cases_needed",
    "difference_at",
    "enough",
    "fpr95",
    "independent",
    "paired_difference",
    "proportion",
    "share_at",
    "slipping",
    "slips_through",
    "spearman",
    "success",
    "threshold",
    "tpr_at",
    "uncertain_threshold",
]
