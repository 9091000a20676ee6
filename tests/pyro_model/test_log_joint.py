"""The log joint: one number per particle, right in every way of evaluating particles."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.subsampling import cover
from pyro_nfvi.errors import ModelError, ModelWarning, OptionError, ShapeError


def space_of(model, *args, init=None):
    fn = poutine.condition(model, data=init) if init else model
    trace = poutine.trace(fn).get_trace(*args)
    for name in init or {}:
        trace.nodes[name]["is_observed"] = False
    return LatentSpace.from_trace(trace)


def build(model, *args, **options):
    init = options.pop("init", None)
    return LogJoint(model, args, {}, space_of(model, *args, init=init), **options)


def direct(log_joint, z):
    """The log joint of single vectors from Pyro's own trace, nothing of ours but the space."""
    rows = []
    for row in z:
        values, ladj = log_joint.latent.constrain(row)
        run = log_joint._run
        trace = poutine.trace(poutine.condition(run.model, data=values)).get_trace(*run.args)
        rows.append(trace.log_prob_sum() + ladj)
    return torch.stack(rows)


X = torch.linspace(-1, 1, 30).reshape(10, 3)
Y = torch.linspace(-2, 2, 10)


def plates(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Normal((x * w).sum(-1), s), obs=y)


def nested(x, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("outer", 3, dim=-2):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        with pyro.plate("inner", 10, dim=-1):
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("y", dist.StudentT(4.0, b, 1.0), obs=x.T + y)


def indexing(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    loc = w[0] + w[1] * x[:, 1]
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


def wrong_in_a_plate(x, y):
    # Sums over the particles too: wrong numbers, no error.
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("f", -(w * w).sum())
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[0])


def bnn(x, y):
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, 1.0), obs=y)


def branching(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    scale = 1.0 if w.item() > 0 else 2.0
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Normal(w, scale), obs=y)


def in_place(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    t = torch.zeros(3)
    t[0] = w[0]
    pyro.sample("y", dist.Normal((x * t).sum(-1), 1.0).to_event(1), obs=y)


def handlers(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10), poutine.scale(scale=2.5), poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)
    pyro.deterministic("twice", 2 * w)
    pyro.factor("penalty", -w.abs())


def constrained(x, y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    chol = pyro.sample("chol", dist.LKJCholesky(3, 2.0))
    r = pyro.sample("r", dist.Beta(2.0, 3.0))
    g = pyro.sample("g", dist.Gamma(2.0, 3.0))
    loc = (chol * p.unsqueeze(-2)).sum((-1, -2)) + r
    pyro.sample("y", dist.Normal(loc, g), obs=y[0])


def gp(x, y):
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    cov = torch.exp(-0.5 * ((y[:, None] - y) / length) ** 2) + 0.1 * torch.eye(10)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(10), cov), obs=y)


def sequential(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 10):
        pyro.sample(f"y{i}", dist.Normal(w, 1.0), obs=y[i])


MODELS = {
    "plates": (plates, {"plate"}),
    "nested": (nested, {"plate"}),
    "indexing": (indexing, {"vmap"}),
    "wrong_in_a_plate": (wrong_in_a_plate, {"vmap"}),
    "bnn": (bnn, {"vmap"}),
    "branching": (branching, {"loop"}),
    "in_place": (in_place, {"loop"}),
    "handlers": (handlers, {"plate"}),
    "constrained": (constrained, {"plate"}),
    "gp": (gp, {"vmap"}),
    "sequential": (sequential, {"plate"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_particle_gets_its_own_right_number(name):
    model, ways = MODELS[name]
    log_joint = build(model, X, Y)
    assert log_joint.how in ways, log_joint.why
    for count in (1, 3, 10, 16):  # 3 and 10 are sizes of the model's own axes
        z = torch.randn(count, log_joint.latent.dim)
        torch.testing.assert_close(log_joint(z), direct(log_joint, z), rtol=1e-4, atol=1e-3)
    z = torch.randn(2, 5, log_joint.latent.dim)
    assert log_joint(z).shape == (2, 5)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_single_particles(name):
    model, _ = MODELS[name]
    log_joint = build(model, X, Y)
    z = torch.randn(4, log_joint.latent.dim, requires_grad=True)
    (grad,) = torch.autograd.grad(log_joint(z).sum(), z)
    (expected,) = torch.autograd.grad(direct(log_joint, z).sum(), z)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)


def test_why_says_what_went_wrong():
    assert "-" in build(wrong_in_a_plate, X, Y).why
    why = build(wrong_in_a_plate, X, Y).why
    assert "plate: gives" in why
    assert "vmap: agrees" in why
    why = build(branching, X, Y).why
    assert "loop" in why
    with pytest.raises(ModelError, match="cannot be run that way"):
        build(branching, X, Y, way="vmap")
    with pytest.raises(OptionError, match="way is one of"):
        build(plates, X, Y, way="fast")


@pytest.mark.parametrize("way", ["plate", "vmap", "loop"])
def test_ways_agree(way):
    z = torch.randn(6, 34)
    log_joint = build(nested, X, Y, way=way)
    torch.testing.assert_close(log_joint(z), direct(log_joint, z), rtol=1e-4, atol=1e-3)


def test_wrong_shape_of_z():
    with pytest.raises(ShapeError, match=r"\(\*b, 4\)"):
        build(plates, X, Y)(torch.zeros(2, 3))


# ------------------------------------------------------------------------------ details


@pytest.mark.parametrize("way", ["plate", "vmap", "loop"])
def test_evaluate_gives_deterministics_and_log_likelihood(way):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            b = pyro.sample("b", dist.Normal(mu, 1.0))
            pyro.deterministic("exp_b", b.exp(), event_dim=0)
        pyro.deterministic("exp_mu", mu.exp())
        pyro.deterministic("constant", torch.tensor([1.0, 2.0]))
        with pyro.plate("data", 12, dim=-1), poutine.scale(scale=3.0):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    y = torch.randn(12)
    log_joint = build(model, y, way=way)
    z = torch.randn(5, 4)
    out = log_joint.evaluate(z, log_likelihood=True)
    torch.testing.assert_close(out.log_p, log_joint(z))
    torch.testing.assert_close(out.deterministic["exp_mu"], z[:, 0].exp())
    torch.testing.assert_close(out.deterministic["exp_b"], z[:, 1:].exp())
    assert out.deterministic["constant"].shape == (5, 2)
    # Unscaled: the density of each observation.
    expected = dist.Normal(z[:, :1], 2.0).log_prob(y)
    torch.testing.assert_close(out.log_likelihood["y"], expected)


def test_masked_observations_have_likelihood_zero():
    out = build(handlers, X, Y).evaluate(torch.zeros(2, 1), log_likelihood=True)
    assert (out.log_likelihood["y"][:, Y <= 0] == 0).all()
    assert (out.log_likelihood["y"][:, Y > 0] != 0).all()


# -------------------------------------------------------------------------- enumeration


@config_enumerate
def mixture(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(p)).long()
        k_loc = torch.where(k == 1, loc[..., 1], loc[..., 0])
        pyro.sample("y", dist.Normal(k_loc, 1.0), obs=y)


def mixture_by_hand(space, z, y):
    values, ladj = space.constrain(z)
    loc, p = values["loc"], values["p"].unsqueeze(-1)
    parts = torch.stack(
        [
            dist.Normal(loc[:, :1], 1.0).log_prob(y) + (1 - p).log(),
            dist.Normal(loc[:, 1:], 1.0).log_prob(y) + p.log(),
        ]
    ).logsumexp(0)
    prior = dist.Normal(0.0, 3.0).log_prob(loc).sum(-1) + dist.Beta(2.0, 2.0).log_prob(values["p"])
    return parts, parts.sum(-1) + prior + ladj


@pytest.mark.parametrize("way", ["plate", "vmap", "loop", None])
def test_discrete_sites_are_summed_out(way):
    y = torch.tensor([-2.0, 1.5, 2.0, 0.3, -1.0])
    log_joint = build(mixture, y, way=way)
    assert log_joint.enumerated == {"k"}
    z = torch.randn(7, 3)
    parts, expected = mixture_by_hand(log_joint.latent, z, y)
    torch.testing.assert_close(log_joint(z), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        log_joint.evaluate(z, log_likelihood=True).log_likelihood["y"], parts
    )


@pytest.mark.parametrize("way", ["plate", "vmap", "loop"])
def test_enumerated_gradient_reaches_the_particles(way):
    y = torch.tensor([-2.0, 1.5, 2.0, 0.3, -1.0])
    log_joint = build(mixture, y, way=way)
    z = torch.randn(4, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(log_joint(z).sum(), z)
    (exact,) = torch.autograd.grad(mixture_by_hand(log_joint.latent, z, y)[1].sum(), z)
    torch.testing.assert_close(grad, exact, rtol=1e-4, atol=1e-4)


def test_indexing_by_a_discrete_site_still_runs_all_particles_at_once():
    # The way tutorials write it, which no plate of particles can be put around.
    @config_enumerate
    def tutorial(y):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(locs[k], 1.0), obs=y)

    y = torch.tensor([-2.0, 1.5, 2.0, 0.3, -1.0, 4.0])
    log_joint = build(tutorial, y)
    assert log_joint.how == "vmap", log_joint.why
    z = torch.randn(5, 3)
    values, ladj = log_joint.latent.constrain(z)
    parts = dist.Normal(values["locs"].unsqueeze(-1), 1.0).log_prob(y)
    likelihood = (parts + values["weights"].log().unsqueeze(-1)).logsumexp(1)
    prior = dist.Normal(0.0, 10.0).log_prob(values["locs"]).sum(-1)
    prior = prior + dist.Dirichlet(torch.ones(2)).log_prob(values["weights"])
    torch.testing.assert_close(log_joint(z), likelihood.sum(-1) + prior + ladj)
    found = log_joint.evaluate(z, log_likelihood=True).log_likelihood["y"]
    torch.testing.assert_close(found, likelihood)


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_a_hidden_markov_chain_is_summed_out(way):
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    @config_enumerate
    def chain(y):
        gap = pyro.sample("gap", dist.LogNormal(0.0, 1.0))
        state = 0
        for t in pyro.markov(range(len(y))):
            state = pyro.sample(f"x{t}", dist.Categorical(transition[state]))
            pyro.sample(f"y{t}", dist.Normal(gap * state.to(gap.dtype), 1.0), obs=y[t])

    y = torch.tensor([0.1, 2.0, 1.7, -0.4])
    log_joint = build(chain, y, way=way)
    z = torch.tensor([[0.3], [-1.0]])
    for row, found in zip(z, log_joint(z)):
        gap = row.exp()
        alpha = transition[0].log()
        for t in range(4):
            alpha = alpha + dist.Normal(gap * torch.tensor([0.0, 1.0]), 1.0).log_prob(y[t])
            if t < 3:
                alpha = (alpha.unsqueeze(-1) + transition.log()).logsumexp(0)
        expected = alpha.logsumexp(0) + dist.LogNormal(0.0, 1.0).log_prob(gap[0]) + row[0]
        torch.testing.assert_close(found, expected)


def test_shared_discrete_site_has_no_pointwise_likelihood():
    @config_enumerate
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(loc + k, 1.0), obs=y)

    log_joint = build(model, torch.randn(4))
    assert torch.isfinite(log_joint(torch.zeros(2, 1))).all()
    assert log_joint.evaluate(torch.zeros(2, 1)).log_likelihood == {}
    with pytest.raises(ModelError, match=r"enumerated site 'k' is shared by the plate 'data'"):
        log_joint.evaluate(torch.zeros(2, 1), log_likelihood=True)


# --------------------------------------------------------------------------- subsampling


def test_subsample_indices_are_inputs():
    data = torch.arange(20.0)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 20, subsample_size=5) as index:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=data[index])

    log_joint = build(model)
    assert log_joint.subsampled == {"data": (20, 5)}
    index = torch.tensor([0, 3, 4, 10, 19])
    z = torch.randn(3, 1)
    likelihood = dist.Normal(z, 1.0).log_prob(data[index]).sum(-1)
    expected = dist.Normal(0.0, 10.0).log_prob(z[:, 0]) + 4 * likelihood
    torch.testing.assert_close(log_joint(z, {"data": index}), expected)
    one = log_joint.draw_subsample(torch.Generator().manual_seed(1))
    two = log_joint.draw_subsample(torch.Generator().manual_seed(1))
    assert torch.equal(one["data"], two["data"])
    assert log_joint(z).shape == (3,)  # draws its own


# ---------------------------------------------------------------------------- parameters


def test_model_parameters_are_leaves_that_get_a_gradient():
    def model(y):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    log_joint = build(model, torch.randn(3))
    (leaf,) = log_joint.parameters()
    assert list(log_joint.named_parameters()) == ["scale"]
    assert math.isclose(float(leaf.detach()), math.log(2.0), rel_tol=1e-6)
    (grad,) = torch.autograd.grad(log_joint(torch.zeros(4, 1)).sum(), leaf)
    assert float(grad) != 0


def test_no_parameters():
    assert build(plates, X, Y).parameters() == []


# ----------------------------------------------------------------------------- bad input


def test_random_numbers_in_the_body_are_refused():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.randn(()))

    with pytest.raises(ModelError, match=r"site 'y' differently.*outside of pyro.sample"):
        build(model)


def test_nan_in_the_data_is_named_and_masked_nan_is_fine():
    y = torch.tensor([1.0, float("nan"), 2.0])

    def model(y, mask):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(loc, 1.0, validate_args=False), obs=y)

    with pytest.raises(ModelError, match=r"'y' has 1 NaN of 3 values.*obs_mask"):
        build(model, y, torch.ones(3, dtype=torch.bool))
    assert torch.isfinite(build(model, y, ~torch.isnan(y))(torch.zeros(2, 1))).all()


def test_nonfinite_start_names_the_site():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x > 1e6, 0.0, -math.inf))

    with pytest.raises(ModelError, match=r"initial point is -inf.*'wall' \(-inf\).*init_to_value"):
        build(model)


def test_no_data_is_said():
    def funnel():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp().unsqueeze(-1)).to_event(1))

    with pytest.warns(ModelWarning, match=r"prior of v, x.*obs="):
        log_joint = build(funnel)
    z = torch.randn(4, 10)
    torch.testing.assert_close(log_joint(z), direct(log_joint, z), rtol=1e-4, atol=1e-4)


def test_support_that_depends_on_a_latent_is_refused():
    def model():
        x = pyro.sample("x", dist.Uniform(0.0, 1.0))
        y = pyro.sample("y", dist.Uniform(torch.zeros(()), x))
        pyro.sample("obs", dist.Normal(y, 1.0), obs=torch.tensor(0.1))

    with pytest.raises(
        ModelError, match=r"support of the latent site 'y' depends on other latents"
    ):
        build(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda shape: dist.Pareto(torch.tensor(1.5), shape),
        lambda shape: dist.AffineBeta(
            shape, torch.tensor(2.0), torch.tensor(-1.0), torch.tensor(3.0)
        ),
        lambda shape: dist.Uniform(torch.tensor(-1.0), torch.tensor(2.0)).expand(shape.shape),
    ],
    ids=["pareto", "affine beta", "uniform"],
)
def test_bounds_repeated_for_each_value_of_a_discrete_site_are_the_same_support(make):
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        with pyro.plate("rows", 2):
            x = pyro.sample("x", make(1.0 + 2.0 * k + torch.zeros(2)))
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor([1.6, 1.9]))

    log_joint = build(model)
    z = torch.randn(3, 2)
    values, ladj = log_joint.latent.constrain(z)
    elbo, right = TraceEnum_ELBO(max_plate_nesting=1), []
    for row in values["x"]:
        held = poutine.condition(model, data={"x": row})
        right.append(-elbo.loss(held, lambda: None))
    torch.testing.assert_close(log_joint(z) - ladj, torch.tensor(right), rtol=1e-4, atol=1e-4)


def test_changed_structure_is_named():
    def smaller(x, y):
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("s", dist.HalfNormal(1.0))

    space = space_of(plates, X, Y)
    with pytest.raises(ModelError, match="'w' has shape"):
        LogJoint(smaller, (X, Y), {}, space)
    with pytest.raises(ModelError, match="'w' was not met"):
        LogJoint(lambda x, y: pyro.sample("s", dist.HalfNormal(1.0)), (X, Y), {}, space)
    with pytest.raises(ModelError, match="'extra' is not in the guide"):
        LogJoint(
            lambda x, y: (plates(x, y), pyro.sample("extra", dist.Normal(0.0, 1.0))),
            (X, Y),
            {},
            space,
        )


# ------------------------------------------------------------------- the user's process


def test_nothing_of_the_process_changes():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pyro.enable_validation(True)
    store = dict(pyro.get_param_store())
    log_joint = build(plates, X, Y)  # the trace that makes the space draws; build does not
    torch.manual_seed(5)
    LogJoint(plates, (X, Y), {}, log_joint.latent)
    log_joint(torch.zeros(2, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.distributions.Distribution._validate_args
    assert dict(pyro.get_param_store()) == store


def test_handlers_of_the_caller_do_not_leak_in():
    log_joint = build(plates, X, Y)
    z = torch.randn(3, 4)
    expected = log_joint(z)
    with poutine.scale(scale=7.0):
        torch.testing.assert_close(log_joint(z), expected)


def test_the_site_that_is_not_finite_is_located():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x.log(), 1.0, validate_args=False), obs=torch.tensor(0.0))

    log_joint = build(model, init={"x": torch.tensor(1.0)}, way="loop")
    assert log_joint.locate_nonfinite(torch.tensor([-1.0])) == ["y"]
    assert log_joint.locate_nonfinite(torch.tensor([1.0])) == []


def test_float64_in_float64_out():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.ones((), dtype=torch.float64))

    log_joint = build(model)
    assert log_joint(torch.zeros(3, 1, dtype=torch.float64)).dtype == torch.float64


# ------------------------------------------------------------------- scales and plates, as in Pyro


def test_the_scale_of_a_mini_batch_stands_outside_of_the_sum():
    """Averaged over all batches the log joint is that of all data."""
    y = torch.tensor([-2.0, 1.5, 2.0, 0.3])

    def of(size):
        @config_enumerate
        def model(y):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
            with pyro.plate("data", 4, subsample_size=size) as index:
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
                pyro.sample("y", dist.Normal(loc + 2 * k, 1.0), obs=y[index])

        return build(model, y)

    z = torch.randn(5, 1)
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    mean = sum(of(2)(z, {"data": batch}) for batch in batches) / 2
    torch.testing.assert_close(mean, of(4)(z))


def refused(model, words):
    with pytest.raises(ModelError, match=words):
        build(config_enumerate(model))


def test_what_pyro_refuses_is_refused_with_the_sites():
    def scales():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            with poutine.scale(scale=2.0):
                pyro.sample("y", dist.Normal(loc + k, 1.0), obs=torch.zeros(3))

    refused(scales, "'k' and 'y'.*different scales, 1 and 2.*under one scale")

    def rows():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.scale(scale=torch.tensor([1.0, 2.0, 3.0])):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(loc + k, 1.0), obs=torch.zeros(3))

    refused(rows, r"'k'.*tensor of shape \(3,\).*has to be one number")

    def no_plate():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(loc + k, torch.ones(3)), obs=torch.zeros(3))

    with pyro.validation_enabled(False):
        refused(no_plate, r"'y'.*belongs to no pyro.plate.*to_event")

    def escapes():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(loc + k.sum(-1), 1.0), obs=torch.tensor(0.0))

    refused(escapes, "'y' depends on the discrete site 'k'.*plate 'data'.*Put 'y' into the plate")

    def crossed():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows:
            j = pyro.sample("j", dist.Bernoulli(0.3))
        with columns:
            k = pyro.sample("k", dist.Bernoulli(0.4))
        with rows, columns:
            pyro.sample("y", dist.Normal(loc + j * k, 1.0), obs=torch.zeros(2, 3))

    refused(crossed, "'j', 'k'.*across plates.*sequential")


def test_a_site_after_a_plate_that_does_not_depend_on_it_is_taken():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(loc + k, 1.0), obs=torch.zeros(3))
        pyro.sample("more", dist.Normal(loc, 1.0), obs=torch.tensor(0.4))

    assert torch.isfinite(build(config_enumerate(model))(torch.zeros(2, 1))).all()


# ----------------------------------------------------------------------- log likelihoods, discrete


def test_likelihood_beside_a_discrete_site_takes_the_mask_and_what_latents_tell():
    mask = torch.tensor([True, False, True])

    @config_enumerate
    def model():
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            x = pyro.sample("x", dist.Normal(2 * k, 0.5))
            with poutine.mask(mask=mask):
                pyro.sample("y", dist.Normal(x + k, 1.0), obs=torch.ones(3))

    log_joint = build(model)
    z = torch.randn(4, 3)
    found = log_joint.evaluate(z, log_likelihood=True).log_likelihood["y"]
    odds = dist.Normal(2.0, 0.5).log_prob(z) - dist.Normal(0.0, 0.5).log_prob(z)
    p = torch.sigmoid(odds + torch.tensor(0.3 / 0.7).log())
    one, other = dist.Normal(z + 1, 1.0).log_prob(torch.ones(())), dist.Normal(z, 1.0)
    exact = torch.logaddexp(p.log() + one, (1 - p).log() + other.log_prob(torch.ones(())))
    torch.testing.assert_close(found, torch.where(mask, exact, 0.0))


def test_observations_that_share_a_discrete_site_have_no_density_of_their_own():
    @config_enumerate
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(loc + k, 1.0), obs=torch.zeros(3))
            pyro.sample("x", dist.Normal(loc - k, 1.0), obs=torch.zeros(3))

    with pytest.raises(ModelError, match="'y' cannot be split.*shares a discrete site.*'x'"):
        build(model).evaluate(torch.zeros(2, 1), log_likelihood=True)


def test_many_terms_keep_the_digits_of_the_finest():
    """A float32 site behind float64 data does not round the sum to float32."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0))
        data = torch.linspace(0, 1e3, 50, dtype=torch.float64)
        pyro.sample("y", dist.Normal(x, 1.0).expand([50]).to_event(1), obs=data)
        pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)), obs=torch.tensor(1.0))

    log_joint = build(model)
    z = torch.zeros(2, 1, dtype=torch.float64)
    right = poutine.trace(poutine.condition(model, data={"x": z[0, 0]})).get_trace().log_prob_sum()
    torch.testing.assert_close(log_joint(z)[0], right, rtol=1e-14, atol=0)


def _normalized(norm):
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = (norm(x) * w.unsqueeze(-2)).sum(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return model


class _Normalized(pyro.nn.PyroModule):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, y):
        return _normalized(self.norm)(x, y)


@pytest.mark.parametrize("way", ["closure", "handler", "module", "method"])
@pytest.mark.parametrize("state", ["train", "eval", "no statistics"])
def test_running_statistics_that_move_are_told(way, state):
    norm = torch.nn.BatchNorm1d(2, affine=False)
    if state == "no statistics":
        norm = torch.nn.LayerNorm(2, elementwise_affine=False)
    model = {
        "closure": _normalized,
        "handler": lambda norm: poutine.scale(_normalized(norm), scale=2.0),
        "module": _Normalized,
        "method": lambda norm: _Normalized(norm).forward,
    }[way](norm)
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]])
    if state == "eval":
        norm.eval()
        if way in ("module", "method"):
            getattr(model, "__self__", model).eval()
    space = LatentSpace.from_trace(poutine.trace(model).get_trace(x, x[:, 0]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LogJoint(model, (x, x[:, 0]), {}, space)
    told = ["changes the buffer" in str(one.message) for one in caught]
    assert told == [True] * (state == "train")


def grouped(y, rows=None):
    """Local latents on the positive reals, in a plate that may subsample."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", len(y), subsample_size=rows) as index:
        size = pyro.sample("size", dist.LogNormal(mu, 0.7))
        pyro.sample("y", dist.Normal(size, 0.5), obs=y[index])


def test_the_log_joint_of_mini_batches_counts_latents_of_the_plate_for_all_of_its_rows():
    """Over a cover of the rows its mean is the log joint of all of them, Jacobian included."""
    y = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.2, 1.5])
    whole = LogJoint(grouped, (y,), {}, space_of(grouped, y))
    trace = poutine.trace(grouped).get_trace(y, 2)
    with pytest.raises(ModelError, match="AutoPlateFlow"):
        LatentSpace.from_trace(trace)
    latent = LatentSpace.from_trace(trace, subsampled=True)
    batches = LogJoint(grouped, (y, 2), {}, latent)
    assert [site.weight for site in latent.records] == [1.0, 3.0]
    z = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    index, weights = cover(6, 2)
    total = sum(
        weight * batches(torch.cat([z[:, :1], z[:, 1 + row]], 1), {"groups": row})
        for row, weight in zip(index, weights.tolist())
    )
    torch.testing.assert_close(total, whole(z))
    assert batches.how == "plate"
    again = LatentSpace.from_spec(latent.spec(), latent.init_loc)
    assert [site.weight for site in again.records] == [1.0, 3.0]
