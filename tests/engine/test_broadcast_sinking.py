"""Laws of broadcast sinking: the same numbers, each of them computed once."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from engine.latent_parameters import (
    CASES,
    LEFT_OUT,
    PARTICLES,
    UNCAPTURED,
    latents,
    observations,
    score,
)
from engine.native_function import NativeFunction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule, Interpreter

from pyro_nfvi._engine.broadcast_sinking import sink_broadcasts
from pyro_nfvi._engine.native.known_values import known_values
from pyro_nfvi._engine.recorder import Recorder

#: Results that are the same number in all rows though no operand is: ``(k + a) + (n - k + b)``.
ALGEBRAIC = {"BetaBinomial", "ExtendedBetaBinomial"}
#: Results of these may be the same number in all rows by chance: what a mask of data lets through.
CHEAP = {
    "add", "sub", "rsub", "mul", "div", "neg", "where", "masked_fill", "clamp", "abs", "sgn",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _unvalidated_doubles():
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.set_default_dtype(torch.float64)


def record(function, *inputs):
    recorder = Recorder({f"x{k}": x for k, x in enumerate(inputs)})
    with recorder:
        outputs = list(function(*inputs))
    recorder.output(outputs)
    return GraphModule(torch.nn.Module(), recorder.graph), recorder.consts


def recorded(name, dtype=torch.float64):
    """Graph, constants and inputs of a distribution with latent parameters."""
    torch.set_default_dtype(dtype)
    a, b = latents(dtype)
    value = observations(name, dtype)
    if name in ("Categorical", "OrderedLogistic"):
        value = value.long()
    return *record(lambda a, b: score(name)(a, b, value), a, b), (a, b)


def same(found, expected, tolerance):
    """Equal up to rounding, and of one kind where not finite."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        if theirs.is_floating_point():
            size = theirs[theirs.isfinite()].abs().max() if theirs.isfinite().any() else 0.0
            atol = tolerance * (1 + float(size))
            assert torch.allclose(mine, theirs, rtol=tolerance, atol=atol, equal_nan=True)
        else:
            assert torch.equal(mine, theirs)


# ----------------------------------------------------------------------------- the catalogue


def test_every_distribution_of_pyro_has_a_case():
    known = {name.split()[0] for name in CASES} | LEFT_OUT | UNCAPTURED
    names = {
        name
        for name in dir(dist)
        if isinstance(getattr(dist, name), type)
        and issubclass(getattr(dist, name), torch.distributions.Distribution)
    }
    assert names - known == set()


@pytest.mark.parametrize("name", CASES)
def test_numbers_of_a_distribution_stay(name):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        graph, consts, inputs = recorded(name, dtype)
        narrow = sink_broadcasts(graph)
        same(narrow(*inputs, *consts), graph(*inputs, *consts), tolerance)


class _Watch(Interpreter):
    """Runs a graph and notes which nodes compute the same row of numbers again and again."""

    def __init__(self, graph, known):
        super().__init__(graph)
        self.known, self.found = known, []

    def run_node(self, n):
        value = super().run_node(n)
        name = getattr(getattr(n.target, "_schema", None), "name", "").rpartition("::")[2]
        pointwise = torch.Tag.pointwise in getattr(n.target, "tags", ()) and name not in CHEAP
        matrix = "linalg" in name or "cholesky" in name
        if n.op == "call_function" and n not in self.known and (pointwise or matrix):
            one = value if torch.is_tensor(value) else value[0]
            # One number everywhere, as the logarithm of a mask, may be so by chance.
            if one.is_floating_point() and not bool((one == one.reshape(-1)[:1]).all()):
                for axis, size in enumerate(one.shape):
                    if size > 1 and torch.equal(one, one.narrow(axis, 0, 1).expand_as(one)):
                        self.found.append((str(n.target), tuple(one.shape), axis))
        return value


def repetitions(graph, consts, inputs):
    holders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    known = known_values(graph, dict(zip(holders[len(inputs) :], consts)))
    watch = _Watch(graph, known)
    watch.run(*inputs, *consts)
    return watch.found


@pytest.mark.parametrize("name", [name for name in CASES if name not in ALGEBRAIC])
def test_no_number_of_a_distribution_is_computed_twice(name):
    graph, consts, inputs = recorded(name)
    assert repetitions(sink_broadcasts(graph), consts, inputs) == []


def test_the_law_of_repetitions_sees_them():
    assert len(repetitions(*recorded("StudentT"))) >= 6


def special(graph, *names):
    """Numbers that special functions of a graph compute."""
    return sum(
        node.meta["val"].numel()
        for node in graph.graph.nodes
        if any(f"aten.{name}." in str(node.target) for name in names)
    )


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("StudentT", 2),  # lgamma of nu / 2 and (nu + 1) / 2, and their digammas
        ("Gamma", 1),
        ("InverseGamma", 1),
        ("Beta", 3),
        ("Chi2", 1),
        ("Dirichlet", 4),
        ("FisherSnedecor", 3),
    ],
)
def test_special_functions_are_evaluated_once_for_each_particle(name, most):
    graph, *_ = recorded(name)
    narrow = sink_broadcasts(graph)
    assert special(narrow, "lgamma") <= most * PARTICLES < special(graph, "lgamma")
    assert special(narrow, "digamma") <= most * PARTICLES < special(graph, "digamma")


@pytest.mark.slow
def test_native_code_of_the_narrow_graphs_equals_torch():
    for name in CASES:
        graph, consts, inputs = recorded(name)
        found = NativeFunction(sink_broadcasts(graph), consts, rows=PARTICLES)(*inputs)
        same(found, graph(*inputs, *consts), 1e-9)


# ------------------------------------------------------------------------------------ gathers


def test_special_functions_of_group_parameters_are_computed_before_the_gather():
    group = torch.arange(40) % 4
    value = torch.linspace(-2, 2, 40)

    def function(x):
        x = x.detach().requires_grad_()
        log_prob = dist.StudentT(x.exp()[..., group], 0.0, 1.0).log_prob(value)
        return [log_prob, *torch.autograd.grad(log_prob.sum(), [x])]

    x = torch.linspace(-1, 2, 3 * 4).reshape(3, 4)
    graph, consts = record(function, x)
    narrow = sink_broadcasts(graph)
    same(narrow(x, *consts), graph(x, *consts), 1e-12)
    assert special(narrow, "lgamma", "digamma") == 4 * 3 * 4
    assert special(graph, "lgamma", "digamma") == 4 * 3 * 40


def test_a_gather_from_more_than_it_picks_comes_first():
    index = torch.tensor([5, 1])
    x = torch.linspace(0.5, 3, 30).reshape(3, 10)
    graph, consts = record(lambda x: [x[:, index].lgamma()], x)
    assert special(sink_broadcasts(graph), "lgamma") == 3 * 2


# --------------------------------------------------------------------- what is not finite, nothing


@pytest.mark.parametrize("number", [0.0, -0.0, torch.inf, -torch.inf, torch.nan, -1.0])
@pytest.mark.parametrize("other", [0.0, torch.inf, 2.0])
def test_what_is_not_finite_stays(number, other):
    data = torch.tensor([0.0, 1.0, other, -2.0, torch.inf])

    def function(x, y):
        wide = x.expand(2, 5)
        return [
            (wide * data).sum(-1),
            wide.sum(-1),
            (wide.log() + data).sum(),
            torch.xlogy(wide, data),
            torch.xlogy(data, wide),
            torch.special.xlog1py(data, wide).sum(0),
            torch.where(data > 0, wide, y.expand(2, 5)).nansum(-1),
            torch.ops.pyro_nfvi.product(wide, data),
            torch.ops.pyro_nfvi.quotient(data, wide).sum(0),
            torch.nn.functional.binary_cross_entropy_with_logits(wide, data.expand(2, 5),
                                                                 reduction="none"),
            wide.logsumexp(-1), wide.amax(-1), wide.mean(), wide.prod(-1), wide.cumsum(-1),
            torch.softmax(wide, -1),
        ]  # fmt: skip

    x, y = torch.tensor([[number], [1.0]]), torch.tensor([[other], [number]])
    graph, consts = record(function, x, y)
    same(sink_broadcasts(graph)(x, y, *consts), graph(x, y, *consts), 1e-12)


def test_a_sum_of_no_terms_is_zero_whatever_is_repeated():
    x = torch.tensor([[-torch.inf], [2.0]])
    graph, consts = record(lambda x: [x.expand(2, 0).exp().sum(-1), x.log().expand(2, 0)], x)
    total, nothing = sink_broadcasts(graph)(x, *consts)
    assert total.tolist() == [0.0, 0.0]
    assert nothing.shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_counts_keep_their_type(dtype):
    x = torch.tensor([[1], [0]]).to(dtype)
    graph, consts = record(lambda x: [x.expand(2, 7).sum(-1), x.expand(2, 7).sum()], x)
    same(sink_broadcasts(graph)(x, *consts), graph(x, *consts), 0.0)


# ------------------------------------------------------------------------------- random graphs

_SHAPES = [(3, 4), (3, 1), (1, 4), (4,), (1,), (), (2, 3, 4), (2, 1, 4), (1, 3, 1)]
_UNARY = [
    torch.exp, torch.lgamma, torch.digamma, torch.abs, torch.neg, torch.sigmoid, torch.tanh,
    torch.nn.functional.softplus, torch.nn.functional.logsigmoid, lambda x: x * 0.5,
    lambda x: x.clamp(-1.0, 2.0), lambda x: x + 1.0, torch.square,
]  # fmt: skip
_BINARY = [
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.xlogy,
    lambda x, y: torch.where(x > 0, x, y), torch.logaddexp,
]  # fmt: skip
_ROWS = [
    lambda x: x.sum(-1), lambda x: x.sum(0, keepdim=True), lambda x: x.mean(-1, keepdim=True),
    lambda x: x.amax(-1), lambda x: x.logsumexp(-1), lambda x: x.cumsum(-1),
    lambda x: torch.softmax(x, -1), lambda x: x.flip(-1), lambda x: x.nansum(0),
    lambda x: x.prod(-1), lambda x: x.var(-1, correction=0),
]  # fmt: skip
_LOOKS = [
    lambda x: x.unsqueeze(0), lambda x: x.unsqueeze(-1), lambda x: x.reshape(-1),
    lambda x: x.transpose(0, -1), lambda x: x[..., :1], lambda x: x[..., 0], lambda x: x[-1:],
    lambda x: x.squeeze(), lambda x: x.squeeze(0), lambda x: x.expand(2, *x.shape),
    lambda x: torch.stack([x, x * 2]), lambda x: torch.cat([x, x[..., :1]], -1),
    lambda x: x.clone(), lambda x: x.split(1, -1)[0], lambda x: x.unbind(0)[-1],
    lambda x: x.reshape(*x.shape[:-1], 1, x.shape[-1]), lambda x: x.double(),
    lambda x: x[..., torch.tensor([0, 0, x.shape[-1] - 1, 0, 0, 0])],
    lambda x: x.index_select(0, torch.tensor([x.shape[0] - 1, 0])),
    lambda x: x @ x.transpose(-1, -2), lambda x: torch.tril(x), lambda x: x.diagonal(0, -1, -2),
]  # fmt: skip


@st.composite
def _programs(draw):
    """Statements ``(operation, operands)`` and the shapes of the inputs."""
    shapes = draw(st.lists(st.sampled_from(_SHAPES), min_size=2, max_size=3))
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from([*_UNARY, *_BINARY, *_BINARY, *_ROWS, *_LOOKS, "expand", "expand"]),
                st.integers(0, 99),
                st.integers(0, 99),
            ),
            min_size=3,
            max_size=10,
        )
    )
    numbers = st.sampled_from([0.0, -1.5, 0.7, 2.0, torch.inf, -torch.inf, torch.nan])
    odd = draw(st.lists(st.tuples(st.integers(0, 99), numbers), max_size=2))
    return shapes, steps, odd, draw(st.booleans())


def _function(steps, differentiate):
    def function(*inputs):
        values = [x.detach().requires_grad_(differentiate) for x in inputs]
        leaves = list(values)
        for operation, i, j in steps:
            x, y = values[-1 - i % len(values)], values[-1 - j % len(values)]
            try:
                if operation == "expand":
                    x, y = torch.broadcast_tensors(x, y)
                    made = x if i % 2 else y
                else:
                    made = operation(x, y) if operation in _BINARY else operation(x)
            except (RuntimeError, IndexError):  # of another shape than it takes
                continue
            if 0 < made.numel() < 2000:
                values.append(made)
        if not differentiate:
            return values[len(leaves) :] or leaves
        total = sum(value.sum() for value in values[-3:])
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        return [total.detach(), *(grad for grad in grads if grad is not None)]

    return function


@settings(max_examples=150, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(_programs())
def test_numbers_of_random_graphs_stay(program):
    shapes, steps, odd, differentiate = program
    generator = torch.Generator().manual_seed(len(steps))
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    for place, number in odd:
        one = inputs[place % len(inputs)]
        one.view(-1)[place % one.numel()] = number
    function = _function(steps, differentiate)
    graph, consts = record(function, *inputs)
    narrow = sink_broadcasts(graph)
    found, expected = narrow(*inputs, *consts), graph(*inputs, *consts)
    same(found, expected, 1e-10)
    again = sink_broadcasts(narrow)
    same(again(*inputs, *consts), expected, 1e-10)


def test_right_sides_that_share_a_matrix_are_solved_at_once():
    root = torch.linalg.cholesky(torch.eye(3) * 2 + 0.3)
    b = torch.linspace(-1, 2, 2 * 5 * 3).reshape(2, 5, 3, 1)

    def function(scale, b):
        roots = (scale.reshape(2, 1, 1, 1) * root).expand(2, 5, 3, 3)
        return [torch.linalg.solve_triangular(roots, b, upper=False)]

    scale = torch.tensor([1.0, 3.0])
    graph, consts = record(function, scale, b)
    narrow = sink_broadcasts(graph)
    same(narrow(scale, b, *consts), graph(scale, b, *consts), 1e-12)
    shapes = [
        [tuple(x.meta["val"].shape) for x in n.args]
        for n in narrow.graph.nodes
        if n.op == "call_function" and "solve_triangular" in str(n.target)
    ]
    assert shapes == [[(2, 3, 3), (2, 3, 5)]]
