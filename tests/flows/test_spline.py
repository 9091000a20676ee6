"""What splines owe beyond the laws: knots, the bound, far outside, float32."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Elementwise, SplineTransformer
from pyro_nfvi.flows._spline import find_bin

BOUND = 5.0


def draw(n, bins, dtype, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    transformer = SplineTransformer(bins, bound=BOUND)
    params = size * torch.randn(
        n, 1, transformer.num_params, generator=generator, dtype=torch.float64
    )
    params[..., -2:] = 0  # the affine map behind it: not under test here
    return transformer, params.to(dtype)


def knots(transformer, params):
    """All knots and slopes ``(n, 1, K+1)``: by hand, and as the transformer has them."""
    k, bound = transformer.bins, transformer.bound
    raw = params[..., : 3 * k - 1]
    bounded = raw / (1 + (raw / 3).square()).sqrt()
    shares = 1e-3 + (1 - k * 1e-3) * bounded[..., :k].softmax(-1)
    edges = 2 * bound * shares.cumsum(-1) - bound
    middles = (edges - bound * shares).squeeze(1)
    found = find_bin(middles, raw.expand(-1, k, -1), k, bound, vertical=False)
    x0, w, y0, h, d0, d1 = (one.unsqueeze(1) for one in found)
    torch.testing.assert_close(x0 + w, edges, rtol=1e-5, atol=1e-5)
    end = torch.full_like(x0[..., :1], bound)
    slopes = torch.cat([d0, d1[..., -1:]], -1)
    return torch.cat([x0, end], -1), torch.cat([y0, end], -1), slopes


def around(points, dtype):
    """Each point, with its neighbours in this dtype."""
    up, down = torch.tensor(torch.inf, dtype=dtype), torch.tensor(-torch.inf, dtype=dtype)
    return torch.cat([points, torch.nextafter(points, up), torch.nextafter(points, down)], -1)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knots_and_bound_are_met_from_both_sides(dtype, size):
    transformer, params = draw(300, 6, dtype, size)
    xs, ys, _ = knots(transformer, params)
    for axis, call, back in (
        (xs, transformer.forward, transformer.inverse),
        (ys, transformer.inverse, transformer.forward),
    ):
        points = around(axis.squeeze(1), dtype).squeeze(1)
        wide = params.expand(-1, points.shape[-1], -1)
        image, ladj = call(points, wide)
        again, back_ladj = back(image, wide)
        assert image.isfinite().all()
        assert ladj.isfinite().all()
        # Slopes lie between 1e-3 and about 1e3: as many digits may be lost one way.
        loose = 2e-2 if dtype == torch.float32 else 1e-9
        assert (again - points).abs().max() < loose
        assert (image.abs() <= BOUND * (1 + 1e-6)).all()
        # At size 30 slopes fall a thousandfold within a bin of 0.01: the last float32 digit of x is
        # worth nats there.
        if dtype == torch.float64 or size < 30:
            assert (ladj + back_ladj).abs().max() < (0.2 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_increases_across_knots(dtype):
    transformer, params = draw(200, 5, dtype, 3.0, seed=1)
    x = torch.linspace(-6, 6, 801, dtype=dtype).expand(200, -1)
    y, _ = transformer.forward(x, params.expand(-1, 801, -1))
    assert (y.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("far", [5.0, 5.0001, 1e3, 1e10, 1e30])
def test_outside_the_bound_it_is_the_identity(far):
    transformer, params = draw(50, 4, torch.float32, 3.0)
    for sign in (-1, 1):
        x = torch.full((50, 1), sign * far)
        for call in (transformer.forward, transformer.inverse):
            y, ladj = call(x, params)
            assert torch.equal(y, x)
            assert (ladj == 0).all()


def test_tails_of_the_base_survive():
    flow = Elementwise(1, transformer=SplineTransformer(4))
    x = torch.tensor([[-40.0], [7.0], [1e6]])
    assert torch.equal(flow(x)[0], x)


def test_gradients_of_the_inverse_are_finite_at_the_knots():
    transformer, params = draw(100, 6, torch.float32, 5.0)
    params.requires_grad_()
    _, ys, _ = knots(transformer, params)
    points = around(ys.detach().squeeze(1), torch.float32)
    y = points.clone().requires_grad_()
    x, ladj = transformer.inverse(y, params.expand(-1, points.shape[-1], -1))
    for gradient in torch.autograd.grad(x.sum() + ladj.sum(), [y, params]):
        assert gradient.isfinite().all()


def test_slope_is_continuous_at_the_knots():
    transformer, params = draw(100, 5, torch.float64, 1.0)
    xs, _, ds = knots(transformer, params)
    for side in (-1e-9, 1e-9):
        points = xs.squeeze(1)[..., 1:-1] + side
        _, ladj = transformer.forward(points, params.expand(-1, points.shape[-1], -1))
        torch.testing.assert_close(ladj.exp(), ds.squeeze(1)[..., 1:-1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{"bins": 1}, {"bins": 1000}, {"bound": 0.0}, {"bound": -1.0}])
def test_impossible_splines_are_refused(options):
    with pytest.raises(OptionError, match="[Ss]pline"):
        SplineTransformer(**options)
