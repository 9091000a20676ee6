"""Which engine takes which distribution and which model, as a table in docs/engine.md.

    python benchmarks/engine_coverage.py            # rewrites the tables of docs/engine.md
    python benchmarks/engine_coverage.py --smoke    # a few of each, prints only

Three walks. Distributions: for each one of torch and Pyro with a density, a model in which it is
a latent site or, if it is discrete or no guide can draw it, the likelihood, with parameters that
depend on another latent. The models of benchmarks/posteriordb. The examples. A captured step
is compared with an eager one, as every fit does, before it counts. Nothing is fitted.
"""

import argparse
import importlib
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import pyro
import pyro.distributions as dist
import torch

from benchmarks._report import ROOT, environment, in_words, put, table
from pyro_nfvi import AutoFlow
from pyro_nfvi._budget import UNLIMITED
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._stopwatch import Stopwatch
from pyro_nfvi._train.engine_selection import _Builder
from pyro_nfvi._train.step import EagerStep
from pyro_nfvi.errors import NFVIError
from pyro_nfvi.objectives._make_objective import make_objective

PAGE = ROOT / "docs" / "engine.md"
ENGINES = ("native", "hybrid", "graph")
LATENT, SEEN = "latent", "likelihood"


def engine_of(model, args=(), kwargs=None, flow="affine", objective="path"):
    """The first engine that takes a model's step, and why the ones before do not."""
    kwargs = kwargs or {}
    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide = AutoFlow(model, flow).setup(*args, **kwargs)
        log_joint = LogJoint(model, args, kwargs, guide.latent)
        models = log_joint.parameters()
        params = [*(p for p in guide.parameters() if p.requires_grad), *models]
        optimizer = torch.optim.Adam(params, lr=0.01)
        step = EagerStep(
            guide, log_joint, make_objective(objective), params, len(models), optimizer
        )
        builder = _Builder(step, 8, UNLIMITED, Stopwatch())
        reasons = []
        for name in ENGINES:
            try:
                builder.build(name, "")
            except (Unsupported, KeyError) as error:
                reasons.append(str(error))
            else:
                return name, reasons[0] if reasons else ""
    return "eager", reasons[-1]


# ------------------------------------------------------------------------- distributions

#: How to make each distribution from a latent ``a`` around 0; (kind, distribution).
PLUS = torch.nn.functional.softplus


def vector(a, n=3):
    return a.unsqueeze(-1) * torch.linspace(0.5, 1.0, n)


def matrix(a, n=3):
    """A positive definite matrix for each a."""
    return torch.eye(n) * (1 + PLUS(a))[..., None, None] + 0.1


MAKE = {
    "AffineBeta": lambda a: dist.AffineBeta(1 + PLUS(a), 2.0, -1.0, 3.0),
    "AsymmetricLaplace": lambda a: dist.AsymmetricLaplace(a, 1.0, 2.0),
    "Bernoulli": lambda a: dist.Bernoulli(logits=a),
    "Beta": lambda a: dist.Beta(1 + PLUS(a), 2.0),
    "BetaBinomial": lambda a: dist.BetaBinomial(1 + PLUS(a), 2.0, total_count=5),
    "Binomial": lambda a: dist.Binomial(5, logits=a),
    "Categorical": lambda a: dist.Categorical(logits=vector(a)),
    "Cauchy": lambda a: dist.Cauchy(a, 1.0),
    "Chi2": lambda a: dist.Chi2(1 + PLUS(a)),
    "ConditionalTransformedDistribution": None,
    "ContinuousBernoulli": lambda a: dist.ContinuousBernoulli(logits=a),
    "Dirichlet": lambda a: dist.Dirichlet(1 + PLUS(vector(a))),
    "DirichletMultinomial": lambda a: dist.DirichletMultinomial(1 + PLUS(vector(a)), 5),
    "Exponential": lambda a: dist.Exponential(PLUS(a)),
    "ExtendedBetaBinomial": lambda a: dist.ExtendedBetaBinomial(1 + PLUS(a), 2.0, 5),
    "ExtendedBinomial": lambda a: dist.ExtendedBinomial(5, logits=a),
    "FisherSnedecor": lambda a: dist.FisherSnedecor(2 + PLUS(a), 3.0),
    "GaussianHMM": None,
    "Gamma": lambda a: dist.Gamma(1 + PLUS(a), 2.0),
    "GammaPoisson": lambda a: dist.GammaPoisson(1 + PLUS(a), 2.0),
    "GaussianScaleMixture": None,
    "GeneralizedPareto": lambda a: dist.GeneralizedPareto(0.0, PLUS(a), 0.2),
    "Geometric": lambda a: dist.Geometric(logits=a),
    "Gumbel": lambda a: dist.Gumbel(a, 1.0),
    "HalfCauchy": lambda a: dist.HalfCauchy(PLUS(a)),
    "HalfNormal": lambda a: dist.HalfNormal(PLUS(a)),
    "InverseGamma": lambda a: dist.InverseGamma(1 + PLUS(a), 2.0),
    "Kumaraswamy": lambda a: dist.Kumaraswamy(1 + PLUS(a), 2.0),
    "LKJ": lambda a: dist.LKJ(3, 1 + PLUS(a)),
    "LKJCholesky": lambda a: dist.LKJCholesky(3, 1 + PLUS(a)),
    "Laplace": lambda a: dist.Laplace(a, 1.0),
    "LogNormal": lambda a: dist.LogNormal(a, 1.0),
    "LogNormalNegativeBinomial": lambda a: dist.LogNormalNegativeBinomial(5.0, a, 0.5),
    "Logistic": lambda a: dist.Logistic(a, 1.0),
    "LowRankMultivariateNormal": lambda a: dist.LowRankMultivariateNormal(
        vector(a), torch.ones(3, 1), torch.ones(3)
    ),
    "MixtureSameFamily": lambda a: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(3)), dist.Normal(vector(a), 1.0)
    ),
    "Multinomial": lambda a: dist.Multinomial(5, logits=vector(a)),
    "MultivariateNormal": lambda a: dist.MultivariateNormal(vector(a), matrix(a)),
    "MultivariateStudentT": lambda a: dist.MultivariateStudentT(
        torch.tensor(4.0), vector(a), torch.eye(3)
    ),
    "NegativeBinomial": lambda a: dist.NegativeBinomial(3 + PLUS(a), logits=a),
    "Normal": lambda a: dist.Normal(a, 1.0),
    "OneHotCategorical": lambda a: dist.OneHotCategorical(logits=vector(a)),
    "OrderedLogistic": lambda a: dist.OrderedLogistic(a, torch.tensor([-1.0, 0.0, 1.0])),
    "Pareto": lambda a: dist.Pareto(0.5, 1 + PLUS(a)),
    "Poisson": lambda a: dist.Poisson(PLUS(a)),
    "ProjectedNormal": lambda a: dist.ProjectedNormal(vector(a)),
    "RelaxedBernoulli": lambda a: dist.RelaxedBernoulli(torch.tensor(0.5), logits=a),
    "RelaxedOneHotCategorical": lambda a: dist.RelaxedOneHotCategorical(
        torch.tensor(0.5), logits=vector(a)
    ),
    "SineBivariateVonMises": lambda a: dist.SineBivariateVonMises(
        a, 0.0 * a, 1.0 + 0 * a, 1.0 + 0 * a, 0.3 + 0 * a
    ),
    "SineSkewed": lambda a: dist.SineSkewed(
        dist.VonMises(a.unsqueeze(-1), 2.0).to_event(1), torch.tensor([0.3])
    ),
    "SkewLogistic": lambda a: dist.SkewLogistic(a, 1.0, 2.0),
    "SoftAsymmetricLaplace": lambda a: dist.SoftAsymmetricLaplace(a, 1.0, 2.0, 1.0),
    "SoftLaplace": lambda a: dist.SoftLaplace(a, 1.0),
    "Stable": None,
    "StudentT": lambda a: dist.StudentT(3 + PLUS(a), a, 1.0),
    "TruncatedPolyaGamma": lambda a: dist.TruncatedPolyaGamma(a),
    "Uniform": lambda a: dist.Uniform(-1.0, 2.0),
    "Unit": None,
    "VonMises": lambda a: dist.VonMises(a, 2.0),
    "VonMises3D": lambda a: dist.VonMises3D(vector(a) + 0.1),
    "Weibull": lambda a: dist.Weibull(1 + PLUS(a), 2.0),
    "Wishart": lambda a: dist.torch.Wishart(torch.tensor(4.0), torch.eye(3)),
    "ZeroInflatedNegativeBinomial": lambda a: dist.ZeroInflatedNegativeBinomial(
        3.0, logits=a, gate=torch.tensor(0.3)
    ),
    "ZeroInflatedPoisson": lambda a: dist.ZeroInflatedPoisson(PLUS(a), gate=torch.tensor(0.3)),
}

#: Named here, so that the count of what is left out can be read: no density of a value to fit to
#: (delta, empirical, mixtures of masks), wrappers of others, time series with a model of their own.
LEFT_OUT = {
    "AVFMultivariateNormal", "BetaBinomial", "CategoricalMixtureDiag", "ConditionalDistribution",
    "ConditionalTransformedDistribution", "CoalescentTimes", "CoalescentTimesWithRate", "Delta",
    "DiscreteHMM", "Distribution", "Empirical", "ExpandedDistribution", "ExponentialFamily",
    "FoldedDistribution", "GammaGaussianHMM", "GaussianHMM", "GaussianMRF", "GaussianScaleMixture",
    "GroupedNormalNormal", "ImproperUniform", "Independent", "IndependentHMM", "InverseGamma",
    "LinearHMM", "MaskedDistribution", "MaskedMixture", "MixtureOfDiagNormals",
    "MixtureOfDiagNormalsSharedCovariance", "NanMaskedMultivariateNormal", "NanMaskedNormal",
    "OMTMultivariateNormal", "OneOneMatching", "OneTwoMatching", "RejectionExponential",
    "RejectionGamma", "RejectionStandardGamma", "Rejector", "ShapeAugmentedBeta",
    "ShapeAugmentedDirichlet", "ShapeAugmentedGamma", "SpanningTree", "Stable",
    "StableWithLogProb", "TorchDistribution", "TorchDistributionMixin", "TransformedDistribution",
    "Unit", "ZeroInflatedDistribution", "OneHotCategoricalStraightThrough",
    "RelaxedBernoulliStraightThrough", "RelaxedOneHotCategoricalStraightThrough",
} - set(MAKE)  # fmt: skip


def all_names():
    """Names of all distributions of torch and Pyro."""
    found = set()
    for module in (torch.distributions, dist):
        for name, item in vars(module).items():
            if isinstance(item, type) and issubclass(item, torch.distributions.Distribution):
                found.add(name)
    return found


def distribution_model(make):
    """A model with the distribution as a latent site if it can be one, else as likelihood."""
    with torch.no_grad():
        example = make(torch.tensor(0.3))
        try:
            seen = example.sample()
        except NotImplementedError:  # a density alone
            seen = torch.tensor(2.0)
    continuous = not example.support.is_discrete

    def latent():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", make(torch.as_tensor(a)))
        pyro.factor("tilt", -0.1 * x.reshape(*a.shape, -1).square().sum(-1))

    def likelihood():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", make(torch.as_tensor(a)), obs=seen)

    return ([(LATENT, latent)] if continuous else []) + [(SEEN, likelihood)]


def distributions(names):
    rows = []
    for name in names:
        make = MAKE[name]
        if make is None:
            continue
        problem = ""
        print(name, end=" ", flush=True)
        for role, model in distribution_model(make):
            try:
                engine, reason = engine_of(model)
            except Exception as error:  # no latent of a flow: try it as a likelihood
                problem = f"cannot be fitted: {str(error).splitlines()[0]}"
                continue
            rows.append((name, role, engine, reason))
            break
        else:
            rows.append((name, "-", "none", problem))
    return rows


# --------------------------------------------------------------------------------- models


def posteriordb(names):
    from benchmarks.posteriordb import load

    for name in names:
        posterior = load(name)
        yield name, posterior.model, (), posterior.data


def examples():
    sys.path.insert(0, str(ROOT / "examples"))
    eight = importlib.import_module("eight_schools")
    yield "eight_schools.py", eight.model, tuple(map(torch.tensor, (eight.Y, eight.SIGMA))), {}
    compare = importlib.import_module("compare_models")
    x, y = compare.make_data()[:2]
    yield "compare_models.py, poisson", compare.poisson, (x, y), {}
    yield "compare_models.py, negative_binomial", compare.negative_binomial, (x, y), {}
    yield "banana.py", importlib.import_module("banana").banana, (), {}
    yield "funnel.py", importlib.import_module("funnel").funnel, (), {}
    mixture = importlib.import_module("mixture")
    data = mixture.make_data()
    data = data[0] if isinstance(data, tuple) else data
    yield "distributions/_mixture.py", mixture.mixture, (data,), {}


def models(cases):
    rows = []
    for name, model, args, kwargs in cases:
        try:
            rows.append((name, *engine_of(model, args, kwargs, flow="iaf*2")))
        except NFVIError as error:
            rows.append((name, "none", f"cannot be fitted: {error}"))
        print(*rows[-1], flush=True)
    return rows


# ---------------------------------------------------------------------------------- page


def shares(engines):
    """How many of them each engine takes, in words."""
    count = len(engines)
    native, hybrid = engines.count("native"), engines.count("hybrid")
    both = native + hybrid
    captured = count - engines.count("eager") - engines.count("none")
    return (
        f"native alone {native} of {count} ({native / count:.0%}), native or hybrid {both} "
        f"({both / count:.0%}), captured {captured} ({captured / count:.0%})"
    )


def clean(reason):
    return reason.replace("|", "\\|").split("\n")[0][:160]


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    names = sorted(name for name, make in MAKE.items() if make is not None)
    known = all_names()
    unlisted = sorted(known - set(MAKE) - LEFT_OUT)
    print("neither walked nor left out by name:", ", ".join(unlisted) or "none")
    from benchmarks.posteriordb import MODELS

    posteriors = sorted(MODELS)
    if given.smoke:
        names, posteriors = names[:4], posteriors[:2]
    sites = distributions(names)
    print()
    for row in sites:
        print(*row, flush=True)
    real = models(posteriordb(posteriors))
    shown = [] if given.smoke else models(examples())
    both = [row[1] for row in (*real, *shown)]
    print("distributions:", shares([row[2] for row in sites]))
    print("models:", shares(both))
    if given.smoke:
        return
    left = sorted(known - set(names))
    page = PAGE.read_text()
    page = put(
        page,
        "distributions",
        f"{shares([row[2] for row in sites]).capitalize()}.\n\n"
        + table(
            ["Distribution", "As", "Engine", "What native lacks"],
            [(n, role, engine, clean(reason)) for n, role, engine, reason in sites],
        )
        + f"\n\nNot walked, since they wrap others, have no density, or are models of their own: "
        f"{', '.join(left)}.",
    )
    page = put(
        page,
        "models",
        f"{shares(both).capitalize()}.\n\n"
        + table(
            ["Model", "Engine", "What native lacks"],
            [(n, engine, clean(reason)) for n, engine, reason in (*real, *shown)],
        )
        + f"\n\n{in_words(environment())}",
    )
    PAGE.write_text(page)
    out = ROOT / "docs" / "benchmarks" / "engine_coverage.json"
    results = {"environment": environment(), "distributions": sites, "models": [*real, *shown]}
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
