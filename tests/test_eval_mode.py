"""Train and eval mode of densities and guides whose flows hold nets of a user's own."""

from __future__ import annotations

import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn

from pyro_nfvi import NFVI, AutoFlow, FlowDensity
from pyro_nfvi._eval_mode import evaluation
from pyro_nfvi.flows import Chain, Continuous, Coupling, Flow, make_flow
from pyro_nfvi.vae import training_pass
from pyro_nfvi.vae._posterior import Posterior

DIM = 3


def net(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, outputs)
    )


class Shift(Flow):
    """A flow of a user's own that drops, and counts its calls in train mode."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.shift = nn.Parameter(torch.ones(dim))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def _shift(self, x):
        if self.training:
            self.calls.add_(1)
        return self.drop(self.shift.expand_as(x))

    def forward(self, x, context=None):
        return x + self._shift(x), x.new_zeros(x.shape[:-1])

    def inverse(self, y, context=None):
        return y - self._shift(y), y.new_zeros(y.shape[:-1])


def flow():
    torch.manual_seed(0)
    coupling = Coupling(DIM, conditioner=net)
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    for part in coupling.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.add_(0.5)
    frozen = Shift(DIM)
    frozen.drop.eval()
    return Chain(coupling, Shift(DIM), frozen)


def state(module):
    modes = [part.training for part in module.modules()]
    return modes, [buffer.clone() for buffer in module.buffers()]


def unchanged(module, before):
    now = state(module)
    return now[0] == before[0] and all(map(torch.equal, now[1], before[1]))


X, EPS = torch.randn(9, DIM), torch.randn(9, DIM)


def seeded():
    return torch.Generator().manual_seed(1)


DENSITY = {
    "log_prob": lambda q: q.log_prob(X),
    "log_prob of one": lambda q: q.log_prob(X[:1]),
    "forward": lambda q: q(X),
    "push": lambda q: q.push(EPS)[1],
    "push_with_score": lambda q: q.push_with_score(EPS)[2],
    "rsample_and_log_prob": lambda q: q.rsample_and_log_prob(9, generator=seeded())[0],
    "bits_per_dim": lambda q: q.bits_per_dim(X),
    "sample of the distribution": lambda q: sampled(q),
    "score of the distribution": lambda q: scored(q),
    "posterior of a VAE": lambda q: Posterior(X, torch.ones(9, DIM), q.flow).push(EPS).z,
}


def sampled(q):
    torch.manual_seed(2)
    return q.distribution().sample((9,))


def scored(q):
    with torch.no_grad():
        return q.distribution().log_prob(X)


@pytest.mark.parametrize("name", DENSITY)
def test_a_density_has_one_value_and_no_memory(name):
    density, compute = FlowDensity(flow()), DENSITY[name]
    before = state(density)
    first = compute(density)
    assert torch.equal(first, compute(density))
    assert unchanged(density, before)
    assert torch.equal(first, compute(FlowDensity(flow()).eval()))


def test_draws_and_scores_of_a_density_agree():
    density = FlowDensity(flow())
    z, log_q = density.rsample_and_log_prob(50, generator=seeded())
    torch.testing.assert_close(density.log_prob(z), log_q, atol=1e-4, rtol=1e-4)


def test_fit_trains_in_the_modes_of_layers_and_validates_in_eval_mode():
    density = FlowDensity(flow())
    modes = state(density)[0]
    x = torch.randn(60, DIM)
    report = density.fit(
        x[:40], valid=x[40:], max_steps=60, batch_size=20, seed=0, progress=False, lr=1e-3
    )
    assert state(density)[0] == modes
    tracked = [b for n, b in density.named_buffers() if "num_batches" in n]
    assert all(b == report.steps for b in tracked)
    # The last look is the density that is left, as it scores in eval mode.
    assert min(report.valid) == pytest.approx(
        float(-density.log_prob(x[40:]).mean().detach()), abs=1e-5
    )


def test_a_fit_that_skips_a_step_moves_no_statistics(monkeypatch):
    density = FlowDensity(flow())
    x = torch.randn(60, DIM)
    before = state(density)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    bad = torch.full((), torch.nan)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: bad)
    with pytest.raises(Exception, match="gave up"):
        density.fit(x, valid=0, max_steps=3, seed=0, progress=False)
    assert unchanged(density, before)


def model(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


def simple(y):
    z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


Y = torch.randn(5)
POINTS = {"z": torch.randn(7, DIM)}


def drawn(guide):
    torch.manual_seed(3)
    return guide.sample_posterior(7)["z"]


GUIDE = {
    "sample_posterior": drawn,
    "log_prob": lambda guide: guide.log_prob(POINTS),
    "quantiles": lambda guide: guide.quantiles([0.1, 0.9])["z"],
    "median": lambda guide: guide.median()["z"],
    "mean": lambda guide: guide.mean()["z"],
    "posterior": lambda guide: guide.get_posterior().mean,
    "evaluate_loss": lambda guide: evaluated(guide),
}


def evaluated(guide):
    torch.manual_seed(3)
    return torch.tensor(SVI(simple, guide, Adam({}), Trace_ELBO()).evaluate_loss(Y))


def guide_of():
    pyro.clear_param_store()
    return AutoFlow(simple, flow()).setup(Y)


@pytest.mark.parametrize("name", GUIDE)
def test_a_guide_has_one_value_and_no_memory(name):
    guide, compute = guide_of(), GUIDE[name]
    before = state(guide)
    first = compute(guide)
    assert torch.equal(first, compute(guide))
    assert unchanged(guide, before)
    assert torch.equal(first, compute(guide_of().eval()))


@pytest.mark.parametrize("particles", [1, 4])
def test_svi_trains_a_guide_as_the_density_that_it_is(particles):
    guide = guide_of()
    before = state(guide)
    values = [p.clone() for p in guide.parameters()]
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    SVI(simple, guide, Adam({"lr": 1e-2}), elbo).step(Y)
    assert unchanged(guide, before)
    assert any(not torch.equal(p, old) for p, old in zip(guide.parameters(), values))


def test_a_fit_is_judged_in_eval_mode():
    fit = NFVI(simple, guide=AutoFlow(simple, Shift(DIM)), max_steps=100, seed=0,
               progress=False).run(Y)  # fmt: skip
    modes = state(fit.guide)
    one, two = fit.sample(20, seed=4)["z"], fit.sample(20, seed=4)["z"]
    assert torch.equal(one, two)
    torch.testing.assert_close(
        fit.guide.density().log_prob(fit.draws.z), fit.draws.log_q, atol=1e-4, rtol=1e-4
    )
    assert unchanged(fit.guide, modes)


def test_a_continuous_flow_is_exact_where_it_is_evaluated():
    torch.manual_seed(0)
    density = FlowDensity(Continuous(12, hidden_dim=8, trace="hutchinson", steps=2))
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    x = torch.randn(4, 12)
    assert torch.equal(density.log_prob(x), density.log_prob(x))
    with training_pass():
        assert not torch.equal(density.log_prob(x), density.log_prob(x))


def test_threads_that_evaluate_one_module_leave_its_modes():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2).eval())
    before = state(module)[0]
    wrong = []

    def work():
        for _ in range(300):
            with evaluation(module):
                wrong.extend(part for part in module.modules() if part.training)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert state(module)[0] == before


def test_shipped_flows_are_not_written_to():
    density = FlowDensity(make_flow("iaf*2|planar*2|nsf*1", 4))
    seen = []
    part = density.flow.flows[0]
    forward = part.forward
    part.forward = lambda *given: seen.append(part.training) or forward(*given)
    density.push(torch.randn(2, 4))
    assert seen == [True]
