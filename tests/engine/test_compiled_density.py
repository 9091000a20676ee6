"""Laws of the compiled log joint: it is the model's own, with the gradient of ``score``."""

import copy
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import ZOO
from generated_models import DISCRETE, LATENT, OBSERVED, Spec, Statement, draw_data, model_of

from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi._chain_rule import score
from pyro_nfvi._engine.compiled_density import BLOCKS, CompiledDensity
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.density_selection import choose_density, drop_if_changed
from pyro_nfvi.errors import EngineWarning

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
#: Enough for every kind of operation; the others are compiled in the slow suite.
FAST = ("schools", "minibatch", "process", "mixture", "params")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)  # which conftest.py puts back


def joint(model, args=(), kwargs=None):
    guide = AutoFlow(model, "affine")
    guide.setup(*args, **(kwargs or {}))
    return LogJoint(model, args, kwargs or {}, guide.latent)


def check_same(log_joint, compiled, z, tolerance):
    """Compare with the eager log joint and its gradient, row by row."""
    subsample = log_joint.draw_subsample()
    log_p, gradient, _ = score(lambda rows: log_joint.eager(rows, subsample), z)
    found, slope = compiled.value_and_grad(z, subsample)
    assert found.dtype == log_p.dtype
    assert slope.dtype == gradient.dtype
    finite = torch.isfinite(log_p)
    assert bool((torch.isfinite(found) == finite).all())
    assert bool(finite.any())
    for own, theirs in ((found[finite], log_p[finite]), (slope[finite], gradient[finite])):
        scale = 1 + theirs.abs().amax()
        assert float(((own - theirs).abs() / scale).max()) < tolerance


def law(name, make):
    pyro.set_rng_seed(3)
    log_joint = joint(*make())
    compiled = CompiledDensity(log_joint)
    assert compiled.backend == "native", name
    block = BLOCKS.of(log_joint)
    noise = torch.randn(3 * block + 1, log_joint.latent.dim)
    z = log_joint.latent.init_loc + 0.5 * noise
    tolerance = TOLERANCE[z.dtype]
    for count in {1, block - 1, block, 3 * block + 1} - {0}:  # the last block is filled up
        check_same(log_joint, compiled, z[:count], tolerance)
    # A row has the same bits whatever stands beside it.
    subsample = log_joint.draw_subsample()
    whole = compiled.value_and_grad(z, subsample)
    alone = compiled.value_and_grad(z[2:3].contiguous(), subsample)
    assert torch.equal(whole[0][2:3], alone[0])
    assert torch.equal(whole[1][2:3], alone[1])
    assert compiled.value_and_grad(z[:0], subsample)[0].shape == (0,)


@pytest.mark.parametrize("name", FAST)
def test_is_the_log_joint_in_double_precision(name, float64):
    law(name, ZOO[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ZOO if name not in FAST])
def test_is_the_log_joint_of_the_zoo(name, float64):
    law(name, ZOO[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_is_the_log_joint_in_single_precision(name):
    law(name, ZOO[name])


KINDS = [
    (kind, what)
    for kind, table in (("latent", LATENT), ("observed", OBSERVED), ("discrete", DISCRETE))
    for what in table
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of models that are odd on purpose
@pytest.mark.parametrize(("kind", "what"), KINDS)
def test_is_the_log_joint_of_every_distribution(kind, what, float64):
    name = f"{kind[0]}1"
    statements = [
        Statement("latent", "l0", "normal", ("b",), (), 1.0, "none"),
        Statement(kind, name, what, ("b",), ("l0",), 1.0, "none"),
    ]
    if kind != "observed":
        scale = 0.5 if kind == "latent" else 1.0
        data = Statement("observed", "o2", "student", ("b",), (name, "l0"), scale, "rows")
        statements.append(data)
    spec = Spec({"a": 2, "b": 4}, {}, 1.0, tuple(statements))
    draw_data(spec, 0)
    log_joint = joint(model_of(spec))
    compiled = CompiledDensity(log_joint)  # all of these are native in docs/engine.md too
    check_same(log_joint, compiled, log_joint.points(2 * BLOCKS.of(log_joint) + 3), 1e-9)


def powers(dose, y):
    """``(dose / c) ** h`` at dose 0: autograd's gradient in c is 0 times infinity."""
    c = pyro.sample("c", dist.LogNormal(0.0, 0.5))
    h = pyro.sample("h", dist.Beta(2.0, 2.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal((dose / c) ** h, 1.0), obs=y)


def covariances(y):
    """A matrix that has no Cholesky factor where the latent is above 1 in size."""
    r = pyro.sample("r", dist.Normal(torch.tensor(0.0), 0.5))
    ones = torch.ones_like(r)
    matrix = torch.stack([torch.stack([ones, r], -1), torch.stack([r, ones], -1)], -2)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), matrix), obs=y)


def test_takes_the_limits_of_the_chain_rule(float64):
    y = torch.tensor([0.1, 0.9, 1.1])
    log_joint = joint(powers, (torch.tensor([0.0, 1.0, 2.0]), y))
    z = log_joint.points(21)
    plain = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(log_joint(plain, {}).sum(), plain)
    assert bool(found.isnan().any())  # else the case is none
    compiled = CompiledDensity(log_joint)
    check_same(log_joint, compiled, z, 1e-10)
    assert bool(torch.isfinite(compiled.value_and_grad(z, {})[1]).all())


def test_rows_that_fail_are_nan_and_leave_the_others_alone(float64):
    log_joint = joint(covariances, (torch.tensor([0.3, -0.2]),))
    z = torch.linspace(-2.0, 2.0, 37).unsqueeze(-1)
    compiled = CompiledDensity(log_joint)
    expected = log_joint(z, {}).detach()
    assert 0 < int(expected.isnan().sum()) < len(z)
    found, slope = compiled.value_and_grad(z, {})
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, equal_nan=True)
    good = torch.isfinite(expected)
    theirs = score(lambda rows: log_joint(rows, {}), z[good])[1]
    torch.testing.assert_close(slope[good], theirs, rtol=1e-9, atol=1e-9)


def test_autograd_goes_through_it_and_what_it_cannot_do_goes_past_it(float64):
    log_joint = joint(*ZOO["schools"]())
    z = log_joint.points(5)
    compiled = CompiledDensity(log_joint)
    expected = score(lambda rows: log_joint.eager(rows, {}), z)
    log_joint.use(compiled)
    assert log_joint.eager.compiled is None
    again = copy.deepcopy(log_joint)
    assert again.compiled is None
    torch.testing.assert_close(again(z, {}), expected[0])
    point = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad((2.0 * log_joint(point.view(1, 5, -1), {})).sum(), point)
    torch.testing.assert_close(slope, 2 * expected[1])
    single = log_joint(z.float(), {})  # built for float64: the model takes it
    assert float((single - expected[0]).abs().max()) < 1e-3
    mapped = torch.vmap(lambda row: log_joint(row[None], {})[0])(z)
    torch.testing.assert_close(mapped, expected[0])


def test_parameters_are_read_at_each_call_and_their_gradients_are_the_models(float64):
    pyro.clear_param_store()
    log_joint = joint(*ZOO["params"]())
    log_joint.use(CompiledDensity(log_joint))
    z = log_joint.points(4)
    before = log_joint.value_and_grad(z)[0]
    with torch.no_grad():
        for leaf in log_joint.parameters():
            leaf.add_(0.3)
    after = log_joint.value_and_grad(z)[0]
    assert float((before - after).abs().min()) > 1e-3
    torch.testing.assert_close(after, log_joint.eager(z).detach())
    grads = torch.autograd.grad(log_joint(z).sum(), log_joint.parameters())
    assert all(float(grad.abs().max()) > 0 for grad in grads)


def random_within(y):
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
    if float(x.detach().reshape(-1)[0]) > 1e3:  # Python reads the latent
        x = x * 2
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_what_cannot_be_captured_is_left_to_the_model_with_the_reason():
    log_joint = joint(random_within, (torch.tensor(1.0),))
    found = choose_density("auto", log_joint, 3000)
    assert found.backend == "eager"
    assert found.compiled is None
    assert "Python reads a value" in found.reason
    assert choose_density("eager", log_joint, 3000).reason == "asked for"
    assert "too few" in choose_density("auto", log_joint, 10).reason


def test_code_that_differs_from_the_model_is_not_used(monkeypatch, float64):
    log_joint = joint(*ZOO["schools"]())
    value_and_grad = CompiledDensity.value_and_grad

    def off(self, z, subsample):
        log_p, gradient = value_and_grad(self, z, subsample)
        return log_p + 1e-5 * log_p.abs(), gradient

    monkeypatch.setattr(CompiledDensity, "value_and_grad", off)
    found = choose_density("auto", log_joint, 3000)
    assert found.backend == "eager"
    assert "log density" in found.reason


def test_a_model_that_changes_is_evaluated_by_itself_from_then_on(float64):
    shift = [0.0]

    def model(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(x + shift[0], 1.0), obs=y)

    log_joint = joint(model, (torch.tensor(1.0),))
    log_joint.use(CompiledDensity(log_joint))
    drop_if_changed(log_joint)
    assert log_joint.compiled is not None
    shift[0] = 2.0
    with pytest.warns(EngineWarning, match="changed after it was compiled"):
        drop_if_changed(log_joint)
    z = torch.zeros(1, 1)
    expected = dist.Normal(0.0, 1.0).log_prob(z[0, 0]) + dist.Normal(2.0, 1.0).log_prob(
        torch.tensor(1.0)
    )
    torch.testing.assert_close(log_joint(z)[0], expected)


def normal_mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.StudentT(4.0, mu, 1.0), obs=y)


def test_a_fit_uses_it_and_has_the_same_bits_with_a_cold_and_a_warm_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    y = torch.tensor([1.0, 2.5, 3.0])

    def fitted():
        options = {"max_steps": 500, "explore": "off", "seed": 0, "progress": False}
        return NFVI(normal_mean, guide="affine", **options).run(y)

    cold, warm = fitted(), fitted()
    assert cold.training.settings.density_by == "native"
    assert torch.equal(cold.draws.z, warm.draws.z)
    assert torch.equal(cold.draws.log_p, warm.draws.log_p)
