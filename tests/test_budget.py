import math

import pytest

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi.errors import OptionError


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_time_runs_out_and_stays_out():
    clock = Clock()
    budget = Budget.start(10.0, clock)
    assert (budget.spent(), budget.left(), budget.over()) == (0.0, 10.0, False)
    clock.now += 4
    assert (budget.spent(), budget.left(), budget.over()) == (4.0, 6.0, False)
    assert budget.affords(6.0)
    assert not budget.affords(6.1)
    clock.now += 7
    assert (budget.left(), budget.over()) == (0.0, True)


def test_a_part_ends_before_the_whole_and_what_is_reserved_is_not_spent():
    clock = Clock()
    whole = Budget.start(10.0, clock)
    clock.now += 2
    training = whole.reserving(3.0)
    assert training.left() == 5.0
    half = training.part(0.5)
    assert (half.left(), half.spent()) == (2.5, 0.0)
    clock.now += 2.5
    assert half.over()
    assert training.left() == 2.5
    assert whole.left() == 5.5


def test_no_limit_is_no_limit():
    for budget in (UNLIMITED, UNLIMITED.part(0.1), UNLIMITED.reserving(5.0)):
        assert budget.left() == math.inf
        assert not budget.over()


@pytest.mark.parametrize("limit", [0, -1, True, "10", math.nan])
def test_a_limit_is_a_positive_time(limit):
    with pytest.raises(OptionError, match="max_seconds is a positive time"):
        Budget.start(limit)
