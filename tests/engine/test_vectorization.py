"""Loops of generated code that gcc puts into vectors: others take ten times as long."""

from __future__ import annotations

import re
import subprocess

import pytest
import torch
from engine.test_native_ops import recorded

from pyro_nfvi._engine.native.compiler import find_compiler
from pyro_nfvi._engine.native.cpp_source import generate, header
from pyro_nfvi._engine.native.known_values import known_values
from pyro_nfvi._engine.program import Unsupported

#: Element-wise formulas, among them what models' gradients are made of.
FORMULAS = {
    "exp": lambda x, y: x.exp(),
    "tanh": lambda x, y: x.tanh(),
    "lgamma": lambda x, y: x.lgamma(),
    "digamma": lambda x, y: x.digamma(),
    "pow": lambda x, y: x.abs() ** y,
    "xlogy": lambda x, y: torch.xlogy(x, y),
    "softplus": lambda x, y: torch.nn.functional.softplus(x) - torch.nn.functional.logsigmoid(y),
    "logaddexp": lambda x, y: torch.logaddexp(x, y),
    "a function in a branch": lambda x, y: torch.where(x > 0, y.log(), 0.0),
    "a function behind a condition": lambda x, y: torch.where(
        (x > 0) & torch.logical_and(y > 0, x.log() < y), x, y
    ),
    "two functions in branches": lambda x, y: torch.where(x > y, y.log1p(), x.expm1()),
    "clamp": lambda x, y: x.clamp(0.1, 2.0) + torch.maximum(x, y),
    "a mask": lambda x, y: x.masked_fill((x == 0) & (y <= 0), 0.0) * y.exp(),
}

#: Formulas of the chain rule in C++, of x and y, where 0 times infinity is 0.
CHAINS = {
    "a chain of products": "m_product(m_quotient(m_quotient(-1 / x, y), y), x * y) * "
    "m_product(m_quotient(y, x), m_product(x, m_log(y)))",
    "the gradient of Weibull": "m_product(-m_product(m_quotient(-1 / m_abs(x) * m_sign(x), "
    "m_pow(x, y)), y), m_quotient(m_quotient(x, y), y)) + "
    "((y == 0) ? (T)0 : m_product(x, m_product(y, m_pow(x, y - 1))))",
}


def compiler():
    try:
        found = find_compiler()
    except Unsupported as error:
        pytest.skip(str(error))
    if "-DNFVI_LIBMVEC" not in found.flags or "clang" in found.version:
        pytest.skip("no gcc with a vector library")
    return found


def vectorized(found, text, folder):
    """Lines of a source at which the compiler has made vectors of a loop."""
    file = folder / "loops.cpp"
    file.write_text(text)
    words = [*found.command, *found.flags, "-fopt-info-vec-optimized", str(file)]
    run = subprocess.run(
        [*words, "-o", str(folder / "loops.so"), *found.libraries],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    places = set(map(int, re.findall(r"loops\.cpp:(\d+):\d+: optimized: loop vec", run.stderr)))
    if not places:
        pytest.skip("the compiler says nothing of vectors")
    lines = text.split("\n")
    return [lines[place - 1] for place in places]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loops_over_formulas_are_vectorized(dtype, tmp_path):
    found = compiler()
    # Each of a length of its own, by which its loop is found in the source.
    sizes = dict(zip(FORMULAS, range(400, 1000)))
    inputs = [torch.rand(n, dtype=dtype) for n in sizes.values() for _ in range(2)]

    def all_of_them(*xs):
        return [f(*xs[2 * k : 2 * k + 2]) for k, f in enumerate(FORMULAS.values())]

    graph, consts = recorded(all_of_them, inputs)
    holders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    known = known_values(graph, dict(zip(holders[len(inputs) :], consts)))
    text = generate(graph, known).text
    done = vectorized(found, f'{text}\nextern "C" void call(Ctx* cx){{step(cx);}}\n', tmp_path)
    missing = [name for name, n in sizes.items() if not any(f"<{n};" in line for line in done)]
    assert missing == []


@pytest.mark.parametrize("kind", ["float", "double"])
def test_chains_of_products_are_vectorized(kind, tmp_path):
    found = compiler()
    loops = "".join(
        f'extern "C" void f{k}(const T* a, const T* b, T* c) {{\n#pragma omp simd\n'
        f"for (int i = 0; i < 400; i++) {{ const T x = a[i], y = b[i]; c[i] = {formula}; }} }}\n"
        for k, formula in enumerate(CHAINS.values())
    )
    done = vectorized(
        found, f"{header('elementary.h')}\n{header('base.h')}\ntypedef {kind} T;\n{loops}", tmp_path
    )
    assert [n for n, formula in CHAINS.items() if not any(formula in x for x in done)] == []


def test_a_choice_by_flags_in_memory_is_vectorized_and_right():
    from engine.native_function import NativeFunction

    flags = torch.arange(64) % 3 == 0
    x = torch.linspace(-1, 1, 64)
    graph, consts = recorded(
        lambda x, flags: [torch.where(flags, x.exp(), 0.0), ~flags], [x, flags]
    )
    for mine, theirs in zip(NativeFunction(graph, consts)(x, flags), graph(x, flags, *consts)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_digamma_has_the_poles_of_torch(dtype):
    from engine.native_function import NativeFunction

    x = torch.tensor(
        [0.0, -0.0, -1.0, -2.0, -0.5, -1.5, -7.25, 1e-6, 0.3, 1.0, 8.0, 1e6, torch.inf, torch.nan],
        dtype=dtype,
    )
    graph, consts = recorded(lambda x: [x.digamma(), x.lgamma()], [x])
    for mine, theirs in zip(NativeFunction(graph, consts)(x), graph(x, *consts)):
        tolerance = 1e-11 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
