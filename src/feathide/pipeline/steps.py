"""Every kind of step of an audit: what decides its files, which steps come first, its work.

    train the classifier -> extract -> fit mixtures -> attack -> extract -> score

``listing.tasks`` makes the steps of a plan into tasks. The keys of all stored files come from here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from feathide.catalog import OBJECTIVES
from feathide.detectors.purifiers import VERSION as OF_PURIFIERS
from feathide.detectors.residuals import VERSION as OF_STATISTICS
from feathide.detectors.squeezing import VERSION as OF_SQUEEZERS
from feathide.execution.digests import FORMAT
from feathide.integrations import identity
from feathide.models.weights import file_digest, weights_digest
from feathide.pipeline import accuracy, attacking, work
from feathide.pipeline.conditions import PLAIN, noisy_at, of_attack
from feathide.pipeline.data import Data
from feathide.pipeline.limits import Limits
from feathide.pipeline.recipe import Need, Recipe
from feathide.pipeline.step import Decision, Step
from feathide.plans.plan import Cell, Plan, slug

__all__ = ["Steps"]

Values = dict[str, object]


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of one plan. What is not trained or computed decides: the plan, its images, and
    the files that it names.
    """

    plan: Plan
    data: Data
    limits: Limits
    recipe: Recipe

    # --- networks -------------------------------------------------------------------------------

    @cached_property
    def classifier(self) -> Decision:
        """What decides the classifier: the recipe of its training, or the content of its
        weights.
        """
        n = self.plan.network
        if not self.recipe.trains:
            given: Values = {
                "format": FORMAT,
                "arch": n.arch,
                "arguments": n.arguments,
                "weights": weights_digest(self.recipe.network()),
            }
            return Decision(given)
        trained: Values = {
            "format": FORMAT,
            "images": self.data.cases.digest,
            "arch": n.arch,
            "head": n.head,
            "train": n.train,
            "window": n.window,
            "seed": self.recipe.network_seed,
        }
        begins_with = self.data.begins_with
        if begins_with is not None:
            trained |= {"start_from": file_digest(begins_with), "rename": n.rename}
        return Decision(trained)

    @property
    def train(self) -> Step:
        """The classifier, where it is trained here."""
        return Step(
            "classifier",
            work.train,
            label=slug(self.plan.network.arch),
            decided_by=(self.classifier,),
        )

    @cached_property
    def reference_network(self) -> Step:
        """The reference network, which is trained on attacked images."""
        p, r, arch = (
            self.plan,
            self.plan.reference_network,
            self.recipe.reference_network_arch,
        )
        decided_by: Values = {
            "format": FORMAT,
            "images": self.data.cases.digest,
            "arch": arch,
            "train": r.train,
            "steps": r.steps,
            "norm": p.norm,
            "eps": float(self.recipe.adversary.threat.eps),
            "window": self.recipe.window,
            "head": p.network.head,
            "seed": p.seed,
        }
        return Step(
            "reference_network",
            work.train_reference_network,
            label=arch,
            decided_by=(Decision(decided_by),),
        )

    @property
    def learnt(self) -> Step:
        """Whether the classifier has learnt its classes, after it was trained here."""
        decided_by: Values = {
            "reading": self.reading,
            "split": self.plan.split,
            "even_so": self.plan.even_so,
            "images looked at": accuracy.MOST,
            "margin": accuracy.MARGIN,
        }
        return Step(
            "learnt",
            accuracy.look,
            decided_by=(Decision(decided_by),),
            needs=lambda: (self.train,),
        )

    @property
    def networks(self) -> tuple[Step, ...]:
        """All networks that this plan trains, and the look at the classifier."""
        own = (self.train, self.learnt) if self.recipe.trains else ()
        robust = self.recipe.needs("reference_network")
        return (*own, self.reference_network) if robust else own

    # --- what the networks show of the images ---------------------------------------------------

    @cached_property
    def reading(self) -> Decision:
        """What decides a reading of an image: the image, where it may change, the classifier and
        what is read from it. Everything below depends on it.
        """
        n, region = self.plan.network, self.limits.region
        values: Values = {
            "format": FORMAT,
            "images": self.data.cases.digest,
            "classifier": self.classifier,
            "head": n.head,
            "layers": n.layers,
            "mean": n.mean,
            "std": n.std,
            "window": self.recipe.window,
            "dropout_samples": self.plan.dropout_samples,
            "seed": self.plan.seed,
            "region": None if region is None else region.digest,
        }
        # each was added later; what does not use it keeps its key
        if n.precision != "float32":
            values["precision"] = n.precision
        if n.compile:
            values["compile"] = "compiled"
        if n.output != "logits":
            values["output"] = n.output
        if n.purify:
            values |= {"purify": n.purify, "version of the purifiers": OF_PURIFIERS}
        if self.recipe.draws:
            values["draws"] = len(self.recipe.draws)
        if (n.layout, n.tokens) != ("auto", "mean"):
            values |= {"layout": n.layout, "tokens": n.tokens}
        return Decision(values)

    @property
    def batching(self) -> Values:
        """What decides which images stand in which batch of which split."""
        values: Values = {"split": self.plan.split}
        if self.plan.split.most is not None:
            values["what split.most limits"] = "most limits the attacked"
        return values | {"batch_size": self.plan.batch_size}

    def beside(self, detectors: Sequence[str] | None = None) -> Values:
        """What decides that which detectors, of the plan's unless said, read beside the
        classifier's own outputs.
        """
        values: Values = {}
        if self.recipe.needs("reference_network", detectors):
            values["reference network"] = self.reference_network.key
        versions: dict[Need, str] = {"statistics": OF_STATISTICS, "squeezed": OF_SQUEEZERS}
        return (
            values
            | {
                need: version
                for need, version in versions.items()
                if self.recipe.needs(need, detectors)
            }
            | {f"guard {name}": identity(name) for name in self.recipe.frozen(detectors)}
        )

    @property
    def sight(self) -> Values:
        """What the detectors read beyond a forward pass with its dropout draws."""
        dropout: Values = {} if self.recipe.needs("dropout") else {"dropout": "no dropout"}
        return dropout | self.beside()

    def extract(self, condition: str, part: str) -> Step:
        """The outputs on the images of a condition ("clean", "noisy-<eps>", ...) and a split."""
        decided_by, attacked = [], of_attack(condition)
        if not attacked:  # else its name holds a digest already
            noisy = condition.startswith("noisy-")
            values: Values = {
                "reading": self.reading,
                "norm": self.plan.norm if noisy else "",
            }
            decided_by.append(Decision(values | self.batching))
        if self.sight:
            decided_by.append(Decision(self.sight))
        return Step(
            "outputs",
            work.extract,
            label=condition,
            decided_by=decided_by,
            file=part,
            batches=lambda: self.data.batches(part, attacked=attacked),
            needs=lambda: self.networks,
            arguments=(condition, part),
        )

    def extract_attacked(self, cell: Cell, part: str) -> Step:
        """The outputs on the images of an attack, read back from their files."""
        return replace(
            self.extract(self.condition(cell), part),
            work=work.extract_attacked,
            needs=tuple,
            follows=lambda: (self.attack(cell, part),),
            arguments=(cell, part),
        )

    @property
    def mixtures(self) -> Step:
        """The Gaussian mixtures of the clean training features."""
        decided_by: Values = {
            "reading": self.reading,
            "mixture": self.plan.mixture,
            "version": "clean energies",
        }
        return Step(
            "mixtures",
            work.mixtures,
            decided_by=(Decision(decided_by),),
            needs=lambda: (self.extract("clean", "train"),),
        )

    # --- attacks --------------------------------------------------------------------------------

    def attack(self, cell: Cell, part: str) -> Step:
        """The attacked images of a cell, as a file holds them."""
        return Step(
            "adversarial",
            attacking.attack_batch,
            label=f"{slug(cell.attack.name)}-{slug(cell.objective.name)}",
            decided_by=(self._attacked(cell),),
            file=part,
            batches=lambda: self.data.batches(part, attacked=True),
            needs=lambda: (*self.known(cell), *self._tuned(cell)),
            follows=lambda: (self.extract("clean", part),),
            arguments=(cell, part),
        )

    def _attacked(self, cell: Cell) -> Decision:
        """What decides the images of an attack."""
        p, own = self.plan, ":" in cell.attack.name
        needs = OBJECTIVES[cell.objective.kind].needs
        values: Values = {
            "reading": self.reading,
            "cell": cell,
            "norm": p.norm,
            "schedule": p.schedule,
        }
        values |= self.batching
        if not p.network.known:
            values["purifier"] = "unknown"
        if needs == "bank":
            values |= {"mixture": p.mixture, "version of the mixtures": "floor"}
        if own:
            values["code of the attack"] = identity(cell.attack.name)
        if needs and not own:
            values["version of the loss"] = "unit of the logits"
        if needs == "detectors" or cell.objective.weight == "auto":
            values |= {"detectors": p.detectors, "learnt_from": p.learnt_from}
            values |= {f"code of {d}": identity(d) for d in p.detectors if ":" in d}
            values |= self.beside()
        return Decision(values)

    def condition(self, cell: Cell) -> str:
        """The name of an attack's results: ``pgd-hfc-<digest>``."""
        return self.attack(cell, "test").name

    def known(self, cell: Cell) -> tuple[Step, ...]:
        """What an attacker must have before the attack starts."""
        hiding = OBJECTIVES[cell.objective.kind]
        if hiding.make is None:
            return ()
        if hiding.needs == "detectors":
            return (*self.evidence(cell.eps), *self.calibration(cell.eps))
        # how sure the classifier is of them, too
        usual = [self.extract("clean", part) for part in ("train", "detector-training")]
        return (self.mixtures, *usual) if hiding.needs == "bank" else (*usual,)

    def tune(self, cell: Cell) -> Step:
        """Lambda of a cell's objective: one search for each objective and budget, with the attack
        that the detectors learn from.
        """
        tried = replace(cell, attack=self.plan.learnt_from)
        return Step(
            "tuning",
            attacking.tune,
            label=self.condition(tried),
            needs=lambda: (*self.known(cell), self.extract("clean", "detector-training")),
            arguments=(tried,),
        )

    def _tuned(self, cell: Cell) -> tuple[Step, ...]:
        return (self.tune(cell),) if cell.objective.weight == "auto" else ()

    # --- detectors ------------------------------------------------------------------------------

    def taught_by(self, eps: float) -> Cell:
        """The attack whose images the detectors learn from."""
        return Cell(self.plan.learnt_from, PLAIN, eps)

    def evidence(self, eps: float) -> tuple[Step, ...]:
        """What must be there before the detectors of a budget can be fitted."""
        learnt = self.condition(self.taught_by(eps))
        own = [
            self.extract(c, "detector-training") for c in ("clean", noisy_at(eps), learnt)
        ]
        return (self.extract("clean", "train"), *own)

    def calibration(self, eps: float) -> tuple[Step, ...]:
        """What must be there before their thresholds can be set."""
        return tuple(self.extract(c, "calibration") for c in ("clean", noisy_at(eps)))

    def score(self, detector: str, eps: float, condition: str, part: str) -> Step:
        """A detector of a budget on the outputs of a condition and a split."""
        values: Values = {
            "learnt from": self.condition(self.taught_by(eps)),
            "detector": detector,
        }
        if ":" in detector:
            values["code of the detector"] = identity(detector)
        return Step(
            "scores",
            work.score,
            label=slug(detector),
            decided_by=(Decision(values | self.beside([detector])),),
            file=f"{condition}-{part}",
            needs=lambda: (
                *self.evidence(eps),
                *self.calibration(eps),
                self.extract(condition, part),
            ),
            arguments=(detector, eps, condition, part),
        )
