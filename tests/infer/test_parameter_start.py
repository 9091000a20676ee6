"""Parameters of a model end where the exact evidence is highest, or the verdict says that not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch.distributions import constraints

from pyro_nfvi import NFVI
from pyro_nfvi.infer._findings import Level, ParamsLeft, find
from pyro_nfvi.infer._stages.parameter_ascent import Evidence, nats_left, raise_evidence

GENERATOR = torch.Generator().manual_seed(23)
X = torch.linspace(-1, 1, 60)
Y = 3 + 2 * X + 0.2 * torch.randn(60, generator=GENERATOR)


def run(model, *args, **options):
    return NFVI(model, **({"seed": 0, "progress": False, "explore": "off"} | options)).run(*args)


def line(params, x, y):
    """Exact log evidence of offset and noise, the slope integrated out."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    cov = params["s"] ** 2 * np.eye(len(x)) + 4 * np.outer(x, x)
    return multivariate_normal(np.full(len(x), params["off"]), cov).logpdf(y)


@dataclass
class Case:
    model: Callable
    args: tuple
    exact: Callable[[dict], float]
    start: tuple


def offset(shift, unit, scale):
    y = unit * (Y + shift)

    def model(x, y):
        off = pyro.param("off", torch.tensor(0.0))
        s = pyro.param("s", torch.tensor(scale), constraint=constraints.positive)
        b = pyro.sample("b", dist.Normal(0.0, 2.0 * unit))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(off + b * x, s), obs=y)

    def exact(p):
        small = {name: value / unit for name, value in p.items()}
        return line(small, X, Y + shift) - 60 * math.log(unit)

    return Case(model, (X, y), exact, ("off", "s"))


def groups():
    """Empirical Bayes: a mean of each kind, and the spread of groups within kinds."""
    kind = torch.arange(12) % 3
    generator = torch.Generator().manual_seed(2)
    truth = torch.tensor([5.0, -2.0, 30.0])[kind]
    theta = truth + 0.7 * torch.randn(12, generator=generator)
    y = theta + 0.5 * torch.randn(4, 12, generator=generator)

    def model(y):
        tau = pyro.param("tau", torch.tensor(20.0), constraint=constraints.positive)
        with pyro.plate("kinds", 3):
            m = pyro.param("m", torch.zeros(3), event_dim=0)
        with pyro.plate("groups", 12):
            theta = pyro.sample("theta", dist.Normal(m[kind], tau))
            with pyro.plate("rows", 4):
                pyro.sample("y", dist.Normal(theta, 0.5), obs=y)

    def exact(p):
        tau, m = np.ravel(p["tau"])[0], np.ravel(p["m"])
        cov = tau**2 * np.ones((4, 4)) + 0.25 * np.eye(4)
        return sum(
            multivariate_normal(np.full(4, m[kind[g]]), cov).logpdf(y[:, g].double().numpy())
            for g in range(12)
        )

    return Case(model, (y,), exact, ("tau", "m"))


def simplex():
    y = torch.tensor([0] * 30 + [1] * 9 + [2] * 1)

    def model(y):
        p = pyro.param("p", torch.ones(3) / 3, constraint=constraints.simplex)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("o", dist.Normal(z, 1.0), obs=torch.tensor(0.5))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Categorical(p), obs=y)

    def exact(p):
        p = np.maximum(np.asarray(p["p"], float), 1e-12)
        counts = np.array([30, 9, 1])
        return float(counts @ np.log(p / p.sum())) - 0.0625 - 0.5 * math.log(4 * math.pi)

    return Case(model, (y,), exact, ("p",))


def unidentified():
    """Only the sum of two parameters matters."""

    def model(x, y):
        off = pyro.param("one", torch.tensor(1.0)) + pyro.param("two", torch.tensor(-9.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(off + b * x, 0.2), obs=y)

    return Case(
        model, (X, Y), lambda p: line({"off": p["one"] + p["two"], "s": 0.2}, X, Y), ("one", "two")
    )


class Net(PyroModule):
    def __init__(self):
        super().__init__()
        self.off = torch.nn.Parameter(torch.tensor(0.0))
        self.s = PyroParam(torch.tensor(3.0), constraint=constraints.positive)
        self.frozen = torch.nn.Parameter(torch.tensor(0.0), requires_grad=False)
        self.b = PyroSample(dist.Normal(0.0, 2.0))

    def forward(self, x, y):
        off, s, b = self.off + self.frozen, self.s, self.b
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(off + b * x, s), obs=y)


def plain_module():
    """``pyro.module``, with one tensor under two names."""
    net, tied = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    tied.bias = net.bias
    for layer in (net, tied):
        layer.weight.requires_grad_(False)
        layer.eval()
    with torch.no_grad():
        net.bias.fill_(0.0)

    def model(x, y):
        pyro.module("net", net)
        pyro.module("tied", tied)
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        off = 0.5 * (net.bias + tied.bias)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(off + b * x, 0.2), obs=y)

    return Case(
        model,
        (X, Y),
        lambda p: line({"off": float(np.ravel(p["net$$$bias"])[0]), "s": 0.2}, X, Y),
        ("net$$$bias",),
    )


CASES = {
    "far": lambda: offset(300.0, 1.0, 10.0),
    "near": lambda: offset(0.0, 1.0, 1.0),
    "small unit": lambda: offset(3.0, 1e-4, 1.0),
    "large unit": lambda: offset(3.0, 1e4, 1.0),
    "groups": groups,
    "simplex": simplex,
    "unidentified": unidentified,
    "module": lambda: Case(Net(), (X, Y), lambda p: line(p, X, Y), ("off", "s")),
    "pyro.module": plain_module,
}


def best(case, params):
    """Highest exact evidence, by scipy from where the fit ended; a scale as its logarithm."""
    names = list(case.start)
    shapes = {name: np.shape(params[name]) for name in names}
    logs = {name for name in names if name in ("s", "tau", "p")}
    flat = [np.ravel(np.asarray(params[name], float)) for name in names]
    start = np.concatenate([np.log(v + 1e-300) if n in logs else v for n, v in zip(names, flat)])

    def loss(u):
        p, place = {}, 0
        for name in names:
            size = int(np.prod(shapes[name], dtype=int))
            part = u[place : place + size].reshape(shapes[name])
            p[name] = np.exp(part) if name in logs else part
            if shapes[name] == ():
                p[name] = float(p[name])
            place += size
        return -case.exact(p)

    found = minimize(
        loss, start, method="Nelder-Mead", options={"maxfev": 4000, "xatol": 1e-7, "fatol": 1e-6}
    )
    return -float(found.fun)


#: Cases that the fast tests run.
FAST = ("far", "groups", "pyro.module")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_parameters_end_where_the_exact_evidence_is_highest(name):
    case = CASES[name]()
    fit = run(case.model, *case.args)
    params = {n: (v.item() if v.dim() == 0 else v.double().numpy()) for n, v in fit.params.items()}
    reached = case.exact(params)
    left = best(case, params) - reached
    assert left < 0.05, (params, left)
    assert fit.log_evidence()[0] == pytest.approx(reached, abs=0.02)
    assert fit.verdict == "good", fit.verdict.reasons
    finding = find(fit.training.findings, ParamsLeft)
    assert finding is not None
    assert finding.nats < 0.05


@pytest.mark.parametrize("local", [pytest.param(False, marks=pytest.mark.slow), True])
def test_modules_that_keep_their_own_parameters(local):
    with pyro.settings.context(module_local_params=local):
        net = Net()
        fit = run(net, X, Y)
        assert sorted(fit.params) == ["frozen", "off", "s"]
        assert float(fit.params["frozen"]) == 0.0
        assert not net.frozen.requires_grad
        assert float(fit.params["off"]) == pytest.approx(float(net.off.detach()), abs=1e-6)
        assert line({"off": float(fit.params["off"]), "s": float(fit.params["s"])}, X, Y) > -1e9
        assert float(fit.params["off"]) == pytest.approx(float(Y.mean()), abs=0.01)
        assert fit.predict(X, Y, num_samples=50)["y"].mean().item() == pytest.approx(3.0, abs=0.2)
    assert list(pyro.get_param_store()) == []


def test_untrained_parameters_are_never_good():
    """One step, from far away: the guide is right for its parameters, and the weights are even."""
    case = offset(300.0, 1.0, 10.0)
    fit = run(case.model, *case.args, guide="affine", precondition=False, max_steps=100)
    finding = find(fit.training.findings, ParamsLeft)
    assert finding is not None
    assert finding.nats is None or finding.nats > 0.1
    assert fit.verdict != "good"
    assert any("'off'" in reason for reason in fit.verdict.reasons)


def net_of(width):
    net = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))

    def model(x, y):
        pyro.module("net", net)
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        s = pyro.sample("s", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(net(x[:, None])[:, 0] + b * x, s), obs=y)

    return net, model


@pytest.mark.slow
def test_a_net_of_many_parameters_is_judged():
    torch.manual_seed(0)
    _, model = net_of(40)  # 121 parameters: no second derivatives
    y = torch.sin(3 * X) + 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(1))
    fit = run(model, X, y, guide="affine", max_steps=600)
    finding = find(fit.training.findings, ParamsLeft)
    assert finding is not None
    assert (fit.verdict == "good") <= (finding.nats is not None and finding.nats <= 0.1)
    assert fit.log_evidence()[0] > 20  # a line alone reaches -21


#: Ways in which the mean of all rows, 3 at its best, depends on a parameter that rests elsewhere.
REST = {
    "saddle": (lambda p: p[0] * p[1], torch.zeros(2)),
    "stationary": (lambda p: p.square(), torch.tensor(0.0)),
    "clamp": (lambda p: p.clamp(min=0.0), torch.tensor(-3.0)),
    "saddle of many": (lambda p: (p[:25] * p[25:]).sum(), torch.zeros(50)),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("saddle", "clamp") else pytest.param(name, marks=pytest.mark.slow)
        for name in REST
    ],
)
def test_rest_is_no_top(name):
    """The gradient is 0 at the start, and thousands of nats are left there."""
    mean, start = REST[name]

    def model(x, y):
        p = pyro.param("p", start.clone())
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(mean(p) + b * x, 0.2), obs=y)

    fit = run(model, X, Y, guide="affine", max_steps=30)
    reached = line({"off": float(mean(fit.params["p"])), "s": 0.2}, X, Y)
    left = line({"off": float(Y.mean()), "s": 0.2}, X, Y) - reached
    assert left < 0.1 or fit.verdict != "good"
    if name in ("saddle", "stationary"):
        assert left < 0.1
    else:
        finding = find(fit.training.findings, ParamsLeft)
        assert left < 0.1 or (finding.nats > 0.1 and "'p'" in finding.sentence())


def test_no_finite_gradient_is_not_judged():
    """A scale that has run to 0: the density is finite there, its gradient 0 times infinity."""
    z = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).double()
    leaf = torch.tensor(-800.0, dtype=torch.float64, requires_grad=True)

    def density(z):
        return -0.5 * z.square().sum(-1) + 0 * (leaf.exp() + 1e-300).pow(-2) - leaf.exp().sqrt()

    assert (
        nats_left(density, z, -0.5 * z.square().sum(-1), {"leaf": leaf}, torch.Generator()) is None
    )
    assert ParamsLeft(None, 0.0, ("s",)).level is not Level.REMARK


# ------------------------------------------------------------------------- the pure functions


def quadratic(units, leaf):
    """A density whose evidence is -0.5 |(leaf - 1) / units|^2 exactly, at any draw."""
    return lambda z: -0.5 * z.square().sum(-1) - 0.5 * ((leaf - 1) / units).square().sum()


@pytest.mark.parametrize("count", [3, 60])
def test_ascent_in_units_of_its_own(count):
    """Newton's steps up to 40 parameters, L-BFGS above; units over six and two decades."""
    spread = 3 if count == 3 else 1
    units = torch.logspace(-spread, spread, count, dtype=torch.float64)
    leaf = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    z = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).double()
    log_q = -0.5 * z.square().sum(-1)
    evidence = Evidence(quadratic(units, leaf), z, log_q, [leaf])
    before = evidence.look()[0]
    found = raise_evidence(evidence, torch.Generator(), steps=200)
    assert evidence.look()[0] > -0.1
    assert found.gain == pytest.approx(-before, rel=1e-3)
    if count == 3:
        torch.testing.assert_close(found.units, units, rtol=1e-3, atol=0)


def test_nats_left_are_those_of_the_exact_gap_and_no_chance():
    """60 parameters at the optimum: what 200 draws promise by chance is not counted."""
    z = torch.randn(400, 60, generator=torch.Generator().manual_seed(0)).double()
    log_q = -0.5 * z.square().sum(-1)
    leaf = torch.zeros(60, dtype=torch.float64, requires_grad=True)

    def density(z):  # the evidence is -0.5 |leaf|^2 / 4
        return -0.5 * z.square().sum(-1) + (z * leaf).sum(-1) * 0.2 - 0.145 * leaf.square().sum()

    at_rest = nats_left(density, z, log_q, {"leaf": leaf}, torch.Generator())
    assert at_rest is not None
    assert at_rest[0] < 0.1
    assert not leaf.any()
    with torch.no_grad():
        leaf[0] = 1.0
    found = nats_left(density, z, log_q, {"leaf": leaf}, torch.Generator())
    assert found is not None
    assert 0.08 < found[0] < 0.2  # 0.125 exactly


@pytest.mark.slow
def test_a_flow_trains_beside_parameters_in_small_units():
    """A banana whose noise has the unit 1e-3: the flow has to train, and the scale stays right."""
    unit = 1e-3
    y = unit * (1.0 + 0.5 * torch.randn(40, generator=torch.Generator().manual_seed(3)))

    def model(y):
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        bend = pyro.sample("bend", dist.Normal(z[..., 0].square(), 0.2))
        pyro.sample("seen", dist.Normal(bend + z[..., 1], 0.3), obs=torch.tensor(1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(unit, s), obs=y)

    fit = run(model, y, max_steps=900)
    assert fit.training.settings.flow
    found, exact = float(fit.params["s"]), float((y - unit).square().mean().sqrt())
    # 0.02 nats are a relative error of (0.02 / 40)^(1/2).
    assert found == pytest.approx(exact, rel=0.023)
    finding = find(fit.training.findings, ParamsLeft)
    assert finding is not None
    assert finding.nats < 0.05


@pytest.mark.slow
def test_parameters_of_mini_batches_see_all_data():
    def model(x, y):
        off = pyro.param("off", torch.tensor(0.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(x), subsample_size=20) as rows:
            pyro.sample("y", dist.Normal(off + b * x[rows], 0.2), obs=y[rows])

    fit = run(model, X, Y, guide="affine", max_steps=200)
    reached = line({"off": float(fit.params["off"]), "s": 0.2}, X, Y)
    assert (
        best(Case(model, (), lambda p: line({**p, "s": 0.2}, X, Y), ("off",)), {"off": 3.0})
        - reached
        < 0.1
    )
    finding = find(fit.training.findings, ParamsLeft)
    assert finding is not None
    assert finding.nats < 0.1


def one_by_one(x, y):
    """A model that is run for one draw at a time, with its offset far from where it starts."""
    off = pyro.param("off", torch.tensor(0.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    shift = 1.0 if float(b.detach()) > 1e6 else 0.0
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(off + b * x + shift, 0.2), obs=y)


@pytest.mark.slow
def test_parameters_start_where_a_model_runs_one_draw_at_a_time():
    x, y = X[::6], Y[::6] + 30
    fit = run(one_by_one, x, y, guide="affine", max_steps=100, engine="eager")
    assert fit.training.settings.particles_by == "loop"
    assert any("gained" in note and "before training" in note for note in fit.training.notes)

    def exact(off):
        return line({"off": off, "s": 0.2}, x, y)

    best = -minimize(lambda p: -exact(p[0]), [33.0], method="Nelder-Mead").fun
    assert best - exact(float(fit.params["off"])) < 0.1
    finding = find(fit.training.findings, ParamsLeft)
    assert finding is not None
    assert finding.looked
    assert finding.nats < 0.1


def test_parameters_that_cannot_be_examined_are_told():
    """Two plates subsample: data is never scored whole."""
    y = Y[:, None] + torch.zeros(8)

    def model(y):
        off = pyro.param("off", torch.tensor(0.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        rows = pyro.plate("rows", len(y), subsample_size=20, dim=-2)
        columns = pyro.plate("columns", 8, subsample_size=4, dim=-1)
        with rows as i, columns as j:
            pyro.sample("y", dist.Normal(off + b, 0.5), obs=y[i][:, j])

    fit = run(model, y, guide="affine", max_steps=30, engine="eager")
    finding = find(fit.training.findings, ParamsLeft)
    assert finding == ParamsLeft(None, names=("off",), looked=False)
    assert finding.level is Level.DOUBT
    assert fit.verdict == "do not trust"
    assert any("'off' were not examined" in reason for reason in fit.verdict.reasons)
    assert any("start where the model puts them" in note for note in fit.training.notes)


@pytest.mark.parametrize("guide", ["auto", "affine"])
def test_a_parameter_of_which_the_model_makes_nothing_stays(guide):
    """One that predictions alone use, say: the evidence has no gradient in any parameter then."""

    def model():
        rate = pyro.param("rate", torch.tensor(2.0), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        pyro.deterministic("later", rate * z)

    fit = NFVI(model, guide, seed=0, progress=False, max_steps=100).run()
    assert float(fit.params["rate"]) == 2.0
    assert fit.verdict == "good"
