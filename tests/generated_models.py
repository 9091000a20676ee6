"""Random models, drawn by hypothesis, for laws about the log joint.

A model is a list of statements: latent, discrete and observed sites, factors and Markov chains,
each in some of the plates of the model and under handlers. All numbers are of the default dtype
when the model runs; the data that were drawn are cast to it.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions import constraints, transforms
from pyro.ops.indexing import Vindex
from torch import Tensor


def t(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.get_default_dtype())


def as_number(value: Tensor) -> Tensor:
    """A discrete value as a number that others may depend on."""
    return value.to(torch.get_default_dtype())


def vec(m: Tensor, n: int) -> Tensor:
    """A mean of n coordinates from one number."""
    return m.unsqueeze(-1) * torch.linspace(0.5, 1.5, n)


def pos(m: Tensor) -> Tensor:
    return 0.5 + torch.nn.functional.softplus(m)


def unit(m: Tensor) -> Tensor:
    return 0.1 + 0.8 * torch.sigmoid(m)


def cov() -> Tensor:
    return t([[1.2, 0.3], [0.3, 0.8]])


def alternating(m: Tensor, n: int) -> Tensor:
    """A mask of n items of which every second counts."""
    return (torch.arange(n) % 2 == 0).expand((*m.shape, n))


def gaussian_hmm(m: Tensor, steps: int) -> dist.GaussianHMM:
    """Two hidden coordinates that drift by ``m``, one observed."""
    eye = torch.eye(2)
    return dist.GaussianHMM(
        dist.MultivariateNormal(vec(m, 2), cov()),
        0.8 * eye,
        dist.MultivariateNormal(0.1 * vec(m, 2).unsqueeze(-2), 0.5 * eye),  # the same at each step
        t([[1.0], [0.5]]),
        dist.Normal(t([0.0]), t([0.7])).to_event(1),
        duration=steps,
    )


#: Continuous distributions of one number ``m`` (of any batch shape), which may be latent.
LATENT = {
    "normal": lambda m: dist.Normal(m, t(1.3)),
    "student": lambda m: dist.StudentT(t(4.0), m, t(1.0)),
    "cauchy": lambda m: dist.Cauchy(m, pos(m)),
    "laplace": lambda m: dist.Laplace(m, t(0.7)),
    "asymmetric": lambda m: dist.AsymmetricLaplace(m, t(1.0), t(1.5)),
    "soft laplace": lambda m: dist.SoftLaplace(m, t(1.0)),
    "skew logistic": lambda m: dist.SkewLogistic(m, t(1.0), t(1.5)),
    "logistic": lambda m: dist.Logistic(m, t(1.0)),
    "gumbel": lambda m: dist.Gumbel(m, t(1.0)),
    "lognormal": lambda m: dist.LogNormal(0.3 * m, t(0.5)),
    "gamma": lambda m: dist.Gamma(pos(m), t(2.0)),
    "inverse gamma": lambda m: dist.InverseGamma(2 + pos(m), t(2.0)),
    "exponential": lambda m: dist.Exponential(pos(m)),
    "half normal": lambda m: dist.HalfNormal(pos(m)),
    "half cauchy": lambda m: dist.HalfCauchy(pos(m)),
    "chi2": lambda m: dist.Chi2(2 + pos(m)),
    "weibull": lambda m: dist.Weibull(pos(m), t(1.5)),
    "fisher": lambda m: dist.FisherSnedecor(4 + pos(m), t(6.0)),
    "pareto": lambda m: dist.Pareto(t(1.5), 1 + pos(m)),
    "beta": lambda m: dist.Beta(pos(m), t(2.0)),
    "kumaraswamy": lambda m: dist.Kumaraswamy(pos(m), t(2.0)),
    "uniform": lambda m: dist.Uniform(t(-1.0), t(2.0)).expand(m.shape),
    "continuous bernoulli": lambda m: dist.ContinuousBernoulli(unit(m)),
    "von mises": lambda m: dist.VonMises(torch.tanh(m), t(2.0)),
    "improper": lambda m: dist.ImproperUniform(constraints.positive, (), ()).expand(m.shape),
    "exp": lambda m: dist.TransformedDistribution(
        dist.Normal(0.3 * m, t(0.5)), [transforms.ExpTransform()]
    ),
    "sigmoid": lambda m: dist.TransformedDistribution(
        dist.Normal(m, t(1.0)),
        [transforms.AffineTransform(t(0.1), t(0.7)), transforms.SigmoidTransform()],
    ),
    "vector": lambda m: dist.Normal(vec(m, 2), t(1.0)).to_event(1),
    "lognormal vector": lambda m: dist.LogNormal(0.2 * vec(m, 3), t(0.5)).to_event(1),
    "matrix": lambda m: (
        dist.Normal(vec(m, 2).unsqueeze(-1), t(1.0)).expand((*m.shape, 2, 3)).to_event(2)
    ),
    "mvn": lambda m: dist.MultivariateNormal(vec(m, 2), cov()),
    "low rank": lambda m: dist.LowRankMultivariateNormal(
        vec(m, 2), t([[0.5], [0.2]]), t([1.0, 2.0])
    ),
    "mvt": lambda m: dist.MultivariateStudentT(t(4.0), vec(m, 2), torch.linalg.cholesky(cov())),
    "dirichlet": lambda m: dist.Dirichlet(pos(vec(m, 3))),
    "ordered": lambda m: dist.TransformedDistribution(
        dist.Normal(vec(m, 3), t(1.0)).to_event(1), [transforms.OrderedTransform()]
    ),
    "sticks": lambda m: dist.TransformedDistribution(
        dist.Normal(vec(m, 2), t(1.0)).to_event(1), [transforms.StickBreakingTransform()]
    ),
    "lkj": lambda m: dist.LKJCholesky(3, t(2.0)).expand(m.shape),
    "wishart": lambda m: dist.Wishart(t(4.0), cov()).expand(m.shape),
    "mixture": lambda m: dist.MixtureSameFamily(
        dist.Categorical(logits=vec(m, 2)), dist.Normal(vec(m, 2), t([0.5, 1.0]))
    ),
    "masked": lambda m: dist.Normal(m, t(1.0)).mask(torch.tensor(data=True)),
    "expanded": lambda m: dist.Gamma(t(2.0), t(1.5)).expand(m.shape),
    "masked mixture": lambda m: dist.MaskedMixture(
        torch.tensor(data=False).expand(m.shape),
        dist.Normal(m, t(1.0)),
        dist.StudentT(t(4.0), m, t(2.0)),
    ),
    "mixture of vectors": lambda m: dist.MixtureSameFamily(
        dist.Categorical(logits=vec(m, 2)),
        dist.Normal(vec(m, 2).unsqueeze(-1) * t([1.0, -1.0, 0.5]), t(0.8)).to_event(1),
    ),
    "diag normals": lambda m: dist.MixtureOfDiagNormals(
        vec(m, 2).unsqueeze(-1) * t([1.0, -0.5]),
        pos(vec(m, 2).unsqueeze(-1)).expand((*m.shape, 2, 2)),
        vec(m, 2),
    ),
    "shared covariance": lambda m: dist.MixtureOfDiagNormalsSharedCovariance(
        vec(m, 2).unsqueeze(-1) * t([1.0, -0.5]), pos(vec(m, 2)), vec(m, 2)
    ),
    "expanded vector": lambda m: (
        dist.Normal(m.unsqueeze(-1), t(1.0)).expand((*m.shape, 3)).to_event(1)
    ),
    "independent gammas": lambda m: dist.Independent(dist.Gamma(pos(vec(m, 2)), t(2.0)), 1),
    "twice independent": lambda m: (
        dist.Normal(vec(m, 2).unsqueeze(-1) * t([1.0, 2.0, 3.0]), t(1.0)).to_event(1).to_event(1)
    ),
    "affine of vectors": lambda m: dist.TransformedDistribution(
        dist.Normal(vec(m, 2), t(1.0)).to_event(1),
        [transforms.AffineTransform(t([0.5, -0.5]), t([2.0, -0.7]), event_dim=1)],
    ),
    "exp of independent": lambda m: dist.TransformedDistribution(
        dist.Independent(dist.Normal(0.2 * vec(m, 2), t(0.5)), 1), [transforms.ExpTransform()]
    ),
    "independent of exp": lambda m: dist.TransformedDistribution(
        dist.Normal(0.2 * vec(m, 2), t(0.5)), [transforms.ExpTransform()]
    ).to_event(1),
    "power": lambda m: dist.TransformedDistribution(
        dist.Gamma(pos(m), t(1.0)), [transforms.PowerTransform(t(0.5))]
    ),
    "folded": lambda m: dist.FoldedDistribution(dist.StudentT(t(5.0), m, t(1.0))),
    "correlated": lambda m: dist.TransformedDistribution(
        dist.Normal(vec(m, 2), t(1.0)).to_event(1),
        [transforms.LowerCholeskyAffine(t([0.2, 0.1]), torch.linalg.cholesky(cov()))],
    ),
    "gaussian hmm": lambda m: gaussian_hmm(m, 3),
}

#: Distributions of data.
OBSERVED = {
    **{n: LATENT[n] for n in ("normal", "student", "gamma", "lognormal", "beta", "von mises")},
    **{n: LATENT[n] for n in ("mvn", "vector", "dirichlet", "mixture", "weibull", "sticks")},
    **{n: LATENT[n] for n in ("masked mixture", "mixture of vectors", "diag normals", "power")},
    **{n: LATENT[n] for n in ("expanded vector", "affine of vectors", "exp of independent")},
    **{n: LATENT[n] for n in ("folded", "correlated", "gaussian hmm", "shared covariance")},
    "poisson": lambda m: dist.Poisson(pos(m)),
    "bernoulli": lambda m: dist.Bernoulli(logits=m),
    "geometric": lambda m: dist.Geometric(unit(m)),
    "binomial": lambda m: dist.Binomial(7, logits=m),
    "negative binomial": lambda m: dist.NegativeBinomial(t(5.0), logits=0.3 * m),
    "beta binomial": lambda m: dist.BetaBinomial(pos(m), t(2.0), 9),
    "gamma poisson": lambda m: dist.GammaPoisson(pos(m), t(2.0)),
    "categorical": lambda m: dist.Categorical(logits=vec(m, 3)),
    "one hot": lambda m: dist.OneHotCategorical(logits=vec(m, 3)),
    "multinomial": lambda m: dist.Multinomial(6, logits=vec(m, 3)),
    "ordered logistic": lambda m: dist.OrderedLogistic(m, t([-1.0, 0.5, 1.5])),
    "zip": lambda m: dist.ZeroInflatedPoisson(pos(m), gate=t(0.3)),
    "masked data": lambda m: dist.Normal(m, t(1.0)).mask(torch.tensor(data=False)),
    "masked rows": lambda m: dist.Normal(vec(m, 4), t(1.0)).mask(alternating(m, 4)).to_event(1),
    "mask of rows": lambda m: (
        dist.Poisson(pos(vec(m, 4))).to_event(1).mask(torch.tensor(data=True))
    ),
    "zinb": lambda m: dist.ZeroInflatedNegativeBinomial(t(4.0), logits=0.3 * m, gate=t(0.2)),
    "zero inflated": lambda m: dist.ZeroInflatedDistribution(dist.Poisson(pos(m)), gate=unit(m)),
    "dirichlet multinomial": lambda m: dist.DirichletMultinomial(
        pos(vec(m, 3)), total_count=5, is_sparse=False
    ),
    "mixture of counts": lambda m: dist.MixtureSameFamily(
        dist.Categorical(logits=vec(m, 2)), dist.Poisson(pos(vec(m, 2)))
    ),
    "masked mixture of counts": lambda m: dist.MaskedMixture(
        torch.tensor(data=True).expand(m.shape),
        dist.Poisson(pos(m)),
        dist.Geometric(unit(m)),
    ),
    "independent hmm": lambda m: dist.IndependentHMM(
        dist.GaussianHMM(
            dist.MultivariateNormal(vec(m, 2).unsqueeze(-1), torch.eye(1)),
            0.8 * torch.eye(1),
            dist.MultivariateNormal(t([0.1]), 0.5 * torch.eye(1)),
            torch.eye(1),
            dist.Normal(t([0.0]), t([0.7])).to_event(1),
            duration=3,
        )
    ),
    "gamma gaussian hmm": lambda m: dist.GammaGaussianHMM(
        dist.Gamma(2 + pos(m), t(2.0)),
        dist.MultivariateNormal(vec(m, 2), cov()),
        0.8 * torch.eye(2),
        dist.MultivariateNormal(t([0.1, 0.0]), 0.5 * torch.eye(2)),
        t([[1.0], [0.5]]),
        dist.MultivariateNormal(t([0.0]), 0.5 * torch.eye(1)),
        duration=3,
    ),
    "hmm of counts": lambda m: dist.DiscreteHMM(
        t([0.3, -0.2]),
        t([[0.1, 0.4], [0.7, -0.3]]),
        dist.Poisson(pos(vec(m, 2)).unsqueeze(-2)),
        duration=3,
    ),
    "hmm": lambda m: dist.DiscreteHMM(
        t([0.3, -0.2]),
        t([[0.1, 0.4], [0.7, -0.3]]).expand(3, 2, 2),
        dist.Normal(vec(m, 2).unsqueeze(-2), t(1.0)),
    ),
}

#: Distributions of data of which some are missing (``obs_mask``).
PARTLY = {
    n: LATENT[n]
    for n in (
        "normal",
        "gamma",
        "beta",
        "mvn",
        "dirichlet",
        "mixture",
        "lognormal vector",
        "folded",
    )
}

#: Discrete distributions that can be summed out, and a number from their value.
DISCRETE = {
    "bernoulli": (lambda m: dist.Bernoulli(logits=m), lambda v: v),
    "categorical": (lambda m: dist.Categorical(logits=vec(m, 3)), lambda v: as_number(v) - 1),
    "fixed": (lambda m: dist.Categorical(t([0.2, 0.5, 0.3])), lambda v: t([-1.0, 0.0, 2.0])[v]),
    "one": (lambda m: dist.Categorical(t([1.0])), lambda v: as_number(v)),
    "binomial": (lambda m: dist.Binomial(2, logits=m), lambda v: v - 1),
    "one hot": (
        lambda m: dist.OneHotCategorical(logits=vec(m, 3)),
        lambda v: as_number(v)[..., 0] - as_number(v)[..., 2],
    ),
}

#: Plates that a statement may lie in, outermost first.
CONTEXTS = ((), ("a",), ("b",), ("a", "b"))
_DIMS = {"a": -2, "b": -1}


@dataclass(frozen=True)
class Statement:
    """One statement; what a field means depends on ``kind``."""

    kind: str
    name: str
    what: str
    context: tuple[str, ...]
    parents: tuple[str, ...]
    scale: Any
    mask: str
    length: int = 0


@dataclass(frozen=True)
class Spec:
    """All that a model is; ``data`` are drawn from it."""

    sizes: dict[str, int]
    subsample: dict[str, int]
    outer_scale: float
    statements: tuple[Statement, ...]
    data: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)


@st.composite
def specs(draw: Any, *, discrete: bool = True) -> Spec:
    """Draw a model."""
    sizes = {"a": draw(st.sampled_from([1, 2, 3])), "b": draw(st.sampled_from([1, 2, 4]))}
    subsample = {}
    for name, size in sizes.items():
        if size > 1 and draw(st.integers(0, 3)) == 0:
            subsample[name] = draw(st.integers(1, size - 1))
    kinds = ["latent", "observed", "observed", "factor", "deterministic", "partly", "point"]
    if discrete:
        kinds += ["discrete", "discrete", "markov"]
    statements: list[Statement] = []
    # Of the sites so far: the plates, and whether it is discrete or depends on such a site.
    seen: dict[str, tuple[str, ...]] = {}
    discrete_scale = draw(st.sampled_from([1.0, 1.0, 1.0, 0.5, "tensor"]))
    any_scale = st.sampled_from([1.0, 1.0, 1.0, 1.0, 0.5, 2.0, "tensor", "rows"])
    wanted = [draw(st.sampled_from(kinds)) for _ in range(draw(st.integers(1, 6)))]
    for number, kind in enumerate(["latent", *wanted]):
        contexts = [
            c
            for c in CONTEXTS
            if kind not in ("latent", "partly") or not any(plate in subsample for plate in c)
        ]
        context = draw(st.sampled_from(contexts))
        usable = [name for name, other in seen.items() if set(other) <= set(context)]
        few = min(2, len(usable))
        parents = [draw(st.sampled_from(usable)) for _ in range(draw(st.integers(0, few)))]
        table = {
            "latent": LATENT,
            "observed": OBSERVED,
            "partly": PARTLY,
            "discrete": DISCRETE,
            "markov": DISCRETE,
        }
        names = sorted(table.get(kind, {"": None}))
        if kind == "markov":
            names = ["bernoulli", "categorical"]
        what = draw(st.sampled_from(names))
        # Mostly one scale for all, as the sum over discrete sites needs; else Pyro refuses.
        mixed = draw(st.integers(0, 7)) == 0
        scale = draw(any_scale) if mixed else discrete_scale
        mask = draw(st.sampled_from(["none", "none", "none", "true", "false", "rows"]))
        name = f"{kind[0]}{number}"
        length = draw(st.integers(2, 4)) if kind == "markov" else 0
        statements.append(Statement(kind, name, what, context, tuple(parents), scale, mask, length))
        if kind in ("latent", "discrete", "deterministic", "partly", "point"):
            seen[name] = context
    outer = draw(st.sampled_from([1.0, 1.0, 1.0, 3.0]))
    spec = Spec(sizes, subsample, outer, tuple(statements))
    draw_data(spec, draw(st.integers(0, 10**6)))
    return spec


def draw_data(spec: Spec, seed: int) -> None:
    """Draw observed values from the model's own distributions, for whole plates."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        forward = poutine.trace(_Interpreter(spec, whole=True, draws=True)).get_trace()
        for name, site in forward.nodes.items():
            if name[0] in "op" and site["type"] == "sample":
                spec.data[name] = site["value"]


def model_of(spec: Spec, *, by_hand: bool = False) -> Any:
    """The model, a callable without arguments.

    Args:
        spec: What it is.
        by_hand: Write out what the package makes of missing data: stand-ins of data that are
            there have their own density, once, whatever masks and scales say of the data.
    """
    return _Interpreter(spec, by_hand=by_hand)


class _Interpreter:
    """Runs the statements; under validation it is ordinary Pyro."""

    def __init__(
        self, spec: Spec, *, whole: bool = False, draws: bool = False, by_hand: bool = False
    ) -> None:
        self.spec, self.whole, self.draws, self.by_hand = spec, whole, draws, by_hand
        #: Rows of the plates that this run holds.
        self.index: dict[str, Tensor] = {}

    def __call__(self) -> None:
        spec, values = self.spec, {}
        with ExitStack() as outermost:
            if spec.outer_scale != 1.0:
                outermost.enter_context(poutine.scale(scale=spec.outer_scale))
            plates = {
                name: pyro.plate(
                    name,
                    size,
                    subsample_size=None if self.whole else spec.subsample.get(name),
                    dim=_DIMS[name],
                )
                for name, size in spec.sizes.items()
                if any(name in s.context for s in spec.statements)
            }
            for number, statement in enumerate(spec.statements):
                self._run(number, statement, values, plates)

    def _run(self, number: int, s: Statement, values: dict[str, Tensor], plates: Any) -> None:
        with ExitStack() as stack:
            by_hand = self.by_hand and s.kind == "partly"
            if not by_hand:
                stack.enter_context(self._scale(s))
            for name in s.context:
                self.index[name] = stack.enter_context(plates[name])
            if s.mask != "none" and not by_hand:
                stack.enter_context(poutine.mask(mask=self._mask(s)))
            mean = t(0.2 * number - 0.4)
            for place, parent in enumerate(s.parents):
                part = values[parent]
                mean = mean + (0.7 - 0.5 * place) * torch.tanh(part)
            self._statement(s, mean, values, plates)

    def _scale(self, s: Statement) -> Any:
        if s.scale == "rows":
            return poutine.scale(scale=self._rows(s, 0.5, 1.5, 2.0))
        if s.scale == 1.0:
            return nullcontext()
        return poutine.scale(scale=t(1.5) if s.scale == "tensor" else s.scale)

    def _mask(self, s: Statement) -> Any:
        rows = self._rows(s, True, False, True, kind=torch.bool)
        return rows if s.mask == "rows" else s.mask != "false"

    def _rows(self, s: Statement, *items: Any, kind: torch.dtype | None = None) -> Tensor:
        """A different item in each row of a statement's innermost plate."""
        if not s.context:
            return torch.tensor(items[0], dtype=kind)
        name = s.context[-1]
        size = self.spec.sizes[name]
        if not self.whole:
            size = self.spec.subsample.get(name, size)
        row = torch.tensor([items[i % len(items)] for i in range(size)], dtype=kind)
        return row.reshape(-1, 1) if name == "a" else row

    def _statement(
        self, s: Statement, mean: Tensor, values: dict[str, Tensor], plates: Any
    ) -> None:
        if s.kind == "latent":
            fn = LATENT[s.what](mean)
            value = pyro.sample(s.name, _proper(fn)) if self.draws else pyro.sample(s.name, fn)
            event = tuple(range(-fn.event_dim, 0))
            values[s.name] = value.sum(event) if event else value
        elif s.kind == "discrete":
            make, number = DISCRETE[s.what]
            value = pyro.sample(s.name, make(mean), infer={"enumerate": "parallel"})
            values[s.name] = number(value)
        elif s.kind == "observed":
            fn = OBSERVED[s.what](mean)
            if self.draws:
                pyro.sample(s.name, _proper(fn))
            else:
                pyro.sample(s.name, fn, obs=self._data(s, fn))
        elif s.kind == "partly":
            fn = PARTLY[s.what](mean)
            value = self._partly(s, fn)
            event = tuple(range(-fn.event_dim, 0))
            values[s.name] = value.sum(event) if event else value
        elif s.kind == "factor":
            pyro.factor(s.name, -0.3 * mean**2)
        elif s.kind == "point":
            # The idiom for what is deterministic, before Pyro had a statement for it.
            values[s.name] = pyro.sample(s.name, dist.Delta(mean * 2, mean.sin()))
        elif s.kind == "deterministic":
            values[s.name] = pyro.deterministic(s.name, mean * 2, event_dim=0)
        else:
            self._markov(s, mean)

    def _partly(self, s: Statement, fn: Any) -> Tensor:
        """Data of which some are missing."""
        if self.draws:
            return pyro.sample(s.name, fn)
        there = [True, False, True] if len(s.name) % 2 or len(s.parents) else [False, True, True]
        mask, data = self._rows(s, *there, kind=torch.bool), self._data(s, fn)
        if not self.by_hand:
            return pyro.sample(s.name, fn, obs=data, obs_mask=mask)
        outer = torch.as_tensor(self._mask(s))
        with self._scale(s):
            with poutine.mask(mask=mask & outer):
                pyro.sample(f"{s.name}_observed", fn, obs=data)
            with poutine.mask(mask=~mask & outer):
                missing = pyro.sample(f"{s.name}_unobserved", fn)
        unused = mask | ~outer
        if bool(unused.any()):
            with poutine.scale(scale=1 / self.spec.outer_scale), poutine.mask(mask=unused):
                pyro.factor(f"{s.name}_unused", fn.log_prob(missing))
        mask = mask.reshape(mask.shape + (1,) * fn.event_dim)
        return torch.where(mask, data, missing)

    def _markov(self, s: Statement, mean: Tensor) -> None:
        make, number = DISCRETE[s.what]
        state = mean
        for step in pyro.markov(range(s.length)):
            drawn = pyro.sample(
                f"{s.name}_{step}", make(mean + 0.5 * state), infer={"enumerate": "parallel"}
            )
            state = number(drawn)
            if s.what == "categorical" and step % 2:
                state = Vindex(t([-1.0, 0.3, 0.8]))[drawn]
            name = f"o{s.name}_{step}"
            fn = dist.Normal(state + 0.3 * mean, t(1.0))
            statement = Statement("observed", name, "normal", s.context, (), 1.0, "none")
            pyro.sample(name, fn, obs=None if self.draws else self._data(statement, fn))

    def _data(self, s: Statement, fn: Any) -> Tensor:
        value = self.spec.data[s.name]
        value = value.to(torch.get_default_dtype()) if value.is_floating_point() else value
        for plate in s.context:
            value = value.index_select(_DIMS[plate] - fn.event_dim, self.index[plate])
        return value


def _proper(fn: Any) -> Any:
    """Return something of the same support and shape for what cannot be drawn from."""
    if isinstance(fn, dist.ImproperUniform):
        return dist.Exponential(t(1.0)).expand(fn.batch_shape)
    if isinstance(fn, dist.GammaGaussianHMM):
        return dist.Normal(t(0.0), t(1.0)).expand(fn.shape()).to_event(fn.event_dim)
    return fn
