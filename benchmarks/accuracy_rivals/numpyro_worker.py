"""NumPyro as a process, to be run by a Python that has it: ``numpyro_worker.py NAME DATA.npz``.

Reads a line of JSON for each request and answers with one. ``method`` says what is asked for:

* ``bnaf``, ``iaf``: a fit, with ``seed``, ``steps``, ``particles``, ``rate``, ``last_rate`` and
  ``draws``, all steps in one compiled call;
* ``nuts``: ``chains`` one after the other (1), with ``seed``, ``warmup`` and ``draws``, and nothing
  compiled before;
* ``density``: the log joint at ``points``, an npz of values with the points on axis 0.

``into`` is where draws are written. Times are from the call on; importing, reading the data and
writing the draws are no part of them. ``seconds`` and ``cpu`` include tracing and compiling,
``warm_seconds`` and ``warm_cpu`` do not.
"""

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_ENABLE_X64"] = "1"  # as the fits they stand beside
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer import NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoIAFNormal
from numpyro.infer.util import initialize_model, log_density

from benchmarks.accuracy_rivals.numpyro_models import MODELS
from benchmarks.time_rivals.costs import Clock, one_core
from benchmarks.time_rivals.larger_numpyro import LARGER

GUIDES = {"bnaf": AutoBNAFNormal, "iaf": AutoIAFNormal}


def read(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return {n: jnp.asarray(a) if a.ndim else a.item() for n, a in arrays.items()}


class Worker:
    """One posterior and what was last done with it."""

    def __init__(self, name, data):
        arguments = read(data)
        # Numbers are sizes, which have to be known to the compiler.
        sizes = {name: x for name, x in arguments.items() if isinstance(x, int)}
        self.model = partial({**MODELS, **LARGER}[name], **sizes)
        self.data = {name: x for name, x in arguments.items() if name not in sizes}

    def fit(self, method, seed, steps, particles, rate, last_rate, draws, into):
        clock = Clock()
        decay = (last_rate / rate) ** (1 / steps)
        guide = GUIDES[method](self.model)
        optim = numpyro.optim.ClippedAdam(lambda step: rate * decay ** (step + 1))
        svi = SVI(self.model, guide, optim, Trace_ELBO(particles))
        begin, last = jax.random.split(jax.random.PRNGKey(seed))
        # As one compiled call this takes half the time that it takes by itself.
        state = jax.jit(lambda key: svi.init(key, **self.data))(begin)

        def run(state, data):
            return jax.lax.scan(lambda at, _: svi.update(at, **data), state, None, length=steps)

        compiled = jax.jit(run).lower(state, self.data).compile()
        warm = Clock()
        state, losses = compiled(state, self.data)
        jax.block_until_ready(losses)
        cost = {**clock.read(), **warm.read("warm_")}
        params = svi.get_params(state)
        found = guide.sample_posterior(last, params, sample_shape=(draws,))
        # Runs the model, for sites that are functions of others.
        sites = Predictive(self.model, found, batch_ndims=1)(last, **self.data)
        write(into, {**sites, **found})
        return {**cost, "elbo": -float(losses[-1])}

    def nuts(self, seed, warmup, draws, into, chains=1):
        jax.clear_caches()
        clock = Clock()
        keys = jax.random.split(jax.random.PRNGKey(seed), 1 + chains)
        begin, key = keys[:2]
        # The kernel in one scan rather than by ``MCMC``, which compiles anew on every run, so that
        # compiling and running can be told apart; they add up to what ``MCMC`` takes.
        made = initialize_model(begin, self.model, model_kwargs=self.data)
        kernel = NUTS(potential_fn=made.potential_fn)
        state = kernel.init(key, warmup, made.param_info.z, (), {})

        def run(state):
            def step(state, _):
                state = kernel.sample(state, (), {})
                return state, (state.z, state.diverging, state.num_steps)

            return jax.lax.scan(step, state, None, length=warmup + draws)[1]

        compiled = jax.jit(run).lower(state).compile()
        warm = Clock()
        paths = [jax.block_until_ready(compiled(state))]
        for key in keys[2:]:
            started = initialize_model(key, self.model, model_kwargs=self.data)
            state = kernel.init(key, warmup, started.param_info.z, (), {})
            paths.append(jax.block_until_ready(compiled(state)))
        cost = warm.read("warm_")
        parts = [jax.tree.map(lambda x: x[warmup:], path) for path in paths]
        z, diverging, steps = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        sites = jax.block_until_ready(jax.vmap(made.postprocess_fn)(z))
        cost.update(clock.read())
        write(into, sites)
        told = {"divergences": int(diverging.sum()), "leapfrogs": float(steps.mean())}
        return {**cost, **told}

    def density(self, points):
        with np.load(points) as file:
            values = {name: jnp.asarray(file[name]) for name in file.files}
        count = len(next(iter(values.values())))
        found = []
        for k in range(count):
            at = {name: value[k] for name, value in values.items()}
            density, trace = log_density(self.model, (), self.data, at)
            found.append(float(density))
        latent = [
            name
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        ]
        return {"log_joint": found, "sites": latent}

    def answer(self, method, **settings):
        if method in GUIDES:
            return self.fit(method, **settings)
        return getattr(self, method)(**settings)


def write(into, draws):
    np.savez(into, **{name: np.asarray(value) for name, value in draws.items()})


def main():
    one_core()
    warnings.simplefilter("ignore")
    worker = Worker(*sys.argv[1:])
    jnp.ones(3).sum().block_until_ready()  # the library's own start is no part of a fit
    versions = {"numpyro": numpyro.__version__, "jax": jax.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        try:
            found = worker.answer(**json.loads(line))
        except Exception as error:  # a fit that fails is a result too
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
