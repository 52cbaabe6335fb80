"""What a reader should do next, in two sentences for each verdict."""

from collections.abc import Mapping

__all__ = ["ADVICE", "advice"]

ADVICE: Mapping[str, tuple[str, str]] = {
    "holds": (
        "The guard may be used at the threshold of this audit, within the limits named below.",
        "Try it on images of your own hospital first, and audit again whenever the classifier, "
        "the guard or the scanners change.",
    ),
    "unproven": (
        "Do not rely on the guard yet: no attack that knows it had an effect.",
        "Audit again with an objective that attacks this guard, such as evade, and repair what "
        "the sanity checks name.",
    ),
    "undecided": (
        "Do not rely on a guard yet: none is shown to hold.",
        "Where a guard is undecided, do what the reason beside it asks for (mostly more "
        "calibration patients, or stronger attacks), and audit again.",
    ),
    "leaks": (
        "Do not let a guard decide alone: a part of the manipulated images passes even the best "
        "one.",
        "Control how images reach the classifier (signed transfer, access rights), and improve "
        "the guard against the worst attack named below before the next audit.",
    ),
    "fails": (
        "Do not rely on these guards against deliberate manipulation.",
        "Control how images reach the classifier (signed transfer, access rights), and audit "
        "another guard before use.",
    ),
    "invalid": (
        "Use none of these numbers: the audit itself has a fault.",
        "Repair what the failed sanity checks name below, and run the same audit again.",
    ),
}


def advice(word: str, *, quick: str = "") -> tuple[str, str]:
    """Two sentences on what to do after the verdict ``word``.

    Args:
        word: The word of the run's verdict.
        quick: The command of the whole audit where this was a quick look; "" for an audit.
    """
    first, second = ADVICE[word]
    if quick:
        second = f"This was a quick look: run the whole audit before you decide anything: {quick}"
    return first, second
