"""Each detector against an independent computation of its definition."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, mahalanobis
from scipy.special import expit, softmax
from sklearn import neighbors
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from feathide.catalog import DETECTORS
from feathide.detectors import (
    DensityAndDropout,
    Detector,
    DropoutUncertainty,
    FeatureSqueezing,
    FreeEnergy,
    KernelDensity,
    LayerNetworks,
    LocalDimension,
    LogitUncertainty,
    Mahalanobis,
    MaxSoftmax,
    MixtureEnergy,
    NearestNeighbours,
    PixelRegression,
    PixelStatistics,
    SupportVectors,
    TwoSided,
    distance,
    input_step,
)
from feathide.detectors.lid import local_dimension
from feathide.detectors.residuals import statistics
from feathide.detectors.two_sided import Middle
from feathide.errors import InputError
from feathide.integrations.foreign_detectors import SklearnDetector
from feathide.metrics.roc import auc
from feathide.types import Evidence, Outputs

Array = NDArray[np.float64]
LABELS = torch.arange(150) % 3


def sample(
    n: int, seed: int, *, shift: float = 0.0, channels: tuple[int, int] = (3, 5)
) -> Outputs:
    """Three overlapping classes, correlated channels, classes predicted in turn."""
    random = torch.Generator().manual_seed(seed)
    features = {}
    for layer, c in zip(("early", "late"), channels, strict=True):
        mix = torch.randn(c, c, generator=torch.Generator().manual_seed(c)).double()
        features[layer] = torch.randn(n, c, generator=random).double() @ mix + shift
        features[layer][:, 0] += 2.0 * (torch.arange(n) % 3)
    logits = torch.randn(n, 3, generator=random).double()
    logits[torch.arange(n), torch.arange(n) % 3] += 6.0
    return Outputs(
        logits, features, logits[:, None] + torch.randn(n, 10, 3, generator=random).double()
    )


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence(
        sample(150, 0),
        LABELS,
        sample(40, 1),
        sample(40, 2, shift=0.1),
        sample(40, 3, shift=1.5),
    )


@pytest.fixture(scope="module")
def out() -> Outputs:
    return Outputs.cat([sample(12, 4), sample(12, 5, shift=1.5)])


def close(score: torch.Tensor, reference: object, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(
        score.numpy(), np.asarray(reference), rtol=tolerance, atol=tolerance
    )


def regression(negative: list[Array], positive: Array, query: Array) -> Array:
    """Logistic regression of the columns (N, L) as scikit-learn's pipeline does it."""
    x, y = (
        np.concatenate([*negative, positive]),
        np.repeat([0, 1], [sum(map(len, negative)), len(positive)]),
    )
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(class_weight="balanced", max_iter=5000).fit(
        scaler.transform(x), y
    )
    return np.asarray(model.decision_function(scaler.transform(query)))


def kernel_density(evidence: Evidence, x: Outputs, bandwidth: float) -> Array:
    log_density = np.empty(len(x))
    for c in range(3):
        model = neighbors.KernelDensity(bandwidth=bandwidth).fit(
            evidence.train.last[c == LABELS].numpy()
        )
        rows = (x.predicted == c).numpy()
        log_density[rows] = model.score_samples(x.last.numpy()[rows])
    return log_density


def test_kernel_density_is_that_of_the_predicted_class(
    evidence: Evidence, out: Outputs
) -> None:
    close(
        KernelDensity(bandwidth=0.7).fit(evidence).score(out),
        -kernel_density(evidence, out, 0.7),
    )


def test_kernel_density_over_layers_is_the_sum(evidence: Evidence, out: Outputs) -> None:
    each = sum(
        KernelDensity(layers=name).fit(evidence).score(out) for name in ("early", "late")
    )
    close(KernelDensity(layers="all").fit(evidence).score(out), each)


def test_bandwidth_makes_held_out_images_likeliest(evidence: Evidence) -> None:
    detector = KernelDensity().fit(evidence)
    assert detector.kernels_ is not None
    chosen = detector.kernels_["late"].bandwidth
    likelihood = {
        h: kernel_density(evidence, evidence.clean, chosen * h).mean()
        for h in (0.5, 0.8, 1.0, 1.25, 2.0)
    }
    assert max(likelihood, key=likelihood.__getitem__) == 1.0


def test_kernel_density_does_not_underflow(evidence: Evidence, out: Outputs) -> None:
    detector = KernelDensity().fit(evidence)
    far = [
        detector.score(Outputs(out.logits, {"late": out.last * 10.0**i}))
        for i in range(1, 5)
    ]
    assert all((b > a).all() for a, b in pairwise(far))
    assert far[-1].isfinite().all()


def softmax_variance(out: Outputs) -> Array:
    """Feinman's uncertainty, by its formula."""
    assert out.stochastic is not None
    p = softmax(out.stochastic.numpy(), axis=2)
    return np.asarray(((p**2).mean(1) - p.mean(1) ** 2).mean(1))


def logit_deviation(out: Outputs, logit: int = 0) -> Array:
    assert out.stochastic is not None
    return np.asarray(out.stochastic.numpy()[:, :, logit].std(1))


def oriented(column: Callable[[Outputs], Array], evidence: Evidence, out: Outputs) -> Array:
    """Logistic regression on one column."""
    clean, noisy, adversarial, query = (
        column(part)[:, None]
        for part in (evidence.clean, evidence.noisy, evidence.adversarial, out)
    )
    return regression([clean, noisy], adversarial, query)


def surer(evidence: Evidence, factor: float) -> Evidence:
    """With adversarial images of which the network is so many times as sure, and shows it."""
    strange = evidence.adversarial
    assert strange.stochastic is not None
    return replace(
        evidence,
        adversarial=replace(
            strange,
            logits=strange.logits * factor,
            stochastic=strange.stochastic + (factor - 1) * strange.logits[:, None],
        ),
    )


def test_dropout_uncertainty_is_the_variance_of_the_softmax_vector(
    evidence: Evidence, out: Outputs
) -> None:
    reference = oriented(lambda x: np.log(softmax_variance(x)), evidence, out)
    close(DropoutUncertainty().fit(evidence).score(out), reference, 1e-6)


def test_dropout_uncertainty_of_a_logit_is_its_deviation(
    evidence: Evidence, out: Outputs
) -> None:
    close(
        LogitUncertainty().fit(evidence).score(out),
        oriented(logit_deviation, evidence, out),
        1e-6,
    )


def test_the_raw_logit_of_one_sigmoid_output_is_that_output(
    evidence: Evidence, out: Outputs
) -> None:
    def sigmoid(x: Outputs) -> Outputs:
        assert x.stochastic is not None
        z = torch.stack([torch.zeros_like(x.stochastic[..., 1]), x.stochastic[..., 1]], 2)
        return replace(x, logits=x.logits[:, :2], stochastic=z)

    e = Evidence(
        *(sigmoid(evidence.train), LABELS),
        *map(sigmoid, (evidence.clean, evidence.noisy, evidence.adversarial)),
    )
    reference = oriented(lambda x: logit_deviation(x, 1), e, sigmoid(out))
    close(LogitUncertainty().fit(e).score(sigmoid(out)), reference, 1e-6)


@pytest.mark.parametrize("recipe", [DropoutUncertainty(), LogitUncertainty()])
@pytest.mark.parametrize("factor", [0.1, 4.0])
def test_which_way_uncertainty_is_suspicious_is_learnt(
    evidence: Evidence, factor: float, recipe: DropoutUncertainty | LogitUncertainty
) -> None:
    """Attacks that make the network surer are caught as well as those that make it less sure: no
    AUC of 0.00.
    """
    e = surer(evidence, factor)
    assert e.adversarial.stochastic is not None
    # its column feels the size of the draws, not where they lie
    if isinstance(recipe, LogitUncertainty):
        draws = e.adversarial.stochastic
        e = replace(
            e,
            adversarial=replace(
                e.adversarial,
                stochastic=draws.mean(1, keepdim=True)
                + (draws - draws.mean(1, keepdim=True)) / factor,
            ),
        )
    detector = recipe.fit(e)
    assert (
        auc(detector.score(e.clean).numpy(), detector.score(e.adversarial).numpy()) > 0.95
    )


def test_uncertainty_keeps_its_digits_where_the_network_is_certain(
    evidence: Evidence,
) -> None:
    """In single precision, too, where the larger probability is exactly one."""
    lead = torch.linspace(10, 60, 26, dtype=torch.float64)
    draws = torch.stack(
        [lead[:, None] + torch.linspace(-1, 1, 9).double(), torch.zeros(26, 9).double()], 2
    )
    out = Outputs(draws.mean(1), {}, draws)
    detector = DropoutUncertainty().fit(surer(evidence, 0.1))
    double, single = detector.score(out), detector.score(out.to(torch.float32))
    assert (double.diff() < 0).all()
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


@pytest.mark.parametrize("recipe", [DropoutUncertainty(), LogitUncertainty()])
def test_draws_that_agree_have_no_uncertainty_and_no_infinite_slope(
    evidence: Evidence, recipe: DropoutUncertainty | LogitUncertainty
) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    score = recipe.fit(surer(evidence, 0.1)).score(
        Outputs(logits, {}, logits[:, None].expand(-1, 5, -1))
    )
    assert score.isfinite().all()
    assert torch.autograd.grad(score.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize(
    "recipe", [DropoutUncertainty(), LogitUncertainty(), DensityAndDropout()]
)
def test_a_dropout_that_does_nothing_is_refused(
    evidence: Evidence, recipe: DropoutUncertainty | LogitUncertainty | DensityAndDropout
) -> None:
    def still(x: Outputs) -> Outputs:
        return replace(x, stochastic=x.logits[:, None].expand(-1, 5, -1))

    e = Evidence(
        evidence.train,
        LABELS,
        *map(still, (evidence.clean, evidence.noisy, evidence.adversarial)),
    )
    with pytest.raises(InputError, match="must differ between dropout draws"):
        recipe.fit(e)


def test_draws_that_are_not_finite_are_refused(evidence: Evidence) -> None:
    assert evidence.noisy.stochastic is not None
    e = replace(
        evidence,
        noisy=replace(evidence.noisy, stochastic=evidence.noisy.stochastic * torch.nan),
    )
    with pytest.raises(InputError, match="dropout draws must be finite"):
        DropoutUncertainty().fit(e)


def test_density_and_dropout_is_a_regression_on_both(
    evidence: Evidence, out: Outputs
) -> None:
    def both(x: Outputs) -> Array:
        return np.stack([-kernel_density(evidence, x, 0.7), np.log(softmax_variance(x))], 1)

    reference = regression(
        [both(evidence.clean), both(evidence.noisy)], both(evidence.adversarial), both(out)
    )
    close(
        DensityAndDropout(density=KernelDensity(bandwidth=0.7)).fit(evidence).score(out),
        reference,
        1e-6,
    )


def dimension(x: Array, reference: Array, k: int) -> Array:
    """The formula, sample by sample."""
    values = []
    for row in x:
        r = np.sort(np.linalg.norm(reference - row, axis=1))
        r = r[r > 0][:k]
        values.append(-1 / np.mean(np.log(r / r[-1])))
    return np.array(values)


def dimensions(
    references: Mapping[str, Sequence[torch.Tensor]], x: Outputs, k: int
) -> Array:
    """The mean over the draws of a reference, layer by layer."""
    columns = [
        np.mean([dimension(x.features[name].numpy(), r.numpy(), k) for r in draws], 0)
        for name, draws in references.items()
    ]
    return np.stack(columns, 1)


def drawn(
    recipe: LocalDimension, evidence: Evidence
) -> Mapping[str, Sequence[torch.Tensor]]:
    learnt = recipe.fit(evidence).learnt_
    assert learnt is not None
    return learnt.references


def test_local_dimension_combined_by_regression(evidence: Evidence, out: Outputs) -> None:
    for recipe, k in (
        (LocalDimension(neighbours=20, reference=None), 20),
        (LocalDimension(neighbours=30, reference=60), 30),
    ):
        references = drawn(recipe, evidence)
        parts = (
            dimensions(references, x, k)
            for x in (evidence.clean, evidence.noisy, evidence.adversarial, out)
        )
        clean, noisy, adversarial, query = parts
        close(
            recipe.fit(evidence).score(out),
            regression([clean, noisy], adversarial, query),
            1e-6,
        )


def test_local_dimension_is_measured_in_several_fixed_draws(
    evidence: Evidence, out: Outputs
) -> None:
    """Of the same training images in every layer, of the published size, kept with the
    detector.
    """
    for seed in (0, 1):
        draws = drawn(LocalDimension(neighbours=20, reference=60, seed=seed), evidence)
        random = torch.Generator().manual_seed(seed)
        for i, rows in enumerate(
            [torch.randperm(150, generator=random)[:60] for _ in range(5)]
        ):
            for name, x in evidence.train.features.items():
                assert torch.equal(draws[name][i].sort(0).values, x[rows].sort(0).values)
    (whole,) = drawn(LocalDimension(neighbours=20, reference=None), evidence)["late"]
    assert len(whole) == 150


def test_neighbours_and_reference_are_those_of_the_best_held_out_auc(
    evidence: Evidence,
) -> None:
    weak = replace(evidence, adversarial=sample(40, 3, shift=0.5))
    learnt = LocalDimension().fit(weak).learnt_
    assert learnt is not None
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000)
    )
    labels, image = np.repeat([0, 0, 1], 40), np.tile(np.arange(40), 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).numpy()
    found = {}
    # there are 150 training images for the 200 of a larger reference
    for size in (100, 150):
        references = drawn(LocalDimension(neighbours=20, reference=size), weak)
        assert [len(r) for r in references["late"]] == ([100] * 5 if size == 100 else [150])
        for k in range(10, 91, 10):
            parts = [
                dimensions(references, x, k)[order]
                for x in (weak.clean, weak.noisy, weak.adversarial)
            ]
            held_out = cross_val_score(
                model,
                np.concatenate(parts),
                labels,
                groups=image,
                cv=GroupKFold(3),
                scoring="roc_auc",
            )
            found[k, size] = float(held_out.mean())
    best = max(found.values())
    assert found[learnt.neighbours, len(learnt.references["late"][0])] == pytest.approx(
        best, abs=1e-9
    )
    assert best > min(found.values()) + 0.02


def test_where_all_separate_the_published_numbers_are_kept(evidence: Evidence) -> None:
    train = sample(500, 0)
    learnt = (
        LocalDimension()
        .fit(
            replace(
                evidence,
                train=train,
                train_labels=torch.arange(500) % 3,
                adversarial=sample(40, 3, shift=40.0),
            )
        )
        .learnt_
    )
    assert learnt is not None
    assert (learnt.neighbours, [len(r) for r in learnt.references["late"]]) == (
        20,
        [100] * 5,
    )


def test_few_training_images_leave_fewer_neighbours_to_try(evidence: Evidence) -> None:
    for n, least in ((12, 10), (25, 20)):
        few = replace(evidence, train=evidence.train[:n], train_labels=LABELS[:n])
        learnt = LocalDimension(combine="mean").fit(few).learnt_
        assert learnt is not None
        assert learnt.neighbours == least
    with pytest.raises(InputError, match=r"more than 10 different .* got 9"):
        LocalDimension().fit(
            replace(evidence, train=evidence.train[:9], train_labels=LABELS[:9])
        )


def test_local_dimension_of_one_class_is_a_mean_of_standardised_layers(
    evidence: Evidence, out: Outputs
) -> None:
    """20 neighbours of 100, as published: what it may not look at cannot choose for it."""
    recipe = LocalDimension(combine="mean")
    references = drawn(recipe, evidence)
    assert [len(r) for r in references["late"]] == [100] * 5
    clean, query = (dimensions(references, x, 20) for x in (evidence.clean, out))
    close(recipe.fit(evidence).score(out), ((query - clean.mean(0)) / clean.std(0)).mean(1))


def test_local_dimension_of_known_distances() -> None:
    """Distances 1, 2, 4, 8 from the origin: -1 / mean(log(1/8), log(2/8), log(4/8), 0) = 4 / (6
    log 2).
    """
    reference = torch.tensor(
        [[1.0, 0.0], [0.0, 2.0], [-4.0, 0.0], [0.0, -8.0], [30.0, 30.0]],
        dtype=torch.float64,
    )
    close(local_dimension(torch.zeros(1, 2).double(), reference, 4), [4 / (6 * np.log(2))])


@pytest.mark.parametrize("error", [0.0, 1e-5])
def test_a_training_image_does_not_count_itself(error: float) -> None:
    """Nor where another batch has rounded its features otherwise."""
    reference = (
        torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).double() + 10.0
    )
    expected = np.sort(cdist(reference, reference), 1)[:, 1:6]
    close(
        distance.nearest(reference + error, reference, 5),
        expected,
        1e-3 if error else 1e-12,
    )
    known = -1 / np.log(expected / expected[:, -1:]).mean(1)
    close(local_dimension(reference + error, reference, 5), known, 1e-2 if error else 1e-9)


def test_a_repeated_training_image_counts_once(evidence: Evidence, out: Outputs) -> None:
    twice = Evidence(
        Outputs.cat([evidence.train, evidence.train]),
        LABELS.repeat(2),
        evidence.clean,
        evidence.noisy,
        evidence.adversarial,
    )
    for recipe in (LocalDimension(reference=None), NearestNeighbours()):
        close(recipe.fit(twice).score(out), recipe.fit(evidence).score(out).numpy())


def test_distances_far_from_the_origin_keep_their_digits() -> None:
    random = torch.Generator().manual_seed(0)
    x, reference = (
        torch.randn(20, 8, generator=random) + 1000,
        torch.randn(30, 8, generator=random) + 1000,
    )
    close(
        distance.squared(x, reference).double(),
        cdist(x.double(), reference.double()) ** 2,
        1e-4,
    )


@pytest.mark.parametrize(
    "detector", [LocalDimension(neighbours=150), NearestNeighbours(neighbours=150)]
)
def test_too_few_references_are_refused(
    evidence: Evidence, detector: LocalDimension | NearestNeighbours
) -> None:
    with pytest.raises(InputError, match=r"more than 150 different .* got 150"):
        detector.fit(evidence)


def test_local_dimension_reference_is_drawn_by_seed(
    evidence: Evidence, out: Outputs
) -> None:
    scores = [
        LocalDimension(neighbours=20, reference=60, seed=seed).fit(evidence).score(out)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def squared_mahalanobis(evidence: Evidence, x: Outputs) -> Array:
    columns = []
    for name, f in x.features.items():
        train = evidence.train.features[name].numpy()
        means = [train[c == LABELS.numpy()].mean(0) for c in range(3)]
        residual = train - np.stack(means)[LABELS.numpy()]
        precision = np.linalg.inv(residual.T @ residual / len(residual))
        columns.append(
            [min(mahalanobis(row, m, precision) ** 2 for m in means) for row in f.numpy()]
        )
    return np.array(columns).T


def test_mahalanobis_is_the_tied_distance_to_the_nearest_class(
    evidence: Evidence, out: Outputs
) -> None:
    parts = (evidence.clean, evidence.noisy, evidence.adversarial, out)
    clean, noisy, adversarial, query = (squared_mahalanobis(evidence, x) for x in parts)
    close(
        Mahalanobis().fit(evidence).score(out),
        regression([clean, noisy], adversarial, query),
        1e-6,
    )
    one_class = ((query - clean.mean(0)) / clean.std(0)).mean(1)
    close(Mahalanobis(combine="mean").fit(evidence).score(out), one_class)


def test_mahalanobis_with_fewer_samples_than_channels_knows_unseen_images() -> None:
    """Squared distances of unseen images stay about C: directions without training variance do
    not explode.
    """
    train, clean, fresh = (
        sample(n, seed, channels=(3, 400)) for seed, n in enumerate((150, 40, 40))
    )
    far = sample(40, 3, shift=20.0, channels=(3, 400))
    detector = Mahalanobis(layers="late", combine="mean").fit(
        Evidence(train, LABELS, clean, clean, clean)
    )
    assert detector.learnt_ is not None
    distances = detector.learnt_[0]["late"].distance(fresh.last) / 400
    assert ((distances > 0.3) & (distances < 3)).all()
    assert detector.score(far).min() > detector.score(fresh).max()


def test_input_step_walks_towards_the_nearest_class(evidence: Evidence) -> None:
    detector = Mahalanobis(layers="late").fit(evidence)
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(7)).double()

    def classifier(x: torch.Tensor) -> Outputs:
        return Outputs(x[:, :3], {"late": x @ weight})

    def far(x: torch.Tensor) -> Array:
        return squared_mahalanobis(evidence, classifier(x))[:, 0]

    x = 5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(8)).double()
    stepped = input_step(classifier, detector, x, 0.01)
    close((stepped - x).abs(), np.full((6, 4), 0.01))
    assert (far(stepped) < far(x)).all()
    slope = np.stack(
        [(far(x + 1e-5 * e) - far(x - 1e-5 * e)) / 2e-5 for e in torch.eye(4).double()], 1
    )
    close((stepped - x).sign(), -np.sign(slope))


def rows(evidence: Evidence, layer: str) -> tuple[Array, Array]:
    parts = [
        part.features[layer].numpy()
        for part in (evidence.clean, evidence.noisy, evidence.adversarial)
    ]
    return np.concatenate(parts), np.repeat([0, 0, 1], len(parts[0]))


def test_support_vectors_equal_scikit_learn(evidence: Evidence, out: Outputs) -> None:
    x, y = rows(evidence, "late")
    scaler = StandardScaler().fit(x)
    machine = SVC(C=10.0, gamma=2.0 / 5, class_weight="balanced").fit(
        scaler.transform(x), y
    )
    score = SupportVectors(costs=(10.0,), widths=(2.0,)).fit(evidence).score(out)
    close(score, machine.decision_function(scaler.transform(out.last.numpy())), 1e-6)


def test_support_vectors_are_not_chosen_by_recognising_an_image() -> None:
    """The three rows of an image are almost the same: folds that split them would prefer a memory
    of images.
    """
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.normal(size=(61, 8)))
    parts = [
        Outputs(torch.zeros(61, 2), {"late": image + s * 1e-3}) for s in (0.0, 1.0, 2.0)
    ]
    strong = Outputs(torch.zeros(61, 2), {"late": image + torch.tensor([1.0, *[0.0] * 7])})
    e = Evidence(sample(150, 0), LABELS, parts[0], parts[1], strong)
    found = SupportVectors(costs=(1.0,), widths=(0.3, 3000.0)).fit(e).machine_
    assert found is not None
    assert found[1].gamma == pytest.approx(0.3 / 8)


def test_networks_average_probabilities(evidence: Evidence, out: Outputs) -> None:
    detector = LayerNetworks().fit(evidence)
    assert detector.networks_ is not None
    p = np.mean(
        [expit(detector.networks_[n](f).numpy()) for n, f in out.features.items()], axis=0
    )
    close(torch.sigmoid(detector.score(out)), p)
    assert torch.equal(LayerNetworks().fit(evidence).score(out), detector.score(out))
    assert not torch.equal(
        LayerNetworks(seed=1).fit(evidence).score(out), detector.score(out)
    )


def test_networks_do_not_saturate(evidence: Evidence) -> None:
    detector = LayerNetworks().fit(evidence)
    ray = torch.linspace(100, 10000, 50)[:, None]
    score = detector.score(
        Outputs(torch.zeros(50, 3), {"early": ray.expand(-1, 3), "late": ray.expand(-1, 5)})
    )
    assert score.unique().numel() == 50


@pytest.mark.parametrize("recipe", [SupportVectors(), LayerNetworks()])
def test_noisy_images_are_negatives(
    evidence: Evidence, recipe: SupportVectors | LayerNetworks
) -> None:
    """However far from the clean ones they lie."""
    noisy = sample(40, 2, shift=-20.0)
    detector = recipe.fit(
        Evidence(evidence.train, LABELS, evidence.clean, noisy, sample(40, 3, shift=20.0))
    )
    assert (
        detector.score(sample(40, 6, shift=-20.0)).max()
        < detector.score(sample(40, 7, shift=20.0)).min()
    )


@pytest.mark.parametrize("unit_length", [True, False])
def test_nearest_neighbours(evidence: Evidence, out: Outputs, unit_length: bool) -> None:
    train, query = evidence.train.last.numpy(), out.last.numpy()
    if unit_length:
        train, query = (
            v / np.linalg.norm(v, axis=1, keepdims=True) for v in (train, query)
        )
    reference = (
        neighbors.NearestNeighbors(n_neighbors=7).fit(train).kneighbors(query)[0][:, -1]
    )
    close(
        NearestNeighbours(neighbours=7, unit_length=unit_length).fit(evidence).score(out),
        reference,
    )


def test_mixture_energy_of_one_gaussian_is_a_mahalanobis_distance_per_channel(
    out: Outputs,
) -> None:
    train, labels = sample(6000, 0), torch.arange(6000) % 3
    score = (
        MixtureEnergy(layers="late").fit(Evidence(train, labels, out, out, out)).score(out)
    )
    for c in range(3):
        x = train.last[labels == c].numpy()
        precision = np.linalg.inv(np.cov(x.T))
        mine = out.predicted == c
        close(
            score[mine],
            [mahalanobis(f, x.mean(0), precision) ** 2 / 5 for f in out.last[mine].numpy()],
            0.02,
        )


def two_sided(
    columns: Callable[[Outputs], Array], evidence: Evidence, out: Outputs
) -> Array:
    """Distance from the clean median in the median deviation of its side, then logistic
    regression over layers.
    """
    clean = columns(evidence.clean)
    middle = np.median(clean, 0)
    above = np.array(
        [np.median(c[c >= m] - m) for c, m in zip(clean.T, middle, strict=True)]
    )
    below = np.array(
        [np.median(m - c[c <= m]) for c, m in zip(clean.T, middle, strict=True)]
    )

    def distance(x: Outputs) -> Array:
        away = columns(x) - middle
        return np.where(away > 0, away / above, -away / below)

    parts = [
        distance(x) for x in (evidence.clean, evidence.noisy, evidence.adversarial, out)
    ]
    return regression(parts[:2], parts[2], parts[3])


def test_two_sided_density(evidence: Evidence, out: Outputs) -> None:
    recipe = TwoSided(inner=KernelDensity(bandwidth=0.7))
    reference = two_sided(
        lambda x: -kernel_density(evidence, x, 0.7)[:, None], evidence, out
    )
    close(recipe.fit(evidence).score(out), reference, 1e-6)


def test_two_sided_mahalanobis(evidence: Evidence, out: Outputs) -> None:
    recipe = DETECTORS["maha-two-sided"]()
    reference = two_sided(lambda x: np.log(squared_mahalanobis(evidence, x)), evidence, out)
    close(recipe.fit(evidence).score(out), reference, 1e-6)


def test_two_sided_energy_is_that_of_the_mixtures(evidence: Evidence, out: Outputs) -> None:
    """Of the predicted class: with many training images, a Gaussian's distance per channel."""
    train, labels = sample(6000, 0), torch.arange(6000) % 3
    e = replace(evidence, train=train, train_labels=labels)

    def columns(x: Outputs) -> Array:
        found = np.empty((len(x), 2))
        for i, (name, f) in enumerate(x.features.items()):
            for c in range(3):
                known = train.features[name][labels == c].numpy()
                away = f.numpy() - known.mean(0)
                squares = np.einsum(
                    "ni,ij,nj->n", away, np.linalg.inv(np.cov(known.T)), away
                )
                found[:, i] = np.where(
                    x.predicted.numpy() == c, squares / known.shape[1], found[:, i]
                )
        return np.asarray(np.log(found))

    close(
        DETECTORS["energy-two-sided"]().fit(e).score(out), two_sided(columns, e, out), 0.02
    )


@pytest.mark.parametrize(
    ("one", "two"),
    [("kd", "kd-two-sided"), ("maha", "maha-two-sided"), ("gmm", "energy-two-sided")],
)
def test_features_more_normal_than_clean_ones_are_seen_from_both_sides_only(
    evidence: Evidence, out: Outputs, one: str, two: str
) -> None:
    """As HFC leaves them: drawn towards the mean of their class, after a fit on attacks that lie
    far out.
    """
    means = {
        n: torch.stack([x[c == LABELS].mean(0) for c in range(3)])
        for n, x in evidence.train.features.items()
    }
    near = sample(40, 8)
    hidden = replace(
        near,
        features={
            n: m[near.predicted] + 0.1 * (near.features[n] - m[near.predicted])
            for n, m in means.items()
        },
    )
    fresh = sample(40, 9)

    def area(name: str, positive: Outputs) -> float:
        detector = DETECTORS[name]().fit(
            replace(evidence, adversarial=sample(40, 3, shift=6.0))
        )
        return float(auc(detector.score(fresh).numpy(), detector.score(positive).numpy()))

    assert area(one, hidden) < 0.1
    assert area(two, hidden) > 0.8
    assert area(two, sample(40, 10, shift=6.0)) > 0.95


def test_a_score_that_is_constant_over_clean_images_has_a_unit() -> None:
    middle = Middle.fit(
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    )
    assert middle.distance(torch.tensor([[3.0, -2.0]]).double()).tolist() == [[2.0, 2.0]]


def test_softmax_and_energy(evidence: Evidence, out: Outputs) -> None:
    p = softmax(out.logits.numpy(), axis=1).max(1)
    close(MaxSoftmax().fit(evidence).score(out), np.log((1 - p) / p))
    close(FreeEnergy().fit(evidence).score(out), -np.log(np.exp(out.logits.numpy()).sum(1)))


def test_softmax_orders_samples_of_which_it_is_certain() -> None:
    logits = torch.stack([torch.arange(50.0, 1000.0, 10.0), torch.zeros(95)], 1)
    assert (MaxSoftmax().score(Outputs(logits, {})).diff() < 0).all()


def test_chunks_change_nothing(
    evidence: Evidence, out: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = (
        KernelDensity(),
        LocalDimension(),
        NearestNeighbours(),
        SupportVectors(search=20),
    )
    whole = [recipe.fit(evidence).score(out) for recipe in recipes]
    monkeypatch.setattr(distance, "ELEMENTS", 400)
    for recipe, score in zip(recipes, whole, strict=True):
        close(recipe.fit(evidence).score(out), score.numpy())


def test_rows_that_do_not_belong_together_are_refused(evidence: Evidence) -> None:
    uneven = Evidence(
        evidence.train, LABELS, evidence.clean[:10], evidence.noisy, evidence.adversarial
    )
    with pytest.raises(InputError, match="same images"):
        Mahalanobis().fit(uneven)


def test_a_class_without_training_images_is_named(evidence: Evidence) -> None:
    labels = LABELS.where(LABELS != 1, 2)
    with pytest.raises(InputError, match=r"none of class \[1\]"):
        KernelDensity().fit(
            Evidence(
                evidence.train, labels, evidence.clean, evidence.noisy, evidence.adversarial
            )
        )


# --- the border of every detector ---------------------------------------------------------------


class Own(Detector):
    """Somebody's detector, which checks nothing."""

    name = "own"

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def fit(self, evidence: Evidence) -> "Own":
        if self.fault == "detector-training":
            raise ZeroDivisionError("no spread")
        return self

    def score(self, out: Outputs) -> torch.Tensor:
        if self.fault == "score":
            raise KeyError("late")
        if self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        found = out.last.sum(1) + out.logits.sum(1)
        return {"column": found[:, None], "nan": found * torch.nan}.get(self.fault, found)


class Forest(IsolationForest):
    """Somebody's estimator, which fails in its own way."""

    def score_samples(self, X: Array) -> Array:
        raise RuntimeError("the trees are gone\nand more")


def with_nan(out: Outputs, where: str) -> Outputs:
    """The same with one NaN in the fourth row."""

    def hurt(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values[(3, *[1] * (values.ndim - 1))] = torch.nan
        return values

    if where == "features":
        return replace(out, features={n: hurt(f) for n, f in out.features.items()})
    return replace(out, **{where: hurt(getattr(out, where))})


def seen_by_both(out: Outputs) -> Outputs:
    """With a reference network, the statistics of the image and the logits of poorer ones."""
    image = {
        "statistics": torch.cat(list(out.features.values()), 1),
        "squeezed": out.logits[:, None] * 0.9,
    }
    return replace(out, reference_network=replace(out, reference_network=None), **image)


def every_part(evidence: Evidence, change: Callable[[Outputs], Outputs]) -> Evidence:
    parts = {
        n: change(getattr(evidence, n)) for n in ("train", "clean", "noisy", "adversarial")
    }
    return replace(evidence, **parts)


@pytest.mark.parametrize(
    "name", [*DETECTORS, "sklearn:IsolationForest", "sklearn:RandomForestClassifier"]
)
def test_nan_and_floats_of_any_kind_meet_one_sentence_or_numbers(
    name: str, evidence: Evidence, out: Outputs
) -> None:
    whole, given = seen_by_both(out), every_part(evidence, seen_by_both)
    detector = DETECTORS[name]().fit(given)
    wanted = detector.score(whole)
    late = {n: f.float() if n == "late" else f for n, f in out.features.items()}
    for other in (
        out.to(torch.float32),
        replace(out, logits=out.logits.float()),
        replace(out, features=late),
    ):
        found = detector.score(seen_by_both(other)).double()
        # one type or two: the same numbers
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)
    single = DETECTORS[name]().fit(every_part(given, lambda o: o.to(torch.float32)))
    assert single.score(whole).isfinite().all()
    for where in ("features", "logits", "stochastic"):
        bad = seen_by_both(with_nan(out, where))
        try:
            found = detector.score(bad)
        except InputError as error:
            assert "finite" in str(error) and "\n" not in str(error)
        else:
            # it does not read them
            assert found.isfinite().all() and torch.equal(found, wanted)
    whole_numbers = replace(
        out, features={n: f.round().long() for n, f in out.features.items()}
    )
    with pytest.raises(InputError, match="floating-point numbers, got int64"):
        detector.score(seen_by_both(whole_numbers))


def test_what_a_detector_of_anyones_raises_is_one_sentence(
    evidence: Evidence, out: Outputs
) -> None:
    sound = Own().fit(evidence)
    assert sound.score(out).shape == (24,)
    with pytest.raises(
        InputError,
        match=r"features of layer 'early' must be finite for own, got NaN or infinity",
    ):
        sound.score(with_nan(out, "features"))
    with pytest.raises(InputError, match="logits must be finite for own"):
        sound.score(with_nan(out, "logits"))
    with pytest.raises(
        InputError,
        match=r"detector own must be able to learn.*got ZeroDivisionError: no spread",
    ):
        Own("detector-training").fit(evidence)
    with pytest.raises(
        InputError, match=r"features of layer 'early' \(noisy\) must be finite"
    ):
        Own("detector-training").fit(
            replace(evidence, noisy=with_nan(evidence.noisy, "features"))
        )
    with pytest.raises(InputError, match=r"detector own must be able to score.*KeyError"):
        Own("score").score(out)
    with pytest.raises(
        InputError, match=r"a tensor of 24 scores, one a row, got Tensor \(24, 1\)"
    ):
        Own("column").score(out)
    with pytest.raises(
        InputError, match="scores of own must be numbers, got NaN for 24 of 24 rows"
    ):
        Own("nan").score(out)
    with pytest.raises(torch.OutOfMemoryError):  # what halves of the batch can mend
        Own("memory").score(out)
    with pytest.raises(InputError, match="RuntimeError: the trees are gone;"):
        SklearnDetector(Forest(n_estimators=5, random_state=0)).fit(evidence).score(out)


def pixels(n: int, seed: int, *, rough: float) -> tuple[Outputs, torch.Tensor]:
    """Smooth images with noise of a size, and their statistics."""
    random = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0.2, 0.8, 12).double()
    x = (
        ramp[:, None] * torch.rand(n, 1, 1, 1, generator=random).double()
        + 0.1 * ramp[None, :]
    )
    x = x + rough * torch.randn(n, 1, 12, 12, generator=random).double()
    return Outputs(torch.zeros(n, 2).double(), {}, statistics=statistics(x)), x


def test_pixel_is_the_machine_of_the_images_statistics() -> None:
    clean, noisy, attacked, query = (
        pixels(30, s, rough=r)[0] for s, r in ((0, 0.01), (1, 0.02), (2, 0.05), (3, 0.03))
    )
    found = PixelStatistics().fit(Evidence(clean, LABELS[:30], clean, noisy, attacked))
    assert found.machine_ is not None
    rows = [
        part.statistics.numpy()
        for part in (clean, noisy, attacked, query)
        if part.statistics is not None
    ]
    scaler = StandardScaler().fit(np.concatenate(rows[:3]))
    x, y, image = (
        scaler.transform(np.concatenate(rows[:3])),
        np.repeat([0, 1], [60, 30]),
        np.tile(np.arange(30), 3),
    )
    best = None
    for c in (1.0, 10.0, 100.0):
        for width in (0.3, 1.0, 3.0):
            machine = SVC(C=c, gamma=width / x.shape[1], class_weight="balanced")
            value = cross_val_score(
                machine, x, y, groups=image, cv=GroupKFold(3), scoring="roc_auc"
            ).mean()
            if best is None or value > best[0]:
                best = (value, machine)
    assert best is not None
    close(
        found.score(query),
        best[1].fit(x, y).decision_function(scaler.transform(rows[3])),
        1e-6,
    )


def test_pixel_linear_is_a_logistic_regression_of_the_statistics() -> None:
    clean, noisy, attacked, query = (
        pixels(30, s, rough=r)[0] for s, r in ((0, 0.01), (1, 0.02), (2, 0.05), (3, 0.03))
    )
    found = (
        PixelRegression()
        .fit(Evidence(clean, LABELS[:30], clean, noisy, attacked))
        .score(query)
    )

    def column(out: Outputs) -> Array:
        assert out.statistics is not None
        return out.statistics.numpy()

    close(
        found,
        regression([column(clean), column(noisy)], column(attacked), column(query)),
        1e-6,
    )


def test_squeezing_is_the_largest_move_of_the_softmax() -> None:
    random = torch.Generator().manual_seed(0)
    logits, squeezed = (
        3 * torch.randn(shape, generator=random).double() for shape in ((9, 3), (9, 2, 3))
    )
    found = FeatureSqueezing().score(Outputs(logits, {}, squeezed=squeezed))
    moved = np.abs(
        softmax(logits.numpy(), axis=1)[:, None] - softmax(squeezed.numpy(), axis=2)
    ).sum(2)
    close(found, moved.max(1))
