"""NUTS through a fitted flow: what it says of the fit."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI, load
from pyro_nfvi._train.density_selection import choose_density
from pyro_nfvi.infer import _chain_scope


@pytest.mark.slow
def test_a_guide_that_is_too_narrow_is_seen_from_the_posterior():
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("wider", -dist.Normal(0.0, 1.0).log_prob(x) + dist.Cauchy(0.0, 1.0).log_prob(x))

    fit = NFVI(model, "affine", max_steps=30, seed=0, progress=False, explore="off").run()
    nuts = fit.to_nuts(num_samples=200, warmup_steps=50, num_chains=1, seed=0, progress=False)
    assert nuts.khat > 0.7


def test_a_loaded_fit_compiles_its_log_joint_for_long_runs_alone(tmp_path, monkeypatch):
    runs = []

    def model():
        runs.append(1)
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    options = {"seed": 0, "progress": False}
    NFVI(model, "affine", max_steps=30, explore="off", **options).run().save(tmp_path / "fit.nfvi")
    fit = load(tmp_path / "fit.nfvi", model=model)

    def count():
        runs.clear()
        fit.to_nuts(num_samples=15, warmup_steps=10, num_chains=1, **options)
        return len(runs)

    by_model = count()
    assert by_model > 25  # each iteration runs the model several times
    monkeypatch.setattr(_chain_scope, "choose_density", asked := Asked(25))
    by_code = count()
    assert asked.steps == [25]
    assert by_code < by_model - 25  # what is left compares the code, and scores the draws
    assert fit.log_joint.compiled is None  # the fit's own stays as it was


class Asked:
    """The choice of an engine, to which so many steps are enough."""

    def __init__(self, enough):
        self.enough, self.steps = enough, []

    def __call__(self, engine, log_joint, steps, **options):
        self.steps.append(steps)
        return choose_density("compiled" if steps >= self.enough else engine, log_joint, 0)
