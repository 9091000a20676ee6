"""Gaussians: exact where the target is one, unmoved by affine maps, whole after bad rows."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_nfvi._gaussian_vi.batch_and_match import batch_and_match
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.natural_gradient import natural_gradient_ascent
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.errors import ShapeError, WeightError

LIKE = torch.zeros(1, dtype=torch.float64)


def gaussian(dim, condition, seed=0):
    """A target N(m, LL') with correlations of the given condition, its mean and its factor."""
    gen = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=gen, dtype=torch.float64))
    scales = torch.logspace(0, 0.5 * math.log10(condition), dim, dtype=torch.float64)
    tril = torch.linalg.cholesky((q * scales.square()) @ q.T)
    mean = 5 * torch.randn(dim, generator=gen, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(mean, scale_tril=tril)
    return Target(normal.log_prob, LIKE), mean, tril


def whitened_error(found_loc, found_tril, mean, tril):
    """Distance of N(found) from N(mean, tril), in the latter's own coordinates."""
    root = torch.linalg.solve_triangular(tril, found_tril, upper=False)
    away = torch.linalg.solve_triangular(tril, (found_loc - mean).unsqueeze(-1), upper=False)
    return float(away.norm()), float((root @ root.T - torch.eye(len(mean))).norm())


@pytest.mark.parametrize(("dim", "condition"), [(1, 1.0), (5, 1e4), (30, 1e6)])
@pytest.mark.parametrize("method", [natural_gradient_ascent, batch_and_match])
def test_gaussians_are_found_exactly(method, dim, condition):
    # Path gradients and score matching have no noise left at the solution.
    target, mean, tril = gaussian(dim, condition)
    start = Normals.around(torch.zeros(1, dim), 1.0)
    steps = 300 if method is natural_gradient_ascent else 60
    gen = torch.Generator().manual_seed(1)
    found = method(target, start, num_steps=steps, generator=gen)
    if method is natural_gradient_ascent:
        found, bounds = found
        assert bounds.shape == (steps, 1)
        assert abs(float(bounds[-1])) < 1e-6  # the evidence is 1
    away, spread = whitened_error(found.loc[0], found.factor[0], mean, tril)
    assert away < 1e-3
    assert spread < 1e-3 * dim


def test_whitened_steps_do_not_change_under_affine_maps():
    target, _, _ = gaussian(4, 100.0)
    scale = torch.logspace(-3, 3, 4, dtype=torch.float64)
    stretched = Target(lambda z: target.log_density(z / scale), LIKE)
    paths = []
    for one, factor in ((target, torch.ones(4)), (stretched, scale)):
        start = Normals.around(torch.zeros(1, 4), 1.0)
        start = Normals(start.loc, start.factor * factor.double().unsqueeze(-1))
        gen = torch.Generator().manual_seed(0)
        paths.append(natural_gradient_ascent(one, start, num_steps=50, generator=gen)[0])
    torch.testing.assert_close(paths[0].loc * scale, paths[1].loc, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        paths[0].factor * scale.unsqueeze(-1), paths[1].factor, rtol=1e-9, atol=1e-12
    )


def test_diagonal_gaussians_have_the_scales_given_the_others():
    target, mean, tril = gaussian(4, 50.0)
    start = Normals.around(torch.zeros(1, 4), 1.0, diagonal=True)
    gen = torch.Generator().manual_seed(0)
    found, _ = natural_gradient_ascent(
        target, start, num_steps=600, num_particles=256, generator=gen
    )
    precision = torch.cholesky_inverse(tril)
    expected = precision.diagonal().rsqrt()
    # Noise of the gradients at the optimum of a family that does not hold the target: 2 %, of
    # which 10 % is five standard errors (found over 20 seeds).
    torch.testing.assert_close(found.factor[0], expected, rtol=0.1, atol=0)
    assert ((found.loc[0] - mean).abs() < 0.2 * tril.norm(dim=-1)).all()


def test_a_target_thousands_of_sds_away_is_reached():
    target = Target(lambda z: -0.5 * ((z - 300.0) / 1e-3).square().sum(-1), LIKE)
    gen = torch.Generator().manual_seed(0)
    found, _ = natural_gradient_ascent(
        target, Normals.around(torch.zeros(1, 3), 0.1), generator=gen
    )
    assert (found.loc - 300).abs().max() < 1e-5
    assert (found.factor[0].diagonal() - 1e-3).abs().max() < 1e-6


def test_rows_do_not_touch_each_other():
    target, _, _ = gaussian(3, 10.0)
    walled = Target(lambda z: torch.where(z[:, 0] > 1e4, torch.nan, target.log_density(z)), LIKE)
    starts = Normals.around(torch.tensor([[0.0] * 3, [1e6] * 3]), 1.0)
    for method in (natural_gradient_ascent, batch_and_match):
        gen = torch.Generator().manual_seed(0)
        both = method(walled, starts, num_steps=20, generator=gen)
        both = both[0] if method is natural_gradient_ascent else both
        assert torch.isfinite(both.loc).all()
        assert torch.isfinite(both.factor).all()
        assert (both.loc[1] == 1e6).all()  # no slope: it stays, and shrinks
        assert both.factor[1, 0, 0] == 0.5**20


def test_a_wide_start_beyond_the_support_shrinks_into_it():
    inside = Target(
        lambda z: torch.where(z.abs().amax(-1) < 1, -0.5 * (z / 0.1).square().sum(-1), torch.nan),
        LIKE,
    )
    start = Normals.around(torch.zeros(1, 2), 100.0)
    found, _ = natural_gradient_ascent(inside, start, generator=torch.Generator().manual_seed(0))
    assert (found.loc.abs() < 0.01).all()
    assert ((found.factor[0].diagonal() - 0.1).abs() < 0.01).all()


def test_the_best_of_several_starts_is_kept():
    # Two modes, the far one with 100 times the mass: e^4.6.
    def log_p(z):
        near = -0.5 * z.square().sum(-1)
        far = -0.5 * (z - 30).square().sum(-1)
        return torch.logaddexp(near - math.log(101), far + math.log(100 / 101))

    starts = Normals.around(torch.tensor([[0.0, 0.0], [29.0, 31.0]]), 0.5)
    gen = torch.Generator().manual_seed(0)
    found = fit_gaussian(Target(log_p, LIKE), starts, generator=gen)
    assert (found.loc - 30).abs().max() < 0.05
    assert abs(found.bound - math.log(2 * math.pi) - math.log(100 / 101)) < 1e-6
    assert found.start_bounds[1] - found.start_bounds[0] > 4.5
    assert found.num_rows > 0


def test_same_generator_same_gaussian():
    target, _, _ = gaussian(6, 10.0)
    fits = [
        fit_gaussian(
            target,
            Normals.around(torch.zeros(2, 6), 1.0),
            effort=0.2,
            generator=torch.Generator().manual_seed(3),
        )
        for _ in range(2)
    ]
    assert torch.equal(fits[0].factor, fits[1].factor)
    assert fits[0].bound == fits[1].bound


def test_condition_is_of_the_correlations():
    target, _, tril = gaussian(5, 1e4)
    found = fit_gaussian(
        target,
        Normals.around(torch.zeros(2, 5), 1.0),
        generator=torch.Generator().manual_seed(0),
    )
    rows = tril / tril.norm(dim=-1, keepdim=True)
    assert found.condition == pytest.approx(float(torch.linalg.cond(rows @ rows.T)), rel=1e-3)


def test_a_density_that_raises_on_some_rows_marks_those():
    def log_p(z):
        if bool((z[:, 0] > 3).any()):
            raise RuntimeError("no Cholesky factor")
        return -0.5 * z.square().sum(-1)

    z = torch.zeros(100, 2)
    z[[7, 60], 0] = 4.0
    _, score, ok = Target(log_p, LIKE)(z + 1e-3)
    # Pieces of 100 / 32 rows at least are given up with a bad row.
    assert not ok[7]
    assert not ok[60]
    assert int(ok.sum()) >= 90
    torch.testing.assert_close(score[ok], torch.full_like(score[ok], -1e-3))
    found, _ = natural_gradient_ascent(Target(log_p, LIKE), Normals.around(torch.zeros(1, 2), 0.5))
    assert torch.isfinite(found.factor).all()


def test_float32_densities_are_called_in_float32():
    seen = set()

    def log_p(z):
        seen.add(z.dtype)
        return -0.5 * z.square().sum(-1)

    target = Target(log_p, torch.zeros(1, dtype=torch.float32))
    found, _ = natural_gradient_ascent(target, Normals.around(torch.ones(1, 2), 0.5), num_steps=5)
    assert seen == {torch.float32}
    assert found.loc.dtype == torch.float64


def test_errors_say_what_to_do():
    target, _, _ = gaussian(2, 1.0)
    with pytest.raises(ShapeError, match="starts of shapes"):
        fit_gaussian(target, Normals(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ShapeError, match="full factors"):
        batch_and_match(target, Normals.around(torch.zeros(1, 2), 1.0, diagonal=True))
    nowhere = Target(lambda z: z.sum(-1) * torch.nan, LIKE)
    with pytest.raises(WeightError, match="around any of 2 starts"):
        fit_gaussian(nowhere, Normals.around(torch.zeros(2, 2), 1.0), effort=0.1)
