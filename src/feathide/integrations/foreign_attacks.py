"""Other libraries' attacks in our audits: any callable ``(classifier, x, goal, ids, seed) ->
images``, judged by us.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from feathide.attacks.grid import Grid
from feathide.attacks.loop import Attack
from feathide.attacks.result import AttackResult
from feathide.attacks.threats import ThreatModel
from feathide.attacks.updates import Rule, Setting, Step
from feathide.errors import expected
from feathide.integrations.hook import Guided, host_of, with_objective
from feathide.losses import CrossEntropy, Objective
from feathide.models.classifier import FeatureClassifier
from feathide.models.layers import hooked
from feathide.types import Goal

__all__ = ["Foreign", "ForeignAttack", "borrowed_seed", "foreign_attack"]

ForeignAttack = Callable[[FeatureClassifier, Tensor, Goal, Sequence[str], int], Tensor]
# what a library is shown, given whether it is told targets
Network = Callable[[bool], nn.Module]


def foreign_attack(
    attack: Any,
    *,
    targeted: bool | None = None,
    eps: float | None = None,
    hide: Objective | None = None,
) -> ForeignAttack:
    """An attack of torchattacks, Foolbox or ART as ``(classifier, x, goal, ids, seed) -> images``.

    The object's own network is put aside: a copy of the object attacks the classifier that is
    given, with its box and preprocessing; images are in box units. Random numbers are the library's
    own, drawn from ``seed`` for the whole batch, so that they depend on the batch; the global
    generators are not changed. A callable is passed through: it has to obey ``seed`` itself.

    Args:
        attack: An attack object of one of these libraries, or a callable of that form.
        targeted: Whether the attack is given ``goal.target`` (True) or ``goal.source`` (False); by
            default as the object is set, and untargeted for Foolbox.
        eps: The budget in box units, for Foolbox, which takes it at the call. The eps of a
            torchattacks object is a share of the width of the box.
        hide: A term, such as ``0.3 * HFC(bank)``, that the object minimises besides its own loss,
            as by ``with_objective``.

    Returns:
        The attack as a callable.

    Raises:
        InputError: An object that cannot be used, a mode that it does not have, no eps for Foolbox;
            with ``hide``, anything but an attack object to which an objective can be added.
    """
    libraries = {c.__module__.partition(".")[0] for c in type(attack).__mro__}
    run: Callable[[FeatureClassifier, Tensor, Goal, Network], Tensor]
    if "torchattacks" in libraries:
        run = partial(_torchattacks, attack, targeted)
    elif "art" in libraries:
        run = partial(_art, attack, targeted)
    elif "foolbox" in libraries:
        if eps is None:
            raise expected(
                "a Foolbox attack is told its budget at the call",
                got="no eps",
                do="pass eps=... in units of the box",
            )
        run = partial(_foolbox, attack, bool(targeted), eps)
    elif hide is None and callable(attack):
        return attack
    else:
        callables = (
            ", or a callable (classifier, x, goal, ids, seed) -> images"
            if hide is None
            else " to hide in"
        )
        raise expected(
            f"an attack object of torchattacks, Foolbox or ART{callables}",
            got=type(attack).__name__,
            do="pass one of these",
        )
    host = None if hide is None else host_of(type(attack))

    def seeded(
        classifier: FeatureClassifier, x: Tensor, goal: Goal, ids: Sequence[str], seed: int
    ) -> Tensor:
        def network(aimed: bool) -> nn.Module:
            if hide is None or host is None:
                return Guided(classifier, unit="torchattacks" in libraries)
            return with_objective(
                classifier, hide, x, goal, host=host, targeted=aimed, ids=ids, seed=seed
            )

        with borrowed_seed(seed):
            return run(classifier, x, goal, network).detach()

    return seeded


@dataclass(frozen=True, eq=False)
class Foreign:
    """A foreign attack with the call and the result of ``Attack``; it is judged, not trusted.

    Its images are projected onto the ball, the box, the grid and the mask, and the classifier
    judges them. Where the attack did worse than nothing, the clean image is kept. The trace has two
    rows: the clean image and the attack's. ``gradients`` and ``forwards`` are means over the batch,
    rounded up.

    Args:
        attack: A callable ``(classifier, x, goal, ids, seed) -> images``; see ``foreign_attack``.
        threat: The norm and the budget.
        objective: What ``fooled``, ``margin`` and ``hide`` are judged by; ``AwayFrom()`` for an
            untargeted attack.
        passes: About how many iterates the attack makes, for estimates of the time.
    """

    attack: ForeignAttack
    threat: ThreatModel
    objective: Objective = CrossEntropy()
    passes: int = 40

    def __call__(
        self,
        classifier: FeatureClassifier,
        x: Tensor,
        goal: Goal,
        *,
        ids: Sequence[str],
        seed: int = 0,
        grid: Grid | None = None,
        mask: Tensor | None = None,
    ) -> AttackResult:
        """Attack images, as ``Attack.__call__`` does.

        Args:
            classifier: What is attacked.
            x: Clean images (N, C, *S) with values in the classifier's box.
            goal: The true and the wanted class of each image.
            ids: The id of each image (N,).
            seed: The seed of all random numbers.
            grid: The values that a file can hold.
            mask: 1 where pixels may change, else 0: (N or 1, C or 1, *S).

        Returns:
            The image that was found for each clean one.

        Raises:
            InputError: Arguments that do not fit together, or images that are not finite or have
                another shape.
        """
        classifier.check(x)
        goal = Goal(goal.source.to(x.device), goal.target.to(x.device))
        with _counted(classifier.model) as count:
            # which may be written to
            images = self.attack(classifier, x.clone(), goal, ids, seed)
        if (
            not isinstance(images, Tensor)
            or images.shape != x.shape
            or not bool(images.isfinite().all())
        ):
            got = (
                tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            )
            raise expected(
                f"finite images {tuple(x.shape)} from the attack",
                got=got,
                do="correct the attack",
            )
        judge = Attack(
            self.objective,
            self.threat,
            steps=1,
            step_size=0,
            rule=_Given(images.detach().to(x) - x),
        )
        found = judge(classifier, x, goal, ids=ids, seed=seed, grid=grid, mask=mask)
        forwards, gradients = (
            -(-count[kind] // len(x)) for kind in ("forwards", "gradients")
        )
        return replace(
            found, forwards=found.forwards + forwards, gradients=found.gradients + gradients
        )


@dataclass(frozen=True, eq=False)
class _Given(Rule):
    """One step, to the perturbation that is given."""

    delta: Tensor
    gradient: ClassVar[bool] = False

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        return lambda step: setting.project(self.delta[step.rows], step.rows)


def _torchattacks(
    attack: Any,
    targeted: bool | None,
    classifier: FeatureClassifier,
    x: Tensor,
    goal: Goal,
    network: Network,
) -> Tensor:
    aimed = attack.attack_mode == "targeted(label)" if targeted is None else targeted
    own = deepcopy(attack, {id(attack.model): network(aimed)})
    with redirect_stdout(StringIO()):  # it reports every change of mode
        own.set_device(x.device)
        own._set_normalization_applied(None)
        if targeted:
            if "targeted" not in own.supported_mode:
                raise expected(
                    f"{own.attack} must have a targeted mode",
                    got="none",
                    do="pass targeted=False",
                )
            own.set_mode_targeted_by_label(quiet=True)
        elif targeted is False:
            own.set_mode_default()
        lo, hi = classifier.box
        unit = ((x - lo) / (hi - lo)).clamp(0, 1)
        found = own(unit, goal.target if aimed else goal.source)
    return lo + (hi - lo) * found


def _art(
    attack: Any,
    targeted: bool | None,
    classifier: FeatureClassifier,
    x: Tensor,
    goal: Goal,
    network: Network,
) -> Tensor:
    from art.estimators.classification import PyTorchClassifier

    theirs, usual = attack.estimator, getattr(attack, "targeted", False)
    if not isinstance(theirs, PyTorchClassifier):
        raise expected(
            "an ART attack on a PyTorchClassifier",
            got=type(theirs).__name__,
            do="make it with art's PyTorchClassifier",
        )
    aimed = usual if targeted is None else targeted
    if aimed != usual and "targeted" not in attack.attack_params:
        raise expected(
            f"{type(attack).__name__} must have the mode targeted={targeted}",
            got="none",
            do="leave it out",
        )
    estimator = PyTorchClassifier(
        model=network(aimed),
        loss=theirs.loss,
        input_shape=tuple(x.shape[1:]),
        nb_classes=theirs.nb_classes,
        clip_values=classifier.box,
        device_type=x.device.type.replace("cuda", "gpu"),
    )
    # what AutoPGD sets for its own losses
    for name in ("_reduce_labels", "_int_labels", "_probability_labels"):
        setattr(estimator, name, getattr(theirs, name))
    own = deepcopy(attack, {id(theirs): estimator})
    if aimed != usual:
        own.set_params(targeted=aimed)
    labels = goal.target if aimed else goal.source
    found = own.generate(x=x.detach().cpu().numpy(), y=labels.cpu().numpy())
    return torch.from_numpy(np.asarray(found)).to(x)


def _foolbox(
    attack: Any,
    targeted: bool,
    eps: float,
    classifier: FeatureClassifier,
    x: Tensor,
    goal: Goal,
    network: Network,
) -> Tensor:
    import foolbox
    from foolbox.criteria import Misclassification, TargetedMisclassification

    shown = foolbox.PyTorchModel(network(targeted), bounds=classifier.box, device=x.device)
    criterion = (
        TargetedMisclassification(goal.target)
        if targeted
        else Misclassification(goal.source)
    )
    _, clipped, _ = attack(shown, x.clamp(*classifier.box), criterion, epsilons=eps)
    return clipped


@contextmanager
def borrowed_seed(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python, from which the libraries draw, set by
    ``seed`` for the block and put back afterwards.
    """
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002


@contextmanager
def _counted(network: nn.Module) -> Iterator[dict[str, int]]:
    """How many images went forward through the network, and back, within the block."""
    count = {"forwards": 0, "gradients": 0}

    def back(gradient: Tensor) -> None:
        count["gradients"] += len(gradient)

    def forward(_module: nn.Module, _args: object, out: Tensor) -> None:
        count["forwards"] += len(out)
        if out.requires_grad:
            out.register_hook(back)

    with hooked({"": forward}, network):
        yield count
