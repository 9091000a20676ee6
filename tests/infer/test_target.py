"""Log densities without a Pyro model: the same fits as with one, and clear words at the door."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pyro
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi._pyro_model.external_density import ExternalDensity
from pyro_nfvi._pyro_model.flat_prior import FlatPrior
from pyro_nfvi.errors import ModelError, OptionError, ShapeError

# A Gaussian with correlation: mean, covariance, and log evidence are known.
MEAN = np.array([1.0, -2.0, 0.5])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 2.0]])
PRECISION = np.linalg.inv(FACTOR @ FACTOR.T)
LOG_Z = 1.5 * math.log(2 * math.pi) + math.log(np.prod(np.diag(FACTOR))) + 7.0


def of_tensors(z):
    r = z - torch.tensor(MEAN).to(z)
    return 7.0 - 0.5 * ((r @ torch.tensor(PRECISION).to(z)) * r).sum(-1)


def of_one(z):
    r = z - MEAN
    return 7.0 - 0.5 * r @ PRECISION @ r, -PRECISION @ r


def of_rows(z):
    r = z - MEAN
    return 7.0 - 0.5 * ((r @ PRECISION) * r).sum(-1), -r @ PRECISION


NAMES = {"mu": (), "theta": (2,)}
#: The same density in each form that is taken.
FORMS = {
    "tensors": lambda **o: nfvi.Target(of_tensors, 3, **o),
    "tensors in double": lambda **o: nfvi.Target(of_tensors, 3, dtype=torch.float64, **o),
    "one": lambda **o: nfvi.Target(of_one, 3, returns="value_and_grad", batched=False, **o),
    "rows": lambda **o: nfvi.Target(of_rows, 3, returns="value_and_grad", **o),
    "rows in single": lambda **o: nfvi.Target(
        of_rows, 3, returns="value_and_grad", dtype=torch.float32, **o
    ),
}


def fitted(target, **options):
    options = {"guide": "affine", "max_steps": 30, "explore": "off", "seed": 0, **options}
    return nfvi.NFVI(target, progress=False, **options).run()


@pytest.fixture(scope="module")
def fit():
    return fitted(FORMS["rows"](names=NAMES, derived=lambda z: {"scale": np.exp(z[:, 0])}))


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=pytest.mark.slow) if " " in f else f for f in FORMS]
)
def test_every_form_gives_the_known_posterior(form):
    fit = fitted(FORMS[form](names=NAMES))
    assert fit.verdict != "do not trust"
    value, error = fit.log_evidence()
    assert abs(value - LOG_Z) < 5 * error + 1e-3  # 5 standard errors: one in two million
    draws = fit.sample(4000, seed=1)
    z = torch.cat([draws["mu"][:, None], draws["theta"]], -1).double().numpy()
    sd = np.sqrt(np.diag(FACTOR @ FACTOR.T))
    # Standard errors of mean and sd are 1/63 and 1/89 sds.
    np.testing.assert_allclose((z.mean(0) - MEAN) / sd, 0.0, atol=0.1)
    np.testing.assert_allclose(z.std(0) / sd, 1.0, atol=0.08)


def test_the_same_density_as_a_pyro_model_has_the_same_fit():
    def model():
        z = pyro.sample("z", FlatPrior(torch.zeros(3)))
        pyro.factor("log_density", of_tensors(z))

    one, other = fitted(FORMS["tensors"]()), fitted(model)
    assert torch.equal(one.draws.z, other.draws.z)
    assert one.log_evidence() == other.log_evidence()


def test_same_seed_same_fit():
    one, other = (fitted(FORMS["one"](), max_steps=20) for _ in range(2))
    assert torch.equal(one.draws.z, other.draws.z)


def test_double_precision_is_what_numpy_gets():
    seen = set()

    def density(z):
        seen.add(z.dtype)
        return of_rows(z)

    fit = fitted(nfvi.Target(density, 3, returns="value_and_grad"), max_steps=20)
    assert seen == {np.dtype(np.float64)}
    assert fit.draws.z.dtype == torch.float64
    assert fitted(FORMS["rows in single"](), max_steps=20).draws.z.dtype == torch.float32


def test_steps_are_captured_around_a_density_of_numpy():
    options = {"guide": "affine", "max_steps": 60, "stop": False}
    fit = fitted(FORMS["rows"](), **options, engine="compiled")
    assert fit.engine == "compiled"
    eager = fitted(FORMS["rows"](), **options, engine="eager")
    torch.testing.assert_close(fit.losses, eager.losses, rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------- what comes of a fit


def test_parts_and_derived_values_come_by_name(fit):
    draws = fit.sample(10, seed=0, deterministic=True)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "mu": (10,),
        "theta": (10, 2),
        "scale": (10,),
    }
    torch.testing.assert_close(draws["scale"], draws["mu"].exp())
    assert set(fit.summary()) == {"mu", "theta[0]", "theta[1]", "scale"}


@pytest.mark.filterwarnings("ignore")
def test_arviz_gets_draws_and_no_likelihood(fit):
    pytest.importorskip("arviz")
    idata = fit.to_arviz(num_samples=50)
    groups = {str(name).strip("/").split("/")[-1] for name in idata.groups} if not callable(
        idata.groups
    ) else set(idata.groups())  # fmt: skip
    assert {"posterior", "sample_stats"} <= groups
    assert not groups & {
        "prior",
        "log_prior",
        "log_likelihood",
        "posterior_predictive",
        "observed_data",
    }
    assert dict(idata["posterior"]["theta"].sizes) == {"chain": 1, "draw": 50, "theta_dim_0": 2}
    assert "scale" in idata["posterior"]


def test_arviz_is_told_that_there_is_no_likelihood(fit):
    pytest.importorskip("arviz")
    with pytest.warns(nfvi.errors.ConversionWarning, match="no log_likelihood.*one density"):
        fit.to_arviz(num_samples=50, groups=["posterior", "log_likelihood"])


def test_a_saved_fit_loads_with_the_density_and_without(fit, tmp_path):
    fit.save(tmp_path / "fit.nfvi")
    alone = nfvi.load(tmp_path / "fit.nfvi")
    assert torch.equal(alone.draws.z, fit.draws.z)
    assert alone.log_evidence() == fit.log_evidence()
    derived = {"derived": lambda z: {"scale": np.exp(z[:, 0])}}
    again = nfvi.load(tmp_path / "fit.nfvi", model=FORMS["rows"](names=NAMES, **derived))
    assert again.verdict == fit.verdict
    with pytest.raises(ModelError, match="not the one that was fitted"):
        nfvi.load(tmp_path / "fit.nfvi", model=FORMS["rows"]())
    moved = nfvi.Target(lambda z: of_tensors(z - 1), 3, names=NAMES, dtype=torch.float64)
    with pytest.warns(nfvi.errors.DataWarning, match="differs by up to"):
        other = nfvi.load(tmp_path / "fit.nfvi", model=moved)
    assert other.verdict != "good"


@pytest.mark.slow
def test_nuts_takes_a_target():
    run = fitted(FORMS["rows"](), max_steps=50).to_nuts(
        num_samples=40, warmup_steps=40, num_chains=1, seed=0, progress=False
    )
    assert run.samples["z"].shape[-1] == 3


@pytest.mark.parametrize("form", ["tensors", "one", "rows"])
def test_chains_take_a_target(form):
    run = fitted(FORMS[form](), max_steps=20).mcmc(
        num_samples=60, num_chains=16, warmup_steps=60, seed=0, progress=False
    )
    z = run.samples["z"].double().reshape(-1, 3).numpy()
    sd = np.sqrt(np.diag(FACTOR @ FACTOR.T))
    # 960 draws that are nearly independent: standard errors of 0.032 and 0.023 sds.
    np.testing.assert_allclose((z.mean(0) - MEAN) / sd, 0.0, atol=0.2)
    np.testing.assert_allclose(z.std(0) / sd, 1.0, atol=0.15)


def test_what_needs_more_than_a_density_says_so(fit):
    plain = fitted(FORMS["rows"](), max_steps=10)
    with pytest.raises(ModelError, match="no site to predict"):
        plain.predict()
    with pytest.raises(ModelError, match="takes no arguments"):
        nfvi.NFVI(FORMS["rows"](), progress=False).run(1.0)
    with pytest.raises(ModelError, match="takes no arguments"):
        fit.predict(torch.ones(3))
    with pytest.raises(ModelError):
        nfvi.vsbc(FORMS["rows"](), num_simulations=2, num_workers=1, progress=False)


def test_a_target_copies_and_pickles():
    target = nfvi.Target(of_rows, 3, returns="value_and_grad", names=NAMES)
    z = torch.randn(4, 3, dtype=torch.float64)
    for other in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert other.density.key != target.density.key
        assert torch.equal(other.density(z), target.density(z))
    assert repr(target) == "Target(mu, theta[2]; 3 numbers)"


# ------------------------------------------------------------- places without a value, and starts


def test_rows_without_a_value_do_not_take_others_with_them():
    def of_arrays(z):
        if (z[:, 0] > 1).any():
            raise np.linalg.LinAlgError("not positive definite")
        return of_rows(z)

    def of_vectors(z):
        if z[0] > 1:
            raise RuntimeError("the integrator failed")
        return of_one(z)

    def tensors(z):
        if bool((z[:, 0] > 1).any()):
            raise torch.linalg.LinAlgError("not positive definite")
        return of_tensors(z)

    z = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    for function, returns, batched in (
        (of_arrays, "value_and_grad", True),
        (of_vectors, "value_and_grad", False),
        (tensors, "value", True),
    ):
        density = ExternalDensity(function, 3, returns=returns, batched=batched)
        value, gradient = density.value_and_grad(z)
        expected, slope = of_rows(z.numpy())
        assert value.isnan().tolist() == [False, True, False]
        np.testing.assert_allclose(value[[0, 2]], expected[[0, 2]])
        np.testing.assert_allclose(gradient[[0, 2]], slope[[0, 2]], atol=1e-12)


def test_a_region_of_density_zero_is_left_out():
    # A standard normal above 0: mean sqrt(2 / pi), log evidence log(sqrt(pi / 2)).
    def density(z):
        inside = z[:, 0] > 0
        value = np.where(inside, -0.5 * z[:, 0] ** 2, -np.inf)
        return value, np.where(inside[:, None], -z, 0.0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = fitted(
            nfvi.Target(density, 1, returns="value_and_grad", init=[0.7]),
        )  # fmt: skip
    outside = fit.draws.z[:, 0] <= 0
    assert bool((fit.draws.log_p[outside] == -math.inf).all())
    assert bool(fit.draws.log_p[~outside].isfinite().all())
    value, error = fit.log_evidence()
    assert abs(value - 0.5 * math.log(math.pi / 2)) < 5 * error + 1e-3


def test_the_fit_starts_at_init():
    def density(z):
        return -0.5 * ((z - 300.0) ** 2).sum(-1)

    target = nfvi.Target(density, 2, init=[299.0, 301.0])
    guide = nfvi.AutoFlow(target, None).setup()
    assert guide.latent.init_loc.tolist() == [299.0, 301.0]


# --------------------------------------------------------------------------- at the door

STATE = {"calls": 0.0}


def changing(z):
    STATE["calls"] += 1.0
    value, gradient = of_rows(z)
    return value + STATE["calls"], gradient


def fails(z):
    raise ValueError("data of another size")


#: What is given, how, and what the message has to say.
REFUSED = {
    "no function": (3.0, {}, OptionError, "needs a function of the vector; got float"),
    "returns": (of_rows, {"returns": "both"}, OptionError, "'value' or 'value_and_grad'"),
    "one of tensors": (of_tensors, {"batched": False}, OptionError, r"torch\.vmap"),
    "batched words": (of_tensors, {"batched": "yes"}, OptionError, "True or False"),
    "dtype": (of_tensors, {"dtype": torch.float16}, OptionError, "float32 or torch.float64"),
    "names too few": (of_tensors, {"names": {"a": 2}}, ShapeError, r"2 numbers .* vector 3"),
    "names a list": (of_tensors, {"names": ["a", "b", "c"]}, OptionError, "dict of the shapes"),
    "name of the factor": (of_tensors, {"names": {"log_density": 3}}, OptionError, "another name"),
    "init short": (of_tensors, {"init": [0.0]}, ShapeError, r"shape \(3,\); got \(1,\)"),
    "init NaN": (of_tensors, {"init": [0.0, math.nan, 0.0]}, OptionError, "finite numbers"),
    "raises": (fails, {}, ModelError, r"raised ValueError: data of another size.*shape \(2, 3\)"),
    "one for rows": (
        of_one,
        {"returns": "value_and_grad"},
        ModelError,
        "batched=False",
    ),
    "rows for one": (
        lambda z: of_rows(z[:, :3]),
        {"returns": "value_and_grad", "batched": False},
        ModelError,
        r"raised IndexError.*shape \(3,\)",
    ),
    "pair of tensors": (lambda z: (z.sum(-1), z), {}, ModelError, "pass returns='value_and_grad'"),
    "array of tensors": (lambda z: of_rows(z.detach().numpy())[0], {}, ModelError, "brings its"),
    "NumPy of tensors": (
        lambda z: of_rows(z.numpy()),
        {},
        ModelError,
        "raised RuntimeError: .*takes r",
    ),
    "value alone": (
        lambda z: of_rows(z)[0],
        {"returns": "value_and_grad"},
        ModelError,
        "needs to return a pair",
    ),
    "tensor alone": (
        lambda z: of_tensors(torch.as_tensor(z)),
        {"returns": "value_and_grad"},
        ModelError,
        "takes returns='value'",
    ),
    "sum of rows": (lambda z: -(z**2).sum(), {}, ModelError, "sums over the rows"),
    "column": (lambda z: -(z**2).sum(-1, keepdim=True), {}, ModelError, r"squeeze\(-1\)"),
    "sites": (lambda z: -(z**2), {}, ModelError, r"\.sum\(-1\)"),
    "whole numbers": (lambda z: (z > 0).sum(-1), {}, ModelError, "real numbers"),
    "complex": (
        lambda z: (of_rows(z)[0] + 0j, of_rows(z)[1]),
        {"returns": "value_and_grad"},
        ModelError,
        "real numbers; got complex128",
    ),
    "gradient flat": (
        lambda z: (of_rows(z)[0], of_rows(z)[1].ravel()),
        {"returns": "value_and_grad"},
        ModelError,
        r"its gradient of shape \(\d+, 3\); got",
    ),
    "no gradient": (lambda z: of_tensors(z.detach()), {}, ModelError, "without a gradient"),
    "changing": (changing, {"returns": "value_and_grad"}, ModelError, "changes between"),
    "random": (lambda z: of_tensors(z + torch.randn(3)), {}, ModelError, "changes between"),
    "mixed rows": (
        lambda z: of_tensors(z - z.mean(0)),
        {},
        ModelError,
        "mixes rows",
    ),
    "wrong sign": (
        lambda z: (of_rows(z)[0], -of_rows(z)[1]),
        {"returns": "value_and_grad"},
        ModelError,
        "Its sign is wrong",
    ),
    "a term missing": (
        lambda z: (of_rows(z)[0] + z[:, 2], of_rows(z)[1]),
        {"returns": "value_and_grad", "names": NAMES},
        ModelError,
        r"gradient of log_density is .* for theta\[1\], and differences",
    ),
    "NaN gradient": (
        lambda z: (of_rows(z)[0], of_rows(z)[1] * np.array([1.0, np.nan, 1.0])),
        {"returns": "value_and_grad"},
        ModelError,
        r"is nan for z\[1\]",
    ),
    "nowhere": (
        lambda z: (np.full(len(z), -np.inf), 0 * z),
        {"returns": "value_and_grad"},
        ModelError,
        "not finite at the start, nor at 104 points",
    ),
    "infinite": (lambda z: of_tensors(z) + math.inf, {}, ModelError, r"is \+inf"),
    "derived no dict": (of_tensors, {"derived": lambda z: z}, ModelError, "dict of arrays"),
    "derived a part": (of_tensors, {"derived": lambda z: {"z": z}}, ModelError, "Call it other"),
    "derived summed": (of_tensors, {"derived": lambda z: {"a": z.sum()}}, ModelError, "first axis"),
    "derived fails": (of_tensors, {"derived": fails}, ModelError, "derived raised ValueError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_the_door(name):
    function, options, error, words = REFUSED[name]
    with pytest.raises(error, match=f"(?s){words}"):
        nfvi.Target(function, 3, **options)


def laplace(z):
    return -z.abs().sum(-1)


def narrow(z):
    return -0.5 * (1e4 * z).square().sum(-1)


def steep(z):
    return -torch.exp(3 * z).sum(-1) - z.square().sum(-1)


def far(z):
    return 1e6 - 0.5 * (z - 3).square().sum(-1)


def flat(z):
    return -0.5 * z[:, 0] ** 2 + 0.0 * z.sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [laplace, narrow, steep, far, flat])
@pytest.mark.parametrize("dim", [1, 3, 60])
def test_right_densities_pass(density, dim, dtype):
    nfvi.Target(density, dim, dtype=dtype)


@pytest.mark.parametrize("dim", [1, 3, 60])
@pytest.mark.parametrize("density", [laplace, narrow, steep, far, flat])
def test_wrong_gradients_do_not(density, dim):
    def wrong(z):
        rows = torch.as_tensor(z).requires_grad_()
        value = density(rows)
        (gradient,) = torch.autograd.grad(value.sum(), rows)
        return value.detach().numpy(), 1.1 * gradient.numpy()

    with pytest.raises(ModelError, match="gradient of log_density"):
        nfvi.Target(wrong, dim, returns="value_and_grad")
