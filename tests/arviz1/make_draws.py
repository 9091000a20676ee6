"""Write what the ArviZ 1 leg converts: arrays made here, where torch and ArviZ 0.2x are.

Run by ``make test-arviz1`` as ``make_draws.py FOLDER``. Writes ``groups`` and ``counts`` as
``.npz`` and ``.json`` (collected groups, before the last step of the conversion) and
``expected.json`` (numbers of ArviZ 0.2x, which ArviZ 1 has to repeat).
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_nfvi import AutoIAF
from pyro_nfvi.arviz import loo_approximate
from pyro_nfvi.arviz._elpd import terms_of
from pyro_nfvi.arviz._to_arviz import collect
from pyro_nfvi.arviz._tree import build_tree

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * raw, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def poisson(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def terms(loo):
    """What an ``ELPDData`` is made of, in plain numbers."""
    found, num_draws, _ = terms_of(loo)
    return {
        "elpd": found.elpd.tolist(),
        "log_density": found.log_density.tolist(),
        "pareto_k": found.pareto_k.tolist(),
        "dims": list(found.dims),
        "num_draws": num_draws,
    }


def write(path: Path, groups) -> None:
    """Write collected groups as arrays, with their names and attributes as JSON."""
    arrays, text = {}, {"dims": {}, "attrs": {}, "coords": {}}
    for group, variables in groups.variables.items():
        for name, (dims, array) in variables.items():
            arrays[f"{group}/{name}"] = array
            text["dims"][f"{group}/{name}"] = dims
    for dim, values in groups.coords.items():
        text["coords"][dim] = np.asarray(values).tolist()
    for group, attrs in groups.attrs.items():
        text["attrs"][group] = {
            k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in attrs.items()
        }
    np.savez(path.with_suffix(".npz"), **arrays)
    path.with_suffix(".json").write_text(json.dumps(text))


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    y, sigma = Y.double(), SIGMA.double()
    guides = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            guide = AutoIAF(schools)
            elbo = Trace_ELBO(num_particles=32, vectorize_particles=True)
            svi = SVI(schools, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
            for _ in range(500):
                svi.step(y, sigma)
            guides.append(guide)
    labels = {"schools": list("ABCDEFGH")}
    groups = collect(guides, args=(y, sigma), num_samples=500, coords=labels)

    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "groups", groups)
    pyro.set_rng_seed(0)
    counts = torch.tensor([3.0, 1.0, 0.0, 4.0, 2.0, 2.0])
    with pyro.get_param_store().scope():
        guides = [AutoIAF(poisson).setup(counts) for _ in range(4)]
        write(folder / "counts", collect(guides, args=(counts,), num_samples=100))

    idata = build_tree(groups)
    loo = az.loo(idata, pointwise=True)
    expected = {
        "elpd": float(loo.elpd_loo),
        "se": float(loo.se),
        "pareto_k": loo.pareto_k.values.tolist(),
        "mean": {
            n: idata.posterior[n].mean(("chain", "draw")).values.tolist() for n in ("mu", "theta")
        },
        "approximate": terms(loo_approximate(idata)),
        "rhat_mu": float(az.rhat(idata.posterior)["mu"]),
    }
    (folder / "expected.json").write_text(json.dumps(expected))
    print(f"Wrote {folder}/groups.*, counts.* and expected.json")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/arviz1"))
