"""Models that are hard for variational inference, against long runs of NUTS.

    python benchmarks/hard_models.py               # writes docs/benchmarks/hard_models.{md,json}
    python benchmarks/hard_models.py --smoke       # seconds, prints only
    python benchmarks/hard_models.py --reference   # runs NUTS anew; hours

Every fit is ``NFVI(model).run(data)`` with nothing but a seed. Fits are compared in numbers that do
not depend on labels: predictions of the network, the predictive density of the mixture.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, environment, in_words, table, write
from benchmarks.calibration import RIGHT, WRONG, outcome
from pyro_nfvi import NFVI

#: Outcome of a fit for which there is no reference.
UNKNOWN = "unknown"
#: Means and sds of the long runs of NUTS, by model.
REFERENCE = Path(__file__).resolve().parent / "hard_models_nuts.json"


@dataclass(frozen=True)
class Protocol:
    """Sizes of the comparison.

    Attributes:
        seeds: Fits of each model.
        draws: Draws of a fit from which its means and sds come: their error is 0.01 sd.
        chains: Chains of NUTS, which begin at draws of the prior.
        warmup: Warm-up transitions of each.
        kept: Transitions of each that count.
        accept: Mean acceptance probability that NUTS adapts its steps to.
        minutes: CPU minutes within which a fit has to end.
    """

    seeds: int = 3
    draws: int = 10_000
    chains: int = 4
    warmup: int = 500
    kept: int = 1000
    accept: float = 0.95
    minutes: float = 10.0


PROTOCOL = Protocol()
#: The network's transitions take a hundred gradients and more each.
SHORT = Protocol(warmup=300, kept=400, accept=0.8)


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------- a neural network

X = torch.linspace(-2.0, 2.0, 40)
X_NEW = torch.linspace(-2.5, 2.5, 11)


def units(x, w1, b1, w2):
    hidden = torch.tanh(x[:, None] * w1[..., None, :] + b1[..., None, :])
    return (hidden * w2[..., None, :]).sum(-1)


def network(y):
    """Five hidden units: 17 numbers, whose posterior has 3,840 images of each mode."""
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(5), 2.0).to_event(1))
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    b2 = pyro.sample("b2", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(0.5))
    mean = units(X, w1, b1, w2) + b2[..., None]
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, scale[..., None] if scale.dim() else scale), obs=y)


def network_seen(draws):
    found = {"scale": draws["scale"]}
    curve = units(X_NEW, draws["w1"], draws["b1"], draws["w2"]) + draws["b2"][:, None]
    return found | {f"f({x:.1f})": curve[:, i] for i, x in enumerate(X_NEW.tolist())}


# -------------------------------------------------------------------- a hidden Markov model

HMM_STEPS = 200


def hmm_data():
    draw = torch.rand(HMM_STEPS, generator=torch.Generator().manual_seed(0))
    states = ((draw > 0.9).long().cumsum(0)) % 2
    return torch.where(states == 0, -1.0, 1.5) + 0.6 * noise(1, HMM_STEPS)


def hidden_markov(y):
    """Two states over 200 steps, summed out by a ``DiscreteHMM``."""
    stay = pyro.sample("stay", dist.Beta(torch.tensor([9.0, 9.0]), 1.0).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    rows = [torch.stack([stay[..., 0], 1 - stay[..., 0]], -1)]
    rows.append(torch.stack([1 - stay[..., 1], stay[..., 1]], -1))
    seen = dist.Normal(loc, scale.unsqueeze(-1) if scale.dim() else scale)
    chain = dist.DiscreteHMM(torch.zeros(2), torch.stack(rows, -2).log(), seen)
    pyro.sample("y", chain, obs=y)


def hmm_seen(draws):
    found = {f"{name}[{i}]": draws[name][:, i] for name in ("stay", "loc") for i in range(2)}
    return found | {"scale": draws["scale"]}


# ---------------------------------------------------- a truncated Dirichlet-process mixture

COMPONENTS = 8
GRID = torch.linspace(-7.0, 7.0, 15)


def mixture_data():
    centres = torch.tensor([-4.0, 0.0, 5.0]).repeat_interleave(20)
    return centres + torch.tensor([1.0, 0.7, 0.5]).repeat_interleave(20) * noise(2, 60)


def sticks(beta):
    one, left = torch.ones_like(beta[..., :1]), (1 - beta).cumprod(-1)
    return torch.cat([beta, one], -1) * torch.cat([one, left], -1)


def dirichlet_process(y):
    """A mixture of at most eight components by broken sticks; labels are summed out."""
    alpha = pyro.sample("alpha", dist.Gamma(2.0, 2.0))
    with pyro.plate("sticks", COMPONENTS - 1):
        beta = pyro.sample("beta", dist.Beta(torch.ones(()), alpha[..., None]))
    with pyro.plate("components", COMPONENTS):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        scale = pyro.sample("width", dist.LogNormal(-0.3, 0.4))
    weights = sticks(beta)
    with pyro.plate("data", len(y)):
        label = pyro.sample("label", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc[..., label], scale[..., label]), obs=y)


def mixture_seen(draws):
    weights = sticks(draws["beta"])
    each = dist.Normal(draws["loc"], draws["width"]).log_prob(GRID[:, None, None]).exp()
    density = (weights * each).sum(-1)
    found = {"alpha": draws["alpha"], "sum of squared weights": weights.square().sum(-1)}
    return found | {f"p({x:.0f})": density[i] for i, x in enumerate(GRID.tolist())}


# -------------------------------------------------------------------------- capture-recapture

ANIMALS, YEARS = 60, 7


def captures():
    """Histories ``(ANIMALS, YEARS)`` of animals that were caught at least once."""
    stream = torch.Generator().manual_seed(3)
    survives = torch.tensor([0.85, 0.6, 0.75, 0.9, 0.5, 0.7])
    rows = []
    while len(rows) < ANIMALS:
        first = int(torch.randint(YEARS - 1, (), generator=stream))
        row, alive = torch.zeros(YEARS), True
        row[first] = 1.0
        for year in range(first + 1, YEARS):
            alive = alive and bool(torch.rand((), generator=stream) < survives[year - 1])
            row[year] = float(alive and bool(torch.rand((), generator=stream) < 0.6))
        rows.append(row)
    return torch.stack(rows)


def capture_recapture(seen):
    """Cormack-Jolly-Seber: survival varies over years, an animal's states are a Markov chain."""
    level, spread, caught = survival()
    animals = pyro.plate("animals", len(seen), dim=-1)
    alive = torch.ones(len(seen))
    known = torch.zeros(len(seen), dtype=torch.bool)
    for year in pyro.markov(range(YEARS)):
        logit = pyro.sample(f"logit_{year}", dist.Normal(level, spread)) if year else level
        with animals:
            # Until it is first caught an animal counts as alive.
            stays = torch.where(known, torch.sigmoid(logit) * alive, torch.ones(()))
            alive = pyro.sample(
                f"alive_{year}", dist.Bernoulli(stays), infer={"enumerate": "parallel"}
            )
            with pyro.poutine.mask(mask=known):
                pyro.sample(f"y_{year}", dist.Bernoulli(caught * alive), obs=seen[:, year])
        known = known | (seen[:, year] > 0)


def survival():
    level = pyro.sample("level", dist.Normal(0.0, 1.5))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    return level, spread, pyro.sample("caught", dist.Uniform(0.0, 1.0))


def captures_by_hand(seen):
    """The same posterior, with the states summed out by the forward algorithm: NUTS runs on it."""
    level, spread, caught = survival()
    alive, dead = torch.ones(len(seen)), torch.zeros(len(seen))
    known = torch.zeros(len(seen), dtype=torch.bool)
    for year in range(YEARS):
        if year:
            stays = torch.sigmoid(pyro.sample(f"logit_{year}", dist.Normal(level, spread)))
            here = torch.where(seen[:, year] > 0, caught, 1 - caught)
            none = 1 - seen[:, year]
            both = alive * stays * here, (dead + alive * (1 - stays)) * none
            alive = torch.where(known, both[0], alive)
            dead = torch.where(known, both[1], dead)
        known = known | (seen[:, year] > 0)
    pyro.factor("histories", (alive + dead).log().sum())


def capture_seen(draws):
    names = ["level", "spread", "caught", *(f"logit_{year}" for year in range(1, YEARS))]
    return {name: draws[name].reshape(len(draws["level"])) for name in names}


# ------------------------------------------------------------------------------ all of them


@dataclass(frozen=True)
class Model:
    """A model with its data, and the numbers in which a fit is compared.

    Attributes:
        title: In words.
        run: The model.
        data: Makes its data.
        seen: From draws of the latents ``(S, *shape)`` to numbers ``(S,)`` by name.
        by_hand: The same posterior for NUTS, where the model itself is dear to it.
        nuts: Sizes of its runs.
    """

    title: str
    run: Callable[[torch.Tensor], None]
    data: Callable[[], torch.Tensor]
    seen: Callable[[dict], dict]
    by_hand: Callable[[torch.Tensor], None] | None = None
    nuts: Protocol = PROTOCOL


MODELS = {
    "network": Model(
        "neural net, 17 weights",
        network,
        lambda: torch.sin(2 * X) + 0.1 * noise(0, len(X)),
        network_seen,
        nuts=SHORT,
    ),
    "hidden_markov": Model(f"`DiscreteHMM`, {HMM_STEPS} steps", hidden_markov, hmm_data, hmm_seen),
    "dirichlet_process": Model(
        f"Dirichlet-process mixture, {COMPONENTS} sticks",
        dirichlet_process,
        mixture_data,
        mixture_seen,
    ),
    "capture_recapture": Model(
        f"capture-recapture, {YEARS} years",
        capture_recapture,
        captures,
        capture_seen,
        captures_by_hand,
    ),
}


def moments(draws):
    """Mean and sd of each number, of draws ``(chains, S)`` by name."""
    return {
        name: {"mean": float(value.double().mean()), "sd": float(value.double().std())}
        for name, value in draws.items()
    }


# -------------------------------------------------------------------------------- reference


def chain(model, data, number, protocol):
    """One chain of Pyro's NUTS: the numbers that are compared ``(kept,)`` by name."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1000 + number)
    kernel = NUTS(
        model.by_hand or model.run, jit_compile=True, ignore_jit_warnings=True,
        target_accept_prob=protocol.accept, max_plate_nesting=1,
    )  # fmt: skip
    run = MCMC(kernel, protocol.kept, protocol.warmup, disable_progbar=True)
    run.run(data)
    divergent = len(run.diagnostics()["divergences"]["chain 0"])
    return model.seen(run.get_samples()), divergent


def reference(name, protocol):
    """Long runs of NUTS of one model: moments, with what says how far they can be trusted."""
    model, begin = MODELS[name], time.process_time()
    runs = [chain(model, model.data(), number, protocol) for number in range(protocol.chains)]
    draws = {key: torch.stack([found[key] for found, _ in runs]) for key in runs[0][0]}
    found = moments(draws)
    for key, value in draws.items():
        found[key]["ess"] = float(effective_sample_size(value.double(), 0, 1))
        found[key]["rhat"] = float(split_gelman_rubin(value.double(), 0, 1))
    return {
        "numbers": found,
        "chains": protocol.chains,
        "kept": protocol.kept,
        "warmup": protocol.warmup,
        "accept": protocol.accept,
        "divergent": sum(count for _, count in runs),
        "cpu": time.process_time() - begin,
        "environment": environment(),
    }


# ------------------------------------------------------------------------------------- fits


def errors(found, exact):
    """Worst error of a mean, in sds of NUTS, and worst relative error of an sd, with both names."""
    means = {k: abs(found[k]["mean"] - exact[k]["mean"]) / exact[k]["sd"] for k in exact}
    sds = {k: abs(found[k]["sd"] / exact[k]["sd"] - 1) for k in exact}
    worst, off = max(means, key=means.get), max(sds, key=sds.get)
    return {
        "mean_error": means[worst],
        "mean_of": worst,
        "sd_error": sds[off],
        "sd_ratio": found[off]["sd"] / exact[off]["sd"],
        "sd_of": off,
    }


def fitted(name, seed, protocol=PROTOCOL, **options):
    """Fit one model by default, and compare it with NUTS."""
    model = MODELS[name]
    pyro.clear_param_store()
    begin, cpu = time.perf_counter(), time.process_time()
    fit = NFVI(model.run, seed=seed, progress=False, **options).run(model.data())
    row = {"model": name, "seed": seed, "cpu": time.process_time() - cpu}
    row["seconds"] = time.perf_counter() - begin
    row["numbers"] = moments(model.seen(fit.sample(protocol.draws, seed=1)))
    # What is corrected by importance weights, where these can be used.
    if fit.tail.reliable:
        better = moments(model.seen(fit.resample(protocol.draws, seed=1)))
        row["numbers_reweighted"] = better
    row |= compared(row)
    row |= {
        "verdict": str(fit.verdict),
        "reasons": list(fit.verdict.reasons),
        "khat": fit.khat,
        "flow": fit.training.settings.flow,
        "engine": fit.engine,
        "elbo": fit.elbo,
        "modes": len(fit.modes),
    }
    return row


def compared(row):
    """Errors of a fit's numbers, where there is a reference for them."""
    nuts = references().get(row["model"])
    if nuts is None:
        return {"outcome": UNKNOWN}
    found = errors(row["numbers"], nuts["numbers"])
    found["outcome"] = outcome(found)
    if "numbers_reweighted" in row:
        found["reweighted"] = errors(row["numbers_reweighted"], nuts["numbers"])
    return found


def honest(row, protocol=PROTOCOL):
    """Tell whether a fit ended in time, and is right or says that it may not be."""
    in_time = row["cpu"] < 60 * protocol.minutes
    return in_time and (row["outcome"] in ("right", "between") or row["verdict"] != "good")


def spread(values, digits=2):
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def counted(words):
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def page(rows, exact, env, protocol=PROTOCOL):
    lines, others = [], []
    for name, model in MODELS.items():
        mine = [row for row in rows if row["model"] == name]
        if not mine:
            continue
        known = [row for row in mine if row["outcome"] != UNKNOWN]
        better = [row["reweighted"]["mean_error"] for row in mine if "reweighted" in row]
        lines.append(
            [
                model.title,
                counted([row["verdict"] for row in mine]),
                counted([row["outcome"] for row in mine]),
                spread([row["mean_error"] for row in known]) if known else "unknown",
                spread([row["sd_ratio"] for row in known]) if known else "unknown",
                spread(better) if better else "none",
                spread([row["cpu"] for row in mine], 0),
            ]
        )
        nuts = exact.get(name)
        if nuts is None:
            continue
        numbers = nuts["numbers"].values()
        others.append(
            [
                model.title,
                f"{nuts['chains']} x ({nuts['warmup']} + {nuts['kept']})",
                f"{min(one['ess'] for one in numbers):.0f}",
                f"{max(one['rhat'] for one in numbers):.3f}",
                nuts["divergent"],
                f"{nuts['cpu']:.0f}",
            ]
        )
    held = sum(honest(row, protocol) for row in rows)
    first = table(
        ["model", "verdict", "fits", "mean error", "sd ratio", "reweighted", "CPU s"], lines
    )
    second = table(
        ["model", "transitions", "least ESS", "largest R-hat", "divergent", "CPU s"], others
    )
    seeds = sorted({row["seed"] for row in rows})
    return f"""
`NFVI(model).run(data)` on four models that are hard to fit, seeds {", ".join(map(str, seeds))},
against long runs of Pyro's NUTS: the network's predictions, the mixture's predictive density and
all parameters of the other two. The error of a mean is the worst of all numbers, in sds of NUTS;
the ratio of sds is the one that is farthest from 1. Medians over the seeds, with the range;
{protocol.draws:,} draws of each fit.

{first}

A fit is right with all means within {RIGHT[0]} sds and all sds within {100 * RIGHT[1]:.0f} %, and
wrong with one beyond {WRONG[0]} or {100 * WRONG[1]:.0f} %. {held} of {len(rows)} fits ended within
{protocol.minutes:g} CPU minutes and were not wrong, or did not call themselves good. "Reweighted"
is the error of the means of `fit.resample`, where the tail of the weights allows it. Where a fit is
"unknown", no run of NUTS is kept for its model: the chains were too slow to be ended.

## The reference

Chains of NUTS from draws of the prior, with the transitions of warm-up and those that count. The
effective size is the smallest of all numbers; where R-hat is above 1.01, chains have not quite
agreed, and the reference is rough itself.

{second}

{in_words(env)} Written by `python benchmarks/hard_models.py`; the reference by
`python benchmarks/hard_models.py --reference`.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="one short fit; prints only")
    parser.add_argument("--reference", action="store_true", help="run NUTS anew")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=PROTOCOL.seeds)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.reference:
        for name in options.models:
            found = reference(name, MODELS[name].nuts)
            # Read again: another process may have written its models.
            kept = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {}
            REFERENCE.write_text(json.dumps(kept | {name: found}, indent=1) + "\n")
            print(f"{name}: {found['cpu']:.0f} CPU s", flush=True)
        return
    seeds, fit = range(options.seeds), fitted
    if options.smoke:
        options.models, seeds, fit = ["hidden_markov"], [0], partial(fitted, max_steps=20)
    # Models that are not asked for stay as they were measured.
    rows = [] if options.smoke else [r for r in kept_rows() if r["model"] not in options.models]
    for name in options.models:
        for seed in seeds:
            row = fit(name, seed)
            rows.append(row)
            print(
                f"{name:18s} seed {seed}: {row['verdict']}, {row['outcome']}, "
                f"{row['cpu']:.0f} CPU s",
                flush=True,
            )
            if not options.smoke:  # what was measured is not lost if the rest is cut short
                write_page(rows)
    if options.smoke:
        print(page(rows, references(), environment()))


def kept_rows():
    path = DOCS / "hard_models.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def references():
    return json.loads(REFERENCE.read_text())


def write_page(rows):
    env = environment()
    results = {"environment": env, "rows": rows}
    body = page(rows, references(), env)
    print("Wrote", write("hard_models", "Models that are hard to fit", results, body))


if __name__ == "__main__":
    main()
