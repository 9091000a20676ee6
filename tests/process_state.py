"""Public calls, and what each leaves behind in a fresh process; ``tests/test_process_state.py``.

Run as a script, it prints one line for each trace that a call leaves; with a number, of so many
calls from the first on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyro_nfvi
from pyro_nfvi import NFVI, AutoIAF, FitSpec, FlowDensity, Target, flows

#: Packages whose loggers a call may not touch: a package that is imported in it sets up its own.
PACKAGES = frozenset(name for name in sys.modules if "." not in name)


#: Handlers that do nothing; PyTorch takes the second away when it compiles for the first time.
IDLE = ("NullHandler", "LazyTraceHandler")


def handlers() -> dict[str, list[str]]:
    """Handlers of every logger; those that do nothing are left out."""
    named = {"root": logging.root, **logging.root.manager.loggerDict}
    found = {
        name: [repr(one) for one in logger.handlers if type(one).__name__ not in IDLE]
        for name, logger in named.items()
        if isinstance(logger, logging.Logger) and name.split(".")[0] in ("root", *PACKAGES)
    }
    return {name: ours for name, ours in found.items() if ours}


def open_files() -> list[str]:
    """Files that are open, but fonts, which matplotlib keeps; [] where nothing lists them."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return []
    found = []
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return sorted(
        one for one in found if one.startswith("/") and not one.endswith((".ttf", ".afm"))
    )


def state() -> dict[str, object]:
    """Everything of the process that a call has to leave alone."""
    plt = sys.modules.get("matplotlib.pyplot")
    return {
        "environment": dict(os.environ),
        "warning filters": list(warnings.filters),
        "logging handlers": handlers(),
        "threads": sorted(one.name for one in threading.enumerate()),
        "open files": open_files(),
        "figures": [] if plt is None else plt.get_fignums(),
        "signal handlers": {one: signal.getsignal(one) for one in signal.valid_signals()},
        "folder": os.getcwd(),
        "torch's random state": torch.get_rng_state().tolist(),
        "NumPy's random state": repr(np.random.get_state()),  # noqa: NPY002
        "Python's random state": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "threads of torch": torch.get_num_threads(),
        "validation": torch.distributions.Distribution._validate_args,
        "validation of Pyro": pyro.poutine.util.is_validation_enabled(),
        "param store": sorted(pyro.get_param_store().keys()),
        "handlers of Pyro": len(pyro.poutine.runtime._PYRO_STACK),
        "floating-point errors": np.geterr(),
        "standard output": (sys.stdout, sys.stderr, sys.excepthook),
        "search path": list(sys.path),
    }


def traces(call: Callable[[], object], left: frozenset[str] = frozenset()) -> Iterator[str]:
    """Make a call; yield what differs afterwards, but for what it is there to leave."""
    before = state()
    call()
    after = state()
    for name in before:
        if name not in left and before[name] != after[name]:
            yield f"{name}: {_difference(before[name], after[name])}"


def _difference(before: object, after: object) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        return ", ".join(f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys)
    if isinstance(before, list) and isinstance(after, list) and len(after) < 99:
        return f"{[x for x in before if x not in after]} -> {[x for x in after if x not in before]}"
    return "changed"


def normal(y: torch.Tensor) -> None:
    """Two latents and data."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    sd = pyro.sample("sd", dist.HalfNormal(3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


def simulated(y: torch.Tensor | None = None) -> torch.Tensor:
    """Draw data where they are not given."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        return pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def catalogue(folder: Path) -> Iterator[tuple[str, Callable[[], object], frozenset[str]]]:
    """Calls, each with its name and what it is there to change."""
    from pyro_nfvi import arviz, diagnostics, distributions, objectives, plots, testing, vae
    from pyro_nfvi.vae.train._command import main

    none: frozenset[str] = frozenset()
    y = torch.tensor([0.3, 1.2, -0.4, 2.0, 0.7])
    short = {"max_steps": 20, "seed": 0, "explore": "off"}
    made: dict[str, object] = {}

    def keep(name: str, call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            made[name] = call()
            return made[name]

        return run

    yield "NFVI.run", keep("fit", lambda: NFVI(normal, "affine", **short).run(y)), none
    fit = made["fit"]
    assert isinstance(fit, pyro_nfvi.Fit)
    quiet = {**short, "progress": False}
    yield "NFVI.run, a flow", lambda: NFVI(normal, "iaf*1", **quiet).run(y), none
    yield "Fit.save", lambda: fit.save(folder / "fit.nfvi"), none
    yield "load", lambda: pyro_nfvi.load(folder / "fit.nfvi", model=normal, args=(y,)), none
    short_chains = {"num_samples": 5, "warmup_steps": 10, "seed": 0}
    yield "Fit.to_nuts", lambda: fit.to_nuts(**short_chains, num_chains=1), none
    yield "Fit.to_arviz", keep("data", lambda: fit.to_arviz(num_samples=50)), none
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    density = FlowDensity(flows.make_flow("iaf", 2))
    yield "FlowDensity.fit", lambda: density.fit(x, max_steps=5, seed=0), none
    # Those above are enough for the fast suite.
    yield "Fit.report", lambda: (fit.report, repr(fit), str(fit.verdict), fit.timing), none
    yield "Fit.summary", lambda: fit.summary(reweighted=False), none
    yield "Fit.sample", lambda: fit.sample(10, seed=0, deterministic=True), none
    yield "Fit.resample", lambda: fit.resample(10, seed=0), none
    yield "Fit.predict", lambda: fit.predict(y, num_samples=10, seed=0), none
    yield "Fit.log_prob", lambda: fit.log_prob(fit.sample(3, seed=0)), none
    yield "Fit.log_evidence", fit.log_evidence, none
    yield "Fit.mcmc", lambda: fit.mcmc(**short_chains, num_chains=4), none
    yield (
        "Fit.to_nuts, silent",
        lambda: fit.to_nuts(**short_chains, num_chains=1, progress=False),
        none,
    )
    yield "Fit.to_arviz, reweighted", lambda: fit.to_arviz(num_samples=20, reweighted=True), none
    yield "loo_approximate", lambda: arviz.loo_approximate(made["data"]), none
    yield "loo_moment_match", lambda: arviz.loo_moment_match(fit, num_samples=200), none
    yield "save_netcdf", lambda: arviz.save_netcdf(made["data"], folder / "fit.nc"), none
    yield "to_arviz of a guide", lambda: pyro_nfvi.to_arviz(fit.guide, num_samples=5), none
    yield "plot_loss", lambda: fit.plot_loss(), none
    yield "plot_marginals", lambda: fit.plot_marginals(), none
    yield "plot_pair", lambda: plots.plot_pair(fit, "mu", "sd"), none
    yield (
        "plot_density_2d",
        lambda: plots.plot_density_2d(lambda z: -z.square().sum(-1), points=11),
        none,
    )
    target = Target(lambda z: -0.5 * z.square().sum(-1), 2)
    yield "NFVI.run of a Target", lambda: NFVI(target, "affine", **quiet).run(), none
    spec = FitSpec(normal, (y,), options={"guide": "affine", "max_steps": 10, "explore": "off"})
    yield "map_fits", lambda: pyro_nfvi.map_fits([spec], num_workers=1), none
    yield "vsbc", keep("vsbc", lambda: pyro_nfvi.vsbc(
        simulated, observed="y", num_simulations=3, seed=0, num_workers=1,
        guide="affine", max_steps=10,
    )), none  # fmt: skip
    yield "plot_calibration", lambda: plots.plot_calibration(made["vsbc"]), none
    yield "FlowDensity.log_prob", lambda: density.log_prob(x), none
    path = distributions.PathSampler(
        lambda z: -z.square().sum(-1), [flows.make_flow("iaf", 2), distributions.Metropolis()]
    )
    yield "PathSampler.fit", lambda: path.fit(num_steps=2, num_samples=4, seed=0), none
    weights = torch.linspace(-1, 1, 50)
    yield "diagnostics", lambda: (
        diagnostics.ess(weights), diagnostics.log_evidence(weights), diagnostics.psis(weights),
        diagnostics.judge_weights(weights[:, None], weights),
        diagnostics.resample(weights, 5, generator=torch.Generator().manual_seed(0)),
        diagnostics.weighted_mean(weights, weights), diagnostics.weighted_sd(weights, weights),
        diagnostics.weighted_quantile(weights, weights, [0.5]),
    ), none  # fmt: skip
    yield (
        "check_flow",
        lambda: testing.check_flow(
            lambda dim, context_dim: flows.DiagonalAffine(dim, context_dim), dims=(2,)
        ),
        none,
    )
    yield "show_versions", pyro_nfvi.show_versions, none
    yield "clear_cache", lambda: pyro_nfvi.clear_cache(folder / "no cache"), none
    run = ["--data", "digits", "--epochs", "1", "--hidden", "8", "--latent-dim", "2", "--flow",
           "planar", "--nll-samples", "32", "--nll-images", "5", "--batch-size", "500",
           "--out", str(folder / "vae")]  # fmt: skip
    yield "python -m pyro_nfvi.vae.train", lambda: main(run), none
    yield "load_data", keep("digits", lambda: vae.load_data("digits")), none
    yield "load_vae", keep("vae", lambda: vae.load_vae(folder / "vae" / "best.pt")), none
    images = vae.binarize(made["digits"].test[:5], levels=17).float()
    model = made["vae"]
    yield "evaluate", lambda: vae.evaluate(model, images, nll_samples=8), none
    yield "plot_reconstructions", lambda: vae.plot_reconstructions(model, images), none
    yield "plot_samples", lambda: vae.plot_samples(model), none
    yield "plot_interpolation", lambda: vae.plot_interpolation(model, images), none
    yield "plot_posterior", lambda: vae.plot_posterior(model, images, points=10, panels=1), none
    yield "binarize", lambda: vae.binarize(made["digits"].test[:5], levels=17), none
    yield (
        "objectives",
        lambda: [getattr(objectives, name)() for name in ("PathELBO", "TotalELBO", "TemperedELBO")],
        none,
    )
    yield (
        "SVI with a guide",
        lambda: AutoIAF(normal).setup(y),
        frozenset({"torch's random state", "param store"}),
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        out = sys.stdout
        calls = catalogue(Path(folder))
        for name, call, left in islice(calls, int(sys.argv[1]) if len(sys.argv) > 1 else None):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    found = list(traces(call, left))
            except Exception as error:
                found = [f"{type(error).__name__}: {error}"]
            for one in found:
                print(f"{name} | {one}", file=out)


if __name__ == "__main__":
    main()
