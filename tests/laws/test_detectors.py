"""Laws of every detector of the catalogue: what a score may depend on, and what must raise."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from feathide.detectors import DETECTORS, Detector
from feathide.errors import InputError
from feathide.types import Evidence, Outputs

SUPERVISED = {"kd+bu", "lid", "maha", "svm", "dnn"}
LEARN_NOTHING = {"bu", "msp", "energy", "witness"}

pytestmark = pytest.mark.parametrize("name", DETECTORS)


def sample(n: int, *, seed: int, strange: bool = False) -> Outputs:
    """Two classes, two layers; a strange sample is far off in features, unsure in logits, shaky under dropout."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    label = torch.arange(n) % 2
    features = {}
    for layer, channels in (("early", 4), ("late", 6)):
        features[layer] = 0.5 * normal(n, channels)
        features[layer][:, 0] += 6.0 * label - 3.0
        features[layer][:, 1] += 9.0 * strange
    logits = 0.1 * normal(n, 2)
    logits[torch.arange(n), label] += 1.0 if strange else 8.0
    stochastic = logits[:, None] + (2.0 if strange else 0.5) * normal(n, 20, 2)
    return Outputs(logits, features, stochastic, witness=Outputs(0.9 * logits, {"of the witness": features["early"]}))


@cache
def evidence() -> Evidence:
    clean = sample(60, seed=1)
    random = torch.Generator().manual_seed(2)
    moved = {k: v + 0.05 * torch.randn(v.shape, generator=random).double() for k, v in clean.features.items()}
    return Evidence(
        sample(200, seed=0),
        torch.arange(200) % 2,
        clean,
        replace(clean, features=moved),
        sample(60, seed=3, strange=True),
    )


@cache
def trained(name: str) -> Detector:
    return DETECTORS[name]().fit(evidence())


@cache
def mixed() -> Outputs:
    return Outputs.cat([sample(30, seed=4), sample(30, seed=5, strange=True)])


def auc(detector: Detector) -> float:
    return float(roc_auc_score([0] * 30 + [1] * 30, detector.score(mixed()).numpy()))


def changed(change: Callable[[Tensor], Tensor], out: Outputs, layer: str = "late") -> Outputs:
    return replace(out, features={**out.features, layer: change(out.features[layer])})


def test_is_called_what_the_table_calls_it(name: str) -> None:
    assert DETECTORS[name]().name == name


def test_separates_and_points_upwards(name: str) -> None:
    assert auc(trained(name)) > 0.99


def test_learns_what_it_is_shown(name: str) -> None:
    """Shown strange images as clean and clean ones as adversarial, a supervised detector turns round, no other does."""
    e = evidence()
    swapped = DETECTORS[name]().fit(replace(e, clean=e.adversarial, noisy=e.adversarial, adversarial=e.clean))
    assert auc(swapped) < 0.01 if name in SUPERVISED else auc(swapped) > 0.99


def test_one_class_detectors_never_look_at_attacks(name: str) -> None:
    if name in SUPERVISED:
        pytest.skip("learns from attacks")
    e = evidence()
    blind = DETECTORS[name]().fit(replace(e, adversarial=e.adversarial[:0], noisy=e.noisy[:0]))
    assert torch.equal(blind.score(mixed()), trained(name).score(mixed()))


def test_score_depends_on_its_row_only(name: str) -> None:
    detector, out = trained(name), mixed()
    whole = detector.score(out)
    alone = torch.cat([detector.score(out[i : i + 1]) for i in range(len(out))])
    order = torch.randperm(len(out), generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(alone, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(detector.score(out[order]), whole[order], rtol=1e-9, atol=1e-9)


def test_fit_is_idempotent_and_leaves_the_recipe_alone(name: str) -> None:
    recipe = DETECTORS[name]()
    again = recipe.fit(evidence()).fit(evidence())
    assert torch.equal(again.score(mixed()), trained(name).score(mixed()))
    if name not in LEARN_NOTHING:
        with pytest.raises(InputError, match="fit"):
            recipe.score(mixed())


def test_touches_neither_inputs_nor_random_state(name: str) -> None:
    e, out = deepcopy(evidence()), deepcopy(mixed())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    DETECTORS[name]().fit(e).score(out)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    for part, original in ((e.train, evidence().train), (e.adversarial, evidence().adversarial), (out, mixed())):
        assert torch.equal(part.logits, original.logits)
        assert all(torch.equal(part.features[k], v) for k, v in original.features.items())


def test_score_is_differentiable(name: str) -> None:
    detector, out = trained(name), mixed()[torch.tensor([0, 31])]
    inputs = [out.logits, *out.features.values(), out.stochastic]

    def score(logits: Tensor, early: Tensor, late: Tensor, stochastic: Tensor) -> Tensor:
        witness = Outputs(0.9 * logits, {"of the witness": early})
        return detector.score(Outputs(logits, {"early": early, "late": late}, stochastic, witness=witness))

    assert torch.autograd.gradcheck(score, [v.clone().requires_grad_() for v in inputs])
    gradients = torch.autograd.grad(
        score(*(leaves := [v.clone().requires_grad_() for v in inputs])).sum(), leaves, allow_unused=True
    )
    assert any(g is not None and (g.flatten(1).abs().sum(1) > 0).all() for g in gradients)


def test_works_in_the_dtype_of_the_outputs(name: str) -> None:
    score = trained(name).score(mixed().to(torch.float32))
    assert score.dtype == torch.float32
    torch.testing.assert_close(score.double(), trained(name).score(mixed()), rtol=1e-3, atol=1e-3)


def test_dropout_draws_are_asked_for_exactly_where_needed(name: str) -> None:
    out = replace(mixed(), stochastic=None)
    if trained(name).needs_dropout:
        with pytest.raises(InputError, match="dropout"):
            trained(name).score(out)
    else:
        assert torch.equal(trained(name).score(out), trained(name).score(mixed()))


def test_a_witness_is_asked_for_exactly_where_needed(name: str) -> None:
    out = replace(mixed(), witness=None)
    if trained(name).needs_witness:
        with pytest.raises(InputError, match="witness"):
            trained(name).score(out)
    else:
        assert torch.equal(trained(name).score(out), trained(name).score(mixed()))


def raises_or_scores(detector: Callable[[], Detector], e: Evidence, out: Outputs, message: str) -> None:
    try:
        assert detector().fit(e).score(out).isfinite().all()
    except InputError as error:
        assert message in str(error)


def test_one_class_only(name: str) -> None:
    e = evidence()
    raises_or_scores(DETECTORS[name], replace(e, train_labels=torch.zeros(200, dtype=torch.long)), mixed(), "class")


def test_constant_layer(name: str) -> None:
    e = evidence()
    parts = {k: changed(torch.ones_like, getattr(e, k)) for k in ("train", "clean", "noisy", "adversarial")}
    raises_or_scores(DETECTORS[name], replace(e, **parts), changed(torch.ones_like, mixed()), "'late'")


def test_constant_channel(name: str) -> None:
    def flat(f: Tensor) -> Tensor:
        return torch.cat([f[:, :-1], torch.full_like(f[:, :1], 0.7)], 1)

    e = evidence()
    parts = {k: changed(flat, getattr(e, k)) for k in ("train", "clean", "noisy", "adversarial")}
    assert DETECTORS[name]().fit(replace(e, **parts)).score(changed(flat, mixed())).isfinite().all()


@pytest.mark.parametrize("part", ["train", "clean", "adversarial"])
def test_not_a_number_in_the_evidence(name: str, part: str) -> None:
    e = evidence()
    bad = replace(e, **{part: changed(lambda f: f * torch.nan, getattr(e, part))})
    raises_or_scores(DETECTORS[name], bad, mixed(), "finite")


def test_not_a_number_in_a_score(name: str) -> None:
    out = changed(lambda f: f.where(torch.arange(len(f))[:, None] != 3, torch.nan), mixed())
    raises_or_scores(lambda: trained(name), evidence(), out, "finite")


def test_missing_layer(name: str) -> None:
    out = replace(mixed(), features={"early": mixed().features["early"], "late_": mixed().features["late"]})
    try:
        assert torch.equal(trained(name).score(out), trained(name).score(mixed()))
    except InputError as error:
        assert "unknown layer 'late'; did you mean 'late_'?" in str(error)
