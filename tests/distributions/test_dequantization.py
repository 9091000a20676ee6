"""Integers under densities: the bound holds, tightens, and the reverse map is exact."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_nfvi import FlowDensity
from pyro_nfvi.distributions import FlowDequantize, UniformDequantize
from pyro_nfvi.errors import DataError, DivergedError, OptionError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.testing._case import perturb

LEVELS = (2, 5, 3)


def integers(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, k, (n,), generator=generator) for k in LEVELS], -1)


def all_integers():
    return torch.cartesian_prod(*[torch.arange(k) for k in LEVELS])


DEQUANTIZERS = {
    "uniform": lambda: UniformDequantize(LEVELS, 3),
    "uniform in the cube": lambda: UniformDequantize(LEVELS, 3, logit=False),
    "flow": lambda: perturb(FlowDequantize(LEVELS, 3), 0.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DEQUANTIZERS)
def test_quantize_undoes_the_noise(name, dtype):
    dequantize = DEQUANTIZERS[name]().to(dtype)
    x = integers(2000)
    y, log_weight = dequantize(x, like=torch.empty((), dtype=dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert log_weight.isfinite().all()
    # The logit rounds; at an edge of a cube the last digit decides.
    assert (dequantize.quantize(y) == x).float().mean() > 0.999


@pytest.mark.parametrize("levels", [2, 3, 16, 256, 65536])
def test_any_number_of_levels(levels):
    dequantize = UniformDequantize(levels, 2)
    x = torch.tensor([[0, levels - 1], [levels // 2, 1]])
    y, log_weight = dequantize(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dequantize.quantize(y), x)
    assert log_weight.isfinite().all()


@pytest.mark.stat
@pytest.mark.parametrize("name", DEQUANTIZERS)
def test_implied_masses_sum_to_one(name):
    # E[q(y) w] is the mass of a cube, and all cubes together are the space.
    dequantize = DEQUANTIZERS[name]().double()
    density = FlowDensity(make_flow("affine", 3)).double()
    x = all_integers()
    with torch.no_grad():
        if name == "uniform in the cube":
            density.flow.params.loc.fill_(0.5)
        generator = torch.Generator().manual_seed(0)
        masses = density_masses(density, dequantize, x, 4000, generator)
    whole = masses.sum().item()
    if name == "uniform in the cube":
        # The density there reaches beyond the cube.
        inside = torch.erf(torch.tensor(0.5 / math.sqrt(2))).item() ** 3
        assert whole == pytest.approx(inside, rel=0.02)
    else:
        # sd about 0.5 %: 4 of them, false-alarm rate 6e-5.
        assert whole == pytest.approx(1, abs=0.02)


def density_masses(density, dequantize, x, samples, generator):
    return dequantize.log_bound(density, x, num_samples=samples, generator=generator).exp()


@pytest.mark.slow
def test_bound_is_below_the_mass_and_tightens():
    density = perturb(FlowDensity(make_flow("realnvp*2", 3)), 0.5).double()
    dequantize = UniformDequantize(LEVELS, 3).double()
    x = all_integers()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mass = density_masses(density, dequantize, x, 3000, generator).log()
        bounds = [
            torch.stack([
                dequantize.log_bound(density, x, num_samples=s, generator=generator)
                for _ in range(300)
            ]).mean(0)
            for s in (1, 10)
        ]  # fmt: skip
    # Averages over 30 cubes; their noise is below 0.02.
    gaps = [(mass - bound).mean().item() for bound in bounds]
    assert gaps[0] > gaps[1] > -0.02
    assert gaps[0] > 0.05


@pytest.mark.slow
def test_fit_nears_the_entropy_and_a_flow_gets_nearer():
    # Two equal columns of four levels and a free one: 4/3 bits per dimension.
    x = torch.randint(0, 4, (1500, 3), generator=torch.Generator().manual_seed(0))
    x[:, 1] = x[:, 0]
    found = {}
    for name, make in (("uniform", UniformDequantize), ("flow", FlowDequantize)):
        torch.manual_seed(0)
        dequantize, density = make(4, 3), FlowDensity(make_flow("maf*2", 3))
        density.fit(x, dequantize=dequantize, seed=0, progress=False, max_steps=600)
        found[name] = density.bits_per_dim(x, dequantize=dequantize).mean().item()
    assert 4 / 3 - 0.02 < found["flow"] < found["uniform"] < 1.75


def test_without_noise_the_density_diverges_as_theory_says():
    x = torch.randint(0, 2, (400, 1), generator=torch.Generator().manual_seed(0))
    density = FlowDensity(make_flow("nsf-ar*2|affine", 1, hidden_dim=8))
    with (
        pytest.warns(UserWarning, match="grow without bound"),
        pytest.raises(DivergedError, match="UniformDequantize") as caught,
    ):
        density.fit(x.float(), progress=False, seed=0, max_steps=400, lr=0.02)
    # No probability is above 1, so no mean of log densities of integers above 0.
    assert caught.value.fit.train[-1] < 0
    dequantize = UniformDequantize(2, 1)
    density = FlowDensity(make_flow("affine", 1))
    honest = density.fit(x, dequantize=dequantize, progress=False, seed=0, max_steps=250, lr=0.02)
    # sd of the validation mean over 40 rows of noise: 0.05.
    assert honest.best > math.log(2) - 0.1


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.tensor([[0, 5, 0]]), "levels - 1"),
        (torch.tensor([[-1, 0, 0]]), "levels - 1"),
        (torch.tensor([[0.5, 0.0, 0.0]]), "integers"),
        (torch.tensor([[math.nan, 0.0, 0.0]]), "integers"),
        (torch.tensor([[0, 0]]), r"\(\*b, 3\)"),
    ],
)
def test_bad_data_are_named(x, words):
    with pytest.raises(DataError, match=words):
        UniformDequantize(LEVELS, 3)(x)


@pytest.mark.parametrize("levels", [1, 0, (2, 3), 2.5, True, "a", None])
def test_bad_levels_are_named(levels):
    with pytest.raises(OptionError, match="levels"):
        UniformDequantize(levels, 3)


def test_a_dequantising_flow_must_see_the_data():
    with pytest.raises(OptionError, match="context_dim=3"):
        FlowDequantize(2, 3, flow=make_flow("affine", 3))


@pytest.mark.parametrize("levels", [4096, 65536, 200_000])
def test_many_levels_come_back_in_float32(levels):
    generator = torch.Generator().manual_seed(0)
    for dequantize in (UniformDequantize(levels, 2), FlowDequantize(levels, 2)):
        x = torch.randint(levels, (5000, 2), generator=generator)
        y, _ = dequantize(x, generator=generator)
        assert y.dtype == torch.float32
        assert (dequantize.quantize(y) == x).float().mean() > 0.99


def test_more_levels_than_a_dtype_tells_apart_are_refused():
    x = torch.tensor([[0, 10**6]])
    dequantize = UniformDequantize(2**20 + 1, 2)
    with pytest.raises(DataError, match=r"density.double\(\)"):
        dequantize(x)
    y, _ = dequantize(x, like=torch.empty((), dtype=torch.float64))
    assert torch.equal(dequantize.quantize(y), x)


def test_a_dequantising_flow_in_float32_serves_a_density_in_float64():
    density = FlowDensity(make_flow("affine", 2)).double()
    x = torch.tensor([[0, 3], [1, 2]])
    bound = FlowDequantize(4, 2).log_bound(density, x)
    assert bound.dtype == torch.float64
    assert bound.isfinite().all()


def test_wrong_kinds_are_named():
    density = FlowDensity(make_flow("affine", 2))
    with pytest.raises(DataError, match="torch.as_tensor"):
        UniformDequantize(4, 2)([[0, 1]])
    with pytest.raises(OptionError, match="UniformDequantize"):
        density.bits_per_dim(torch.zeros(3, 2), dequantize=256)
    with pytest.raises(OptionError, match="num_samples"):
        density.bits_per_dim(torch.zeros(3, 2), dequantize=UniformDequantize(4, 2), num_samples=2.5)
    for dim in (0, 2.0):
        with pytest.raises(OptionError, match="dim"):
            UniformDequantize(4, dim)


def test_points_that_no_integer_can_come_from_are_named():
    dequantize = UniformDequantize(4, 2)
    for y, words in (
        (torch.zeros(3, 5), r"\(\*b, 2\)"),
        ([[0.0, 0.0]], "list"),
        (torch.tensor([[math.nan, 0.0]]), "finite"),
        (torch.tensor([[math.inf, 0.0]]), "finite"),
    ):
        with pytest.raises(DataError, match=words):
            dequantize.quantize(y)
    with pytest.raises(DataError, match="complex"):
        dequantize(torch.zeros(1, 2, dtype=torch.complex64))
    with pytest.raises(DataError, match="torch.as_tensor"):
        dequantize.log_bound(FlowDensity(make_flow("affine", 2)), [[0, 1]])
    with pytest.raises(OptionError, match="a formula or a Flow"):
        FlowDequantize(4, 2, flow=3)
    with pytest.raises(OptionError, match="levels"):
        UniformDequantize(torch.tensor(2j), 2)
