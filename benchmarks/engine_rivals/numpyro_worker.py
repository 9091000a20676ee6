"""NumPyro as a process, to be run by a Python that has it; protocol as in ``worker.py``.

``numpyro_worker.py MODEL FLOW PARTICLES [first]``: SVI as one jitted ``lax.scan`` over blocks of
steps, which is the fastest way to run it. NumPyro has no planar layer: this one is ours.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoContinuous, AutoIAFNormal

from benchmarks.engine_rivals.data import data, hidden

BLOCK = 200


def schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        base = numpyro.sample("base", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * base, sigma), obs=y)


def logistic(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def minibatch(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y), subsample_size=256) as index:
        numpyro.sample("y", dist.Bernoulli(logits=x[index] @ w + b), obs=y[index])


def radon(county, floor, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sd = numpyro.sample("sd", dist.HalfCauchy(5.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 5.0))
    shift = numpyro.sample("shift", dist.Normal(0.0, 5.0))
    noise = numpyro.sample("noise", dist.HalfCauchy(5.0))
    with numpyro.plate("counties", 85):
        base = numpyro.sample("base", dist.Normal(0.0, 1.0))
    level = mu + sd * base
    with numpyro.plate("data", len(y)):
        loc = level[county] + slope * floor + 0.1 * shift
        numpyro.sample("y", dist.Normal(loc, noise), obs=y)


MODELS = {f.__name__: f for f in (schools, logistic, minibatch, radon)} | {"wide": logistic}


class PlanarTransform(Transform):
    """One planar layer, with the u that keeps it invertible."""

    domain = codomain = constraints.real_vector

    def __init__(self, u, w, b):
        self.u, self.w, self.b = u, w, b

    def __call__(self, x):
        return self.call_with_intermediates(x)[0]

    def call_with_intermediates(self, x):
        wu = self.u @ self.w
        u = self.u + (jax.nn.softplus(wu) - 1 - wu) * self.w / (self.w @ self.w)
        t = jnp.tanh(x @ self.w + self.b)
        return x + t[..., None] * u, jnp.log(jnp.abs(1 + (1 - t**2) * (u @ self.w)))

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return self.call_with_intermediates(x)[1] if intermediates is None else intermediates

    def tree_flatten(self):
        return (self.u, self.w, self.b), (("u", "w", "b"), {})


class AutoPlanar(AutoContinuous):
    """Sixteen of them."""

    def get_base_dist(self):
        return dist.Normal(jnp.zeros(self.latent_dim), 1).to_event(1)

    def _get_posterior(self):
        dim = self.latent_dim
        scale = 1 / np.sqrt(dim)
        layers = []
        for k in range(16):
            keys = jax.random.split(jax.random.PRNGKey(k), 3)
            u, w, b = (
                numpyro.param(
                    f"{self.prefix}_{name}{k}",
                    jax.random.uniform(key, shape, minval=-scale, maxval=scale),
                )
                for name, key, shape in zip("uwb", keys, ((dim,), (dim,), ()))
            )
            layers.append(PlanarTransform(u, w, b))
        return dist.TransformedDistribution(self.get_base_dist(), layers)


class NumPyro:
    """SVI, a block of steps in one compiled call."""

    def __init__(self, name, flow, particles):
        self.args = tuple(jnp.asarray(x) for x in data(name))
        model, width = MODELS[name], hidden(name)
        guide = (
            AutoIAFNormal(model, num_flows=2, hidden_dims=[width] * 2, nonlinearity=stax.Relu)
            if flow == "iaf"
            else AutoPlanar(model)
        )
        self.svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO(particles))
        self.blocks = {}

    def start(self):
        self.state = self.svi.init(jax.random.PRNGKey(0), *self.args)
        params = jax.tree_util.tree_leaves(self.svi.get_params(self.state))
        self.numbers = sum(int(np.prod(p.shape)) for p in params)

    def block(self, count):
        def run(state, args):
            def body(carry, _):
                return self.svi.update(carry, *args)

            return jax.lax.scan(body, state, None, length=count)

        if count not in self.blocks:
            self.blocks[count] = jax.jit(run)
        return self.blocks[count]

    def steps(self, count, block=BLOCK):
        run = self.block(block)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count // block):
            self.state, losses = run(self.state, self.args)
        jax.block_until_ready(losses)
        return time.perf_counter() - wall, time.process_time() - cpu, float(losses[-1])


def main():
    name, flow, particles, *rest = sys.argv[1:]
    made = NumPyro(name, flow, int(particles))
    if rest:
        jnp.ones(3).sum().block_until_ready()  # the library's own start is no part of it
        begin = time.perf_counter()
        made.start()
        made.steps(1000, 1000)
        print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
        return
    made.start()
    made.steps(BLOCK)
    versions = {"jax": jax.__version__, "numpyro": numpyro.__version__}
    print(json.dumps({"ready": True, **versions}), flush=True)
    for line in sys.stdin:
        count = max(BLOCK, int(line.split()[1]) // BLOCK * BLOCK)
        wall, cpu, loss = made.steps(count)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            json.dumps({"wall": wall / count, "cpu": cpu / count, "loss": loss,
                        "numbers": made.numbers, "memory": memory}),
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
