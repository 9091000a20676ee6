"""Autocast: nets compute in half precision; flows, densities, likelihoods and guides in float32.

Two laws. Where encoder and decoder leave autocast, every number is that without autocast, up to the
rounding of float32. Where they do not, they are off by their own rounding alone: the numbers equal
those of a float32 computation from the nets' half-precision outputs.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalog import FLOWS as CATALOG
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from vae.cases import DIM, FLOWS, NAMES, SHAPE, make, spread
from vae.test_likelihoods import ALL, data

from pyro_nfvi import AutoFlow, FlowDensity
from pyro_nfvi import distributions as bases
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.vae import DenseDecoder, ELBOLoss, FlowVAE, IWAELoss, Likelihood

HALF = [torch.bfloat16, torch.float16]
#: Rounding of float32 in sums of some tens of terms of size 10, in nats.
TOLERANCE = {"atol": 2e-4, "rtol": 2e-5}


class Out(nn.Module):
    """A net that leaves autocast: what is behind it is all that differs."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *given):
        with torch.autocast("cpu", enabled=False):
            return self.net(*(x.float() if x.is_floating_point() else x for x in given))


def outside(vae):
    vae.encoder, vae.decoder = Out(vae.encoder), Out(vae.decoder)
    return vae


def numbers(vae, x, eps):
    posterior = vae.encode(x)
    draws = posterior.push(eps, score=True)
    terms = vae.elbo(x, eps=eps)
    losses = [
        loss(vae, x, eps=eps).surrogate
        for loss in (ELBOLoss(), ELBOLoss(estimator="path"), IWAELoss(3), IWAELoss(3, "dreg"))
    ]
    found = [
        terms.bound, terms.reconstruction, terms.kl, terms.log_det, terms.log_w, draws.z,
        draws.log_q, draws.score, posterior.log_prob(draws.z), vae.nll(x, num_samples=20).value,
        vae.prior_log_prob(draws.z), *losses,
    ]  # fmt: skip
    return [value.detach() for value in found]


#: Every flow with the first likelihood, and every likelihood with the first flow and with none;
#: the other pairs are slow.
PAIRS = [
    pytest.param(
        flow,
        options,
        likelihood,
        id=f"{name}-{likelihood!r}",
        marks=() if likelihood is ALL[0] or place < 2 else pytest.mark.slow,
    )
    for place, (name, (flow, options)) in enumerate(zip(["none", *NAMES], [(None, {}), *FLOWS]))
    for likelihood in ALL
]


@pytest.mark.parametrize(("flow", "options", "likelihood"), PAIRS)
def test_every_flow_with_every_likelihood_is_the_one_without_autocast(flow, options, likelihood):
    vae = outside(spread(make(flow, likelihood=likelihood, prior="maf*1", **options), 0.3))
    x, eps = data(likelihood), torch.randn(3, 4, DIM)
    expected = numbers(vae, x, eps)
    for half in HALF if likelihood == ALL[0] else HALF[:1]:
        with torch.autocast("cpu", half):
            found = numbers(vae, x, eps)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_a_likelihood_scores_half_precision_numbers_in_full(likelihood, half):
    last = () if likelihood.num_params == 1 else (likelihood.num_params,)
    params = (3 * torch.randn(7, 4, *SHAPE, *last)).to(half)
    x = data(likelihood)
    expected = likelihood.log_prob(params.float(), x)
    assert torch.equal(likelihood.log_prob(params, x), expected)  # nets turned to half as a whole
    with torch.autocast("cpu", half):
        assert torch.equal(likelihood.log_prob(params, x), expected)
        theirs = likelihood.distribution(params).log_prob(x).sum((-1, -2))
        assert likelihood.mean(params).dtype == torch.float32
    torch.testing.assert_close(theirs, expected, **TOLERANCE)


def test_many_pixels_do_not_lose_nats():
    # 784 pixels: in bfloat16 the sum alone was off by a nat.
    vae = FlowVAE(*(make("iaf*2").encoder, DenseDecoder(DIM, SHAPE, (8,))), DIM, 4, "iaf*2")
    logits = torch.randn(5, 28, 28).bfloat16()
    x = torch.bernoulli(torch.full((5, 28, 28), 0.3))
    exact = dist.Bernoulli(logits=logits.double()).log_prob(x.double()).sum((-1, -2))
    with torch.autocast("cpu", torch.bfloat16):
        found = vae.likelihood.log_prob(logits, x)
    torch.testing.assert_close(found.double(), exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("flow", [None, "iaf*2"])
def test_nets_that_are_half_as_a_whole_meet_flows_in_full(flow, half):
    vae = make(flow)
    x, eps = data(ALL[0]), torch.randn(3, 4, DIM)
    exact = vae.elbo(x, eps=eps).bound
    vae.encoder.to(half), vae.decoder.to(half)
    terms = vae.elbo(x, eps=eps)
    assert terms.bound.dtype == torch.float32
    assert float((terms.bound - exact).detach().abs().max()) < 0.1
    terms.bound.sum().backward()
    assert vae.nll(x, num_samples=20).value.isfinite().all()
    assert vae.sample(3).dtype == vae.reconstruct(x).dtype == torch.float32
    with pyro.get_param_store().scope():
        assert abs(SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x)) < 1000


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.parametrize("flow", ["planar*2", "iaf*2"])
def test_a_flow_of_another_type_than_its_base_is_refused(flow, dtype):
    vae = make(flow)
    vae.flow.to(dtype)
    with pytest.raises(ShapeError, match=r"vae\.flow\.to\(torch\.float32\)"):
        vae.elbo(data(ALL[0]))


@pytest.mark.parametrize("half", HALF)
def test_an_encoder_that_alone_is_half_has_an_nll(half):
    vae = make("iaf*2")
    vae.encoder.to(half)
    assert vae.nll(data(ALL[0]), num_samples=20).value.isfinite().all()


class Ordinal(Likelihood):
    """A likelihood of a user's own, whose density is a product of matrices."""

    name = "own"
    num_params = 1

    def distribution(self, params):
        return dist.Normal(params @ torch.eye(params.shape[-1]), 1.0)

    def check(self, x):
        pass


def test_a_likelihood_of_ones_own_is_inside_too():
    params, x = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE)
    expected = Ordinal().log_prob(params, x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(Ordinal().log_prob(params, x), expected)


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize(("flow", "options"), FLOWS, ids=NAMES)
def test_nets_in_half_precision_are_off_by_their_own_rounding(flow, options, half):
    vae = spread(make(flow, **options), 0.1)
    x, eps = data(ALL[0]), torch.randn(3, 4, DIM)
    exact = vae.elbo(x, eps=eps).bound.detach()
    with torch.autocast("cpu", half):
        terms = vae.elbo(x, eps=eps)
        assert terms.bound.dtype == torch.float32
        assert vae.encode(x).context.dtype == torch.float32
    # Outputs of two layers, of size 1 to 3, are off by 2^-8 of themselves in bfloat16 (2^-11 in
    # float16); six pixels and three latents make some tenths of a nat of that at most.
    limit = 0.3 if half == torch.bfloat16 else 0.04
    assert float((terms.bound.detach() - exact).abs().max()) < limit
    terms.bound.sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in vae.parameters())
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
    with torch.autocast("cpu", half), pyro.get_param_store().scope():
        assert abs(svi.step(x)) < 1000


@pytest.mark.parametrize("name", [name for name, case in CATALOG.items() if not case.slow])
@pytest.mark.parametrize("context", [0, 3])
def test_every_flow_is_the_same_under_autocast(name, context):
    case, dim = CATALOG[name], 4
    if context and not case.context:
        pytest.skip("takes no context")
    torch.manual_seed(0)
    flow = spread(case.make(dim, context), 0.2)
    x, c = torch.randn(5, dim), torch.randn(5, context) if context else None
    half = [None if v is None else v.bfloat16() for v in (x, c)]

    def results():
        (y, ladj), (z, inverse_ladj) = flow(x, c), flow.inverse(x, c)
        return [y, ladj, z, inverse_ladj, flow.forward_with_score(x, -x, c)[2]]

    expected = results()
    lifted = flow(half[0].float(), None if c is None else half[1].float())
    with torch.autocast("cpu", torch.bfloat16):
        found, from_half = results(), flow(*half)
    for ours, theirs in zip([*found, *from_half], [*expected, *lifted], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize(
    "base", [None, bases.FullRankNormal(3), bases.GaussianMixture(3), bases.StudentT(3)], ids=repr
)
def test_densities_and_bases_are_the_same_under_autocast(base):
    torch.manual_seed(0)
    density = spread(FlowDensity(make_flow("maf*2", 3), base), 0.2)
    x = torch.randn(50, 3)
    expected = density.log_prob(x)
    eps = density.sample_base(50, generator=torch.Generator().manual_seed(1))
    z, log_q = density.push(eps)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(density.log_prob(x), expected, **TOLERANCE)
        again = density.sample_base(50, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(again, eps)
        ours, ours_log_q = density.push(eps)
        report = density.fit(x, max_steps=20, seed=0, progress=False)
    torch.testing.assert_close(ours, z, **TOLERANCE)
    torch.testing.assert_close(ours_log_q, log_q, **TOLERANCE)
    assert report.steps == 20
    assert report.skipped == 0


def model(y):
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a.sum(), s), obs=y)


def test_a_guide_is_the_same_under_autocast():
    y = torch.randn(10)
    torch.manual_seed(0)
    guide = AutoFlow(model, "iaf*2|tril", outer="full")
    guide.setup(y)
    spread(guide.flow, 0.2)
    points = guide.sample_posterior(20)

    def results():
        torch.manual_seed(1)
        drawn = guide.sample_posterior(20)
        found = [*drawn.values(), guide.log_prob(points), *guide.quantiles([0.1, 0.9]).values()]
        torch.manual_seed(1)
        return [*found, *guide.mean().values(), *guide(y).values()]

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        found = results()
        loss = SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(y)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert abs(loss) < 1000
