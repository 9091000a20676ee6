"""Independent blocks of latents: those that are, and interactions that hardly show."""

import pytest
import torch

from pyro_nfvi._gaussian_vi.independent_blocks import independent_blocks
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._random import stream


def blocks_of(log_density, dim, dtype, points=None):
    noise = stream(0, "blocks")
    if points is None:
        points = 2 * torch.randn(200, dim, generator=noise, dtype=torch.float64)
    found = independent_blocks(Target(log_density, torch.zeros(dim, dtype=dtype)), points, noise)
    return None if found is None else [block.tolist() for block in found]


def wells(z):
    return (-(z**4) + 6 * z**2).sum(-1)


#: Densities, and their blocks; None for one block alone.
CASES = {
    "product": (wells, 6, [[0], [1], [2], [3], [4], [5]]),
    "pairs": (
        lambda z: wells(z) - (z[..., ::2] * z[..., 1::2]).sum(-1),
        6,
        [[0, 1], [2, 3], [4, 5]],
    ),
    "chain": (lambda z: wells(z) - (z[..., 1:] * z[..., :-1]).sum(-1), 6, None),
    "a pair far apart": (lambda z: wells(z) - (z[..., 0] - z[..., 5]).square(), 6,
                         [[0, 5], [1], [2], [3], [4]]),
    "a global": (lambda z: wells(z[..., 1:]) - (z[..., :1] * z[..., 1:]).sum(-1), 6, None),
    # Scores at most points do not show it: it is there in one corner alone.
    "in one corner": (
        lambda z: wells(z) + 3 * torch.relu(z[..., 1] - 1.2) * torch.relu(z[..., 4] - 1.2),
        6,
        [[0], [1, 4], [2], [3], [5]],
    ),
    "a bound": (
        lambda z: torch.where(z[..., 2] + z[..., 3] > -3, wells(z), -torch.inf),
        6,
        [[0], [1], [2, 3], [4], [5]],
    ),
    "three that interact only together": (
        lambda z: wells(z) + 0.5 * z[..., 0] * z[..., 2] * z[..., 4],
        6,
        [[0, 2, 4], [1], [3], [5]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_blocks_are_those_of_the_density(name, dtype):
    log_density, dim, expected = CASES[name]
    found = blocks_of(log_density, dim, dtype)
    # A bound has no score that would name the two; then there are no blocks, which is safe.
    assert found == expected or (name == "a bound" and found is None)


def test_points_without_a_density_are_left_out():
    def log_density(z):
        return torch.where(z[..., 0] > 0, wells(z), torch.nan)

    assert blocks_of(log_density, 3, torch.float64) in ([[0], [1], [2]], None)


def test_one_latent_or_too_many_have_no_blocks():
    assert blocks_of(wells, 1, torch.float64) is None
    assert blocks_of(wells, 300, torch.float64) is None
