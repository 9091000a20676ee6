"""The latent space: a bijection between named, constrained sites and one vector."""

import copy
import json
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_nfvi._pyro_model.constraints import (
    bijection,
    frozen,
    inside,
    support_from_spec,
    support_spec,
)
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi.errors import ModelError, OptionError, ShapeError

SUPPORTS = {
    "real": constraints.real,
    "real_vector": constraints.real_vector,
    "positive": constraints.positive,
    "nonnegative": constraints.nonnegative,
    "greater_than": constraints.greater_than(1.0),
    "less_than": constraints.less_than(3.0),
    "unit_interval": constraints.unit_interval,
    "interval": constraints.interval(-2.0, 5.0),
    "half_open_interval": constraints.half_open_interval(0.0, 1000.0),
    "interval_tensor": constraints.interval(torch.tensor(0.0), torch.tensor(2.0)),
    "simplex": constraints.simplex,
    "ordered_vector": constraints.ordered_vector,
    "positive_ordered_vector": constraints.positive_ordered_vector,
    "lower_cholesky": constraints.lower_cholesky,
    "softplus_lower_cholesky": constraints.softplus_lower_cholesky,
    "unit_lower_cholesky": constraints.unit_lower_cholesky,
    "corr_cholesky": constraints.corr_cholesky,
    "corr_matrix": constraints.corr_matrix,
    "positive_definite": constraints.positive_definite,
    "softplus_positive": constraints.softplus_positive,
    "independent": constraints.independent(constraints.positive, 1),
}
# Entries of the constrained value in whose measure the density is.
STRICT_TRIL = ("unit_lower_cholesky", "corr_cholesky", "corr_matrix")
TRIL = ("lower_cholesky", "softplus_lower_cholesky", "positive_definite")
by_name = pytest.mark.parametrize("name", SUPPORTS)


def free_entries(name, jacobian, value):
    if name == "simplex":
        return jacobian[:-1]
    if name in STRICT_TRIL or name in TRIL:
        n = value.shape[-1]
        keep = torch.ones(n, n).tril(-1 if name in STRICT_TRIL else 0).bool()
        return jacobian[keep.reshape(-1)]
    return jacobian


@by_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_stay_inside_the_support_where_rounding_would_leave_it(name, dtype):
    support = SUPPORTS[name]
    transform = bijection(support)
    signs = torch.cat([torch.eye(6), -torch.eye(6), torch.ones(1, 6), -torch.ones(1, 6)])
    signs = torch.cat([signs, torch.randint(0, 3, (40, 6)) - 1.0])
    z = 30 * signs.to(dtype)
    value = inside(support, transform(z))
    assert value.dtype == dtype
    assert torch.isfinite(value).all()
    assert torch.as_tensor(support.check(value)).all()
    assert torch.isfinite(transform.log_abs_det_jacobian(z, value)).all()
    # The edge itself, where densities may be infinite, is left too.
    if name in ("positive", "nonnegative", "simplex", "unit_interval"):
        assert (value > 0).all()
    if name in ("unit_interval", "simplex"):
        assert (value < 1).all() or name == "simplex"


@by_name
def test_ladj_is_that_of_autograd(name):
    transform = bijection(SUPPORTS[name])
    for scale in (0.1, 2.0):
        x = scale * torch.randn(6, dtype=torch.float64)
        value = transform(x)
        jacobian = torch.autograd.functional.jacobian(transform, x).reshape(-1, 6)
        exact = torch.linalg.slogdet(free_entries(name, jacobian, value))[1]
        ladj = transform.log_abs_det_jacobian(x, value).sum()
        torch.testing.assert_close(ladj, exact, rtol=1e-8, atol=1e-8)


@by_name
def test_inverse_and_no_change_inside(name):
    support, transform = SUPPORTS[name], bijection(SUPPORTS[name])
    x = torch.randn(5, 6, dtype=torch.float64)
    value = transform(x)
    torch.testing.assert_close(inside(support, value), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(transform.inv(value), x, rtol=1e-6, atol=1e-8)


@by_name
def test_gradients_are_finite_at_the_edge(name):
    support, transform = SUPPORTS[name], bijection(SUPPORTS[name])
    z = 30 * (torch.randint(0, 3, (20, 6)) - 1.0)
    if name == "positive_ordered_vector":  # exp(exp(30)) overflows, which no clamp can mend
        z = z.clamp(max=0)
    z.requires_grad_()
    value = inside(support, transform(z))
    size = value.abs().clamp(max=1e6).sum() + transform.log_abs_det_jacobian(z, value).sum()
    (grad,) = torch.autograd.grad(size, z)
    assert torch.isfinite(grad).all()


@by_name
def test_works_under_vmap(name):
    support, transform = SUPPORTS[name], bijection(SUPPORTS[name])
    z = torch.randn(4, 6)

    def one(row):
        value = inside(support, transform(row))
        return value, transform.log_abs_det_jacobian(row, value)

    value, ladj = torch.vmap(one)(z)
    torch.testing.assert_close(value, inside(support, transform(z)))
    torch.testing.assert_close(ladj, transform.log_abs_det_jacobian(z, transform(z)))


@by_name
def test_support_survives_json(name):
    support = SUPPORTS[name]
    spec = json.loads(json.dumps(support_spec(support)))
    again = support_from_spec(spec, torch.float32)
    assert support_spec(again) == support_spec(support)
    z = torch.randn(3, 6)
    torch.testing.assert_close(bijection(again)(z), bijection(support)(z))


def test_a_support_of_the_users_own_says_that_it_needs_the_model():
    class Mine(constraints.Constraint):
        pass

    with pytest.raises(OptionError, match="model="):
        support_from_spec(support_spec(Mine()), torch.float32)


def test_frozen_support_carries_no_graph():
    low = torch.tensor(1.0, requires_grad=True)
    support = frozen(constraints.independent(constraints.greater_than(low * 2), 1))
    bound = support.base_constraint.lower_bound
    assert not bound.requires_grad
    assert bound.item() == 2.0


def model():
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("groups", 3, dim=-2), pyro.plate("items", 2, dim=-1):
        pyro.sample("x", dist.LogNormal(torch.zeros(5), 1.0).to_event(1))
    pyro.deterministic("total", weights.sum() + scale)
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))


def space_of(fn, *args):
    return LatentSpace.from_trace(pyro.poutine.trace(fn).get_trace(*args))


def test_sites_shapes_and_order():
    space = space_of(model)
    assert list(space.sites) == ["scale", "weights", "x"]
    assert space.dim == 1 + 3 + 30
    x = space.sites["x"]
    assert (x.shape, x.event_dim, x.batch_shape) == ((3, 2, 5), 1, (3, 2))
    assert [frame.name for frame in x.cond_indep_stack] == ["groups", "items"]
    assert space.at(0) == "scale"
    assert space.at(3) == "weights[2]"
    assert space.at(4 + 5) == "x[0, 1, 0]"


@pytest.mark.parametrize("batch", [(), (7,), (2, 3)])
def test_pack_and_constrain_are_inverse_and_batched(batch):
    space = space_of(model)
    z = torch.randn(*batch, space.dim)
    values, ladj = space.constrain(z)
    assert ladj.shape == batch
    assert values["x"].shape == (*batch, 3, 2, 5)
    assert values["weights"].shape == (*batch, 4)
    torch.testing.assert_close(space.pack(values), z, rtol=1e-4, atol=1e-5)
    back, ladj_back = space.unconstrain(values)
    torch.testing.assert_close(ladj_back, -ladj, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-5)


def test_density_is_pyros_own():
    # log p(values) + ladj must be what Pyro's own trace of the transformed model says.
    space = space_of(model)
    z = torch.randn(space.dim)
    values, ladj = space.constrain(z)
    expected = 0.0
    for name, part in space.unpack(z).items():
        transform = torch.distributions.biject_to(space.sites[name].support)
        expected = expected + transform.log_abs_det_jacobian(part, values[name]).sum()
    torch.testing.assert_close(ladj, expected)


def test_initial_location_dtype_and_unpack():
    def double():
        pyro.sample("a", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    space = space_of(double)
    assert space.init_loc.dtype == torch.float64
    assert space.unpack(space.init_loc)["a"].shape == (2,)


def test_pickle_and_deepcopy_and_json():
    space = space_of(model)
    z = torch.randn(3, space.dim)
    for other in (
        pickle.loads(pickle.dumps(space)),
        copy.deepcopy(space),
        LatentSpace.from_spec(json.loads(json.dumps(space.spec())), space.init_loc),
    ):
        assert space.difference(other) is None
        torch.testing.assert_close(other.constrain(z)[0]["x"], space.constrain(z)[0]["x"])
    with pytest.raises(AttributeError):
        space.init_loc = z


def test_difference_in_words():
    def other(n):
        pyro.sample("scale", dist.Uniform(0.0, torch.tensor(1.0)))
        pyro.sample("weights", dist.Dirichlet(torch.ones(n)))
        pyro.sample("new", dist.Normal(0.0, 1.0))

    text = space_of(model).difference(space_of(other, 3))
    assert "site 'x' is missing" in text
    assert "site 'new' is new" in text
    assert "site 'weights' has shape [3], not [4]" in text
    assert "'scale' has support" in text


def test_errors_name_the_site():
    space = space_of(model)
    values, _ = space.constrain(torch.zeros(5, space.dim))
    with pytest.raises(ShapeError, match="'scale' is missing"):
        space.pack({k: v for k, v in values.items() if k != "scale"})
    with pytest.raises(ShapeError, match=r"'x' needs a value of shape \(\*b, 3, 2, 5\)"):
        space.pack(values | {"x": values["x"][..., :1]})
    with pytest.raises(ShapeError, match="do not broadcast"):
        space.pack(values | {"scale": torch.ones(4)})
    with pytest.raises(OptionError, match="'scale' lies outside"):
        space.pack(values | {"scale": -torch.ones(5)})
    with pytest.raises(OptionError, match="'scale' lies outside"):
        space.pack(values | {"scale": torch.full((5,), float("nan"))})
    with pytest.raises(ShapeError, match=r"\(\*b, 34\)"):
        space.constrain(torch.zeros(33))


def test_values_on_the_edge_are_accepted():
    space = space_of(model)
    values, _ = space.constrain(torch.zeros(space.dim))
    z = space.pack(values | {"scale": torch.zeros(()), "weights": torch.tensor([0.5, 0.5, 0, 0])})
    assert torch.isfinite(z).all()


def test_models_that_cannot_be_a_vector():
    def none():
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    def discrete():
        pyro.sample("k", dist.Bernoulli(0.5))

    def local():
        with pyro.plate("data", 10, subsample_size=5):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def direction():
        pyro.sample("d", dist.ProjectedNormal(torch.ones(3)))

    with pytest.raises(ModelError, match=r"no continuous latent sites.*obs="):
        space_of(none)
    with pytest.raises(ModelError, match=r"'k' is discrete.*'enumerate': 'parallel'"):
        space_of(discrete)
    with pytest.raises(ModelError, match=r"'z' lies in the plate 'data'.*5 of 10"):
        space_of(local)
    with pytest.raises(ModelError, match=r"'d'.*no bijection"):
        space_of(direction)


def test_enumerated_sites_are_left_out():
    def mixture():
        pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    assert list(space_of(mixture).sites) == ["loc"]


def test_a_mixture_lives_where_its_components_do():
    def model():
        parts = dist.Gamma(torch.tensor([2.0, 20.0]), 1.0)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))

    space = LatentSpace.from_trace(pyro.poutine.trace(model).get_trace())
    values, ladj = space.constrain(torch.tensor([[0.5], [-3.0]]))
    assert bool((values["x"] > 0).all())
    assert torch.allclose(ladj, torch.tensor([0.5, -3.0]))  # x = exp(z)
