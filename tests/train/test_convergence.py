"""What a look at the bound says of courses that are made up, without a fit."""

import dataclasses

import pytest
import torch

from pyro_nfvi._engine.program import BlockResult
from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._optim.learning_rate import Schedule
from pyro_nfvi._random import stream
from pyro_nfvi._train.convergence import ConvergenceTest, Outcome
from pyro_nfvi._train.resume import restored_state, saved_state
from pyro_nfvi._train.training_state import TrainingState


def looks(bounds, *, max_steps=10_000, until=None, **options):
    """Run through bounds as the loop does; return the looks that said something, by step."""
    test, state, found = ConvergenceTest.of(**options), TrainingState(Schedule(max_steps)), {}
    bounds = torch.as_tensor(bounds, dtype=torch.float64)
    while state.history.step < len(bounds):
        begin = state.history.step
        block = bounds[begin : begin + test.ahead(begin)]
        ok = torch.ones(len(block), dtype=torch.bool)
        state.history.add(BlockResult(block, torch.zeros(len(block)), ok), seconds=0.0)
        outcome = test.look(state)
        if outcome != Outcome():
            found[state.history.step] = outcome
        if until is not None and until(outcome):
            break
    return found, state


def noise(count, scale=0.1):
    return scale * torch.randn(count, generator=stream(0, "bounds"))


def test_a_flat_bound_is_flat_and_a_rising_one_is_not():
    flat, _ = looks(noise(2000))
    assert any(one.flat for one in flat.values())
    rising, _ = looks(noise(2000) + 0.01 * torch.arange(2000.0))
    assert not any(one.flat for one in rising.values())
    assert all(one.best for one in rising.values())  # each block is the best one so far
    kept_on, _ = looks(noise(2000), stop=False)
    assert not any(one.flat for one in kept_on.values())


def test_a_bound_that_falls_for_good_goes_back_once_and_is_judged_anew():
    bounds = torch.cat([noise(300), noise(3000) - 1000.0])
    found, state = looks(bounds, until=lambda one: one.fall is not None)
    last = found[state.history.step]
    assert last.fall == pytest.approx(1000.0, rel=1e-3)
    assert not last.flat
    assert not last.best
    assert state.best_block.retreats == [state.history.step]
    assert state.best_block.low_steps == 0


def test_nothing_is_flat_or_fallen_while_the_objective_changes():
    falling = torch.cat([noise(300), noise(1700) - 1000.0])
    for bounds in (noise(2000), falling):
        found, _ = looks(bounds, changing=10_000)
        assert not any(one.flat or one.fall is not None for one in found.values())


def test_bounds_that_are_not_finite_judge_no_state():
    found, state = looks(torch.full((1000,), float("nan")))
    assert not found
    assert state.best_block.bound == -float("inf")


def test_states_are_averaged_in_the_decay_alone():
    test, state = ConvergenceTest.of(average=True), TrainingState(Schedule(10_000))
    block = torch.zeros(test.ahead(0), dtype=torch.float64)
    result = BlockResult(block, torch.zeros(len(block)), torch.ones(len(block)))
    state.history.add(result, seconds=1.0)
    assert not test.look(state).average
    state.schedule.begin_decay(state.history.step, 1.0)
    assert test.look(state).average


def test_a_state_comes_back_from_its_file_and_one_of_other_types_is_refused():
    _, state = looks(torch.cat([noise(300), noise(3000) - 1000.0]))
    state.schedule.begin_decay(state.history.step, 2.5)
    state.recovery.restored(7)
    state.history.note("something was noted")
    saved = saved_state(state, (torch.get_rng_state(), 3), {})
    assert saved.counts["noise_used"] == 3
    assert restored_state(saved, TrainingState(Schedule(10_000))) == state
    for broken in ({"rate": "half"}, {"restores": 1.0}, {"of no name": 1}):
        other = dataclasses.replace(saved, state={**saved.state, **broken})
        with pytest.raises(Malformed, match=next(iter(broken))):
            restored_state(other, TrainingState(Schedule(10_000)))
