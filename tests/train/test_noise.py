"""The random numbers of a fit: the same for every division into blocks, without replacement."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import AutoFlow
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.subsampling import cover, draw_without_replacement
from pyro_nfvi._train.noise import Noise


def model(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("n", len(y), subsample_size=4) as index:
        pyro.sample("y", dist.Normal(mu.sum(-1), 1.0), obs=y[index])


@pytest.fixture
def make():
    y = torch.arange(30.0)
    guide = AutoFlow(model, "affine").setup(y)
    log_joint = LogJoint(model, (y,), {}, guide.latent)

    def noise(seed=0, particles=5):
        generator = torch.Generator().manual_seed(seed)
        return Noise(guide.density(), log_joint, particles, generator)

    return noise


def take(noise, counts):
    eps, index = [], []
    for count in counts:
        while count:
            now = min(count, noise.left)
            one, streams = noise.look(now)
            noise.use(now)
            eps.append(one)
            index.append(streams["n"])
            count -= now
    return torch.cat(eps), torch.cat(index)


def test_division_into_blocks_is_of_no_consequence(make):
    whole = take(make(), [330])
    parts = take(make(), [1, 1, 48, 150, 7, 123])
    assert whole[0].shape == (330, 5, 3)
    assert whole[1].shape == (330, 4)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
    assert not torch.equal(whole[0], take(make(seed=1), [330])[0])


def test_what_was_looked_at_and_not_used_comes_again(make):
    noise = make()
    first, _ = noise.look(10)
    noise.use(3)
    again, _ = noise.look(7)
    assert torch.equal(first[3:], again)


@pytest.mark.parametrize("taken", [0, 1, 199, 200, 237])
def test_goes_on_from_a_state(make, taken):
    noise = make()
    if taken:
        take(noise, [taken])
    state = noise.state()
    expected = take(noise, [250])
    other = make(seed=9)
    take(other, [20])
    other.restore(*state)
    found = take(other, [250])
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_large_noise_is_drawn_in_short_blocks(make):
    assert make().length == 200
    assert make(particles=50_000).length == 6
    assert make(particles=10**6).length == 1


@pytest.mark.parametrize(("size", "count"), [(5, 5), (12, 3), (12, 4), (100, 20), (1000, 256)])
def test_subsets_have_no_repeats(size, count):
    rows = draw_without_replacement(200, size, count)
    assert rows.shape == (200, count)
    assert rows.dtype == torch.int64
    assert int(rows.min()) >= 0
    assert int(rows.max()) < size
    assert all(len(set(row)) == count for row in rows.tolist())


@pytest.mark.parametrize(("size", "count"), [(12, 2), (12, 6)])
def test_every_number_and_every_pair_is_as_likely(size, count):
    torch.manual_seed(0)
    num = 20_000
    rows = draw_without_replacement(num, size, count)
    # Each place holds each number with probability 1/size: six standard errors in 24 to 72 cells,
    # a false alarm in 10^7.
    for place in range(count):
        share = torch.bincount(rows[:, place], minlength=size) / num
        assert float((share - 1 / size).abs().max()) < 6 * (1 / size / num) ** 0.5
    pairs = torch.zeros(size, size)
    pairs.index_put_((rows[:, 0], rows[:, 1]), torch.ones(num), accumulate=True)
    expected = 1 / (size * (size - 1))
    off = ~torch.eye(size, dtype=torch.bool)
    assert float((pairs[off] / num - expected).abs().max()) < 6 * (expected / num) ** 0.5
    assert float(pairs.diagonal().sum()) == 0


def test_same_seed_same_subsets():
    one, other = (
        draw_without_replacement(7, 500, 20, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("size", "count"), [(10, 5), (10, 4), (7, 7), (919, 256), (5, 4), (100, 99), (3, 1)]
)
def test_batches_that_cover_count_each_datum_once(size, count):
    index, weights = cover(size, count)
    counted = torch.zeros(size, dtype=torch.float64)
    for row, weight in zip(index, weights):
        assert len(set(row.tolist())) == count
        counted[row] += weight * size / count
    torch.testing.assert_close(counted, torch.ones_like(counted))
    assert len(index) <= size / count + 2 * count
