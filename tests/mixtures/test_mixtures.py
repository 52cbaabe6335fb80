"""Gaussian mixtures: formulas against loops and scikit-learn, few samples, degenerate channels,
and the bank of layers and classes.
"""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from torch import Tensor

from feathide.errors import InputError
from feathide.mixtures import Covariance, Mixture, MixtureBank, fit_mixture
from feathide.mixtures.covariances import into, whiten
from feathide.mixtures.full import in_channels, in_samples
from feathide.mixtures.lowrank import in_directions
from feathide.mixtures.shrinkage import drawn, fit_prior, precision_factor, within
from feathide.types import Outputs

STRUCTURES: list[Covariance] = ["full", "tied", "diag", "lowrank"]


def draw(n: int, channels: int, seed: int = 0) -> Tensor:
    """Correlated normal features of very different scales, away from zero."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(
        channels, channels, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )
    scales = torch.logspace(-2, 2, channels, dtype=torch.float64)
    return (torch.randn(n, channels, generator=g, dtype=torch.float64) @ mix + 3) * scales


def blobs(
    n: int, channels: int, centres: int, seed: int = 0, distance: float = 12.0
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    where = distance * torch.randn(
        centres, channels, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    labels = torch.randint(centres, (n,), generator=g)
    shapes = 0.5 + torch.rand(
        centres, channels, generator=torch.Generator().manual_seed(6), dtype=torch.float64
    )
    return where[labels] + shapes[labels] * torch.randn(
        n, channels, generator=g, dtype=torch.float64
    ), labels


def covariances(mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Means (M, C) and covariances (M, C, C) of the features, rebuilt from the stored statistics
    one by one.
    """
    a = mixture.whitener.diag() if mixture.whitener.ndim == 1 else mixture.whitener
    if a.shape[0] != a.shape[1]:  # [w | Q]: A = diag(w) (I - Q Q^T)
        a = a[:, :1] * (torch.eye(len(a), dtype=torch.float64) - a[:, 1:] @ a[:, 1:].T)
    means, covs = [], []
    for k in range(mixture.components):
        p = torch.eye(mixture.channels, dtype=torch.float64)
        if mixture.covariance == "full":
            p = mixture.factors[k]
        elif mixture.covariance == "diag":
            p = mixture.factors[k].diag()
        elif mixture.covariance == "lowrank":
            u, s, h = mixture.factors[k], mixture.gains[k, 0], mixture.gains[k, 1:]
            p = s * (p - u @ h.diag() @ u.T)
        covs.append(torch.linalg.inv(a @ p @ p.T @ a.T))
        means.append(mixture.centre + mixture.means[k] @ torch.linalg.inv(a))
    return torch.stack(means), torch.stack(covs)


def by_loop(mixture: Mixture, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy, component and log-density by the book, sample by sample."""
    means, covs = covariances(mixture)
    energies, chosen, densities = [], [], []
    for row in f:
        joint, distances = [], []
        for w, m, s in zip(mixture.weights, means, covs, strict=True):
            normal = torch.distributions.MultivariateNormal(m, s)
            joint.append(w.log() + normal.log_prob(row))
            distances.append((row - m) @ torch.linalg.solve(s, row - m))
        k = int(torch.stack(joint).argmax())
        chosen.append(k)
        energies.append(distances[k] / mixture.channels)
        densities.append(torch.stack(joint).logsumexp(0))
    return torch.stack(energies), torch.tensor(chosen), torch.stack(densities)


def sklearn_fit(kind: type, x: Tensor, m: int, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kind(n_components=m, random_state=0, **options).fit(x.numpy())


@pytest.mark.parametrize("shrinkage", ["auto", 0.1])
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_energy_component_and_density_are_those_of_the_book(
    covariance: Covariance, components: int, shrinkage: Any
) -> None:
    x = torch.cat([draw(80, 5), draw(60, 5, 1) * 1.5, draw(40, 5, 2) - 4])
    mixture = fit_mixture(
        x, components=components, covariance=covariance, shrinkage=shrinkage, rank=2
    )
    f = torch.cat([x[::9], x[::30] * 3])
    energy, chosen, density = by_loop(mixture, f)
    torch.testing.assert_close(mixture.energy(f), energy, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(mixture.log_prob(f), density, rtol=1e-8, atol=1e-8)
    assert torch.equal(mixture.nearest(f), chosen)
    assert mixture.lower_bound == pytest.approx(float(mixture.log_prob(x).mean()), rel=1e-9)
    assert math.isclose(float(mixture.weights.sum()), 1)
    soft = mixture.energy(f, soft=True)
    if components == 1:
        torch.testing.assert_close(soft, energy, rtol=1e-7, atol=1e-9)
    else:  # the soft energy grows by 2/C with the negative log-density
        torch.testing.assert_close(
            soft.diff(), -2 / 5 * density.diff(), rtol=1e-7, atol=1e-7
        )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_gradients_are_exact(covariance: Covariance, components: int, soft: bool) -> None:
    x, _ = blobs(200, 4, 3)
    mixture = fit_mixture(x, components=components, covariance=covariance, rank=2)
    f = (x[:6] + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: mixture.energy(v, soft=soft), f)
    assert torch.autograd.gradcheck(mixture.log_prob, f)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)]
)
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_wide_layers_have_the_energy_and_gradient_of_the_plain_formula(
    covariance: Covariance, dtype: torch.dtype, tolerance: float
) -> None:
    """600 channels: more than one block of the triangular products, which leave out the zeros."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    c, m = 600, 3
    eye, upper = (
        torch.eye(c, dtype=torch.float64),
        lambda *shape: normal(*shape).triu(1) / c,
    )
    whitener = (
        eye + upper(c, c) if covariance in ("tied", "lowrank") else 1 + normal(c).abs()
    )
    factors, gains = torch.ones(0), torch.ones(0)
    if covariance == "full":
        factors = eye + upper(m, c, c)
    elif covariance == "diag":
        factors = 1 + normal(m, c).abs()
    elif covariance == "lowrank":
        factors, gains = (
            torch.linalg.qr(normal(m, c, 4)).Q,
            torch.full((m, 5), 0.5, dtype=torch.float64),
        )
    weights = torch.full((m,), 1 / m, dtype=torch.float64)
    mixture = Mixture(
        covariance, weights, normal(c), whitener, normal(m, c), factors, gains
    )
    f = (mixture.centre + normal(6, c)).to(dtype)
    nearest = mixture.nearest(f)
    means, covs = covariances(mixture)
    d = f.double() - means[nearest]
    pulled = torch.linalg.solve(covs[nearest], d)  # Sigma^-1 d
    leaf = f.requires_grad_()
    energy = mixture.energy(leaf)
    (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    torch.testing.assert_close(
        energy.double(), (d * pulled).mean(1), rtol=tolerance, atol=0
    )
    error = (gradient.double() - pulled * (2 / c)).norm() / (pulled * (2 / c)).norm()
    assert float(error) < tolerance


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("shared", ["diagonal", "triangular", "factors", "wide triangular"])
def test_any_low_rank_mixture_is_measured_by_the_book(shared: str, components: int) -> None:
    """Also what no fit makes: one component with a mean and directions of its own, some of which
    vary less than the others.
    """
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    c = 270 if shared == "wide triangular" else 12
    scale = 1 + normal(c).abs()
    whitener = {
        "diagonal": scale,
        "factors": torch.cat([scale[:, None], torch.linalg.qr(normal(c, 4)).Q * 0.8], 1),
    }.get(shared, torch.eye(c, dtype=torch.float64) + normal(c, c).triu(1) / c)
    gains = torch.tensor([[1.3, 0.6, 0.2, -0.4]], dtype=torch.float64).repeat(components, 1)
    weights = torch.full((components,), 1 / components, dtype=torch.float64)
    factors = torch.linalg.qr(normal(components, c, 3)).Q
    mixture = Mixture(
        "lowrank", weights, normal(c), whitener, 2 * normal(components, c), factors, gains
    )
    f = mixture.centre + 2 * normal(5, c)
    energy, chosen, density = by_loop(mixture, f)
    torch.testing.assert_close(mixture.energy(f), energy, rtol=1e-8, atol=0)
    torch.testing.assert_close(mixture.log_prob(f), density, rtol=1e-8, atol=1e-8)
    assert torch.equal(mixture.nearest(f), chosen)
    field = mixture.field(f)
    distances = field.shape.distances(into((f - field.centre) * field.scale, field.rest))
    torch.testing.assert_close(
        distances.gather(1, chosen[:, None])[:, 0] / c, energy, rtol=1e-8, atol=0
    )
    assert torch.autograd.gradcheck(mixture.energy, f[:2].requires_grad_())


@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
def test_the_likelihood_is_that_of_scikit_learn_from_the_same_start(
    covariance: Covariance,
) -> None:
    x, _ = blobs(600, 6, 4, distance=1.5)
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    g = torch.Generator().manual_seed(3)
    start = torch.cat([torch.arange(4), torch.randint(4, (596,), generator=g)])
    ours = fit_mixture(
        x,
        components=4,
        covariance=covariance,
        shrinkage=0.0,
        start=start,
        floor=0.0,
        tol=0.0,
        max_iter=60,
    )
    hot = np.eye(4)[start.numpy()]
    theirs = GaussianMixture(
        4, covariance_type=covariance, tol=0, max_iter=60, reg_covar=0.0
    )
    theirs._initialize(x.numpy(), hot)  # the public options cannot begin with a partition
    options = {
        "weights_init": theirs.weights_,
        "means_init": theirs.means_,
        "precisions_init": np.linalg.inv(theirs.covariances_)
        if covariance != "diag"
        else 1 / theirs.covariances_,
    }
    theirs = sklearn_fit(
        GaussianMixture,
        x,
        4,
        covariance_type=covariance,
        tol=0,
        max_iter=59,
        reg_covar=0.0,
        **options,
    )
    assert float(ours.log_prob(x).mean()) == pytest.approx(
        theirs.score(x.numpy()), rel=1e-5
    )
    torch.testing.assert_close(
        ours.log_prob(x),
        torch.from_numpy(theirs.score_samples(x.numpy())),
        rtol=1e-3,
        atol=1e-3,
    )
    assert not ours.converged
    assert "Not converged" in ours.notes[-1]


def test_one_component_is_that_of_scikit_learn() -> None:
    x = draw(300, 6)
    ours = fit_mixture(x, shrinkage=0.0, floor=0.0)
    theirs = sklearn_fit(GaussianMixture, x, 1, reg_covar=0.0)
    torch.testing.assert_close(
        ours.log_prob(x),
        torch.from_numpy(theirs.score_samples(x.numpy())),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("covariance", ["full", "tied", "lowrank"])
@pytest.mark.parametrize(("n", "components"), [(60, 1), (60, 3), (400, 4)])
def test_few_samples_are_described_better_than_by_the_bayesian_mixture(
    covariance: Covariance, n: int, components: int
) -> None:
    x = draw(n + 400, 80)
    ours = fit_mixture(x[:n], components=components, covariance=covariance)
    theirs = sklearn_fit(BayesianGaussianMixture, x[:n], components)
    truth = torch.distributions.MultivariateNormal(
        draw(4000, 80, 7).mean(0), draw(4000, 80, 7).T.cov()
    )
    heldout = float(ours.log_prob(x[n:]).mean())
    assert heldout > theirs.score(x[n:].numpy())
    assert heldout < float(truth.log_prob(x[n:]).mean())


def in_factors(
    n: int, channels: int = 300, seed: int = 0
) -> tuple[Tensor, torch.distributions.LowRankMultivariateNormal]:
    """Samples of few factors and noise that differs by channel, and their distribution."""
    g = torch.Generator().manual_seed(17)
    loadings = 2 * torch.randn(channels, 5, generator=g, dtype=torch.float64)
    noise = 0.3 + torch.rand(channels, generator=g, dtype=torch.float64)
    truth = torch.distributions.LowRankMultivariateNormal(
        torch.full_like(noise, 3.0), loadings, noise
    )
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 5, generator=g, dtype=torch.float64) @ loadings.T
    return 3 + z + torch.randn(
        n, channels, generator=g, dtype=torch.float64
    ) * noise.sqrt(), truth


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("distance", [0.3, 12.0])
@pytest.mark.parametrize(
    ("n", "channels", "components"), [(90, 40, 2), (60, 80, 3), (120, 20, 5)]
)
def test_the_climb_in_samples_is_the_climb_in_channels(
    n: int, channels: int, components: int, distance: float, own: bool
) -> None:
    """Overlapping clusters and clusters far apart, and channels that do not vary within clusters
    or at all.
    """
    z, labels = blobs(n, channels, components, distance=distance)
    z = (z - z.mean(0)) / within(z, labels).std(0)
    limits = torch.full((channels,), 1e-6, dtype=torch.float64)
    if own:
        z[:, 3] = 0
        z[:, 7] = 1e-4 * z[:, 7] + labels
        limits[[3, 7]] += 1
    prior = fit_prior(within(z, labels), labels, "full", "auto", limits)
    assert prior.whitener is not None
    white = whiten(z, prior.whitener)
    prior = drawn(prior, white, labels, "full", 8)
    found = [
        climb(z, white, torch.nn.functional.one_hot(labels), prior, tol=1e-13, max_iter=300)
        for climb in (in_channels, in_samples)
    ]
    f = torch.cat([z, 1.1 * z[::3]])
    for mixture in found:
        assert mixture.lower_bound == pytest.approx(
            float(mixture.log_prob(z).mean()), rel=1e-10
        )
    assert found[1].lower_bound == pytest.approx(found[0].lower_bound, rel=1e-8)
    torch.testing.assert_close(found[1].weights, found[0].weights, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        found[1].log_prob(f), found[0].log_prob(f), rtol=1e-7, atol=1e-6
    )
    surest = float(found[0].log_joint(z).softmax(1).amax(1).min())
    assert surest < 0.9 if distance < 1 and channels < n else surest > 0.999
    # nothing moves: each climb sees that at once, the one in channels again in double precision
    if distance > 1:
        r = torch.nn.functional.one_hot(labels)
        steps = [
            climb(z, white, r, prior, tol=3e-4, max_iter=9).n_iter
            for climb in (in_channels, in_samples)
        ]
        assert steps == [3, 2]


@pytest.mark.parametrize("max_iter", [1, 2, 100])
@pytest.mark.parametrize(
    ("n", "channels", "components"),
    [(120, 60, 1), (120, 60, 4), (300, 60, 4), (120, 300, 3)],
)
@pytest.mark.parametrize("covariance", ["full", "lowrank"])
def test_the_lower_bound_is_the_mean_log_density_wherever_the_climb_ends(
    covariance: Covariance, n: int, channels: int, components: int, max_iter: int
) -> None:
    """In samples, in channels and in factors; one channel does not vary."""
    x, _ = blobs(n, channels, 4, distance=0.2)
    x[:, 5] = 3.0
    start = torch.arange(n) % components
    mixture = fit_mixture(
        x, components=components, covariance=covariance, start=start, max_iter=max_iter
    )
    assert mixture.n_iter <= max_iter
    single = covariance == "lowrank" and channels > 256  # rows in single precision
    density = float(mixture.log_prob(x).mean())
    assert mixture.lower_bound == pytest.approx(density, rel=1e-6 if single else 1e-11)


@pytest.mark.parametrize("channels", [1, 2, 127, 128, 129, 515])
def test_a_factor_of_the_precision_is_upper_triangular_and_its_square_the_inverse(
    channels: int,
) -> None:
    g = torch.Generator().manual_seed(0)
    d = torch.randn(2, 2 * channels, channels, generator=g, dtype=torch.float64)
    cov = d.mT @ d / channels
    factor = precision_factor(cov)
    assert torch.equal(factor, factor.triu())
    eye = torch.eye(channels, dtype=torch.float64).expand_as(cov)
    torch.testing.assert_close(factor @ factor.mT @ cov, eye, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", [2, 8, 11])
def test_wide_low_rank_has_the_directions_it_is_asked_for(rank: int) -> None:
    x, labels = blobs(200, 300, 3, distance=2.0)
    mixture = fit_mixture(x, components=3, covariance="lowrank", rank=rank, start=labels)
    assert mixture.factors.shape == (3, 300, rank)
    eye = torch.eye(rank, dtype=torch.float64).expand(3, rank, rank)
    torch.testing.assert_close(mixture.factors.mT @ mixture.factors, eye, rtol=0, atol=1e-5)


def test_the_directions_begin_with_the_leading_ones_and_keep_where_the_samples_lie() -> (
    None
):
    x, labels = blobs(200, 300, 3, distance=2.0)
    z = (x - x.mean(0)).float()
    prior = fit_prior(
        within(z, labels),
        labels,
        "lowrank",
        "auto",
        torch.full((300,), 1e-6, dtype=torch.float64),
    )
    two, eight = (drawn(prior, z, labels, "lowrank", rank).directions for rank in (2, 8))
    assert two is not None and eight is not None and torch.equal(two, eight[:, -2:])
    d = within(z, labels)
    along = torch.stack([(d[labels == k] @ eight[k].T).square().mean(0) for k in range(3)])
    assert bool((along.diff(dim=1) > -1e-4).all())  # the leading ones are the last
    step, r, found = (
        in_directions(z, prior, eight),
        torch.nn.functional.one_hot(labels),
        None,
    )
    for _ in range(3):
        found, joint = step(r, found)
        torch.testing.assert_close(found.along, found.basis @ z.T, rtol=1e-3, atol=1e-3)
        r = joint.softmax(1)


@pytest.mark.parametrize("components", [1, 3])
def test_wide_low_rank_is_in_factors_and_by_the_book(components: int) -> None:
    x, _ = in_factors(240)
    x += 20 * torch.arange(3.0).double().repeat_interleave(80)[:, None] * (components > 1)
    mixture = fit_mixture(x, components=components, covariance="lowrank", rank=2)
    assert mixture.components == components
    assert 1 < mixture.whitener.shape[1] < 30
    f = x[::20] * 1.1
    energy, chosen, density = by_loop(mixture, f)
    torch.testing.assert_close(mixture.energy(f), energy, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mixture.log_prob(f), density, rtol=1e-7, atol=1e-6)
    assert torch.equal(mixture.nearest(f), chosen)
    assert mixture.lower_bound == pytest.approx(float(mixture.log_prob(x).mean()), rel=1e-5)
    assert math.isfinite(mixture.bic)
    leaf = f[:2].requires_grad_()
    assert torch.autograd.gradcheck(mixture.energy, leaf)


@pytest.mark.parametrize(("n", "loss"), [(20, 60.0), (60, 30.0), (2000, 4.0)])
def test_factors_come_near_the_truth_with_few_samples_and_with_many(
    n: int, loss: float
) -> None:
    x, truth = in_factors(n)
    mixture = fit_mixture(x, covariance="lowrank")
    fresh, _ = in_factors(1000, seed=1)
    lost = float((truth.log_prob(fresh) - mixture.log_prob(fresh)).mean())
    assert 0 < lost < loss
    if n > 20:
        # as many factors as there are: noise has none
        assert mixture.whitener.shape[1] - 1 == 5


def test_forty_samples_of_three_hundred_channels_are_shrunk() -> None:
    """The mean takes one of 40 dimensions: counted as if it did not, no shrinkage looks best and
    a fresh sample is millions of nats away.
    """
    x, truth = in_factors(40)
    mixture = fit_mixture(x)
    fresh, _ = in_factors(500, seed=1)
    assert mixture.shrinkage > 0.02
    assert float((truth.log_prob(fresh) - mixture.log_prob(fresh)).mean()) < 200


def test_the_shrinkage_is_near_the_best_for_held_out_samples() -> None:
    x = draw(1060, 80)
    tried = [
        fit_mixture(x[:60], shrinkage=s) for s in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.9)
    ]
    best = max(float(m.log_prob(x[60:]).mean()) for m in tried)
    found = fit_mixture(x[:60])
    assert float(found.log_prob(x[60:]).mean()) > best - 2
    assert 0 < found.shrinkage < 1


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_scaling_and_shifting_a_channel_changes_no_energy(covariance: Covariance) -> None:
    x, _ = blobs(300, 6, 3)
    g = torch.Generator().manual_seed(1)
    scales, shift = (
        torch.logspace(-3, 3, 6, dtype=torch.float64),
        torch.randn(6, generator=g, dtype=torch.float64),
    )
    plain = fit_mixture(x, components=3, covariance=covariance, rank=2)
    moved = fit_mixture(x * scales + shift, components=3, covariance=covariance, rank=2)
    f = x[:20] * 1.1
    torch.testing.assert_close(
        moved.energy(f * scales + shift), plain.energy(f), rtol=1e-5, atol=1e-8
    )
    difference = plain.log_prob(f) - moved.log_prob(f * scales + shift)
    torch.testing.assert_close(
        difference,
        torch.full_like(difference, float(scales.log().sum())),
        atol=1e-5,
        rtol=1e-6,
    )


@pytest.mark.parametrize("shrinkage", ["auto", 0.0, 0.2])
def test_low_rank_with_all_directions_is_full(shrinkage: Any) -> None:
    x, labels = blobs(400, 5, 3, distance=2.0)
    options: dict[str, Any] = {
        "components": 3,
        "shrinkage": shrinkage,
        "start": labels,
        "tol": 1e-9,
        "max_iter": 500,
    }
    full = fit_mixture(x, covariance="full", **options)
    low = fit_mixture(x, covariance="lowrank", rank=5, **options)
    assert low.factors.shape == (3, 5, 5)
    torch.testing.assert_close(low.energy(x), full.energy(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low.log_prob(x), full.log_prob(x), rtol=1e-4, atol=1e-4)


def test_low_rank_finds_the_leading_directions_and_keeps_the_others() -> None:
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 2, generator=g, dtype=torch.float64)).Q
    x = torch.randn(3000, 30, generator=g, dtype=torch.float64)
    x += (
        torch.randn(3000, 2, generator=g, dtype=torch.float64) * torch.tensor([6.0, 4.0])
    ) @ basis.T
    low = fit_mixture(x, components=1, covariance="lowrank", shrinkage=0.0, rank=2)
    _, covs = covariances(low)
    truth = (
        torch.eye(30, dtype=torch.float64)
        + basis @ torch.diag(torch.tensor([36.0, 16.0], dtype=torch.float64)) @ basis.T
    )
    # a wrong direction: above 0.4
    assert float((covs[0] - truth).norm() / truth.norm()) < 0.15
    # all of the variance is there
    assert float((covs[0].diagonal() / x.var(0)).mean()) == pytest.approx(1, abs=0.01)
    away = torch.randn(30, generator=g, dtype=torch.float64)
    away -= basis @ (basis.T @ away)
    assert float(low.energy((20 * away)[None])) > 100 * float(low.energy(x).mean())


def test_well_separated_clusters_are_found_and_counted() -> None:
    x, labels = blobs(900, 6, 5)
    mixture = fit_mixture(x, components=5)
    pairs = torch.stack([mixture.nearest(x), labels], 1).unique(dim=0)
    assert len(pairs) == 5  # one component for each cluster
    assert mixture.converged
    out = Outputs(torch.zeros(900, 2), {"a": x.float(), "b": draw(900, 6).float()})
    for holdout in (0.2, 0.0):
        bank = MixtureBank.fit(
            out,
            torch.zeros(900, dtype=torch.long),
            components=[1, 2, 3, 5, 8],
            holdout=holdout,
        )
        assert bank.mixtures["a"][0].components == 5
        assert bank.mixtures["b"][0].components == 1
        rows = [row for row in bank.curves if row["layer"] == "a"]
        assert [row["components"] for row in rows] == [1, 2, 3, 5, 8]
        assert all(
            (row["heldout"] is None) == (holdout == 0) and math.isfinite(row["bic"])
            for row in rows
        )
        # two in a row were no better
        assert len([row for row in bank.curves if row["layer"] == "b"]) == 3


def test_auto_tries_powers_of_two() -> None:
    x, _ = blobs(300, 3, 4)
    bank = MixtureBank.fit(
        Outputs(torch.zeros(300, 2), {"a": x}),
        torch.zeros(300, dtype=torch.long),
        components="auto",
    )
    assert bank.mixtures["a"][0].components == 4
    assert [row["components"] for row in bank.curves][:4] == [1, 2, 4, 8]


def test_constant_channels_stay_finite_and_count() -> None:
    x = draw(100, 6)
    x[:, 2] = 0.7
    x[:, 4] = 0.0
    for covariance in STRUCTURES:
        mixture = fit_mixture(x, components=2, covariance=covariance)
        assert mixture.degenerate == 2
        assert any("2 of 6 channels do not vary" in note for note in mixture.notes)
        typical = x[:, [0, 1, 3, 5]].std(0).median()
        away = x[:1].clone()
        away[:, 4] += 3 * typical
        rise = float(mixture.energy(away) - mixture.energy(x[:1])) * 6
        assert 2 < rise < 20  # about 3 standard deviations
        assert bool(torch.isfinite(mixture.log_prob(x)).all())


@pytest.mark.parametrize("covariance", STRUCTURES)
@pytest.mark.parametrize(
    "x",
    [
        torch.ones(1, 4),
        torch.zeros(7, 4),
        torch.tensor([[1.0, 2, 3, 4], [2.0, 1, 0, 5]]).repeat(5, 1),
        torch.randn(3, 40, generator=torch.Generator().manual_seed(0)),
        torch.cat(
            [
                torch.zeros(50, 4),
                torch.randn(2, 4, generator=torch.Generator().manual_seed(0)) * 1e6,
            ]
        ),
        torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) * 1e-20,
    ],
    ids=[
        "one sample",
        "all zero",
        "duplicates",
        "fewer samples than channels",
        "outliers",
        "tiny",
    ],
)
def test_degenerate_data_never_gives_nan(covariance: Covariance, x: Tensor) -> None:
    mixture = fit_mixture(x, components=4, covariance=covariance)
    f = torch.cat([x, x + 1]).double().requires_grad_()
    for values in (mixture.energy(f), mixture.energy(f, soft=True), mixture.log_prob(f)):
        (gradient,) = torch.autograd.grad(values.sum(), f, retain_graph=True)
        assert bool(torch.isfinite(values).all() and torch.isfinite(gradient).all())
    assert float(mixture.energy(f.detach()).min()) >= 0
    distinct = len(x.unique(dim=0))
    if distinct < 4:
        assert mixture.components <= distinct
        assert any("do not fill 4 components" in note for note in mixture.notes)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    x = draw(20, 3)
    x[4, 1] = bad
    with pytest.raises(InputError, match="NaN or infinity in 1 of 20"):
        fit_mixture(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 0}, "components must be at least 1"),
        ({"shrinkage": 1.0}, "shrinkage must"),
        ({"covariance": "spherical"}, "full, tied, diag, lowrank"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_mixture(draw(20, 3), **options)


def test_the_seed_decides_and_nothing_else_is_touched() -> None:
    x, _ = blobs(200, 4, 6, distance=1.0)
    before = x.clone()
    torch.manual_seed(1)
    first = fit_mixture(x, components=5, covariance="lowrank", rank=2, seed=3)
    state = torch.get_rng_state()
    second = fit_mixture(x, components=5, covariance="lowrank", rank=2, seed=3)
    other = fit_mixture(x, components=5, covariance="lowrank", rank=2, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.energy(x), second.energy(x))
    assert not torch.equal(first.energy(x), other.energy(x))
    assert torch.equal(x, before)


@pytest.fixture(scope="module", params=STRUCTURES)
def world(request: pytest.FixtureRequest) -> tuple[MixtureBank, Outputs, Tensor]:
    """A bank for two layers and the classes 0, 2 and 5, with samples and their classes."""
    a, group = blobs(240, 5, 3, distance=2.0)
    classes = torch.tensor([0, 2, 5])[group]
    out = Outputs(torch.zeros(240, 6, dtype=torch.float64), {"a": a, "b/0": draw(240, 9)})
    return (
        MixtureBank.fit(out, classes, components=2, covariance=request.param),
        out,
        classes,
    )


def test_every_sample_is_measured_by_its_own_class(
    world: tuple[MixtureBank, Outputs, Tensor],
) -> None:
    bank, out, classes = world
    assert (bank.layers, bank.classes) == (("a", "b/0"), (0, 2, 5))
    measures: list[tuple[Any, Any]] = [
        (bank.energy, Mixture.energy),
        (lambda *a: bank.energy(*a, soft=True), lambda m, f: m.energy(f, soft=True)),
        (bank.log_prob, Mixture.log_prob),
    ]
    for of_bank, of_mixture in measures:
        values = of_bank(out, classes)
        assert values.shape == (240, 2)
        for i in range(0, 240, 17):
            alone = [
                of_mixture(bank.mixtures[n][int(classes[i])], f[i : i + 1])[0]
                for n, f in out.features.items()
            ]
            torch.testing.assert_close(values[i], torch.stack(alone), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                of_bank(out[i : i + 1], classes[i : i + 1])[0],
                values[i],
                rtol=1e-9,
                atol=1e-9,
            )


def test_layers_are_chosen_by_name_in_the_order_given(
    world: tuple[MixtureBank, Outputs, Tensor],
) -> None:
    bank, out, classes = world
    both = bank.energy(out, classes)
    assert torch.equal(bank.energy(out, classes, layers=["b/0", "a"]), both.flip(1))
    with pytest.raises(InputError, match="unknown layer 'c'"):
        bank.energy(out, classes, layers=["c"])
    with pytest.raises(InputError, match="class 3, fitted: 0, 2, 5"):
        bank.energy(out, torch.full((240,), 3))


@pytest.mark.parametrize("soft", [False, True])
def test_a_bank_knows_the_energies_of_the_clean_samples_of_each_class(
    world: tuple[MixtureBank, Outputs, Tensor], soft: bool
) -> None:
    bank, out, classes = world
    energy = bank.energy(out, classes, soft=soft)
    for quantile in (0.0, 0.5, 0.9, 1.0):
        usual = bank.usual(classes.flip(0), quantile, soft=soft)
        assert usual.shape == (240, 2)
        for label in (0, 2, 5):
            own = energy[classes == label].quantile(quantile, 0)
            rows = usual[classes.flip(0) == label]
            torch.testing.assert_close(rows, own.expand_as(rows), rtol=1e-9, atol=1e-12)
    between = bank.usual(classes, 0.125)
    torch.testing.assert_close(
        between, (bank.usual(classes, 0.12) + bank.usual(classes, 0.13)) / 2
    )
    assert torch.equal(bank.usual(classes, layers=["b/0"]), bank.usual(classes)[:, 1:])
    with pytest.raises(InputError, match="class 3, fitted: 0, 2, 5"):
        bank.usual(torch.full((240,), 3))


def test_a_sample_moves_only_its_own_gradient(
    world: tuple[MixtureBank, Outputs, Tensor],
) -> None:
    bank, out, classes = world
    rows = torch.tensor([0, 50, 100, 150, 200, 239])
    features = [f[rows].clone().requires_grad_() for f in out.features.values()]

    def energy(*fs: Tensor) -> Tensor:
        return bank.energy(
            Outputs(out.logits[rows], dict(zip(bank.layers, fs, strict=True))),
            classes[rows],
        )

    assert torch.autograd.gradcheck(energy, features)
    weights = torch.tensor([[1.0, 2.0]] * 6, dtype=torch.float64)
    weights[3:] = 0
    for gradient in torch.autograd.grad((energy(*features) * weights).sum(), features):
        assert bool((gradient[:3] != 0).any(1).all() and (gradient[3:] == 0).all())


def test_features_that_are_columns_of_one_tensor_are_not_copied(
    world: tuple[MixtureBank, Outputs, Tensor],
) -> None:
    bank, out, classes = world
    leaf = torch.cat(list(out.features.values()), 1).requires_grad_()
    columns = (leaf * 1).split([5, 9], 1)
    apart = [f.clone().requires_grad_() for f in out.features.values()]
    weights = torch.rand(
        240, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    def energy(features: Any, names: Any = bank.layers) -> Tensor:
        return bank.energy(
            Outputs(out.logits, dict(zip(bank.layers, features, strict=True))),
            classes,
            layers=names,
        )

    together = energy(columns)
    assert together.grad_fn is not None and "Cat" not in str(
        together.grad_fn.next_functions[0][0]
    )
    assert torch.equal(together, energy(apart))
    assert torch.equal(energy(columns, ["b/0", "a"]), energy(apart, ["b/0", "a"]))
    assert torch.equal(energy([f[::1] for f in columns]), energy(apart))
    strange = (leaf + 1).split([5, 9], 1)
    assert torch.equal(energy([columns[0], strange[1]])[:, 1], energy(strange)[:, 1])
    assert not energy([f.detach() for f in columns]).requires_grad
    leaves = [f.requires_grad_() for f in leaf.detach().split([5, 9], 1)]
    assert all(bool(g.any()) for g in torch.autograd.grad(energy(leaves).sum(), leaves))
    (whole,) = torch.autograd.grad((together * weights).sum(), leaf)
    assert torch.equal(
        whole, torch.cat(torch.autograd.grad((energy(apart) * weights).sum(), apart), 1)
    )


def test_attacks_run_in_the_type_of_the_features(
    world: tuple[MixtureBank, Outputs, Tensor],
) -> None:
    bank, out, classes = world
    single = out.to(torch.float32)
    for name in bank.layers:
        single.features[name].requires_grad_()
    energy = bank.energy(single, classes)
    assert energy.dtype == torch.float32
    torch.testing.assert_close(
        energy.double(), bank.energy(out, classes), rtol=2e-3, atol=1e-4
    )
    assert all(
        g.dtype == torch.float32
        for g in torch.autograd.grad(energy.sum(), list(single.features.values()))
    )


def test_what_is_saved_comes_back(
    world: tuple[MixtureBank, Outputs, Tensor], tmp_path: Any
) -> None:
    bank, out, classes = world
    bank.save(tmp_path / "bank.safetensors")
    again = MixtureBank.load(tmp_path / "bank.safetensors")
    torch.testing.assert_close(
        again.energy(out, classes), bank.energy(out, classes), rtol=1e-13, atol=1e-13
    )
    torch.testing.assert_close(
        again.log_prob(out, classes), bank.log_prob(out, classes), rtol=1e-13, atol=1e-13
    )
    assert again.describe() == bank.describe()
    assert again.curves == bank.curves
    for quantile, soft in ((0.5, False), (0.9, True)):
        usual = bank.usual(classes, quantile, soft=soft)
        assert torch.equal(again.usual(classes, quantile, soft=soft), usual)
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(InputError, match="safetensors"):
        MixtureBank.load(tmp_path / "other")


def test_the_curve_is_saved_and_the_description_is_complete(tmp_path: Any) -> None:
    x, _ = blobs(200, 3, 2)
    x[:, 1] = 1.0
    bank = MixtureBank.fit(
        Outputs(torch.zeros(200, 2), {"a": x}),
        torch.zeros(200, dtype=torch.long),
        components=[1, 2],
    )
    bank.save(tmp_path / "bank")
    assert MixtureBank.load(tmp_path / "bank").curves == bank.curves
    (row,) = bank.describe()
    assert row["layer"] == "a"
    assert (row["samples"], row["channels"], row["components"], row["degenerate"]) == (
        200,
        3,
        2,
        1,
    )
    assert 0 < row["shrinkage"] < 1
    assert len(row["notes"]) == 1


def test_a_bank_needs_labels_and_a_share() -> None:
    out = Outputs(torch.zeros(20, 2), {"a": draw(20, 3)})
    labels = torch.zeros(20, dtype=torch.long)
    with pytest.raises(InputError, match="19 for 20"):
        MixtureBank.fit(out, labels[1:])
    with pytest.raises(InputError, match="holdout"):
        MixtureBank.fit(out, labels, holdout=1.0)
    with pytest.raises(InputError, match="unknown layer 'b'"):
        MixtureBank.fit(out, labels, layers=["b"])
    with pytest.raises(InputError, match="components"):
        MixtureBank.fit(out, labels, components=[])


def test_a_channel_that_hardly_varies_does_not_rule_the_energy() -> None:
    """A unit that fired on one training image only: as far from its mean as others vary, it costs
    no more than thousands.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=generator, dtype=torch.float64)
    x[:, 3] = 0
    x[7, 3] = 1e-6
    mixture = fit_mixture(x, components=1, covariance="full", seed=0)
    moved = x.mean(0, keepdim=True).clone()
    moved[0, 3] += 1
    assert mixture.energy(moved).item() < 1e4
