"""False stops of the test that ends a mini-batch fit, on traces whose course is known.

    python benchmarks/minibatch_stopping.py           # writes docs/benchmarks/minibatch_stopping.md
    python benchmarks/minibatch_stopping.py --smoke   # seconds, prints only

A trace is a bound that rises in one of four ways, seen on mini-batches whose bounds differ by
hundreds of nats. A stop is false where the bound would still have risen by more than the tolerance
over the next span of steps. Beside it the test of losses that fits of all data use, and a copy of
it whose losses are those of the mini-batches.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import torch

from benchmarks._report import environment, in_words, table, write
from pyro_nfvi._optim.early_stopping import Plateau
from pyro_nfvi._train.minibatch_convergence import PairedPlateau
from pyro_nfvi._train.recipe import PAIRED

#: Most steps of a trace, sd of a mini-batch's bound, tolerance in nats.
STEPS, BETWEEN, TOLERANCE = 6000, 300.0, 1.0


def uniform(generator, low, high):
    """One number, uniform on the logarithmic scale."""
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    return math.exp(math.log(low) + share * math.log(high / low))


def exponential(generator):
    size, time = uniform(generator, 30, 3000), uniform(generator, 100, 800)
    return lambda t: -size * math.exp(-t / time)


def power(generator):
    size, power = uniform(generator, 300, 30000), uniform(generator, 0.7, 1.5)
    return lambda t: -size * (t + 50.0) ** -power


def two_speeds(generator):
    fast, slow = exponential(generator), uniform(generator, 5, 100)
    time = uniform(generator, 1000, 3000)
    return lambda t: fast(t) - slow * math.exp(-t / time)


def line(generator):
    slope, end = uniform(generator, 0.01, 0.5), uniform(generator, 1000, 4000)
    return lambda t: slope * min(t - end, 0.0)


KINDS = {
    "exponential": exponential,
    "power law": power,
    "two speeds": two_speeds,
    "straight line, then flat": line,
}


def paired(bound, noise, seed):
    """Stop of the test on common mini-batches; None if it does not stop."""
    state = {"step": 0}

    def measure(look):
        which = torch.Generator().manual_seed(1_000_003 * seed + look)
        of_batch = BETWEEN * torch.randn(PAIRED.batches, generator=which, dtype=torch.float64)
        # One state's draws on one batch: heavy tails, as log weights have.
        which.manual_seed(1_000_003 * seed + 101 * look + state["step"] + 500_000)
        z = torch.randn(4, PAIRED.batches, generator=which, dtype=torch.float64)
        heavy = z[0] / (z[1:].square().mean(0)).sqrt()
        return bound(state["step"]) + of_batch + noise * heavy

    test = PairedPlateau(measure, TOLERANCE)
    for step in range(PAIRED.span, STEPS + 1, PAIRED.span):
        state["step"] = step
        if test.flat(step):
            return step
    return None


def of_losses(bound, noise, seed, between):
    """Stop of the test of losses; None if it does not stop."""
    generator = torch.Generator().manual_seed(seed)
    sd = math.hypot(noise, between)
    z = torch.randn(STEPS, generator=generator, dtype=torch.float64)
    losses = [sd * float(e) - bound(t) for t, e in enumerate(z)]
    plateau = Plateau()
    for step in range(50, STEPS + 1, 50):
        if step % plateau.span(step) == 0 and plateau.flat(losses[:step]):
            return step
    return None


def judged(stops):
    """Share of false stops, of stops, and the median delay after the first step that may."""
    false, delays = 0, []
    for bound, stop in stops:
        due = next(
            (
                t
                for t in range(PAIRED.span, STEPS, 50)
                if bound(t + PAIRED.span) - bound(t) <= TOLERANCE
            ),
            STEPS,
        )
        if stop is None:
            continue
        if bound(stop + PAIRED.span) - bound(stop) > TOLERANCE:
            false += 1
        else:
            delays.append(stop - due)
    delays.sort()
    return {
        "traces": len(stops),
        "false": false / len(stops),
        "stopped": sum(stop is not None for _, stop in stops) / len(stops),
        "delay": delays[len(delays) // 2] if delays else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--traces", type=int, default=1000, help="of each kind")
    options = parser.parse_args()
    count = 20 if options.smoke else options.traces
    results = []
    for kind, make in KINDS.items():
        traces = []
        for seed in range(count):
            generator = torch.Generator().manual_seed(seed)
            traces.append((make(generator), uniform(generator, 0.05, 1.0), seed))
        tests = {
            "common mini-batches": lambda bound, noise, seed: paired(bound, noise, seed),
            "losses of mini-batches": lambda bound, noise, seed: of_losses(
                bound, noise, seed, BETWEEN
            ),
        }
        for name, test in tests.items():
            stops = [(bound, test(bound, noise, seed)) for bound, noise, seed in traces]
            results.append({"course": kind, "test": name, **judged(stops)})
            print(results[-1], flush=True)
    if options.smoke:
        return
    rows = [
        (
            one["course"],
            one["test"],
            one["traces"],
            f"{100 * one['false']:.1f} %",
            f"{100 * one['stopped']:.1f} %",
            "" if one["delay"] is None else one["delay"],
        )
        for one in results
    ]
    body = f"""\
Written by `python benchmarks/minibatch_stopping.py`. {in_words(environment())}.

A mini-batch fit ends its constant phase where the bound is flat on common mini-batches
(`pyro_nfvi/_train/minibatch_convergence.py`): {PAIRED.batches} batches, each scored with the same
noise at two states {PAIRED.span} steps apart. Below it is run on made-up traces of up to {STEPS}
steps: a bound with an sd of {BETWEEN:g} nats from batch to batch, and of 0.05 to 1 nat, with the
tails of a Student t of three degrees of freedom, within a batch. A stop counts as false where the
bound would still rise by more than the tolerance, {TOLERANCE:g} nat, over the next {PAIRED.span}
steps; the delay is the number of steps after the first at which a stop is right, in the median.
Beside it the test of losses that fits of all data use, given the losses of mini-batches: the reason
why it is not used there.

{table(("course", "test", "traces", "false stops", "stopped", "delay"), rows)}
"""
    write("minibatch_stopping", "False stops of mini-batch fits", {"rows": results}, body)


if __name__ == "__main__":
    main()
