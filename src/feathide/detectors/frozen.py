"""A guard as it is shipped: it maps images to a score, with its own threshold, and learns
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from feathide.detectors.base import Detector
from feathide.errors import InputError, expected, first_line
from feathide.models.memory import lacks_memory
from feathide.types import Evidence, Outputs, Space

__all__ = ["Answer", "FrozenGuard"]

# (images (N, C, *S) in units of the box, logits (N, K)) -> scores or verdicts of N images
Answer = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True, eq=False)
class FrozenGuard(Detector):
    """A guard as it is shipped: a function of the image that learns nothing here.

    score = sign * answer(image, logits), and an image is rejected above sign * threshold. The
    classifier asks the guard in its forward pass (``FeatureClassifier(guards=...)``) and puts
    the score into ``Outputs.guards``; ``fit`` gives the guard back as it is. An attack follows
    the gradient of the score where the answer has one.

    Args:
        answer: A function of the images (N, C, *S) in units of the box, and of the logits (N, K):
            one number an image, or a verdict, True for a rejected image.
        name: What tables call it, and its key in ``Outputs.guards``.
        threshold: The guard's own threshold, in units of its answer; not needed for verdicts.
        higher: What a high answer means: "suspicious", or "normal" for a guard that rejects what
            lies below its threshold.
        reads_logits: Whether the answer depends on the logits, too.

    Raises:
        InputError: The answer is not one number an image, or scores have no threshold.

    Examples:
        >>> guard = FrozenGuard(lambda x, logits: x.flatten(1).mean(1), "bright", threshold=0.9)
        >>> guard.own_threshold
        0.9
    """

    needs_guards: ClassVar[bool] = True
    answer: Answer
    name: str = "guard"
    threshold: float | None = None
    higher: str = "suspicious"
    reads_logits: bool = False

    def __post_init__(self) -> None:
        if self.higher not in ("suspicious", "normal"):
            raise expected(
                "higher must be suspicious or normal",
                got=repr(self.higher),
                do="say what a high answer of the guard means",
            )
        number = isinstance(self.threshold, int | float) and np.isfinite(self.threshold)
        if self.threshold is not None and not number:
            raise expected(
                "the threshold of a guard must be a number",
                got=repr(self.threshold),
                do="give the one that it is shipped with",
            )

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("image", "logits") if self.reads_logits else ("image",)

    @property
    def sign(self) -> float:
        return 1.0 if self.higher == "suspicious" else -1.0

    @property
    def own_threshold(self) -> float:
        """Where the guard itself rejects: above this score. A verdict is 0 or 1."""
        return self.sign * (0.5 if self.threshold is None else float(self.threshold))

    def look(self, x: Tensor, logits: Tensor) -> Tensor:
        """The score of each image, (N,); higher is more suspicious.

        Args:
            x: Images (N, C, *S) in units of the box.
            logits: What the classifier says of them, (N, K).

        Returns:
            Scores (N,), with the gradient of the answer if it has one.
        """
        # what works in place must not reach the caller's images
        answer = self._asked(x.clone(), logits)
        values = _as_tensor(answer, self.name)
        if self.threshold is None and values.dtype != torch.bool:
            raise expected(
                f"guard {self.name} gives scores and must have its own threshold",
                got="none",
                do="say threshold: NUMBER as it is shipped, or let it answer True or False",
            )
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.shape != (len(x),):
            raise expected(
                f"guard {self.name} must give one number for each of {len(x)} images",
                got=f"shape {tuple(values.shape)}",
                do="flatten it, or name one of its outputs (options: {column: 1})",
            )
        return self.sign * values.to(logits.device, logits.dtype)

    def _asked(self, x: Tensor, logits: Tensor) -> Any:
        """The guard's answer; whatever its code raises becomes one sentence."""
        try:
            return self.answer(x, logits)
        except InputError:
            raise
        except Exception as error:
            if lacks_memory(error):
                raise
            raise expected(
                f"guard {self.name} must be able to judge images of {tuple(x.shape)}",
                got=f"{type(error).__name__}: {first_line(error)}",
                do=(
                    "correct its code, or its preprocessing; for scores without a gradient "
                    "detach the images in it"
                ),
            ) from error

    def fit(self, evidence: Evidence) -> "FrozenGuard":
        return self

    def score(self, out: Outputs) -> Tensor:
        if out.guards is None or self.name not in out.guards:
            raise expected(
                f"outputs must hold the scores of guard {self.name}",
                got="none",
                do=(
                    "make the FeatureClassifier with guards={guard.name: guard.look}, and look "
                    "at the images again"
                ),
            )
        return out.guards[self.name]


def _as_tensor(answer: Any, name: str) -> Tensor:
    """What a guard said, as a tensor."""
    if isinstance(answer, Tensor):
        return answer
    try:
        return torch.as_tensor(np.asarray(answer))
    except (TypeError, ValueError):
        raise expected(
            f"guard {name} must give a tensor or an array",
            got=type(answer).__name__,
            do="return one number or verdict an image",
        ) from None
