"""``label``: how the page writes the names of attacks, objectives, guards and layers."""

import re
from collections.abc import Iterable

__all__ = ["class_name", "label", "layer_name", "relabelled"]

ACRONYMS = {"fgsm", "bim", "pgd", "mim", "dim", "tim", "cw", "apgd", "hfc"}
ACRONYMS |= {"kd", "kde", "bu", "kd+bu", "lid", "maha", "svm", "dnn", "knn", "gmm", "msp"}
SPELT = {
    "worst+any": "any attack",
    "pgd-one-sided": "PGD, one-sided start",
    "pgd-smooth": "PGD, low frequencies",
    "apgd-dlr": "APGD, DLR",
    "square": "Square",
    "standard": "standard set",
    "noise": "random noise",
    "hfc-typical": "typical HFC",
    "hfc-scheduled": "scheduled HFC",
    "closest": "closest guide",
    "random": "random guide",
    "bu-logit": "BU of the logit",
    "kd-two-sided": "two-sided KD",
    "maha-two-sided": "two-sided MAHA",
    "energy-two-sided": "two-sided mixture energy",
    "lid-oneclass": "LID, one class",
    "maha-oneclass": "MAHA, one class",
    "energy": "free energy",
    "joint": "joint Gaussian",
    "ensemble": "random subsets",
    "reference-network": "reference network",
    "reference-network-joint": "joint reference network",
    "pixel": "pixel statistics",
    "pixel-linear": "linear pixel statistics",
    "squeeze": "feature squeezing",
}


def label(name: str) -> str:
    """How an attack, objective, detector or condition is written: ``pgd+hfc`` as ``PGD + HFC``,
    ``pgd+plain`` as ``PGD``, ``evade:maha`` as ``evade MAHA``.
    """
    if name in ACRONYMS:
        return name.upper()
    if name in SPELT:
        return SPELT[name]
    kind, colon, aim = name.partition(":")
    if colon and "+" not in name and kind in ("evade", "selective", "orthogonal"):
        return f"{kind} {label(aim)}"
    attack, plus, objective = name.partition("+")
    if plus and objective == "plain":
        return label(attack)
    return f"{label(attack)} + {label(objective)}" if plus else name


def layer_name(name: str) -> str:
    """A layer as its network calls it; a name that is only numbers says that it is a layer."""
    return f"layer {name}" if re.fullmatch(r"[\d.]+", name) else name


def class_name(name: str) -> str:
    """A class as the user calls it; a number says that it is a class."""
    return f"class {name}" if re.fullmatch(r"\d+", name) else name


def relabelled(text: str, names: Iterable[str]) -> str:
    """``text`` with the plan's ``names`` as the page writes them, but for those that are words of
    the language, too.
    """
    written = {n: label(n) for n in names if not n.isalpha() or n in ACRONYMS}
    if not written:
        return text
    either = "|".join(map(re.escape, sorted(written, key=len, reverse=True)))
    pattern = rf"(?<![\w.+:-])({either})(?![\w+-])"
    return re.sub(pattern, lambda found: written[found[1]], text)
