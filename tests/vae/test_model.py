"""FlowVAE: laws of its terms, use from Pyro, conditioning, and what is refused."""

from __future__ import annotations

import copy
import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from vae.cases import DIM, FLOWS, NAMES, SHAPE, images, linear_gaussian, make, spread

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import DataError, OptionError, ShapeError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.objectives import Tempered
from pyro_nfvi.vae import DenseEncoder, ELBOLoss, FlowVAE, Gaussian


@pytest.mark.parametrize("context_dim", [0, 4])
@pytest.mark.parametrize(("flow", "options"), FLOWS, ids=NAMES)
def test_starts_as_the_plain_vae(flow, options, context_dim):
    plain = make(None, context_dim=context_dim)
    bent = make(flow, context_dim=context_dim, **options)
    x, eps = images(), torch.randn(7, 5, DIM)
    ours, theirs = bent.elbo(x, eps=eps), plain.elbo(x, eps=eps)
    torch.testing.assert_close(ours.bound, theirs.bound, atol=2e-5, rtol=1e-6)
    torch.testing.assert_close(ours.kl, theirs.kl, atol=2e-5, rtol=1e-6)


def test_the_identity_is_exact_where_no_layer_rounds():
    x, eps = images(), torch.randn(3, 5, DIM)
    for flow in ("planar*4", "iaf*2", "sylvester*2"):
        ours, theirs = make(flow).elbo(x, eps=eps), make(None).elbo(x, eps=eps)
        assert (ours.bound - theirs.bound).abs().max() <= 1e-6 * theirs.bound.abs().max()


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("flow", "options"), FLOWS, ids=NAMES)
def test_log_dets_and_scores_agree_with_autograd_far_from_the_start(flow, options, particles):
    vae = spread(make(flow, dtype=torch.float64, **options))
    posterior = vae.encode(images(4, dtype=torch.float64))
    eps = torch.randn(particles, 4, DIM, dtype=torch.float64)
    draws = posterior.push(eps, score=True)
    for s in range(particles):
        for row in range(4):

            def alone(e, s=s, row=row):
                block = eps[s].clone()
                block[row] = e
                return posterior.push(block).z[row]

            jacobian = torch.autograd.functional.jacobian(alone, eps[s, row])
            expected = torch.linalg.slogdet(jacobian)[1] - posterior.scale[row].log().sum()
            torch.testing.assert_close(draws.log_det[s, row], expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(posterior.log_prob(draws.z), draws.log_q, atol=1e-6, rtol=1e-6)
    point = draws.z.detach().requires_grad_()
    (score,) = torch.autograd.grad(posterior.log_prob(point).sum(), point)
    torch.testing.assert_close(draws.score, score, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("flow", "options"), FLOWS, ids=NAMES)
def test_s_draws_of_one_encoding_are_s_single_draws(flow, options):
    vae = spread(make(flow, **options))
    x, eps = images(), torch.randn(6, 5, DIM)
    posterior = vae.encode(x)
    together = posterior.push(eps)
    for s in range(6):
        alone = vae.encode(x).push(eps[s])
        torch.testing.assert_close(together.z[s], alone.z, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(together.log_q[s], alone.log_q, atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize(("flow", "options"), FLOWS, ids=NAMES)
def test_gradients_reach_encoder_flow_and_decoder(flow, options):
    vae = spread(make(flow, **options), 0.1)
    vae.elbo(images(), num_samples=2).bound.sum().backward()
    dead = [n for n, p in vae.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    # Weights that no output sees are masked out; every layer as a whole has to move.
    assert all("flow" in name for name in dead)
    for part in (vae.encoder.head.context, vae.decoder.last):
        assert bool((part.weight.grad != 0).any())


@pytest.mark.parametrize("flow", [None, "planar*2", "iaf*2"])
def test_terms_add_up_and_equal_trace_elbo_on_the_same_noise(flow):
    vae = spread(make(flow, dtype=torch.float64))
    x = images(dtype=torch.float64)
    trace = poutine.trace(vae.guide).get_trace(x)
    z = trace.nodes["z"]["value"].detach()
    eps, log_q = vae.encode(x).base_of(z)
    terms = vae.elbo(x, eps=eps)
    assert torch.equal(terms.bound, terms.reconstruction - terms.kl)
    torch.testing.assert_close(terms.log_w.mean(0), terms.bound)
    replayed = poutine.trace(poutine.replay(vae.model, trace)).get_trace(x)
    theirs = replayed.log_prob_sum() - trace.log_prob_sum()
    torch.testing.assert_close(terms.bound.sum(), theirs, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(trace.nodes["z"]["log_prob_sum"], log_q.sum())
    # The same through the loss, from the same random state.
    torch.manual_seed(3)
    loss = Trace_ELBO().loss(vae.model, vae.guide, x)
    torch.manual_seed(3)
    start = pyro.distributions.Normal(vae.encode(x).loc, vae.encode(x).scale).rsample()
    posterior = vae.encode(x)
    eps = (start - posterior.loc) / posterior.scale
    assert loss == pytest.approx(-vae.elbo(x, eps=eps).bound.sum().item(), rel=1e-9)


def test_gradients_equal_those_of_trace_elbo():
    vae = spread(make("iaf*2", dtype=torch.float64))
    twin = copy.deepcopy(vae)
    x = images(dtype=torch.float64)
    torch.manual_seed(5)
    Trace_ELBO().loss_and_grads(vae.model, vae.guide, x)
    torch.manual_seed(5)
    posterior = twin.encode(x)
    start = pyro.distributions.Normal(posterior.loc, posterior.scale).rsample()
    eps = ((start - posterior.loc) / posterior.scale).detach()
    (-twin.elbo(x, eps=eps).bound.sum()).backward()
    for (name, ours), theirs in zip(twin.named_parameters(), vae.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_vectorised_particles_give_the_same_loss():
    vae = spread(make("planar*2|iaf*1"))
    x = images()
    loss = [
        Trace_ELBO(num_particles=2000, vectorize_particles=v, max_plate_nesting=1)
        for v in (True, False)
    ]
    one = loss[0].loss(vae.model, vae.guide, x)
    exact = -vae.elbo(x, num_samples=20_000).bound.sum().item()
    # sd of a particle is a few nats: 5 standard errors at 2000 particles; false alarm < 1e-6.
    spread_of = vae.elbo(x, num_samples=2000).log_w.sum(1).std().item()
    assert abs(one - exact) < 5.5 * spread_of / 2000**0.5


def test_mini_batches_count_n_over_b_times():
    vae = make("planar*2")
    x = images(4)
    torch.manual_seed(0)
    small = Trace_ELBO().loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    scaled = Trace_ELBO().loss(
        lambda x: vae.model(x, num_data=40), lambda x: vae.guide(x, num_data=40), x
    )
    assert scaled == pytest.approx(10 * small, rel=1e-5)
    with pytest.raises(OptionError, match="num_data"):
        vae.model(x, num_data=3)


def test_svi_trains_every_part_and_the_second_vae_too():
    for seed in range(2):
        with pyro.get_param_store().scope():
            vae = make("iaf*2", seed=seed)
            before = copy.deepcopy(vae.state_dict())
            svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO())
            losses = [svi.step(images(40)) for _ in range(30)]
            assert sum(losses[-5:]) < sum(losses[:5])
            moved = {n for n, v in vae.state_dict().items() if not torch.equal(v, before[n])}
            assert {n.split(".")[0] for n in moved} == {"encoder", "decoder", "flow"}


def test_a_flow_prior_starts_normal_and_is_trained():
    plain, bent = make("planar*2"), make("planar*2", prior="maf*2")
    x, eps = images(), torch.randn(2, 5, DIM)
    torch.testing.assert_close(bent.elbo(x, eps=eps).bound, plain.elbo(x, eps=eps).bound)
    spread(bent)
    terms = bent.elbo(x, eps=eps)
    draws = bent.encode(x).push(eps)
    expected = draws.log_q - bent.prior.log_prob(draws.z)
    torch.testing.assert_close(terms.kl, expected.mean(0))
    terms.bound.sum().backward()
    assert all(p.grad is not None for p in bent.prior.parameters())
    svi = SVI(bent.model, bent.guide, Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step(x)
    assert any(name.startswith("FlowVAE.prior") for name in pyro.get_param_store())
    assert bent.sample(4).shape == (4, *SHAPE)


def test_labels_reach_encoder_decoder_and_prior():
    vae = spread(make("iaf*1", condition_dim=3, prior="affine"))
    x, y = images(), torch.tensor([0, 1, 2, 0, 1])
    eps = torch.randn(2, 5, DIM)
    one = vae.elbo(x, y, eps=eps)
    other = vae.elbo(x, (y + 1) % 3, eps=eps)
    for field in ("reconstruction", "kl"):
        assert bool((getattr(one, field) != getattr(other, field)).all())
    rows = nn.functional.one_hot(y, 3).float()
    torch.testing.assert_close(vae.elbo(x, rows, eps=eps).bound, one.bound)
    assert vae.prior.flow.context_dim == 3
    SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x, y)
    assert vae.sample(5, y).shape == (5, *SHAPE)
    assert vae.nll(x, y, num_samples=32).value.shape == (5,)
    assert vae.reconstruct(x, y).shape == x.shape
    with pytest.raises(ShapeError, match="labels"):
        vae.elbo(x)
    with pytest.raises(ShapeError, match="0 to 2"):
        vae.elbo(x, y + 1)
    with pytest.raises(ShapeError, match="shape"):
        vae.elbo(x, rows[:, :2])
    with pytest.raises(ShapeError, match="no labels"):
        make().elbo(x, y)


def test_full_covariance_reaches_the_exact_posterior():
    vae, x, evidence = linear_gaussian()
    terms = vae.elbo(x, num_samples=3)
    torch.testing.assert_close(terms.bound, evidence)  # q is the posterior: no noise is left
    assert float(terms.kl_se.min()) > 0


def test_num_samples_average_and_give_an_error():
    vae, x, _ = linear_gaussian(stretch=1.3)
    terms = vae.elbo(x, num_samples=4000)
    again = vae.elbo(x, num_samples=4000)
    # Difference of two means against its standard error; 20 rows at 5 sigma: alarm < 2e-5.
    assert bool(((terms.kl - again.kl).abs() < 5 * 2**0.5 * terms.kl_se).all())
    assert torch.isinf(vae.elbo(x).kl_se).all()
    assert set(terms.summary()) >= {"bound", "reconstruction", "kl", "kl_se"}


@pytest.mark.parametrize(
    ("x", "hint"),
    [
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), r"x\.float\(\)"),
        (torch.full((2, *SHAPE), torch.nan), "not finite"),
        (torch.full((2, *SHAPE), 0.5), "0 or 1"),
        (255 * torch.ones(2, *SHAPE), "0 or 1"),
        (torch.zeros(0, *SHAPE), "batch"),
        (torch.zeros(3), "batch"),
    ],
)
def test_images_that_do_not_fit_are_refused(x, hint):
    vae = make()
    for call in (vae.elbo, vae.nll, vae.model, vae.guide):
        with pytest.raises(DataError, match=hint):
            call(x)


class Encoder(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        return self.parts


@pytest.mark.parametrize(
    ("parts", "error", "hint"),
    [
        ((torch.zeros(5, 2), torch.ones(5, 2)), ShapeError, r"loc \(5, 3\)"),
        ((torch.zeros(5, 3),), ShapeError, "1 parts"),
        ((torch.zeros(5, 3), torch.ones(5, 3), None), ShapeError, r"context \(5, 4\)"),
        ((torch.zeros(5, 3), torch.ones(5, 3), torch.ones(5, 3)), ShapeError, r"\(5, 4\)"),
        ((torch.zeros(5, 3), -torch.ones(5, 3), torch.ones(5, 4)), DataError, "softplus"),
    ],
)
def test_an_encoder_of_wrong_sizes_is_told_what_is_wanted(parts, error, hint):
    vae = FlowVAE(Encoder(*parts), make().decoder, DIM, 4, "planar*2")
    with pytest.raises(error, match=hint):
        vae.elbo(images())


def test_a_decoder_of_wrong_size_is_told_what_is_wanted():
    vae = FlowVAE(make().encoder, nn.Linear(DIM, 7), DIM, 4, "planar*2")
    with pytest.raises(ShapeError, match="bernoulli likelihood needs a decoder"):
        vae.elbo(images())


@pytest.mark.parametrize(
    "options",
    [
        {"latent_dim": 0},
        {"context_dim": -1},
        {"flow": "plnar*2"},
        {"flow": "none", "rank": 2},
        {"flow": make_flow("planar*2", 2)},
        {"flow": make_flow("planar*2", DIM, 2)},
        {"likelihood": "poissn"},
        {"prior": make_flow("maf*1", 2)},
        {"prior": FlowDensity(make_flow("maf*1", DIM), torch.distributions.Independent(
            torch.distributions.Normal(torch.zeros(DIM), 1.0), 1))},
        {"amortize": "fully"},
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(options):
    vae = make()
    given = {"latent_dim": DIM, "context_dim": 4, **options}
    with pytest.raises(OptionError):
        FlowVAE(vae.encoder, vae.decoder, **given)


def test_two_kinds_of_amortisation_start_alike():
    x, eps = images(), torch.randn(1, 5, DIM)
    linear, mlp = make("planar*3"), make("planar*3", amortize="mlp")
    torch.testing.assert_close(linear.elbo(x, eps=eps).bound, mlp.elbo(x, eps=eps).bound)
    assert sum(p.numel() for p in mlp.parameters()) != sum(p.numel() for p in linear.parameters())


def test_state_dict_round_trip_and_dtype():
    vae = spread(make("sylvester*2", dtype=torch.float64))
    twin = make("sylvester*2", seed=9, dtype=torch.float64)
    twin.load_state_dict(vae.state_dict())
    x, eps = images(dtype=torch.float64), torch.randn(2, 5, DIM, dtype=torch.float64)
    assert torch.equal(vae.elbo(x, eps=eps).bound, twin.elbo(x, eps=eps).bound)
    assert vae.elbo(x).bound.dtype == torch.float64


@pytest.mark.slow
def test_a_flow_posterior_holds_two_modes_and_a_gaussian_does_not():
    class Square(nn.Module):
        def forward(self, z):
            return torch.stack([z[..., 0].square(), z[..., 1]], -1)

    found = {}
    for flow in (None, "planar*8"):
        torch.manual_seed(0)
        context = 32 if flow else 0
        encoder = DenseEncoder((2,), 2, (32, 32), context_dim=context, gated=False)
        vae = FlowVAE(encoder, Square(), 2, context, flow, Gaussian(0.3))
        loss = ELBOLoss(4, joint=Tempered(1000, 0.02))
        optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
        for step in range(2000):
            x = vae.decoder(torch.randn(64, 2)) + 0.3 * torch.randn(64, 2)
            optimizer.zero_grad()
            loss(vae, x, step=step).surrogate.mean().backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 5.0)
            optimizer.step()
            rate.step()
        posterior = vae.encode(torch.tensor([[1.0, 0.0]]))
        found[flow] = float((posterior.draw(5000).z[..., 0] > 0).double().mean())
        grid = torch.linspace(-2.5, 2.5, 101)
        points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 1, 2)
        assert posterior.log_prob(points).logsumexp(0).item() == pytest.approx(
            -2 * math.log(0.05), abs=0.1
        )
    # Half of the exact posterior's mass is at either root of z^2 = 1.
    assert min(found[None], 1 - found[None]) < 0.02
    assert 0.2 < found["planar*8"] < 0.8


def test_a_vae_takes_nothing_from_another_of_the_same_process(tmp_path):
    def trained(vae, steps=3):
        svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO())
        for _ in range(steps):
            svi.step(images())
        return vae

    with pyro.get_param_store().scope():
        one = trained(make("planar*2", seed=0))
        kept = copy.deepcopy(one.state_dict())
        two = make("planar*2", seed=1)
        own = copy.deepcopy(two.state_dict())
        two.elbo(images())
        trained(two, 1)
        # One step of Adam moves a number by its rate at most.
        for name, value in two.state_dict().items():
            assert float((value - own[name]).abs().max()) < 0.011
        assert all(torch.equal(value, kept[name]) for name, value in one.state_dict().items())
        # The first goes on, and what was saved comes back.
        pyro.get_param_store().save(str(tmp_path / "store"))
        trained(one)
        assert any(not torch.equal(value, kept[name]) for name, value in one.state_dict().items())
        pyro.get_param_store().load(str(tmp_path / "store"))
        three = make("planar*2", seed=2)
        three.model(images())
        three.guide(images())
        assert all(
            torch.equal(value, two.state_dict()[name]) for name, value in three.state_dict().items()
        )


def test_nets_that_do_not_fit_are_named():
    encoder = DenseEncoder(SHAPE, DIM, (8,), context_dim=4)
    vae = FlowVAE(encoder, make().decoder, DIM, 0, "planar*2")
    with pytest.raises(ShapeError, match=r"returns a context, \(5, 4\), and context_dim=0"):
        vae.elbo(images())
    assert FlowVAE(encoder, make().decoder, DIM, 0, None).elbo(images()).bound.shape == (5,)
    with pytest.raises(ShapeError, match=r"encoder failed on an input of shape \(5, 4, 2\)"):
        make().elbo(torch.zeros(5, 4, 2))
    with pytest.raises(ShapeError, match="decoder failed on an input of shape"):
        make().decode(torch.zeros(5, DIM, dtype=torch.float64))
    # Images in double precision are no reason to fail.
    assert make().elbo(images().double()).bound.shape == (5,)
    labelled = make(condition_dim=3)
    assert labelled.elbo(images(), [0, 1, 2, 0, 1]).bound.shape == (5,)
    rows = nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 1]), 3)
    assert labelled.elbo(images(), rows).bound.shape == (5,)


def test_get_latent_is_the_posterior_mean():
    """That of a flow is not the location it starts from; labels and batches of rows go along."""
    vae, x = spread(make("planar*4", condition_dim=2)), images(6)
    y = torch.arange(6) % 2
    found = vae.get_latent(x, y, num_samples=4000)
    draws = vae.encode(x, y).draw(4000).z
    # Six standard errors of two means: false alarm 1e-8.
    error = 6 * (2 / 4000) ** 0.5 * draws.std(0)
    assert bool(((found - draws.mean(0)).abs() < error).all())
    assert not bool(((found - vae.encode(x, y).loc).abs() < error).all())
    assert torch.equal(found, vae.get_latent(x, y, num_samples=4000))
    plain = spread(make(None, context_dim=0))
    assert torch.equal(plain.get_latent(x), plain.encode(x).loc)
