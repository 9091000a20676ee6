"""``max_seconds`` bounds the whole call, on a clock that only the model moves."""

import io
import re
from contextlib import redirect_stderr

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI
from pyro_nfvi._budget import Budget
from pyro_nfvi._optim.learning_rate import Schedule
from pyro_nfvi._train.progress import Progress
from pyro_nfvi.infer._findings import (
    HeavyTails,
    Level,
    MassOutside,
    MovedMoments,
    SecondOpinion,
    TimeOver,
    find,
)

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])


class Clock:
    """Seconds that pass when the model runs, and at no other time."""

    def __init__(self, each):
        self.now, self.each = 0.0, each

    def __call__(self):
        return self.now

    def tick(self):
        self.now += self.each


def slow(clock):
    def model(y):
        clock.tick()
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    return model


def two_modes(clock):
    def model(y):
        clock.tick()
        place = pyro.sample("place", dist.Normal(1.0, 5.0))
        pyro.sample("y", dist.Normal(place.abs(), 0.3), obs=y)

    return model


def alone(clock):
    """A model that has to be run for one particle at a time."""

    def model(y):
        clock.tick()
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        shift = 1.0 if float(mu.detach().mean()) > 100 else 0.0
        pyro.sample("y", dist.Normal(mu + shift, 1.0).expand([len(y)]).to_event(1), obs=y)

    return model


def with_param(clock):
    def model(y):
        clock.tick()
        offset = pyro.param("offset", torch.tensor(0.5))
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + offset, 1.0), obs=y)

    return model


def fitted(make, each, limit, **options):
    clock = Clock(each)
    recipe = NFVI(make(clock), seed=0, progress=False, max_seconds=limit, engine="eager", **options)
    data = torch.tensor(6.0) if make is two_modes else Y
    fit = recipe._run(Budget.start(limit, clock), (data,), {})
    return fit, clock.now


@pytest.mark.parametrize(
    ("make", "each", "limit"),
    [
        (slow, 0.01, 1.0),  # as many as 100 runs of the model: less than the Gaussian takes
        pytest.param(slow, 0.01, 5.0, marks=pytest.mark.slow),
        (two_modes, 0.01, 2.0),
        pytest.param(two_modes, 0.01, 12.0, marks=pytest.mark.slow),
        (alone, 0.01, 2.0),
        (alone, 0.1, 5.0),  # no step of training is begun that would not end in time
        (with_param, 0.01, 2.0),
    ],
)
def test_a_call_ends_in_time_whatever_stage_it_is_in(make, each, limit):
    fit, took = fitted(make, each, limit)
    # A tenth more, and some runs of the model that every fit begins with.
    assert took <= 1.1 * limit + 30 * each
    assert len(fit.draws.z) >= 20
    assert fit.elbo > -torch.inf
    found = find(fit.training.findings, TimeOver)
    if found is not None:
        assert found.level is Level.DOUBT
        assert fit.verdict != "good"
        assert any("max_seconds" in reason for reason in fit.verdict.reasons)


@pytest.mark.parametrize("each", [0.05, 1.0])
def test_there_is_a_result_when_the_time_is_over_at_once(each):
    fit, took = fitted(slow, each, 0.5)
    assert fit.verdict != "good"
    assert find(fit.training.findings, TimeOver).undone
    assert took < 0.5 + 60 * each


#: What each look at the end leaves behind, by the words that say that it was left out.
LOOKS = {
    "the look for mass outside of the guide": lambda found: find(found, MassOutside).share,
    "the look at tails": lambda found: find(found, HeavyTails),
    "the look at means and sds of more draws": lambda found: find(found, MovedMoments),
    "a second opinion by Pyro's own trace": lambda found: find(found, SecondOpinion),
}


@pytest.mark.parametrize(
    ("make", "limit", "none"),
    [
        (slow, 2.0, False),
        (slow, 4.0, False),
        (alone, 2.0, True),
        pytest.param(alone, 60.0, False, marks=pytest.mark.slow),
    ],
)
def test_looks_at_the_end_are_made_or_the_verdict_says_which_were_left_out(make, limit, none):
    """The clock ticks with each run of the model; no call goes more than 5 % beyond its limit."""
    fit, took = fitted(make, 0.01, limit)
    assert took <= 1.05 * limit + 0.1
    found = fit.training.findings
    over = find(found, TimeOver)
    undone = () if over is None else over.undone
    for words, left in LOOKS.items():
        assert (left(found) is None) == (words in undone), words
    if none:
        assert {*LOOKS, "the look for directions without a posterior"} <= set(undone)
    if undone:
        assert fit.verdict != "good"
        assert any(", ".join(undone) in reason for reason in fit.verdict.reasons)


def test_a_part_of_a_budget_ends_with_it():
    clock = Clock(1.0)
    whole = Budget.start(10.0, clock)
    clock.now = 4.0
    assert whole.at_most(3.0).left() == 3.0
    assert whole.at_most(30.0).left() == 6.0
    assert whole.reserving(5.0).at_most(30.0).left() == 1.0
    clock.now = 12.0
    assert whole.at_most(3.0).over()
    assert Budget.start(None, clock).at_most(3.0).left() == 3.0


@pytest.mark.slow
def test_enough_time_changes_nothing():
    free = NFVI(slow(Clock(0.0)), seed=0, progress=False, engine="eager", max_steps=300).run(Y)
    fit, _ = fitted(slow, 1e-6, 1e9, max_steps=300)
    assert torch.equal(fit.draws.z, free.draws.z)
    assert fit.verdict == free.verdict
    assert find(fit.training.findings, TimeOver) is None


def test_every_stage_says_what_it_does():
    """Where nobody sees a bar move, in a line of plain text, and nothing else."""
    shown = io.StringIO()
    with redirect_stderr(shown):
        NFVI(two_modes(Clock(0.0)), seed=0, max_steps=300, progress=True).run(torch.tensor(6.0))
    lines = shown.getvalue().splitlines()
    line = re.compile(r"NFVI: ([a-zA-Z ]+): \d+ (evaluation|draw|look|step|engine)s?, [\d.]+ s")
    assert all(line.fullmatch(one) for one in lines)
    stages = {line.fullmatch(one)[1] for one in lines}
    assert {"fitting a Gaussian", "looking for modes", "scoring draws"} <= stages
    with redirect_stderr(io.StringIO()) as quiet:
        NFVI(slow(Clock(0.0)), seed=0, max_steps=20, progress=False).run(Y)
    assert quiet.getvalue() == ""


def test_a_bar_on_a_terminal_is_one_line_and_ends_full():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with redirect_stderr(Terminal()) as shown:
        with Progress().stage("looking", 1, unit="look"):
            pass
        with pytest.raises(ValueError, match="no"), Progress().stage("failing", 1, unit="look"):
            raise ValueError("no")
    first, second, rest = shown.getvalue().split("\n")
    assert "NFVI: looking: 100%" in first.split("\r")[-1]
    assert "NFVI: failing:   0%" in second.split("\r")[-1]
    assert rest == ""


def test_a_training_in_a_pipe_is_one_line():
    with redirect_stderr(io.StringIO()) as shown, Progress().bar("training iaf*2", 300, 0) as bar:
        for step in range(1, 4):
            bar.update(100 * step, [1.5] * 100, Schedule(300))
    told = r"NFVI: training iaf\*2: 300 steps, [\d.]+ s, bound -1.50 nats, searching\n"
    assert re.fullmatch(told, shown.getvalue())
