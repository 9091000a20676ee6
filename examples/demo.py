"""Fit two real posteriors with known answers: numbers, pictures and an ArviZ file.

    make demo                                   # or: python examples/demo.py --out out/demo

1. Eight schools, centred: ten latents in a funnel that a Gaussian guide cannot hold.
2. A regression on survey data with ten correlated latents of several scales.

Each fit is printed beside long reference runs of MCMC from posteriordb.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

import pyro_nfvi as nfvi
from pyro_nfvi.arviz import save_netcdf
from pyro_nfvi.plots import plot_loss, plot_marginals, plot_pair

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from _compare import tell

from benchmarks.posteriordb import columns, load, locate, score

SCHOOLS, SURVEY = "eight_schools-eight_schools_centered", "nes2000-nes"
COEFFICIENTS = "constant, ideology, race, age 30-44, 45-64, 65+, education, gender, income"


def fit_posterior(name, *, smoke, **options):
    """Fit one posterior and print it beside its reference."""
    posterior = load(name)
    start = time.perf_counter()
    if smoke:
        options["max_steps"] = 30
    fit = nfvi.NFVI(posterior.model, guide=guide, seed=0, progress=not smoke, **options)
    fit = fit.run(**posterior.data)
    seconds = time.perf_counter() - start

    draws = {site: value.numpy() for site, value in fit.sample(4000, seed=1).items()}
    evidence, evidence_se = fit.log_evidence()
    print(f"\n{name}: {fit.latent.dim} latents ({posterior.geometry})")
    tell(fit)
    print(f"  {len(fit.losses)} steps in {seconds:.0f} s; stopped: {fit.why_stopped}")
    print(f"  ELBO {fit.elbo:.2f} ± {fit.elbo_se:.2f} nats, log evidence {evidence:.2f} ± "
          f"{evidence_se:.2f}, k-hat {fit.khat:.2f}\n")  # fmt: skip
    print_table(draws, posterior.reference)
    return posterior, fit, draws


def guide(model):
    """Two autoregressive layers inside a full-rank affine map, for strong correlations."""
    return nfvi.AutoIAF(model, num_flows=2, outer="full")


def print_table(draws, reference):
    """Mean, sd and quantiles of fit and reference, and the error in reference sds."""
    values = torch.as_tensor(columns(draws, reference.names))
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)
    mean, sd, quantiles = values.mean(0), values.std(0), torch.quantile(values, levels, dim=0)
    print(f"  {'':10s}{'mean':>17s}{'sd':>17s}{'5 %':>17s}{'50 %':>17s}{'95 %':>17s}   mean off by")
    print(f"  {'':10s}" + 5 * f"{'flow':>9s}{'MCMC':>8s}" + "   (reference sds)")
    for i, name in enumerate(reference.names):
        site, index = locate(name)
        label = f"{site}[{index}]" if "[" in name else site  # counted from 0, as in the pictures
        pairs = [(mean[i], reference.mean[i]), (sd[i], reference.sd[i])]
        pairs += [(quantiles[level, i], reference.quantiles[level, i]) for level in range(3)]
        cells = "".join(f"{ours:9.3g}{theirs:8.3g}" for ours, theirs in pairs)
        error = (mean[i] - reference.mean[i]) / reference.sd[i]
        print(f"  {label:10s}{cells}   {error:+.3f}")
    found = score(draws, reference).summary()
    floor = reference.floor
    print(f"\n  worst mean error {found['max_mean_error']:.2f} reference sds, worst sd error "
          f"{100 * found['max_sd_error']:.0f} %, sliced Wasserstein {found['sliced_w1']:.3f}\n"
          f"  (2000 draws of the reference itself: {floor['max_mean_error']:.2f}, "
          f"{100 * floor['max_sd_error']:.0f} %, {floor['sliced_w1']:.3f})")  # fmt: skip


def keep(figure, path, kept):
    figure.savefig(path)
    kept.append(path)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="folder (default out/demo)")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, for CI")
    options = parser.parse_args()
    out = options.out or Path("out/demo-smoke" if options.smoke else "out/demo")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)  # as the models of posteriordb expect
    kept = []

    posterior, fit, draws = fit_posterior(
        # A narrow neck takes its time: all steps, and more particles.
        SCHOOLS,
        smoke=options.smoke,
        num_particles=128,
        max_steps=1800,
        stop=False,
    )
    exact = posterior.reference.draws_by_site()
    names = ("flow", "MCMC reference")
    title = "Eight schools, centred"
    figure = plot_pair(
        draws, "theta[0]", "log tau", exact, labels=names, title=f"{title}: the funnel"
    )
    keep(figure, out / "schools_funnel.png", kept)
    sites = ("mu", "log tau", "theta")
    figure = plot_marginals(
        draws, exact, names=sites, labels=names, title=f"{title}: marginals of flow and MCMC"
    )
    keep(figure, out / "schools_marginals.png", kept)
    keep(plot_loss(fit, title=f"{title}: loss"), out / "schools_loss.png", kept)
    idata = fit.to_arviz(num_samples=2000, coords={"schools": list("ABCDEFGH")})
    kept.append(out / "schools.nc")
    save_netcdf(idata, kept[-1])

    posterior, fit, draws = fit_posterior(SURVEY, smoke=options.smoke)
    exact = posterior.reference.draws_by_site()
    figure = plot_marginals(
        draws, exact, labels=names, title="Survey regression: marginals of flow and MCMC"
    )
    keep(figure, out / "survey_marginals.png", kept)
    keep(plot_loss(fit, title="Survey regression: loss"), out / "survey_loss.png", kept)
    idata = fit.to_arviz(coords={"beta_dim_0": COEFFICIENTS.split(", ")})
    kept.append(out / "survey.nc")
    save_netcdf(idata, kept[-1])

    print("\nWrote")
    for path in kept:
        print(f"  {path}")
    print(f"Open {kept[-1]} with arviz.from_netcdf: posterior, predictive and log likelihood.")


if __name__ == "__main__":
    main()
