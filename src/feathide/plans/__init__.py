"""The validated plan of an audit."""

from feathide.registry.lazy import gathered

__getattr__, __dir__ = gathered(
    __name__,
    {
        "plan": (
            "Cell",
            "Plan",
            "load_plan",
        ),
    },
)
