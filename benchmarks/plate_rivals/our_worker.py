"""One fit in Pyro as a process of its own: ``our_worker.py REQUEST.json``; answers with a line.

``who`` is ``nfvi``, ``nfvi_gaussian`` or the name of one of Pyro's guides. Draws of the globals and
of the compared rows go to ``into``, an npz. Memory is the most that the process held.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoLowRankMultivariateNormal, AutoNormal
from pyro.infer.autoguide import AutoMultivariateNormal as AutoFull
from pyro.optim import ClippedAdam

from benchmarks.plate_rivals.cases import CASES, compared_rows
from benchmarks.plate_rivals.models import ARGUMENTS, MODELS

DRAWS = 1000


def cpu():
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def split_guide(model, sites):
    """A full normal of the globals beside one normal for each row."""
    guide = AutoGuideList(model)
    local = [name for name, row in sites.items() if row]
    if len(local) < len(sites):
        guide.append(AutoFull(pyro.poutine.block(model, hide=local), init_scale=0.1))
        hidden = [name for name in sites if name not in local]
        guide.append(AutoNormal(pyro.poutine.block(model, hide=hidden)))
        return guide
    return AutoNormal(model)


def pyro_guide(who, model, sites):
    if who == "pyro_normal":
        return AutoNormal(model)
    if who == "pyro_low_rank":
        return AutoLowRankMultivariateNormal(model)
    return split_guide(model, sites)


def pyro_fit(request, case, model, data, rows):
    """Adam with a rate that falls to a hundredth, and the bound on all rows at the end."""
    steps, batch = request["steps"], request["batch"]
    guide = pyro_guide(request["who"], model, case.sites)
    optim = ClippedAdam({"lr": 0.02, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(model, guide, optim, Trace_ELBO(num_particles=request["particles"],
              vectorize_particles=False))  # fmt: skip
    pyro.set_rng_seed(request["seed"])
    begin, used = time.perf_counter(), cpu()
    for _ in range(steps):
        svi.step(*data, batch=batch)
    cost = {"seconds": time.perf_counter() - begin, "cpu": cpu() - used}
    whole = pyro_guide(request["who"], model, case.sites)
    state = {name: value.detach().clone() for name, value in guide.state_dict().items()}
    with torch.no_grad(), pyro.get_param_store().scope():
        whole(*data, batch=None)  # over all rows, whatever a step sees
        whole.load_state_dict(state)
        svi = SVI(model, whole, optim, Trace_ELBO())
        count = 20 if len(data[0]) > 50_000 else 200
        bounds = [-svi.evaluate_loss(*data, batch=None) for _ in range(count)]
        drawn = {name: [] for name in case.sites}
        for _ in range(DRAWS):
            one = whole(*data, batch=None)
            for name, row in case.sites.items():
                value = one[name].detach()
                drawn[name].append(value[rows] if row else value)
    draws = {name: torch.stack(parts) for name, parts in drawn.items()}
    return cost | {"elbo": float(np.mean(bounds))}, draws


def our_fit(request, case, model, data, rows):
    from pyro_nfvi import NFVI

    who = request["who"]
    begin, used = time.perf_counter(), cpu()
    options = {} if who == "nfvi" else {"guide": "gaussian"}
    if request["max_steps"]:
        options["max_steps"] = request["max_steps"]
    fit = NFVI(model, seed=request["seed"], progress=False, **options).run(
        *data, batch=request["batch"]
    )
    cost = {"seconds": time.perf_counter() - begin, "cpu": cpu() - used}
    if hasattr(fit, "plates"):  # draws of the rows that are asked for
        draws = fit.sample(DRAWS, rows={"rows": rows}, seed=0)
    else:
        draws = fit.sample(DRAWS, seed=0)
        draws = {n: draws[n][:, rows] if row else draws[n] for n, row in case.sites.items()}
    told = {"elbo": float(fit.elbo), "verdict": str(fit.verdict).split(":")[0][:40]}
    told |= {"guide": type(fit.guide).__name__, "steps": len(fit.losses)}
    return cost | told, draws


def main():
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(request["threads"])
    case, model = CASES[request["case"]], MODELS[request["case"]]
    with np.load(request["data"]) as file:
        data = [torch.from_numpy(file[name]).float() for name in ARGUMENTS[request["case"]]]
    rows = torch.from_numpy(compared_rows(len(data[0])))
    fit = our_fit if request["who"].startswith("nfvi") else pyro_fit
    answer, draws = fit(request, case, model, data, rows)
    kept = {name: draws[name].reshape(DRAWS, *draws[name].shape[1:]) for name in case.sites}
    np.savez(request["into"], **{name: x.double().numpy() for name, x in kept.items()})
    # In units of 1024 bytes on Linux.
    answer["memory"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("ANSWER " + json.dumps(answer))


if __name__ == "__main__":
    main()
