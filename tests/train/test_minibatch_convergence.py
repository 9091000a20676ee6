"""The test for a flat bound on common mini-batches."""

import math

import torch

from pyro_nfvi._train.minibatch_convergence import PairedPlateau


def course(bound, *, between=300.0, within=0.3, batches=16, seed=0):
    """Measure batches that differ by much from each other, and by little from state to state.

    The state is the number of the step, which the caller moves.
    """
    state = {"step": 0}

    def measure(look):
        which = torch.Generator().manual_seed(1000 * seed + look)
        of_batch = between * torch.randn(batches, generator=which, dtype=torch.float64)
        anew = torch.Generator().manual_seed(7 + 1000 * seed + look + 31 * state["step"])
        noise = within * torch.randn(batches, generator=anew, dtype=torch.float64)
        return bound(state["step"]) + of_batch + noise

    return state, measure


def stop_of(bound, tolerance, *, most=6000, **options):
    state, measure = course(bound, **options)
    test = PairedPlateau(measure, tolerance)
    for step in range(50, most + 1, 50):
        state["step"] = step
        if test.flat(step):
            return step, test
    return None, test


def rising(step):
    return -500 * math.exp(-step / 400)


def test_sees_a_rise_that_hides_in_the_noise_of_batches():
    """The bound of one batch has an sd of 300 nats: no window of losses would show the rise."""
    step, test = stop_of(rising, tolerance=1.0)
    assert step is not None
    left = -rising(step)
    assert 0 < left < 5.0  # about tau / (1 - exp(-1/2)) where the curve is exponential
    assert abs(test.rise) < 1.0


def test_goes_on_where_nothing_can_be_told():
    assert stop_of(rising, tolerance=1.0, within=50.0)[0] is None


def test_a_part_of_a_pass_counts_for_all_of_it():
    """A span that saw a tenth of the rows shows a tenth of what a pass brings."""
    flat = PairedPlateau(lambda look: torch.zeros(8) + 0.05 * look, tolerance=0.1, passes=0.1)
    flat.looks = [1.0, *[0.0] * 8]
    assert not flat.flat(200)
    assert flat.rise == torch.tensor(0.05).item() * 10


def test_looks_at_new_batches_each_time_and_twice_at_each():
    seen = []
    test = PairedPlateau(lambda look: seen.append(look) or torch.zeros(4), tolerance=-1.0)
    for step in range(50, 1001, 50):
        test.flat(step)
    assert seen == [2, 2, 3, 3, 4, 4, 5, 5, 6]


def test_what_a_checkpoint_holds_is_all_that_it_needs():
    state, measure = course(rising)
    one = PairedPlateau(measure, 1.0)
    state["step"] = 200
    one.flat(200)
    two = PairedPlateau(measure, 1.0, looks=list(one.looks))
    state["step"] = 400
    assert one.flat(400) == two.flat(400)
    assert (one.rise, one.error, one.looks) == (two.rise, two.error, two.looks)


def test_batches_that_are_not_finite_are_left_out():
    values = torch.zeros(8)
    values[3] = torch.nan
    test = PairedPlateau(lambda look: values, tolerance=0.1)
    assert [test.flat(step) for step in (200, 400)] == [False, True]
