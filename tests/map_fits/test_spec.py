"""Specifications: several of one, parts of the rows, and bad input told at once."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import AutoFlow, FitSpec
from pyro_nfvi.errors import ModelError, OptionError

X, Y = torch.arange(10.0), torch.arange(10.0) ** 2


def line(x, y, scale=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def spec(*args, **options):
    return FitSpec(line, args or (X, Y), **options)


@pytest.mark.parametrize("folds", [2, 3, 10])
def test_every_row_is_held_out_once(folds):
    specs = spec().k_fold(folds)
    assert [one.labels["fold"] for one in specs] == list(range(folds))
    held = torch.cat([one.held_out.index for one in specs])
    assert sorted(held.tolist()) == list(range(10))
    for one in specs:
        x, y = one.args
        apart = one.held_out.rows.args[0]
        assert torch.equal(torch.cat([x, apart]).sort().values, X)
        assert torch.equal(y, x**2)
        assert len(apart) in (10 // folds, 10 // folds + 1)


def test_folds_depend_on_their_seed_alone():
    held = [
        [one.held_out.index.tolist() for one in spec().k_fold(2, seed=seed)] for seed in (0, 0, 1)
    ]
    assert held[0] == held[1] != held[2]


def test_groups_are_held_out_whole():
    for groups in (["a"] * 4 + ["b"] * 6, torch.tensor([0] * 4 + [1] * 6), np.arange(10) > 3):
        first, second = spec().leave_group_out(groups)
        assert first.held_out.index.tolist() == [0, 1, 2, 3]
        assert torch.equal(first.args[0], X[4:])
        assert torch.equal(second.args[0], X[:4])


def test_rows_of_some_arguments_arrays_and_keywords():
    weights = torch.ones(3)
    one = FitSpec(line, (X.numpy(),), {"y": Y, "scale": weights})
    with pytest.raises(OptionError, match="'scale' has 3. Name those"):
        one.k_fold(2)
    for rows in (["x", "y"], [0, "y"]):
        part = one.k_fold(2, rows=rows)[0]
        assert isinstance(part.args[0], np.ndarray)
        assert len(part.args[0]) == len(part.kwargs["y"]) == 5
        assert part.kwargs["scale"] is weights


def test_seeds_and_sweeps_combine():
    specs = [fold for one in spec().sweep(guide=["affine", "iaf"]) for fold in one.k_fold(2)]
    assert [dict(one.labels) for one in specs] == [
        {"guide": guide, "fold": fold} for guide in ("affine", "iaf") for fold in (0, 1)
    ]
    assert [one.options["guide"] for one in specs] == ["affine"] * 2 + ["iaf"] * 2
    assert [one.seed for one in spec(seed=5).seeds(3)] == [5, 6, 7]
    crossed = spec().sweep(guide=["affine", "iaf"], max_steps=[10, 20])
    assert len({tuple(one.labels.values()) for one in crossed}) == 4


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FitSpec(line, X), "args is a tuple"),
        (lambda: spec(kwargs=[1]), "kwargs is a dict"),
        (lambda: spec(options={"guid": "iaf"}), "no option 'guid'"),
        (lambda: spec(options={"seed": 1}), "field of FitSpec"),
        (lambda: spec(options={"checkpoint": "a"}), "folder="),
        (lambda: spec(options={"max_steps": 0}), "max_steps"),
        (lambda: spec(options={"guide": AutoFlow(line, None)}), "one guide"),
        (lambda: spec(seed=None), "seed is a whole number"),
        (lambda: spec(seed=-1), "seed"),
        (lambda: spec(labels={"a": [1]}), "labels are words and numbers"),
        (lambda: spec(held_out=X), "k_fold or leave_group_out"),
        (lambda: spec().seeds(0), "num_seeds"),
        (lambda: spec().sweep(), "lists of values"),
        (lambda: spec().sweep(guide="iaf"), "lists of values"),
        (lambda: spec().sweep(guide=[]), "lists of values"),
        (lambda: spec().k_fold(1), "num_folds"),
        (lambda: spec().k_fold(11), "at most the number of rows, 10"),
        (lambda: spec().k_fold(2, rows=["z"]), "rows names 'z'"),
        (lambda: spec().k_fold(2, rows="x"), "list of positions or names"),
        (lambda: spec(3, 4).k_fold(2), "No argument holds rows"),
        (lambda: spec(X[:1], Y[:1]).k_fold(2), "two or more"),
        (lambda: spec().leave_group_out([1, 2]), "2 labels, and there are 10 rows"),
        (lambda: spec().leave_group_out([1] * 10), "the same label"),
        (lambda: spec().leave_group_out("a" * 10), "a label for each row"),
        (lambda: spec().leave_group_out([[1]] * 10), "words or numbers"),
    ],
)
def test_bad_input(make, says):
    with pytest.raises(OptionError, match=says):
        make()


def test_a_model_that_is_none():
    with pytest.raises((OptionError, ModelError)):
        FitSpec(3)
