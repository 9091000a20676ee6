"""The learning rate of many steps at once is that of the same steps one by one, bit for bit."""

import pytest

from pyro_nfvi._optim.learning_rate import Schedule


@pytest.mark.parametrize("decay_at", [None, 0, 20, 700])
@pytest.mark.parametrize("size", [1, 7, 50])
def test_blocks_are_the_steps(decay_at, size):
    def walk(count):
        schedule = Schedule(1000)
        factors = []
        while not schedule.finished(len(factors), 0.0):
            if len(factors) == decay_at:
                schedule.begin_decay(decay_at, 0.0)
            ends = [count, schedule.ahead(len(factors))]
            if decay_at is not None and len(factors) < decay_at:
                ends.append(decay_at - len(factors))
            factors += schedule.block(len(factors), min(ends), 0.0)
        return factors

    one_by_one = walk(1)
    assert walk(size) == one_by_one
    assert one_by_one[-1] < 0.02
    assert max(one_by_one) <= 1


def test_time_hurries_the_decay_of_a_block():
    schedule = Schedule(1000, max_seconds=10.0)
    schedule.begin_decay(100, 5.0, to_the_end=True)
    assert schedule.block(200, 3, 9.0) == [schedule.advance(200 + k, 9.0) for k in range(3)]
