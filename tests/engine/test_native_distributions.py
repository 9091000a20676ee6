"""Log densities of ``torch.distributions`` with their gradients, through native code."""

from __future__ import annotations

import pytest
import torch
from engine.native_function import NativeFunction
from torch import distributions as dist
from torch.fx import GraphModule

from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._engine.recorder import Recorder

N = 4


def softmax(x):
    return torch.softmax(x, -1)


def positive_definite(x):
    root = torch.tril(x[:, :N]) + 3 * torch.eye(N, dtype=x.dtype)
    return root @ root.mT


#: From three tensors ``a, b (4, 4)`` (any numbers) and ``v (4, 4)`` (near them): a distribution
#: and a value of it.
CASES = {
    "Bernoulli logits": lambda a, b, v: (dist.Bernoulli(logits=a), (v > 0).to(a)),
    "Bernoulli probs": lambda a, b, v: (dist.Bernoulli(a.sigmoid()), (v > 0).to(a)),
    "Beta": lambda a, b, v: (dist.Beta(a.exp(), b.exp()), v.sigmoid()),
    "Binomial": lambda a, b, v: (dist.Binomial(5, logits=a), v.sigmoid().mul(5).floor()),
    "Categorical": lambda a, b, v: (dist.Categorical(logits=a), (v[:, 0] > 0).long()),
    "Categorical probs": lambda a, b, v: (dist.Categorical(softmax(a)), (v[:, 0] > 0).long()),
    "Cauchy": lambda a, b, v: (dist.Cauchy(a, b.exp()), v),
    "Chi2": lambda a, b, v: (dist.Chi2(a.exp()), v.exp()),
    "ContinuousBernoulli": lambda a, b, v: (dist.ContinuousBernoulli(logits=a), v.sigmoid()),
    "Dirichlet": lambda a, b, v: (dist.Dirichlet(a.exp()), softmax(v)),
    "Exponential": lambda a, b, v: (dist.Exponential(a.exp()), v.exp()),
    "FisherSnedecor": lambda a, b, v: (dist.FisherSnedecor(a.exp(), b.exp()), v.exp()),
    "Gamma": lambda a, b, v: (dist.Gamma(a.exp(), b.exp()), v.exp()),
    "GeneralizedPareto": lambda a, b, v: (dist.GeneralizedPareto(a, b.exp(), a.exp()), a + v.exp()),
    "Geometric": lambda a, b, v: (dist.Geometric(logits=a), v.exp().floor()),
    "Gumbel": lambda a, b, v: (dist.Gumbel(a, b.exp()), v),
    "HalfCauchy": lambda a, b, v: (dist.HalfCauchy(a.exp()), v.exp()),
    "HalfNormal": lambda a, b, v: (dist.HalfNormal(a.exp()), v.exp()),
    "Independent": lambda a, b, v: (dist.Independent(dist.Normal(a, b.exp()), 1), v),
    "InverseGamma": lambda a, b, v: (dist.InverseGamma(a.exp(), b.exp()), v.exp()),
    "Kumaraswamy": lambda a, b, v: (dist.Kumaraswamy(a.exp(), b.exp()), v.sigmoid()),
    "LKJCholesky": lambda a, b, v: (
        dist.LKJCholesky(N, b[0, 0].exp()),
        dist.biject_to(dist.constraints.corr_cholesky)(torch.cat([v[0], v[1, :2]])),
    ),
    "Laplace": lambda a, b, v: (dist.Laplace(a, b.exp()), v),
    "LogNormal": lambda a, b, v: (dist.LogNormal(a, b.exp()), v.exp()),
    "LogisticNormal": lambda a, b, v: (
        dist.LogisticNormal(a[:, :3], b[:, :3].exp()),
        dist.StickBreakingTransform()(v[:, :3]),
    ),
    "LowRankMultivariateNormal": lambda a, b, v: (
        dist.LowRankMultivariateNormal(a[0], b[:, :2], a[1].exp()),
        v,
    ),
    "MixtureSameFamily": lambda a, b, v: (
        dist.MixtureSameFamily(dist.Categorical(logits=a), dist.Normal(a, b.exp())),
        v[:, 0],
    ),
    "Multinomial": lambda a, b, v: (dist.Multinomial(4, logits=a), torch.ones_like(v)),
    "MultivariateNormal": lambda a, b, v: (
        dist.MultivariateNormal(a, covariance_matrix=positive_definite(b)),
        v,
    ),
    "MultivariateNormal scale": lambda a, b, v: (
        dist.MultivariateNormal(a, scale_tril=torch.linalg.cholesky(positive_definite(b))),
        v,
    ),
    "MultivariateNormal precision": lambda a, b, v: (
        dist.MultivariateNormal(a, precision_matrix=positive_definite(b)),
        v,
    ),
    "NegativeBinomial": lambda a, b, v: (
        dist.NegativeBinomial(a.exp(), logits=b),
        v.exp().floor(),
    ),
    "Normal": lambda a, b, v: (dist.Normal(a, b.exp()), v),
    "OneHotCategorical": lambda a, b, v: (dist.OneHotCategorical(logits=a), torch.eye(N).to(a)),
    "Pareto": lambda a, b, v: (dist.Pareto(a.exp(), b.exp()), a.exp() + v.exp()),
    "Poisson": lambda a, b, v: (dist.Poisson(a.exp()), v.exp().floor()),
    "RelaxedBernoulli": lambda a, b, v: (dist.RelaxedBernoulli(b.exp(), logits=a), v.sigmoid()),
    "RelaxedOneHotCategorical": lambda a, b, v: (
        dist.RelaxedOneHotCategorical(b[0, 0].exp(), logits=a),
        softmax(v),
    ),
    "StudentT": lambda a, b, v: (dist.StudentT(3 + a.exp(), a, b.exp()), v),
    "TransformedDistribution": lambda a, b, v: (
        dist.TransformedDistribution(dist.Normal(a, b.exp()), dist.SigmoidTransform()),
        v.sigmoid(),
    ),
    "Uniform": lambda a, b, v: (dist.Uniform(a - 9, a + 9), v),
    "VonMises": lambda a, b, v: (dist.VonMises(a, b.exp()), v),
    "Weibull": lambda a, b, v: (dist.Weibull(a.exp(), b.exp()), v.exp()),
    "Wishart": lambda a, b, v: (
        dist.Wishart(b[0, 0].exp() + 5, covariance_matrix=positive_definite(a)),
        positive_definite(v),
    ),
}

#: What the capture refuses, with the reason; it never gets as far as native code.
REFUSED = {
    "Wishart": "Python reads a value",
}


def density_and_gradients(case):
    """The log density of a case, and its gradients in all three tensors."""

    def function(*inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        distribution, value = case(*leaves)
        log_prob = distribution.log_prob(value)
        grads = torch.autograd.grad(log_prob.sum(), leaves, allow_unused=True)
        return [log_prob.detach(), *(g for g in grads if g is not None)]

    return function


def record(function, inputs):
    recorder = Recorder({f"x{k}": x for k, x in enumerate(inputs)})
    with recorder:
        outputs = list(function(*inputs))
    recorder.output(outputs)
    return GraphModule(torch.nn.Module(), recorder.graph), recorder.consts


def inputs():
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(N, N, dtype=torch.float64, generator=generator) for _ in range(3)]


def check(cases, tolerance=1e-9):
    """Compile some cases in one graph, and compare each result with PyTorch's."""
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.set_default_dtype(torch.float64)  # GeneralizedPareto makes numbers of that type
    given = inputs()
    functions = [density_and_gradients(CASES[name]) for name in cases]
    graph, consts = record(lambda *xs: [out for f in functions for out in f(*xs)], given)
    found = iter(NativeFunction(graph, consts)(*given))
    for name, function in zip(cases, functions):
        for k, expected in enumerate(function(*given)):
            # Torch's own trigamma is good to 9 digits.
            same = torch.allclose(next(found), expected, rtol=tolerance, atol=tolerance)
            assert same, f"{name}, result {k}"


def test_log_densities_and_gradients_equal_torch():
    check([name for name in CASES if name not in REFUSED])


def test_every_distribution_of_torch_has_a_case():
    not_densities = {
        "Distribution", "ExponentialFamily", "kl_divergence", "OneHotCategoricalStraightThrough"
    }  # fmt: skip
    known = {name.split()[0] for name in CASES} | not_densities
    names = [
        name
        for name in dist.__all__
        if isinstance(getattr(dist, name), type)
        and issubclass(getattr(dist, name), dist.Distribution)
    ]
    assert set(names) - known == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) - set(REFUSED)))
def test_each_log_density_by_itself(name):
    check([name])


@pytest.mark.parametrize("name", REFUSED)
def test_the_list_of_refused_ones_is_true(name):
    torch.distributions.Distribution.set_default_validate_args(False)
    with pytest.raises(Unsupported, match=REFUSED[name]):
        record(density_and_gradients(CASES[name]), inputs())
