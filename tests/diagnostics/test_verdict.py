"""Verdicts from weights: right words for known approximations of known targets."""

import pickle

import pytest
import torch

from pyro_nfvi.diagnostics import judge_weights
from pyro_nfvi.diagnostics._verdict import Verdict

S = 4000


def weighed(scale, shift=0.0, dim=3, seed=0):
    """Draws of N(shift, scale^2) with weights to N(0, 1)."""
    gen = torch.Generator().manual_seed(seed)
    z = shift + scale * torch.randn(S, dim, generator=gen, dtype=torch.float64)
    q = torch.distributions.Normal(shift, scale)
    p = torch.distributions.Normal(0.0, 1.0)
    return z, (p.log_prob(z) - q.log_prob(z)).sum(-1)


@pytest.mark.parametrize(
    ("scale", "shift", "word"),
    [
        (1.0, 0.0, "good"),
        (1.02, 0.01, "good"),
        (1.3, 0.0, "usable with reweighting"),
        (1.0, 0.5, "usable with reweighting"),
        (0.4, 0.0, "do not trust"),
        (1.0, 3.0, "do not trust"),
    ],
)
def test_gaussians(scale, shift, word):
    verdict = judge_weights(*weighed(scale, shift))
    assert verdict == word
    assert "k-hat" in verdict.reasons[0]
    assert verdict.next_step


def test_the_number_that_moves_is_named():
    z, _ = weighed(1.0)
    z[:, 1] *= 1.3
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.0, 1.3)
    log_w = p.log_prob(z[:, 1]) - q.log_prob(z[:, 1])
    verdict = judge_weights(z, log_w.double(), name=lambda i: f"theta[{i}]")
    assert verdict == "usable with reweighting"
    assert any("moves theta[1]" in reason for reason in verdict.reasons)
    assert not any("theta[0]" in reason for reason in verdict.reasons)


def test_one_draw_with_all_the_weight_gives_no_endless_number():
    gen = torch.Generator().manual_seed(0)
    z, log_w = torch.randn(S, 2, generator=gen), torch.zeros(S)
    log_w[7] = 1e4
    words = "; ".join(judge_weights(z, log_w).reasons)
    assert "its sd by a factor of more than 1000" in words
    assert len(words) < 500


def test_draws_of_weight_zero_stay_where_they_are():
    # Far from 0, one impossible draw must not count as a draw at 0.
    z, log_w = weighed(1.0)
    log_w[0] = -torch.inf
    assert judge_weights(z + 1e4, log_w) == "good"


def test_faults_and_what_cannot_be_scored():
    z, log_w = weighed(1.0)
    verdict = judge_weights(z, log_w, faults=["a mode is missed"])
    assert verdict == "do not trust"
    assert verdict.reasons == ("a mode is missed",)
    some = log_w.clone()
    some[:100] = -torch.inf
    assert judge_weights(z, some) == "do not trust"
    none = torch.full_like(log_w, -torch.inf)
    assert judge_weights(z, none) == "do not trust"


def test_a_verdict_is_a_word_that_keeps_its_reasons():
    verdict = Verdict("good", ["k-hat 0.1"], "Go on.")
    again = pickle.loads(pickle.dumps(verdict))
    assert (again, again.reasons, again.next_step) == ("good", ("k-hat 0.1",), "Go on.")


@pytest.mark.parametrize(("freedom", "word"), [(1.0, "usable with reweighting"), (30.0, "good")])
def test_heavy_tails_are_not_good_however_even_the_weights(freedom, word):
    # Weights of one, and the quantiles of a Pareto law with exponent 2/3, whose mean is infinite,
    # of little mass: more than nine tenths of the draws are effective.
    torch.manual_seed(0)
    z = torch.distributions.StudentT(torch.tensor(freedom).double()).sample((S, 2))
    quantile = (torch.arange(S, dtype=torch.float64) + 0.5) / S
    verdict = judge_weights(z, torch.log(1 + 2e-5 * quantile**-1.5), name=lambda i: f"theta[{i}]")
    assert verdict == word
    told = any("tails of theta[0], theta[1]" in reason for reason in verdict.reasons)
    assert told == (word != "good")


def test_tails_without_a_variance_are_not_good_where_the_weights_are_all_one():
    torch.manual_seed(0)
    z = torch.distributions.Cauchy(0.0, 1.0).sample((S, 1)).double()
    verdict = judge_weights(z, torch.zeros(S), name=lambda i: "theta")
    assert verdict == "usable with reweighting"
    assert "the tails of theta" in verdict.reasons[1]
    # That of three degrees of freedom has one. False alarms: below 20 * 0.3 %.
    z = torch.distributions.StudentT(3.0).sample((S, 20)).double()
    assert judge_weights(z, torch.zeros(S)) == "good"


def test_even_weights_are_good_where_the_density_is_known_to_have_a_variance():
    torch.manual_seed(0)
    z = torch.distributions.LogNormal(0.0, 3.0).sample((S, 1)).double()
    assert judge_weights(z, torch.zeros(S)) == "usable with reweighting"
    verdict = judge_weights(z, torch.zeros(S), name=lambda i: "theta", finite_variance=True)
    assert verdict == "good"
    assert "theta rest on rare draws" in verdict.reasons[1]
    doubted = judge_weights(z, torch.zeros(S), doubts=["tails"], finite_variance=True)
    assert doubted == "usable with reweighting"


def test_a_number_that_does_not_vary_has_no_tail():
    z, log_w = weighed(1.0)
    z[:, 0] = 3.0
    assert judge_weights(z, log_w) == "good"
