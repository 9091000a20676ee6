"""``pyro-nfvi demo``: a first fit, of the eight schools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyro_nfvi._command.fit import check_folder, write_fit
from pyro_nfvi._command.options import option
from pyro_nfvi._command.statuses import STATUSES

#: Effects of coaching in eight schools, and their standard errors (Rubin 1981).
_EFFECTS = ((28.0, 15.0), (8.0, 10.0), (-3.0, 16.0), (7.0, 11.0), (-1.0, 9.0), (1.0, 11.0),
            (18.0, 10.0), (12.0, 18.0))  # fmt: skip


@dataclass(frozen=True)
class DemoOptions:
    """Options of ``pyro-nfvi demo``."""

    out: str = option("", "folder for report, fit, ArviZ file and pictures; none: print the report")
    smoke: bool = option(False, "a few steps only")
    seed: int = option(0, "seed: the same one, the same result")
    draws: int = option(2000, "draws in the ArviZ file")
    pictures: bool = option(True, "draw marginals and the bound")
    overwrite: bool = option(False, "replace files of an earlier fit in the folder")
    quiet: bool = option(False, "print nothing but the result")


def demo(options: DemoOptions, say: Callable[[str], None]) -> int:
    """Fit the eight schools, centred, and print the fit beside long runs of MCMC."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_nfvi.infer._nfvi import NFVI

    def schools(effect: torch.Tensor, error: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(effect)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("effect", dist.Normal(theta, error), obs=effect)

    folder = Path(options.out) if options.out else None
    if folder is not None:
        check_folder(folder, overwrite=options.overwrite)
    effect, error = (torch.tensor(column) for column in zip(*_EFFECTS))
    bar = not options.quiet and sys.stderr.isatty()
    fit = NFVI(
        schools, max_steps=30 if options.smoke else None, seed=options.seed, progress=bar
    ).run(effect, error)
    if not options.quiet:
        say("Eight schools, centred: a funnel that a Gaussian cannot hold.")
        say(fit.report)
    tau = fit.summary()["tau"]
    say(f"tau: mean {tau.mean:.2f}, sd {tau.sd:.2f}; long runs of MCMC: mean 3.60, sd 3.20")
    if folder is not None:
        write_fit(fit, folder, options, say)
    return STATUSES.good
