"""Fitting one mixture: expectation maximisation in float64 from a k-means++ start."""

import math
from typing import Literal

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.mixture.model import Covariance, Mixture

__all__ = ["fit_mixture"]


def fit_mixture(
    x: Tensor,
    *,
    components: int = 1,
    covariance: Covariance = "full",
    shrinkage: float | Literal["auto"] = "auto",
    rank: int = 8,
    seed: int = 0,
    start: Tensor | None = None,
    floor: float = 1e-6,
    tol: float = 1e-3,
    max_iter: int = 100,
) -> Mixture:
    """first version"""
    x = x.detach().double()
    if not bool(torch.isfinite(x).all()):
        raise expected("features must be finite", got="NaN or inf", do="look at the classifier")
    n, c = x.shape
    m = min(components, n)
    centre, sd = x.mean(0), x.std(0, unbiased=False)
    dead = sd <= 1e-6 * centre.abs() + 1e-12
    sd = torch.where(dead, sd[~dead].median() if bool((~dead).any()) else torch.ones_like(sd), sd)
    z = (x - centre) / sd
    reg = torch.full_like(sd, floor) + dead.double()
    g = torch.Generator().manual_seed(seed)
    resp = torch.nn.functional.one_hot(_kmeans(z, m, g), m).double() if start is None else start.double()
    prior = c if shrinkage == "auto" else float(shrinkage) / (1 - float(shrinkage)) * n / m
    prior = 1.0 if shrinkage == "auto" and covariance == "diag" else prior
    bound, converged, it = -math.inf, False, 0
    for it in range(1, max_iter + 1):  # noqa: B007
        nk = resp.sum(0) + 10 * torch.finfo(x.dtype).eps
        mu = resp.T @ z / nk[:, None]
        if covariance == "diag":
            var = resp.T @ z.square() / nk[:, None] - mu.square()
            var = (nk[:, None] * var.clamp_min(0) + prior) / (nk[:, None] + prior) + reg
            factors = var.rsqrt()
        else:
            d = z[None] - mu[:, None]
            cov = torch.matmul((d * resp.T[:, :, None]).transpose(1, 2), d)
            cov = cov + prior * torch.eye(c, dtype=x.dtype)
            cov = cov / (nk + prior)[:, None, None] + torch.diag(reg)
            chol = torch.linalg.cholesky(cov)
            eye = torch.eye(c, dtype=x.dtype).expand(m, c, c)
            factors = torch.linalg.solve_triangular(chol, eye, upper=False).transpose(1, 2).contiguous()
        mix = Mixture(
            "diag" if covariance == "diag" else "full",
            nk / nk.sum(),
            centre,
            1 / sd,
            mu,
            factors,
            torch.zeros(0, dtype=x.dtype),
            n,
        )
        s = mix._scores(z, mix.ready(z))
        total = torch.logsumexp(s, 1)
        resp = (s - total[:, None]).exp()
        new = float(total.mean())
        if abs(new - bound) < tol:
            converged = True
            break
        bound = new
    return mix


def _kmeans(z: Tensor, m: int, g: torch.Generator) -> Tensor:
    n = len(z)
    centres = z[torch.randint(n, (1,), generator=g)]
    near = torch.cdist(z, centres).square().min(1).values
    for _ in range(m - 1):
        p = near if float(near.sum()) > 0 else torch.ones_like(near)
        centres = torch.cat([centres, z[torch.multinomial(p, 1, generator=g)]])
        near = torch.minimum(near, (z - centres[-1]).square().sum(1))
    for _ in range(20):
        label = torch.cdist(z, centres).argmin(1)
        hot = torch.nn.functional.one_hot(label, m).to(z)
        count = hot.sum(0)[:, None]
        centres = torch.where(count > 0, hot.T @ z / count.clamp_min(1), centres)
    return torch.cdist(z, centres).argmin(1)
