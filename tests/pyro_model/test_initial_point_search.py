"""A first point that fails is one point that failed: a catalogue of the ways in which it can."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, init_to_value

from pyro_nfvi import NFVI, AutoFlow, AutoMixture
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi.errors import ModelError, ModelWarning

Y = torch.tensor([1.0, 2.1, 2.9, 4.2, 5.0])


class IntegratorError(Exception):
    pass


def far(limit=6.0):
    """A location whose prior draws lie far out, where nearly all of the models below fail."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor(60.0), 20.0))
    return mu, mu.abs() > limit


def observed(mu):
    with pyro.plate("rows", len(Y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y)


def vague_precision():
    mu = pyro.sample("mu", dist.Normal(0.0, 1000.0))
    var = pyro.sample("var", dist.InverseGamma(0.001, 0.001))
    with pyro.plate("rows", len(Y)):
        pyro.sample("y", dist.Normal(mu, var.sqrt()), obs=Y)


def raises(error):
    def model():
        mu, out = far()
        if bool(torch.any(out)):
            raise error
        observed(mu)

    return model


def impossible(value):
    def model():
        mu, out = far()
        pyro.factor("wall", torch.where(out, value, 0.0))
        observed(mu)

    return model


def asserts():
    mu, out = far()
    assert not bool(torch.any(out))
    observed(mu)


def negative_rate():
    mu, out = far()
    rate = torch.where(out, torch.tensor(-1e-9), mu.exp())
    pyro.sample("count", dist.Poisson(rate), obs=torch.tensor(3.0))


def impossible_parameter():
    mu, out = far()
    scale = torch.where(out, torch.tensor(-1.0), torch.tensor(1.0))
    pyro.sample("y", dist.Normal(mu, scale), obs=torch.tensor(1.0))


def no_factor():
    mu, out = far()
    diagonal = torch.where(out, torch.tensor(-1.0), torch.tensor(1.0))
    matrix = diagonal[..., None, None] * torch.eye(2)
    tril = torch.linalg.cholesky(matrix)
    loc = mu.unsqueeze(-1).expand(*mu.shape, 2)
    pyro.sample("y", dist.MultivariateNormal(loc, scale_tril=tril), obs=torch.ones(2))


def enumerated():
    mu, out = far()
    with pyro.plate("rows", len(Y)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        pyro.factor("wall", torch.where(out, -math.inf, torch.zeros(())).expand(k.shape))
        pyro.sample("y", dist.Normal(mu + k, 1.0), obs=Y)


def subsampled():
    mu, out = far()
    pyro.factor("wall", torch.where(out, -math.inf, 0.0))
    with pyro.plate("rows", len(Y), subsample_size=3) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y[index])


def one_by_one():
    mu, out = far()
    if bool(out):  # neither a plate of particles nor vmap can run this
        raise RuntimeError("the integrator failed at step 17")
    pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(1.0))


CATALOGUE = {
    "-inf, vague prior": vague_precision,
    "-inf": impossible(-math.inf),
    "+inf": impossible(math.inf),
    "NaN": impossible(math.nan),
    "RuntimeError": raises(RuntimeError("the integrator failed at step 17")),
    "ValueError": raises(ValueError("no root")),
    "ArithmeticError": raises(ZeroDivisionError("division by zero")),
    "an error of the user's": raises(IntegratorError("stiff")),
    "assert": asserts,
    "a value outside of the support": negative_rate,
    "a parameter outside of its constraint": impossible_parameter,
    "no Cholesky factor": no_factor,
    "enumerated": enumerated,
    "subsampled": subsampled,
    "one by one": one_by_one,
}


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("guide_class", [AutoFlow, AutoMixture])
def test_guides_start_where_the_model_works(name, guide_class):
    model = CATALOGUE[name]
    guide = guide_class(model).setup()
    log_joint = LogJoint(model, (), {}, guide.latent)  # its checks do not stop either
    assert torch.isfinite(log_joint(guide.latent.init_loc))
    assert float(guide.latent.init_loc[0].abs()) < 6.1


def test_a_point_that_works_at_once_is_kept():
    """Neither the point nor the random state after it depends on the search."""

    def model():
        observed(pyro.sample("mu", dist.Normal(torch.tensor(60.0), 20.0)))

    pyro.set_rng_seed(5)
    theirs = AutoDiagonalNormal(model)
    theirs._setup_prototype()
    expected = torch.rand(())
    pyro.set_rng_seed(5)
    ours = AutoFlow(model).setup()
    assert torch.equal(torch.rand(()), expected)
    assert torch.equal(ours.latent.init_loc, theirs.loc.detach())


def test_the_users_point_comes_first_and_its_failure_is_said():
    model = CATALOGUE["-inf"]
    right = init_to_value(values={"mu": torch.tensor(2.5)})
    assert float(AutoFlow(model, init_loc_fn=right).setup().latent.init_loc) == 2.5
    wrong = init_to_value(values={"mu": torch.tensor(70.0)})
    with pytest.warns(ModelWarning, match="log density of 'wall' is -inf.*unconstrained origin"):
        guide = AutoFlow(model, init_loc_fn=wrong).setup()
    assert float(guide.latent.init_loc) == 0.0


def test_a_loop_of_ones_own_trains_from_there():
    pyro.clear_param_store()
    model = CATALOGUE["NaN"]
    guide = AutoFlow(model, "planar")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step()) for _ in range(3))


def test_nothing_is_refused_before_a_hundred_points_and_the_error_counts_them():
    points = []

    def model():
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        points.append(float(mu))
        rate = torch.where(mu > -1e9, torch.tensor(-1e-9), mu)
        pyro.sample("count", dist.Poisson(rate), obs=torch.tensor(3.0))

    with pytest.raises(ModelError) as caught:
        AutoFlow(model).setup()
    message = str(caught.value)
    assert len(set(points)) >= MODELS.most_starts - 1  # the origin may come twice
    for part in (
        "1 by init_loc_fn, 1 by the unconstrained origin, 49 by uniform(-2, 2), 49 by the prior",
        "the same error at each of 100 initial points",
        "ValueError: Expected parameter rate",
        "init_to_value",
    ):
        assert part in message
    assert isinstance(caught.value.__cause__, ValueError)


def test_the_error_names_the_sites_at_fault():
    def model():
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("share", dist.Beta(mu.exp(), 1.0), obs=torch.tensor(1.5))

    with pytest.raises(ModelError, match=r"'share' \(100 of 100\).*within the support"):
        AutoFlow(model).setup()


def test_mistakes_are_raised_at_once():
    """Another point would not mend a TypeError, nor what fails before any site."""
    for error in (TypeError("a str is no tensor"), NameError("who"), AttributeError("lacks")):
        runs = []

        def model(error=error, runs=runs):
            pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
            runs.append(1)
            raise error

        with pytest.raises(type(error)):
            AutoFlow(model).setup()
        assert len(runs) <= 2  # the second is for models that differentiate inside themselves

    def early():
        raise RuntimeError("no such file")

    # Pyro appends the shapes of the trace so far.
    with pytest.raises(RuntimeError, match="^no such file\n"):
        AutoFlow(early).setup()


@pytest.mark.parametrize(
    "name",
    [
        "-inf, vague prior",
        "subsampled",
        pytest.param("one by one", marks=pytest.mark.slow),
        "enumerated",
    ],
)
def test_fits_end_at_the_posterior(name):
    """Medians against a grid: 0.2 sd are 7 standard errors of 2000 draws."""
    steps = 300 if name == "one by one" else 1000
    guide = "affine" if name != "-inf, vague prior" else "auto"
    fit = NFVI(CATALOGUE[name], guide=guide, max_steps=steps, seed=0, progress=False).run()
    mu = fit.sample(2000, seed=1)["mu"].double()
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    near = -0.5 * (Y.double() - grid.unsqueeze(-1)) ** 2
    next_to = -0.5 * (Y.double() - 1 - grid.unsqueeze(-1)) ** 2
    log_p = {
        "-inf, vague prior": -2.5 * (near * -2).sum(-1).log(),
        "subsampled": near.sum(-1),
        "one by one": -0.5 * (grid - 1.0) ** 2,
        "enumerated": torch.logaddexp(near, next_to).sum(-1),
    }[name] + (0.0 if name == "-inf, vague prior" else -0.5 * ((grid - 60) / 20) ** 2)
    p = torch.softmax(log_p, 0)
    right = float((p * grid).sum())
    sd = float((p * (grid - right) ** 2).sum().sqrt())
    assert abs(float(mu.median()) - right) < 0.2 * sd
