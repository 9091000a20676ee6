"""Flow guides in ``pyro.contrib.forecast``."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.forecast import Forecaster, ForecastingModel

from pyro_nfvi import NFVI, AutoFlow, AutoIAF

SEEN, AHEAD = 20, 5
X = torch.sin(torch.arange(SEEN + AHEAD) / 3).unsqueeze(-1)
Y = 1 + 2 * X + 0.1 * torch.randn(SEEN + AHEAD, 1, generator=torch.Generator().manual_seed(0))


class Line(ForecastingModel):
    def model(self, zero_data, covariates):
        start = pyro.sample("start", dist.Normal(0.0, 2.0))
        weight = pyro.sample("weight", dist.Normal(torch.zeros(1), 2.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(-2.0, 0.5))
        with self.time_plate:
            moves = pyro.sample("moves", dist.Normal(0.0, 0.02))
        level = start + moves.cumsum(-1) + (weight * covariates).sum(-1)
        self.predict(dist.Normal(0.0, noise.unsqueeze(-1)), level.unsqueeze(-1))


@pytest.fixture(autouse=True)
def _own_state():
    with torch.random.fork_rng(), pyro.get_param_store().scope({"params": {}, "constraints": {}}):
        torch.random.default_generator.manual_seed(0)
        yield


def check(forecaster):
    draws = forecaster(Y[:SEEN], X, num_samples=200)
    assert draws.reshape(200, -1).shape == (200, AHEAD)
    # The line goes on: its noise is 0.1, and 200 draws leave 0.01.
    assert (draws.reshape(200, AHEAD).mean(0) - Y[SEEN:, 0]).abs().max() < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("guide", [AutoIAF, lambda model: AutoFlow(model, None)])
def test_a_forecaster_trains_a_flow_guide(guide):
    model = Line()
    check(
        Forecaster(
            model,
            Y[:SEEN],
            X[:SEEN],
            guide=guide(model),
            num_steps=300,
            learning_rate=0.03,
            num_particles=4,
            log_every=0,
        )  # fmt: skip
    )


def test_a_forecaster_draws_through_a_fit():
    model = Line()
    fit = NFVI(model, "laplace", explore="off", seed=0, progress=False).run(Y[:SEEN], X[:SEEN])
    check(Forecaster(model, Y[:SEEN], X[:SEEN], guide=fit.guide, num_steps=0))
