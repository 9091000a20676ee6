"""Models that are hard to fit: each ends in minutes, and is right or says that it may not be."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

from benchmarks import hard_models
from benchmarks.hard_models import MODELS, PROTOCOL, references


@pytest.mark.parametrize("name", MODELS)
def test_numbers_that_are_compared_are_those_of_the_reference(name):
    model = MODELS[name]
    trace = poutine.trace(pyro.infer.config_enumerate(model.run)).get_trace(model.data())
    draws = {
        site: node["value"].expand(3, *node["value"].shape)
        for site, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and node["fn"].has_rsample
    }
    seen = model.seen(draws)
    assert all(value.shape == (3,) for value in seen.values())
    if name not in references():
        pytest.skip("no run of NUTS is kept for this model")
    exact = references()[name]["numbers"]
    assert list(seen) == list(exact)
    same = hard_models.errors(exact, exact)
    assert (same["mean_error"], same["sd_error"]) == (0.0, 0.0)


def test_the_forward_algorithm_by_hand_is_what_pyro_sums_out():
    """NUTS runs on the one, the fit on the other."""
    model = MODELS["capture_recapture"]
    data, noise = model.data(), torch.Generator().manual_seed(0)
    for _ in range(3):
        values = {f"logit_{year}": torch.randn((), generator=noise) for year in range(1, 7)}
        values |= {name: torch.rand((), generator=noise) for name in ("level", "spread", "caught")}

        def guide(data, values=values):
            for name, value in values.items():
                pyro.sample(name, dist.Delta(value))

        exact = -TraceEnum_ELBO(max_plate_nesting=1).loss(model.run, guide, data)
        by_hand = poutine.trace(poutine.condition(model.by_hand, values)).get_trace(data)
        # Bernoulli keeps probabilities an epsilon away from 0 and 1.
        assert float(by_hand.log_prob_sum()) == pytest.approx(float(exact), abs=0.01)


def test_every_model_is_on_the_page():
    rows = hard_models.kept_rows()
    text = hard_models.page(rows, references(), hard_models.environment())
    for name, model in MODELS.items():
        assert model.title in text
        assert len([row for row in rows if row["model"] == name]) == PROTOCOL.seeds
    assert all(map(hard_models.honest, rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_hard_model_ends_in_minutes_and_is_right_or_not_good(name):
    row = hard_models.fitted(name, 3)
    assert hard_models.honest(row), row
