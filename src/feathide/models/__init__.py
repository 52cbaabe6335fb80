"""Classifiers: networks, their layers, weights and memory."""

from feathide.registry.lazy import gathered

__getattr__, __dir__ = gathered(
    __name__,
    {
        "classifier": ("FeatureClassifier",),
        "loading": (
            "check_network",
            "load_network",
        ),
        "weights": (
            "load_weights",
            "save_weights",
            "start_from",
        ),
        "zoo": (
            "MODELS",
            "build",
        ),
    },
)
