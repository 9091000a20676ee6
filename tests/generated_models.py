"""Random models, drawn by hypothesis, for laws about the log joint.

A model is a list of statements: latent, discrete and observed sites, factors and Markov chains,
each in some of the plates of the model and under handlers. All numbers are float64.
"""

from __future__ import annotations

from contextlib import ExitStack
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

T = torch.float64


def t(value: Any) -> Tensor:
    return torch.tensor(value, dtype=T)


def vec(m: Tensor, n: int) -> Tensor:
    """A mean of n coordinates from one number."""
    return m.unsqueeze(-1) * torch.linspace(0.5, 1.5, n, dtype=T)


def pos(m: Tensor) -> Tensor:
    return 0.5 + torch.nn.functional.softplus(m)


def unit(m: Tensor) -> Tensor:
    return 0.1 + 0.8 * torch.sigmoid(m)


COV = t([[1.2, 0.3], [0.3, 0.8]])

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
    "mvn": lambda m: dist.MultivariateNormal(vec(m, 2), COV),
    "low rank": lambda m: dist.LowRankMultivariateNormal(
        vec(m, 2), t([[0.5], [0.2]]), t([1.0, 2.0])
    ),
    "mvt": lambda m: dist.MultivariateStudentT(t(4.0), vec(m, 2), torch.linalg.cholesky(COV)),
    "dirichlet": lambda m: dist.Dirichlet(pos(vec(m, 3))),
    "ordered": lambda m: dist.TransformedDistribution(
        dist.Normal(vec(m, 3), t(1.0)).to_event(1), [transforms.OrderedTransform()]
    ),
    "sticks": lambda m: dist.TransformedDistribution(
        dist.Normal(vec(m, 2), t(1.0)).to_event(1), [transforms.StickBreakingTransform()]
    ),
    "lkj": lambda m: dist.LKJCholesky(3, t(2.0)).expand(m.shape),
    "wishart": lambda m: dist.Wishart(t(4.0), COV).expand(m.shape),
    "mixture": lambda m: dist.MixtureSameFamily(
        dist.Categorical(logits=vec(m, 2)), dist.Normal(vec(m, 2), t([0.5, 1.0]))
    ),
    "masked": lambda m: dist.Normal(m, t(1.0)).mask(torch.tensor(data=True)),
    "expanded": lambda m: dist.Gamma(t(2.0), t(1.5)).expand(m.shape),
}

#: Distributions of data.
OBSERVED = {
    **{n: LATENT[n] for n in ("normal", "student", "gamma", "lognormal", "beta", "von mises")},
    **{n: LATENT[n] for n in ("mvn", "vector", "dirichlet", "mixture", "weibull", "sticks")},
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
    "hmm": lambda m: dist.DiscreteHMM(
        t([0.3, -0.2]),
        t([[0.1, 0.4], [0.7, -0.3]]).expand(3, 2, 2),
        dist.Normal(vec(m, 2).unsqueeze(-2), t(1.0)),
    ),
}

#: Discrete distributions that can be summed out, and a number from their value.
DISCRETE = {
    "bernoulli": (lambda m: dist.Bernoulli(logits=m), lambda v: v),
    "categorical": (lambda m: dist.Categorical(logits=vec(m, 3)), lambda v: v.to(T) - 1),
    "fixed": (lambda m: dist.Categorical(t([0.2, 0.5, 0.3])), lambda v: t([-1.0, 0.0, 2.0])[v]),
    "one": (lambda m: dist.Categorical(t([1.0])), lambda v: v.to(T)),
    "binomial": (lambda m: dist.Binomial(2, logits=m), lambda v: v - 1),
    "one hot": (
        lambda m: dist.OneHotCategorical(logits=vec(m, 3)),
        lambda v: v.to(T)[..., 0] - v.to(T)[..., 2],
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
    kinds = ["latent", "observed", "observed", "factor", "deterministic"]
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
            c for c in CONTEXTS if kind != "latent" or not any(plate in subsample for plate in c)
        ]
        context = draw(st.sampled_from(contexts))
        usable = [name for name, other in seen.items() if set(other) <= set(context)]
        few = min(2, len(usable))
        parents = [draw(st.sampled_from(usable)) for _ in range(draw(st.integers(0, few)))]
        table = {"latent": LATENT, "observed": OBSERVED, "discrete": DISCRETE, "markov": DISCRETE}
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
        if kind in ("latent", "discrete", "deterministic"):
            seen[name] = context
    outer = draw(st.sampled_from([1.0, 1.0, 1.0, 3.0]))
    spec = Spec(sizes, subsample, outer, tuple(statements))
    _draw_data(spec, draw(st.integers(0, 10**6)))
    return spec


def _draw_data(spec: Spec, seed: int) -> None:
    """Draw observed values from the model's own distributions, for whole plates."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        forward = poutine.trace(_Interpreter(spec, whole=True, draws=True)).get_trace()
        for name, site in forward.nodes.items():
            if name.startswith("o") and site["type"] == "sample":
                spec.data[name] = site["value"]


def model_of(spec: Spec) -> Any:
    """The model, a callable without arguments."""
    return _Interpreter(spec)


class _Interpreter:
    """Runs the statements; under validation it is ordinary Pyro."""

    def __init__(self, spec: Spec, *, whole: bool = False, draws: bool = False) -> None:
        self.spec, self.whole, self.draws = spec, whole, draws
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
            if s.scale == "rows":
                stack.enter_context(poutine.scale(scale=self._rows(s, 0.5, 1.5, 2.0)))
            elif s.scale != 1.0:
                scale = t(1.5) if s.scale == "tensor" else s.scale
                stack.enter_context(poutine.scale(scale=scale))
            for name in s.context:
                self.index[name] = stack.enter_context(plates[name])
            if s.mask != "none":
                rows = self._rows(s, True, False, True, kind=torch.bool)
                mask = rows if s.mask == "rows" else s.mask == "true"
                stack.enter_context(poutine.mask(mask=mask))
            mean = t(0.2 * number - 0.4)
            for place, parent in enumerate(s.parents):
                part = values[parent]
                mean = mean + (0.7 - 0.5 * place) * torch.tanh(part)
            self._statement(s, mean, values, plates)

    def _rows(self, s: Statement, *items: Any, kind: torch.dtype = T) -> Tensor:
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
            pyro.sample(s.name, fn, obs=None if self.draws else self._data(s, fn))
        elif s.kind == "factor":
            pyro.factor(s.name, -0.3 * mean**2)
        elif s.kind == "deterministic":
            values[s.name] = pyro.deterministic(s.name, mean * 2, event_dim=0)
        else:
            self._markov(s, mean)

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
        for plate in s.context:
            value = value.index_select(_DIMS[plate] - fn.event_dim, self.index[plate])
        return value


def _proper(fn: Any) -> Any:
    """An improper prior cannot be drawn from: something of the same support instead."""
    if isinstance(fn, dist.ImproperUniform):
        return dist.Exponential(t(1.0)).expand(fn.batch_shape)
    return fn
