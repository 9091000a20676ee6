"""The times of a fit: parts that never overlap and cover the whole call, whatever it does."""

from __future__ import annotations

import time

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI
from pyro_nfvi._stopwatch import Stopwatch
from pyro_nfvi._timing import PARTS, Timing
from pyro_nfvi.errors import DivergedError

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta, SIGMA), obs=Y)


def two_modes():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    pyro.factor("modes", torch.logaddexp(-2 * (x[..., 0] - 3) ** 2, -2 * (x[..., 0] + 3) ** 2))


def with_parameter():
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", 8):
        pyro.sample("y", dist.Normal(mu, scale), obs=Y)


#: A fit of each kind that takes another way through the stages, and parts that it must name.
KINDS = {
    "auto": (schools, {"max_steps": 60}, ("gaussian", "modes", "scoring", "checks")),
    "captured": (
        schools,
        {"guide": "affine", "precondition": False, "max_steps": 300, "stop": False},
        ("capture", "comparison", "training"),
    ),
    "modes": (two_modes, {"max_steps": 60}, ("gaussian", "modes", "scoring", "checks")),
    "parameters": (with_parameter, {"max_steps": 30}, ("parameters", "gaussian", "scoring")),
    "no start": (schools, {"guide": "iaf", "precondition": False, "max_steps": 5}, ("training",)),
    "no time": (schools, {"max_seconds": 0.05}, ("set_up", "scoring")),
}  # fmt: skip


def assert_complete(timing, wall):
    parts = timing.parts
    assert set(parts) == {*PARTS, "other"}
    assert min(parts.values()) >= 0.0
    assert sum(parts.values()) == pytest.approx(timing.total, rel=1e-9)
    assert timing.total <= wall
    # Reading the options, restoring the random state and the like: milliseconds.
    assert wall - timing.total < 0.1 + 0.02 * wall
    assert parts["other"] < 0.1 + 0.02 * wall


@pytest.mark.parametrize("kind", KINDS)
def test_parts_cover_the_call(kind):
    model, options, named = KINDS[kind]
    nfvi = NFVI(model, seed=0, progress=False, **options)
    begin = time.monotonic()
    fit = nfvi.run()
    assert_complete(fit.timing, time.monotonic() - begin)
    for part in ("set_up", *named):
        assert fit.timing.parts[part] > 0.0, part
    assert fit.timing.steps >= (len(fit.losses) if "training" in named else 0)
    assert (fit.timing.training > 0) == (fit.timing.steps > 0)
    assert str(fit.timing) in fit.report


def test_a_fit_that_diverged_has_its_times():
    def improper():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("steep", torch.exp(20 * x))

    begin = time.monotonic()
    with pytest.raises(DivergedError) as caught:
        NFVI(improper, "affine", precondition=False, seed=0, progress=False).run()
    if caught.value.fit is not None:
        assert_complete(caught.value.fit.timing, time.monotonic() - begin)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_part_inside_of_another_stops_it_and_an_error_ends_it():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now = 1.0

    def compiles():
        with watch.part("gaussian"):
            clock.now = 3.0
            with watch.part("compile"):
                clock.now = 7.0
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiles()
    clock.now = 8.0
    found = watch.read()
    assert (found.gaussian, found.compile, found.other, found.total) == (2.0, 4.0, 2.0, 8.0)
    clock.now = 10.0
    assert watch.read().other == 4.0


def test_timing_in_words_and_in_files():
    timing = Timing(total=10.0, gaussian=6.0, set_up=3.0, checks=0.95, scoring=0.05, steps=4)
    assert str(timing) == "10.00 s (gaussian 6.00, set-up 3.00, checks 0.95, other 0.05)"
    assert Timing.from_json(timing.to_json()) == timing
    assert Timing().step == 0.0
    old = {"setup": 2.0, "fit": 3.0, "evaluate": 1.0, "total": 6.0, "steps_per_s": 100.0}
    found = Timing.from_json(old)
    assert (found.training, found.scoring, found.other, found.steps) == (3.0, 1.0, 2.0, 300)
