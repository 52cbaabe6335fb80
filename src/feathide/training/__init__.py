"""Training of classifiers."""

from feathide.registry.lazy import gathered

__getattr__, __dir__ = gathered(
    __name__,
    {
        "adversarial": ("Adversary",),
        "augmentation": ("Augment",),
        "trainer": (
            "TrainResult",
            "load_trained",
            "train_classifier",
        ),
    },
)
