"""Is the change visible? The pictured case that shows most, and how alike its two images look.

Structural similarity after Wang et al. (2004), with the mean over neighbourhoods of at most 7
pixels an axis in place of a Gaussian window."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from feathide.metrics.numbers import number, percent
from feathide.report.results import Case, Run

__all__ = ["Visible", "budget_in_words", "most_visible", "similarity"]

WINDOW = 7
STABLE = (0.01, 0.03)  # K1 and K2 of Wang et al.


@dataclass(frozen=True)
class Visible:
    """The case that shows most of those that fool the classifier: its condition, its structural
    similarity, the median over all of these, and how many they are.
    """

    condition: str
    case: Case
    similarity: float
    median: float
    count: int


def similarity(a: np.ndarray, b: np.ndarray, span: float) -> float:
    """The mean structural similarity of two images (C, *S) whose values span ``span``.

    Example:
        >>> similarity(np.ones((1, 8, 8)), np.ones((1, 8, 8)), 1.0)
        1.0
    """
    x, y = (np.asarray(image, np.float64) for image in (a, b))
    size = (1, *(min(WINDOW, side) for side in x.shape[1:]))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter(values, size, mode="reflect"))

    c1, c2 = ((k * span) ** 2 for k in STABLE)
    mx, my = mean(x), mean(y)
    vx, vy = mean(x * x) - mx**2, mean(y * y) - my**2
    cov = mean(x * y) - mx * my
    found = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(found.mean())


def most_visible(run: Run) -> Visible | None:
    """The least alike of the pictured cases that fool the classifier; None if there is none."""
    span = run.scale.high - run.scale.low
    fooled = [(n, c) for n, part in run.cases.items() for c in part if c.fooled]
    if not fooled:
        return None
    alike = [similarity(c.clean, c.adversarial, span) for _, c in fooled]
    at = int(np.argmin(alike))
    condition, case = fooled[at]
    return Visible(condition, case, alike[at], float(np.median(alike)), len(fooled))


def budget_in_words(run: Run) -> str:
    """What an attacker may change, in the units of the images and as a share of their range."""
    scale, eps = run.scale, float(run.threat["eps"])
    whole = number(scale.native_high - scale.native_low, digits=4)
    share = percent(eps / (scale.high - scale.low))
    size = run.size(eps)
    if "inf" in str(run.threat["norm"]).lower():
        return (
            f"The attacker may make each pixel brighter or darker by at most {size}, on a range "
            f"of {whole} ({share})."
        )
    return (
        f"The attacker may change all pixels together by at most {size} ({run.threat['norm']}), "
        f"where a single pixel has a range of {whole}."
    )
