"""One rule for k-hat: what it says, and when it says nothing."""

import ast
import re
from pathlib import Path

import pytest
import torch

import pyro_nfvi
from pyro_nfvi.diagnostics import judge_weights
from pyro_nfvi.diagnostics._khat import TailReading, read_tail
from pyro_nfvi.diagnostics._psis import khat_threshold
from pyro_nfvi.errors import WeightError

PACKAGE = Path(pyro_nfvi.__file__).parent


def pareto(shape, size=1.0, num=2000):
    """Log weights of one plus a Pareto tail of known shape and size."""
    level = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return torch.log1p(size * (level**-shape - 1))


@pytest.mark.parametrize(
    ("shape", "close", "reliable", "has_mean"),
    [(0.2, True, True, True), (0.6, False, True, True), (0.85, False, False, True),
     (1.6, False, False, False)],
)  # fmt: skip
def test_a_tail_of_known_shape_is_read_right(shape, close, reliable, has_mean):
    tail = read_tail(pareto(shape))
    assert (tail.close, tail.reliable, tail.has_mean) == (close, reliable, has_mean)
    assert not tail.means_nothing
    assert str(tail) == f"k-hat {tail.khat:.2f}"


@pytest.mark.parametrize("size", [1e-12, 1e-10])
def test_weights_that_are_even_have_no_tail_whatever_its_shape(size):
    log_w = pareto(1.9, size)
    tail = read_tail(log_w)
    assert tail.means_nothing
    assert tail.close
    assert "without meaning" in str(tail)
    verdict = judge_weights(torch.randn(2000, 2), log_w)
    assert verdict == "good"
    assert "k-hat without meaning" in verdict.reasons[0]
    assert not re.search(r"k-hat \d", " ".join(verdict.reasons))


def test_a_long_tail_of_little_is_said_to_be_of_no_account():
    """The words follow the rule: nowhere does a large k-hat stand beside "good" without a word."""
    few = pareto(1.3, 1e-5)
    z = torch.linspace(-1, 1, len(few))[:, None]
    verdict = judge_weights(z, few)
    assert verdict == "good"
    assert re.search(
        r"k-hat 1\.\d+, of no account in weights that are nearly even", verdict.reasons[0]
    )
    assert re.search(r"\d of 2000 draws effective", verdict.reasons[0])
    many = judge_weights(z, pareto(1.3, 1e-2))
    assert many == "do not trust"
    assert "no account" not in many.reasons[0]
    near = TailReading(2.24, 256, 0.1, effective=0.99, gap=0.001)
    assert near.nearly_even
    assert not any((near.close, near.reliable, near.has_mean))  # which read the tail alone
    assert "no account" not in str(TailReading(0.3, 256, 0.1, effective=0.99, gap=0.001))


def test_fewer_draws_need_a_lighter_tail():
    assert TailReading(0.6, 2000, 1.0).reliable
    assert not TailReading(0.6, 100, 1.0).reliable
    assert khat_threshold(100) == 0.5


def test_what_is_unknown_is_of_no_use():
    unknown = TailReading(float("nan"), 2000)
    assert str(unknown) == "k-hat unknown"
    assert not any((unknown.close, unknown.reliable, unknown.has_mean))
    with pytest.raises(WeightError):
        read_tail(torch.tensor([torch.nan, 0.0]))


def test_no_module_compares_a_khat_with_a_number_of_its_own():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text("utf-8")
        if path.parent.name == "vae" or path.stem in ("khat", "psis"):
            continue  # the thresholds' own place; the VAE counts images by a column of its tables
        if not re.search(r"khat|pareto_k", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                shapes = [side for side in sides if re.search(r"khat|pareto_k", side)]
                numbers = [side for side in sides if re.fullmatch(r"[\d.]+|_[A-Z_]+", side)]
                if shapes and numbers:
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
