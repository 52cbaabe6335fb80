"""Attacks: one loop, update rules, threat models, presets."""

from feathide.registry.lazy import gathered

__getattr__, __dir__ = gathered(
    __name__,
    {
        "ensemble": ("Ensemble",),
        "grid": ("Grid",),
        "loop": ("Attack",),
        "result": ("AttackResult",),
        "presets": (
            "apgd_ce",
            "apgd_dlr",
            "bim",
            "cw",
            "dim",
            "fgsm",
            "mim",
            "noise",
            "pgd",
            "pgd_smooth",
            "square",
            "standard",
            "standard_dense",
            "tim",
        ),
        "threats": (
            "L2",
            "Linf",
            "ThreatModel",
        ),
        "updates": (
            "Blend",
            "Rule",
        ),
    },
)
