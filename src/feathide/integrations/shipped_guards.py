"""Guards as they are shipped, by the name that plans use: ``guard:vendor.onnx(threshold=0.4)``.

A guard comes as code, as a file with a network (ONNX, TorchScript, torch.export), or as a fitted
estimator. It keeps its own threshold and preprocessing, and nothing is fitted.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feathide.detectors.frozen import Answer, FrozenGuard
from feathide.errors import expected
from feathide.models.classifier import FeatureClassifier
from feathide.models.logits import logits_of
from feathide.models.packaged import is_packaged, load_packaged
from feathide.registry.specs import parsed
from feathide.registry.user_code import called, foreign, load_object, source_digest
from feathide.types import Box

__all__ = ["SHIPPED", "guard_digest", "guard_named", "holds_code"]

SHIPPED = "guard"
PICKLES = (".pkl", ".pickle", ".joblib")
# of the guard itself; the others are arguments of its code, or the preprocessing of its file
OWN = ("threshold", "higher")


def holds_code(what: str) -> bool:
    """Whether a guard runs code that came with it, so that it must be trusted; ONNX is data."""
    return Path(what).suffix != ".onnx"


def guard_digest(what: str) -> str:
    """A digest of the file of a guard: of its code, or of its content."""
    if ":" in what:
        return source_digest(what)
    path = Path(what)
    return sha256(path.read_bytes() if path.is_file() else what.encode()).hexdigest()


@lru_cache(maxsize=32)
def guard_named(name: str) -> FrozenGuard:
    """The guard ``guard:WHAT(threshold=..., higher=..., ...)``; it is loaded once.

    ``WHAT``: ``package.module:callable`` or ``file.py:callable``; a file ``.onnx``, ``.ts``,
    ``.pt``, ``.pt2`` with a network; a file ``.joblib``, ``.pkl`` with a fitted estimator. All but
    ONNX run code, which the plan has to trust. Raises ``InputError`` for what cannot be loaded."""
    base, options = parsed(name)
    what = base.removeprefix(f"{SHIPPED}:")
    own = {k: options.pop(k) for k in OWN if k in options}
    if ":" in what:
        found = _code(what, options)
    elif Path(what).suffix in PICKLES:
        found = _estimator(_unpickled(what), name)
        _refuse_options(what, options)
    elif is_packaged(what):
        answer = called(partial(_File, load_packaged(what, trust=True)), what, options)
        found = _Found(answer)
    else:
        raise expected(
            "a guard is package.module:callable, file.py:callable or a file "
            ".onnx, .ts, .pt2, .joblib",
            got=repr(what),
            do="correct its name",
        )
    given = {"threshold": found.threshold, **own}
    return FrozenGuard(found.answer, name, reads_logits=found.logits, **given)


@dataclass(frozen=True)
class _Found:
    """What is known of a guard once it is loaded."""

    answer: Answer
    threshold: float | None = None
    logits: bool = False


# --- code ---------------------------------------------------------------------------------------


def _code(what: str, options: Mapping[str, Any]) -> _Found:
    """A function of the images, or of images and logits; a class that makes one; a network; a
    fitted estimator.
    """
    entry = load_object(what, trust=True)
    if inspect.isclass(entry):
        entry = foreign(what, lambda: called(entry, what, options))
        options = {}
    if not callable(entry):
        _refuse_options(what, options)
        return _estimator(entry, what)
    if isinstance(entry, nn.Module):
        _refuse_options(what, options)
        module = entry.eval().requires_grad_(False)
        logits = _takes_logits(module.forward, what)
        return _Found(_of_code(_here(module), logits), _threshold_of(entry), logits)
    entry_with = partial(entry, **options) if options else entry
    logits = _takes_logits(entry_with, what)
    return _Found(_of_code(entry_with, logits), _threshold_of(entry), logits)


def _of_code(entry: Callable[..., Any], logits: bool) -> Answer:
    return entry if logits else lambda x, _: entry(x)


def _here(module: nn.Module) -> Callable[..., Any]:
    """A network that goes where the images are."""
    return lambda x, *more: module.to(x.device)(x, *more)


def _threshold_of(entry: Any) -> float | None:
    found = getattr(entry, "threshold", None)
    return float(found) if isinstance(found, int | float) else None


def _takes_logits(entry: Callable[..., Any], what: str) -> bool:
    """Whether code takes images and logits, not images alone."""
    needed = [
        p.name
        for p in inspect.signature(entry).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) not in (1, 2):
        raise expected(
            f"{what} must take images, or images and logits",
            got=f"({', '.join(needed)})",
            do="give the others under options, or name a class that is made with them",
        )
    return len(needed) == 2


def _refuse_options(what: str, options: Mapping[str, Any]) -> None:
    if options:
        raise expected(
            f"{what} takes no options but threshold and higher",
            got=", ".join(options),
            do="leave them out",
        )


# --- files --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _File:
    """A network from a file, with the preprocessing that goes before it."""

    network: nn.Module
    column: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    window: Box | None = None
    seen: FeatureClassifier = field(init=False)

    def __post_init__(self) -> None:
        network = self.network.requires_grad_(False)
        seen = FeatureClassifier(
            network, (), mean=self.mean, std=self.std, window=self.window
        )
        object.__setattr__(self, "seen", seen)

    def __call__(self, x: Tensor, _: Tensor) -> Tensor:
        z = self.seen.prepared(x)
        said = logits_of(self.network.to(x.device)(z), len(x))
        return said if self.column is None else said[:, self.column]


def _unpickled(what: str) -> Any:
    """A fitted estimator; reading a pickle runs whatever it holds, so the plan was asked first."""
    import joblib  # type: ignore[import-untyped]

    if not os.path.isfile(what):
        raise expected("the guard must be a file", got=what, do="correct its path")
    return foreign(what, lambda: joblib.load(what))


# --- fitted estimators --------------------------------------------------------------------------


def _estimator(fitted: Any, what: str) -> _Found:
    """A fitted estimator on flattened images: a classifier by its probability of class 1, with
    threshold 0.5, an outlier detector by its decision function, with threshold 0.
    """
    if callable(getattr(fitted, "predict_proba", None)):
        return _Found(_flattened(lambda a: fitted.predict_proba(a)[:, 1]), 0.5)
    if callable(getattr(fitted, "decision_function", None)):
        outlying = callable(getattr(fitted, "score_samples", None))
        sign = -1.0 if outlying else 1.0
        return _Found(_flattened(lambda a: sign * fitted.decision_function(a)), 0.0)
    raise expected(
        f"{what} must be callable, or a fitted estimator with predict_proba or "
        "decision_function",
        got=type(fitted).__name__,
        do="wrap it in a function of the images",
    )


def _flattened(score: Callable[[Any], Any]) -> Answer:
    """A function of rows of numbers as one of images; it has no gradient."""

    def answer(x: Tensor, _: Tensor) -> Tensor:
        rows = x.detach().flatten(1).double().cpu().numpy()
        return torch.as_tensor(score(rows))

    return answer
