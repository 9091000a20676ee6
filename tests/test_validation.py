"""Counts, numbers and seeds: what they take, of NumPy too, and what they say to the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_nfvi._validation import number, seed_number, whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Planar


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind_become_ints(value):
    found = whole("n", value)
    assert (type(found), found) == (int, 3)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True, np.float64(3), torch.ones(2)])
def test_what_is_no_count_is_named(value):
    with pytest.raises(OptionError, match="n needs to be a whole number of at least 1; got"):
        whole("n", value)


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5)])
def test_numbers_of_any_kind_become_floats(value):
    assert type(number("lr", value, above=0)) is float


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "a", None, True])
def test_what_is_no_number_is_named(value):
    with pytest.raises(OptionError, match="lr needs to be a finite number above 0; got"):
        number("lr", value, above=0)


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, "a", True])
def test_what_is_no_seed_is_named(value):
    with pytest.raises(OptionError, match="seed needs"):
        seed_number(value)


def test_seeds_are_whole_numbers_or_none():
    assert seed_number(None) is None
    assert seed_number(np.int64(7)) == 7


def test_a_flow_of_numpy_sizes_is_one_of_ints():
    flow = Planar(np.int64(3), np.int32(2))
    assert (type(flow.dim), type(flow.context_dim)) == (int, int)
