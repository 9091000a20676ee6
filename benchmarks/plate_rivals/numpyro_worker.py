"""One fit in NumPyro as a process of its own: ``numpyro_worker.py REQUEST.json``.

As ``our_worker.py``; ``who`` is ``numpyro_normal`` or ``numpyro_dais``. All steps are one compiled
call; ``warm_seconds`` leaves tracing and compiling out. ``AutoSemiDAIS`` has its bound alone: its
draws of rows are those of random mini-batches.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer import SVI, Trace_ELBO, init_to_median
from numpyro.infer.autoguide import AutoNormal, AutoSemiDAIS

from benchmarks.plate_rivals.numpyro_models import MODELS

DRAWS, COMPARED = 1000, 500


def cpu():
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main():
    request = json.loads(Path(sys.argv[1]).read_text())
    globals_of, rows_of, names = MODELS[request["case"]]
    with np.load(request["data"]) as file:
        data = {name: jnp.asarray(file[name], jnp.float32) for name in names}
    count = len(data["y"])
    batch, steps = request["batch"], request["steps"]

    def over(batch):
        def model(**data):
            return rows_of(globals_of(**data), **data, batch=batch)

        return model

    if request["who"] == "numpyro_dais":
        batch = batch or min(count, 500)

        # Its local model takes what the model of the globals returns, and nothing else.
        held, data = data, {}

        def above():
            return globals_of(**held)

        def inner(found):
            return rows_of(found, **held, batch=batch)

        def outer():
            return inner(above())

        base = AutoNormal(above, init_loc_fn=init_to_median)
        guide = AutoSemiDAIS(outer, inner, base, K=4)
    else:
        outer = over(batch)
        guide = AutoNormal(outer, init_loc_fn=init_to_median)
    optim = numpyro.optim.ClippedAdam(lambda step: 0.02 * 0.01 ** (step / steps))
    svi = SVI(outer, guide, optim, Trace_ELBO(request["particles"]))
    begin, used = time.perf_counter(), cpu()
    state = jax.jit(lambda key: svi.init(key, **data))(jax.random.PRNGKey(request["seed"]))

    def run(state, data):
        return jax.lax.scan(lambda at, _: svi.update(at, **data), state, None, length=steps)

    compiled = jax.jit(run).lower(state, data).compile()
    warm = time.perf_counter()
    state, losses = compiled(state, data)
    jax.block_until_ready(losses)
    end = time.perf_counter()
    answer = {"seconds": end - begin, "cpu": cpu() - used, "warm_seconds": end - warm}
    params = svi.get_params(state)
    key = jax.random.PRNGKey(request["seed"] + 1)
    loss = Trace_ELBO()
    keys = jax.random.split(key, 20 if count > 50_000 else 200)
    if request["who"] == "numpyro_dais":
        bound = jax.jit(lambda key: loss.loss(key, params, outer, guide, **data))
        answer["elbo"] = -float(np.mean([bound(one) for one in jax.random.split(key, 500)]))
        np.savez(request["into"])
    else:
        whole = over(None)
        guide = AutoNormal(whole, init_loc_fn=init_to_median)
        jax.jit(lambda key: SVI(whole, guide, optim, loss).init(key, **data))(key)
        bound = jax.jit(lambda key: loss.loss(key, params, whole, guide, **data))
        answer["elbo"] = -float(np.mean([bound(one) for one in keys]))
        rows = np.unique(np.linspace(0, count - 1, min(COMPARED, count)).astype(int))
        draw = jax.jit(lambda key: guide.sample_posterior(key, params))
        parts = [draw(one) for one in jax.random.split(key, DRAWS)]
        plain = {}
        for name in parts[0]:
            local = name in request["rows"]
            kept = [np.asarray(one[name][rows] if local else one[name]) for one in parts]
            plain[name] = np.stack(kept).astype(float)
        np.savez(request["into"], **plain)
    answer |= {"numpyro": numpyro.__version__, "jax": jax.__version__}
    answer["memory"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("ANSWER " + json.dumps(answer))


if __name__ == "__main__":
    main()
