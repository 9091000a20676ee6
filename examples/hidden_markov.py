"""A hidden Markov model: the states are summed out, the parameters get a flow.

Two regimes of a series, calm and wild, with unknown levels, spreads and persistence. NFVI sums over
the states by itself. The reference: NUTS on the likelihood written by hand (the forward algorithm),
so that the sum is checked as well.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import compare, tell
from _figure import FIT, GREY, INK, REFERENCE, STYLE, WIDTH
from pyro.infer import MCMC, NUTS

from pyro_nfvi import NFVI

START = torch.tensor([0.5, 0.5])


def make_data(n=40):
    generator = torch.Generator().manual_seed(4)
    stay, state, states = (0.92, 0.85), 0, []
    for _ in range(n):
        if torch.rand((), generator=generator) > stay[state]:
            state = 1 - state
        states.append(state)
    states = torch.tensor(states)
    noise = torch.randn(n, generator=generator)
    return states, torch.where(states == 0, 0.3 + 0.5 * noise, -0.6 + 1.4 * noise)


def parameters():
    stay = pyro.sample("stay", dist.Beta(torch.tensor([8.0, 8.0]), 2.0).to_event(1))
    level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    calm = pyro.sample("calm", dist.LogNormal(-0.7, 0.5))
    wilder = pyro.sample("wilder", dist.LogNormal(0.5, 0.5))  # ratio: the regimes keep their names
    spread = torch.stack([calm, calm * (1 + wilder)], -1)
    return stay, level, spread


def transition(stay):
    """Rows: from; columns: to. Shape (..., 2, 2)."""
    return torch.stack(
        [torch.stack([stay[..., 0], 1 - stay[..., 0]], -1),
         torch.stack([1 - stay[..., 1], stay[..., 1]], -1)], -2
    )  # fmt: skip


def model(y):
    """The model as one would tell it: a state for each time."""
    stay, level, spread = parameters()
    rows = transition(stay)
    probs = START
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
        calm = state == 0
        mean = torch.where(calm, level[..., 0], level[..., 1])
        sd = torch.where(calm, spread[..., 0], spread[..., 1])
        pyro.sample(f"y{t}", dist.Normal(mean, sd), obs=y[t])
        probs = torch.where(calm[..., None], rows[..., 0, :], rows[..., 1, :])


def filtered(y, stay, level, spread):
    """Log likelihood, and log Pr(state, y up to t) for every t: the forward algorithm."""
    log_rows = transition(stay).log()
    emit = dist.Normal(level[..., None, :], spread[..., None, :]).log_prob(y[:, None])
    alpha, found = START.log() + emit[..., 0, :], []
    for t in range(len(y)):
        if t:
            alpha = (alpha[..., :, None] + log_rows).logsumexp(-2) + emit[..., t, :]
        found.append(alpha)
    return alpha.logsumexp(-1), torch.stack(found, -2), log_rows, emit


def by_hand(y):
    pyro.factor("likelihood", filtered(y, *parameters())[0])


def probability_of_wild(draws, y):
    """Pr(state = 1 at t | y), over draws of the parameters: forward, then backward."""
    spread = torch.stack([draws["calm"], draws["calm"] * (1 + draws["wilder"])], -1)
    _, forward, log_rows, emit = filtered(y, draws["stay"], draws["level"], spread)
    backward = [torch.zeros_like(emit[..., 0, :])]
    for t in reversed(range(1, len(y))):
        ahead = log_rows + (emit[..., t, :] + backward[0])[..., None, :]
        backward.insert(0, ahead.logsumexp(-1))
    return (forward + torch.stack(backward, -2)).softmax(-1)[..., 1].mean(0)


def picture(draws, exact, y, states, path):
    time = torch.arange(len(y))
    shown = {"stay (calm)": ("stay", 0), "stay (wild)": ("stay", 1), "wilder": ("wilder", None)}
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH, 6.6), layout="constrained")
        series, marginals = figure.subfigures(2, 1, height_ratios=(1.5, 1))
        axes, twin = series.subplots(2, 1, sharex=True)
        grid = marginals.subplots(1, 3)
        axes.plot(time, y, "o-", color=INK, ms=2.5, lw=0.6)
        axes.set_ylabel("y")
        twin.fill_between(time, 0, states, step="mid", color=REFERENCE, alpha=0.5, lw=0,
                          label="wild in truth")  # fmt: skip
        twin.plot(time, probability_of_wild(draws, y), color=FIT, label="Pr(wild), fit")
        twin.plot(time, probability_of_wild(exact, y), color=GREY, ls="--", lw=1, label="by NUTS")
        twin.set_ylim(0, 1.35)
        twin.set_yticks([0, 0.5, 1])
        twin.set_ylabel("probability of wild")
        twin.set_xlabel("time")
        twin.legend(loc="upper left", ncols=3)
        for axes, (title, (site, i)) in zip(grid, shown.items()):
            pair = [each[site] if i is None else each[site][:, i] for each in (exact, draws)]
            bins = torch.linspace(*(float(pair[0].quantile(q)) for q in (0.002, 0.998)), 30).numpy()
            axes.hist(pair[0], bins, density=True, color=REFERENCE, label="NUTS")
            axes.hist(pair[1], bins, density=True, histtype="step", color=FIT, label="fit")
            axes.set_title(title, loc="left")
            axes.set_yticks([])
        grid[0].legend(loc="upper left")
        figure.suptitle("Hidden Markov model, states summed out", x=0.01, ha="left")
        figure.savefig(path)


def main():
    run = options(__doc__, "hidden_markov")
    states, y = make_data(8 if run.smoke else 40)
    steps = 30 if run.smoke else 500
    fit = NFVI(model, "iaf*2", max_steps=steps, seed=0, progress=not run.smoke).run(y)
    tell(fit)
    draws = fit.sample(8000, seed=1)

    pyro.set_rng_seed(0)
    count, warmup = (5, 5) if run.smoke else (500, 150)
    mcmc = MCMC(NUTS(by_hand, max_tree_depth=5), count, warmup, disable_progbar=run.smoke)
    mcmc.run(y)
    exact = mcmc.get_samples()
    mean, sd = compare(draws, exact, labels=("fit", "NUTS"))
    # 500 draws of NUTS, some 300 effective: 0.06 sds and 4 % are noise, and this is the worst.
    check("worst error of a mean, in sds", mean, 0.0, 0.25, smoke=run.smoke)
    check("worst error of an sd", sd, 0.0, 0.25, smoke=run.smoke)
    wild = [probability_of_wild(each, y) for each in (draws, exact)]
    gap = float((wild[0] - wild[1]).abs().max())
    check("largest gap in Pr(wild)", gap, 0.0, 0.05, smoke=run.smoke)
    picture(draws, exact, y, states, run.out / "hidden_markov.png")
    print(f"picture: {run.out / 'hidden_markov.png'}")


if __name__ == "__main__":
    main()
