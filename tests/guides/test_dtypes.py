"""Precision and device follow the model, whatever torch's defaults say at the time."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from guides.models import OURS, disturb, fit, linear, same_noise

from pyro_nfvi import AutoFlow

each_guide = pytest.mark.parametrize("guide_class", OURS.values())
Y = torch.tensor([[2.5, -0.5], [1.5, -1.5], [2.0, -1.0]], dtype=torch.float32)


def check(guide, dtype, y):
    drawn = same_noise(guide, y)
    assert {value.dtype for value in drawn.values()} == {dtype}
    assert {parameter.dtype for parameter in guide.parameters()} == {dtype}
    draws = guide.sample_posterior(3)
    for found in (draws, guide.median(), guide.quantiles([0.1, 0.9]), guide.mean()):
        assert {value.dtype for value in found.values()} == {dtype}
    assert guide.log_prob(draws).dtype == dtype
    fit(linear, guide, y, steps=1)
    assert {parameter.dtype for parameter in guide.parameters()} == {dtype}


@each_guide
@pytest.mark.parametrize("outer", ["diagonal", "full"])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_models_precision_under_any_default(guide_class, outer, default, dtype):
    torch.set_default_dtype(default)
    check(guide_class(linear, outer=outer), dtype, Y.to(dtype))


@each_guide
def test_the_default_may_change_between_set_up_and_use(guide_class):
    guide = guide_class(linear).setup(Y)
    torch.set_default_dtype(torch.float64)
    check(guide, torch.float32, Y)
    wide = guide_class(linear, num_flows=3)
    with pyro.get_param_store().scope():
        wide.setup(Y.double())
        torch.set_default_dtype(torch.float32)
        check(wide, torch.float64, Y.double())


@each_guide
@pytest.mark.parametrize("outer", ["diagonal", "full"])
def test_double_after_set_up(guide_class, outer):
    guide = guide_class(linear, outer=outer).setup(Y)
    disturb(guide, 0.2)
    median = guide.median()
    # In a scope of its own: in the store there are the narrow values.
    with pyro.get_param_store().scope():
        guide.double()
        check(guide, torch.float64, Y.double())
    assert median["mean"].dtype == torch.float32


@each_guide
def test_double_after_set_up_in_the_same_store(guide_class):
    guide = guide_class(linear).setup(Y)
    guide(Y)
    guide.double()
    check(guide, torch.float64, Y.double())


@each_guide
def test_numbers_in_the_data_reach_no_narrow_corner(guide_class):
    """Offsets that float32 cannot hold survive from the data to the draws."""
    offset = 1e8

    def model(y):
        x = pyro.sample("x", dist.Normal(y.mean(), 1e-3))
        pyro.sample("z", dist.Normal(x, 1e-3))

    guide = guide_class(model, init_scale=1e-3).setup(torch.tensor([offset], dtype=torch.float64))
    draws = guide.sample_posterior(50)
    assert len((draws["x"] - offset).unique()) == 50
    scores = guide.log_prob(draws)
    # sd 1e-3 twice: around 2 (log 1000 - 0.919) minus chi-squared halves.
    assert scores.max() < 2 * 5.99 + 0.1
    assert scores.min() > 2 * 5.99 - 15


def test_a_latent_of_another_dtype_follows_the_first():
    """Sites of two precisions share one vector; pyro's guides do the same."""

    def model():
        pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.float32), 1.0))

    guide = AutoFlow(model).setup()
    assert guide.sample_posterior(2)["a"].dtype == torch.float64
    assert guide.log_prob(guide.sample_posterior(2)).isfinite().all()


def test_scores_are_as_precise_as_the_guide_after_double():
    guide = AutoFlow(linear, flow=None).setup(Y)
    with pyro.get_param_store().scope():
        guide.double()
        draws = guide.sample_posterior(20)
        z = torch.cat([draws["mean"], draws["sd"].log().unsqueeze(-1)], -1)
        normal = dist.Normal(guide.loc, guide.scale).to_event(1)
        exact = normal.log_prob(z) - draws["sd"].log()
        torch.testing.assert_close(guide.log_prob(draws), exact, rtol=1e-12, atol=1e-12)
