"""Every distribution of Pyro with parameters that are latent and shared by all observations.

A case makes a distribution from two latents ``a, b`` of shape ``(particles, 1)``, any numbers, and
has ``ROWS`` observations, no two of them equal.
"""

from __future__ import annotations

from contextlib import suppress

import pyro.distributions as dist
import torch

PARTICLES, ROWS = 3, 5


def vec(x, n=3):
    return x.unsqueeze(-1) * torch.linspace(0.5, 1.5, n, dtype=x.dtype)


def covariance(x, n=3):
    root = torch.eye(n, dtype=x.dtype) + torch.tril(vec(vec(x, n), n)) / 4
    return root @ root.mT


def real():
    return torch.linspace(-1.3, 1.7, ROWS)


def positive():
    return torch.linspace(0.3, 2.9, ROWS)


def unit():
    return torch.linspace(0.15, 0.85, ROWS)


def count(least=0):
    return torch.arange(least, least + ROWS).float()


def vectors(n=3):
    return torch.linspace(-1, 1.3, ROWS * n).sin().reshape(ROWS, n)


def simplices(n=3):
    return torch.softmax(vectors(n), -1)


def counts(n=3):
    """Vectors of counts with different sums."""
    return (torch.arange(ROWS * n).reshape(ROWS, n) + torch.eye(ROWS, n)).float()


def correlations(n=3):
    x = torch.linspace(-0.8, 0.9, ROWS * n * (n - 1) // 2).reshape(ROWS, -1)
    return torch.distributions.biject_to(dist.constraints.corr_cholesky)(x)


def gaps(n=3):
    return vectors(n).abs() + 0.1


#: By the name of the class and, after a blank, what is special: the distribution and observations.
CASES = {
    "AffineBeta": (lambda a, b: dist.AffineBeta(a.exp(), b.exp(), 0.0, 1.0), unit),
    "AsymmetricLaplace": (lambda a, b: dist.AsymmetricLaplace(a, b.exp(), a.exp()), real),
    "Bernoulli": (lambda a, b: dist.Bernoulli(logits=a), lambda: count().clamp(max=1)),
    "Beta": (lambda a, b: dist.Beta(a.exp(), b.exp()), unit),
    "BetaBinomial": (lambda a, b: dist.BetaBinomial(a.exp(), b.exp(), total_count=9), count),
    "Binomial": (lambda a, b: dist.Binomial(9, logits=a), count),
    "Binomial probs": (lambda a, b: dist.Binomial(9, a.sigmoid()), count),
    "Categorical": (lambda a, b: dist.Categorical(logits=vec(a)), lambda: count().remainder(3)),
    "Cauchy": (lambda a, b: dist.Cauchy(a, b.exp()), real),
    "Chi2": (lambda a, b: dist.Chi2(a.exp()), positive),
    "ContinuousBernoulli": (lambda a, b: dist.ContinuousBernoulli(logits=a), unit),
    "Dirichlet": (lambda a, b: dist.Dirichlet(vec(a).exp()), simplices),
    "DirichletMultinomial": (lambda a, b: dist.DirichletMultinomial(vec(a).exp(), 9), counts),
    "Exponential": (lambda a, b: dist.Exponential(a.exp()), positive),
    "ExtendedBetaBinomial": (
        lambda a, b: dist.ExtendedBetaBinomial(a.exp(), b.exp(), 9), count,
    ),
    "ExtendedBinomial": (lambda a, b: dist.ExtendedBinomial(9, logits=a), count),
    "FisherSnedecor": (lambda a, b: dist.FisherSnedecor(a.exp(), b.exp()), positive),
    "Gamma": (lambda a, b: dist.Gamma(a.exp(), b.exp()), positive),
    "GammaPoisson": (lambda a, b: dist.GammaPoisson(a.exp(), b.exp()), count),
    "GeneralizedPareto": (lambda a, b: dist.GeneralizedPareto(-1.0, a.exp(), b.exp()), positive),
    "Geometric": (lambda a, b: dist.Geometric(logits=a), count),
    "Gumbel": (lambda a, b: dist.Gumbel(a, b.exp()), real),
    "HalfCauchy": (lambda a, b: dist.HalfCauchy(a.exp()), positive),
    "HalfNormal": (lambda a, b: dist.HalfNormal(a.exp()), positive),
    "InverseGamma": (lambda a, b: dist.InverseGamma(a.exp(), b.exp()), positive),
    "Kumaraswamy": (lambda a, b: dist.Kumaraswamy(a.exp(), b.exp()), unit),
    "LKJ": (lambda a, b: dist.LKJ(3, a.exp()), lambda: correlations() @ correlations().mT),
    "LKJCholesky": (lambda a, b: dist.LKJCholesky(3, a.exp()), correlations),
    "Laplace": (lambda a, b: dist.Laplace(a, b.exp()), real),
    "LogNormal": (lambda a, b: dist.LogNormal(a, b.exp()), positive),
    "LogNormalNegativeBinomial": (
        lambda a, b: dist.LogNormalNegativeBinomial(a.exp(), b, 0.5), count,
    ),
    "Logistic": (lambda a, b: dist.Logistic(a, b.exp()), real),
    "LogisticNormal": (
        lambda a, b: dist.LogisticNormal(vec(a, 2), vec(b, 2).exp()), simplices,
    ),
    "LowRankMultivariateNormal": (
        lambda a, b: dist.LowRankMultivariateNormal(
            vec(a), vec(b).unsqueeze(-1), vec(a).exp()
        ),
        vectors,
    ),
    "MixtureSameFamily": (
        lambda a, b: dist.MixtureSameFamily(
            dist.Categorical(logits=vec(a)), dist.StudentT(vec(b).exp(), vec(a), 1.0)
        ),
        real,
    ),
    "Multinomial": (lambda a, b: dist.Multinomial(9, logits=vec(a)), counts),
    "MultivariateNormal": (
        lambda a, b: dist.MultivariateNormal(vec(a), covariance(b)), vectors,
    ),
    "MultivariateNormal precision": (
        lambda a, b: dist.MultivariateNormal(vec(a), precision_matrix=covariance(b)), vectors,
    ),
    "MultivariateStudentT": (
        lambda a, b: dist.MultivariateStudentT(
            a.exp(), vec(a), torch.linalg.cholesky(covariance(b))
        ),
        vectors,
    ),
    "NegativeBinomial": (lambda a, b: dist.NegativeBinomial(a.exp(), logits=b), count),
    "Normal": (lambda a, b: dist.Normal(a, b.exp()), real),
    "OneHotCategorical": (
        lambda a, b: dist.OneHotCategorical(logits=vec(a)),
        lambda: torch.eye(3)[count().remainder(3).long()],
    ),
    "OrderedLogistic": (
        lambda a, b: dist.OrderedLogistic(a, vec(b).exp().cumsum(-1)), lambda: count().remainder(4),
    ),
    "Pareto": (lambda a, b: dist.Pareto(0.1 * a.sigmoid(), b.exp()), positive),
    "Poisson": (lambda a, b: dist.Poisson(a.exp()), count),
    "ProjectedNormal": (
        lambda a, b: dist.ProjectedNormal(vec(a)),
        lambda: torch.nn.functional.normalize(vectors(), dim=-1),
    ),
    "RelaxedBernoulli": (lambda a, b: dist.RelaxedBernoulli(b.exp(), logits=a), unit),
    "RelaxedOneHotCategorical": (
        lambda a, b: dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=vec(a)), simplices,
    ),
    "SineSkewed": (
        lambda a, b: dist.SineSkewed(
            dist.VonMises(a.unsqueeze(-1), b.exp().unsqueeze(-1)).to_event(1), torch.tensor([0.3])
        ),
        lambda: real().unsqueeze(-1),
    ),
    "SkewLogistic": (lambda a, b: dist.SkewLogistic(a, b.exp(), a.exp()), real),
    "SoftAsymmetricLaplace": (
        lambda a, b: dist.SoftAsymmetricLaplace(a, b.exp(), a.exp(), 1 + b.exp()), real,
    ),
    "SoftLaplace": (lambda a, b: dist.SoftLaplace(a, b.exp()), real),
    "StudentT": (lambda a, b: dist.StudentT(a.exp(), a, b.exp()), real),
    "Uniform": (lambda a, b: dist.Uniform(-2 - a.exp(), 2 + b.exp()), real),
    "VonMises": (lambda a, b: dist.VonMises(a, b.exp()), real),
    "Weibull": (lambda a, b: dist.Weibull(a.exp(), b.exp()), positive),
    "ZeroInflatedNegativeBinomial": (
        lambda a, b: dist.ZeroInflatedNegativeBinomial(
            a.exp(), logits=b, gate=a.sigmoid()
        ),
        count,
    ),
    "ZeroInflatedPoisson": (
        lambda a, b: dist.ZeroInflatedPoisson(a.exp(), gate=b.sigmoid()), count,
    ),
}  # fmt: skip

#: Without a special function or a factorisation of latent parameters, wrappers of others, time
#: series with models of their own, and what has no density.
LEFT_OUT = {
    "AVFMultivariateNormal", "CoalescentTimes", "CoalescentTimesWithRate", "Delta", "DiscreteHMM",
    "Distribution", "Empirical", "ExpandedDistribution", "ExponentialFamily", "FoldedDistribution",
    "GammaGaussianHMM", "GaussianHMM", "GaussianMRF", "GaussianScaleMixture",
    "GroupedNormalNormal", "ImproperUniform", "Independent", "IndependentHMM", "LKJCorrCholesky",
    "LinearHMM", "MaskedDistribution", "MaskedMixture", "MixtureOfDiagNormals",
    "MixtureOfDiagNormalsSharedCovariance", "NanMaskedMultivariateNormal", "NanMaskedNormal",
    "OMTMultivariateNormal", "OneHotCategoricalStraightThrough", "OneOneMatching",
    "OneTwoMatching", "Rejector", "RelaxedBernoulliStraightThrough",
    "RelaxedOneHotCategoricalStraightThrough", "SpanningTree", "Stable", "TorchDistribution",
    "TransformedDistribution", "Unit", "ZeroInflatedDistribution",
}  # fmt: skip
#: Python branches on their parameters, so that no step of theirs is captured, or there is no
#: gradient in them (TruncatedPolyaGamma).
UNCAPTURED = {
    "SineBivariateVonMises", "StableWithLogProb", "TruncatedPolyaGamma", "VonMises3D", "Wishart",
}  # fmt: skip


def latents(dtype=torch.float64):
    a = torch.tensor([[0.3], [0.9], [-0.4]], dtype=dtype)
    return a, torch.tensor([[0.1], [-0.6], [0.7]], dtype=dtype)


def score(name):
    """The function ``(a, b, value) -> (log_prob summed over the plate, its gradients)``."""
    make, _ = CASES[name]

    def function(a, b, value):
        a, b = (x.detach().requires_grad_() for x in (a, b))
        fn = make(a, b)
        with suppress(NotImplementedError):  # which a few have no code for
            fn = fn.expand((PARTICLES, ROWS))  # as a plate does
        log_prob = fn.log_prob(value).sum(-1)
        grads = torch.autograd.grad(log_prob.sum(), [a, b], allow_unused=True)
        return [log_prob.detach(), *(g for g in grads if g is not None)]

    return function


def observations(name, dtype=torch.float64):
    return CASES[name][1]().to(dtype)
