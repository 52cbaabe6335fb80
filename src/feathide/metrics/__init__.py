"""Statistics of scores and images, and the registry of the metrics that a table holds."""

from feathide.registry.lazy import gathered

__getattr__, __dir__ = gathered(
    __name__,
    {
        "registry": (
            "METRICS",
            "RATES",
            "Metric",
        ),
        "statistics": (
            "Interval",
            "auc",
            "bootstrap",
            "proportion",
            "threshold",
        ),
    },
)
