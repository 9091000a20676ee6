"""Losses: plain at weight 1, gradients of each estimator, schedules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from vae.cases import FLOWS, NAMES, images, linear_gaussian, make, spread

from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives import Constant, Cyclic, Linear, Tempered
from pyro_nfvi.objectives._schedules import schedule_from_spec
from pyro_nfvi.vae import ELBOLoss, IWAELoss


def gradients(vae, loss, x, eps, **options):
    vae = copy.deepcopy(vae)
    result = loss(vae, x, eps=eps, **options)
    result.surrogate.mean().backward()
    return {n: p.grad for n, p in vae.named_parameters() if p.grad is not None}, result


def flat(grads, *parts):
    return torch.cat([g.reshape(-1) for n, g in grads.items() if n.startswith(parts)])


def test_weight_one_is_the_plain_elbo():
    vae, x = spread(make("iaf*2")), images()
    eps = torch.randn(2, 5, 3)
    plain = copy.deepcopy(vae)
    (-plain.elbo(x, eps=eps).bound.mean()).backward()
    for loss in (ELBOLoss(), ELBOLoss(beta=Linear(10)), ELBOLoss(free_bits=1e-6)):
        grads, result = gradients(vae, loss, x, eps, step=10)
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad)
        torch.testing.assert_close(-result.surrogate.detach(), plain.elbo(x, eps=eps).bound)
        assert not result.bound.requires_grad


def test_beta_and_joint_weigh_what_they_say():
    vae, x, eps = spread(make("planar*2")), images(), torch.randn(3, 5, 3)
    terms = vae.elbo(x, eps=eps)
    draws = vae.encode(x).push(eps)
    log_prior = vae.prior_log_prob(draws.z).mean(0)
    warm = ELBOLoss(beta=Linear(steps=100))(vae, x, eps=eps, step=25)
    torch.testing.assert_close(-warm.surrogate, terms.reconstruction - 0.25 * terms.kl)
    assert warm.weight == 0.25
    tempered = ELBOLoss(joint=Tempered(100, 0.1))(vae, x, eps=eps, step=30)
    expected = 0.4 * (terms.reconstruction + log_prior) - draws.log_q.mean(0)
    torch.testing.assert_close(-tempered.surrogate, expected)
    for result in (warm, tempered):
        torch.testing.assert_close(result.bound, terms.bound.detach())  # reported as it is


def test_free_bits_stop_pushing_below_the_floor():
    vae, x, eps = make("planar*2"), images(), torch.randn(3, 5, 3)
    kl = float(vae.elbo(x, eps=eps).kl.mean().detach())
    above = ELBOLoss(free_bits=kl / 2)(vae, x, eps=eps)
    below = ELBOLoss(free_bits=kl + 1)(vae, x, eps=eps)
    assert (above.weight, below.weight) == (1.0, 0.0)
    terms = vae.elbo(x, eps=eps)
    torch.testing.assert_close(-below.surrogate, terms.reconstruction)
    torch.testing.assert_close(-above.surrogate, terms.bound)


def test_path_gradient_vanishes_at_the_posterior_and_the_total_one_does_not():
    vae, x, _ = linear_gaussian()
    eps = torch.randn(1, 20, 2, dtype=torch.float64)
    path, _ = gradients(vae, ELBOLoss(estimator="path"), x, eps)
    total, _ = gradients(vae, ELBOLoss(), x, eps)
    assert float(flat(path, "encoder").abs().max()) < 1e-12
    assert float(flat(total, "encoder").abs().max()) > 1e-2
    torch.testing.assert_close(path["decoder.weight"], total["decoder.weight"])


@pytest.mark.parametrize(("flow", "options"), FLOWS, ids=NAMES)
def test_path_and_total_gradients_agree_in_the_mean(flow, options):
    vae = spread(make(flow, dtype=torch.float64, **options), 0.2)
    x = images(1, dtype=torch.float64)
    difference = []
    for _ in range(20):
        eps = torch.randn(100, 1, 3, dtype=torch.float64)
        path, _ = gradients(vae, ELBOLoss(estimator="path"), x, eps)
        total, _ = gradients(vae, ELBOLoss(), x, eps)
        torch.testing.assert_close(flat(path, "decoder"), flat(total, "decoder"))
        difference.append(flat(path, "encoder.head", "flow") - flat(total, "encoder.head", "flow"))
    blocks = torch.stack(difference)
    z = blocks.mean(0) / (blocks.std(0) / math.sqrt(20)).clamp_min(1e-12)
    # t with 19 degrees of freedom on up to 1500 coordinates: above 9 has a probability of 4e-5.
    assert float(z.abs().max()) < 9


def test_dreg_agrees_with_the_total_gradient_in_the_mean_and_is_calmer():
    vae, x, _ = linear_gaussian(stretch=1.2, flow="planar*1")
    spread(vae.flow, 0.1)
    x = x[:1]
    dreg, total = [], []
    for _ in range(200):
        eps = torch.randn(16, 1, 2, dtype=torch.float64)
        ours, result = gradients(vae, IWAELoss(16, "dreg"), x, eps)
        theirs, other = gradients(vae, IWAELoss(16), x, eps)
        torch.testing.assert_close(ours["decoder.weight"], theirs["decoder.weight"])
        torch.testing.assert_close(result.bound, other.bound)
        dreg.append(flat(ours, "encoder", "flow"))
        total.append(flat(theirs, "encoder", "flow"))
    dreg, total = torch.stack(dreg), torch.stack(total)
    difference = dreg - total
    z = difference.mean(0) / (difference.std(0) / 200**0.5).clamp_min(1e-12)
    # About 20 coordinates at 5 standard errors: false alarm < 2e-5.
    assert float(z.abs().max()) < 5
    assert float((dreg.std(0) / total.std(0)).median()) < 0.7


def test_iwae_of_one_sample_is_the_elbo():
    vae, x, eps = spread(make("iaf*1")), images(), torch.randn(1, 5, 3)
    one = IWAELoss(num_samples=1)(vae, x, eps=eps)
    torch.testing.assert_close(one.bound, vae.elbo(x, eps=eps).bound.detach())
    many = IWAELoss(num_samples=8)(vae, x, eps=torch.randn(8, 5, 3))
    assert bool((many.bound >= many.terms.bound).all())


def test_schedules_round_trip_and_refuse_nonsense():
    for schedule in (Constant(2.0), Linear(7, 0.1, 3.0), Cyclic(10, 3, 0.25), Tempered(50)):
        again = schedule_from_spec(schedule.spec())
        assert again == schedule
        assert [again(t) for t in range(60)] == [schedule(t) for t in range(60)]
        last = schedule(schedule.settled)
        assert all(schedule(schedule.settled + t) == last for t in range(100))
    assert max(Cyclic(10)(t) for t in range(40)) == 1.0
    assert Linear(0)(0) == 1.0
    for make_bad in (lambda: Linear(-1), lambda: Constant(-1.0), lambda: Cyclic(0),
                     lambda: Cyclic(5, ramp=0.0), lambda: Tempered(0),
                     lambda: schedule_from_spec({"kind": "Sine"}),
                     lambda: ELBOLoss(estimator="dreg"), lambda: IWAELoss(estimator="path"),
                     lambda: ELBOLoss(num_samples=0), lambda: ELBOLoss(free_bits=-1)):  # fmt: skip
        with pytest.raises(OptionError):
            make_bad()


@pytest.mark.parametrize("flow", [None, "planar*2", "iaf*1", "sylvester*1"])
@pytest.mark.parametrize("loss", [ELBOLoss(), IWAELoss(3)], ids=["elbo", "iwae"])
def test_a_loss_is_one_graph_for_a_compiler(flow, loss):
    vae, x = spread(make(flow, context_dim=0 if flow is None else 4)), images()
    eps = torch.randn(loss.num_samples, len(x), vae.latent_dim)
    compiled = torch.compile(
        lambda x, eps: loss(vae, x, eps=eps).surrogate.mean(), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x, eps), loss(vae, x, eps=eps).surrogate.mean())
    torch.compiler.reset()
