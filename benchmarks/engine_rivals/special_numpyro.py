"""NumPyro as a process: ``special_numpyro.py PARTICLES``; protocol as in ``special_worker.py``."""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.engine_rivals.numpyro_worker import BLOCK, NumPyro  # isort: skip, it sets flags

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal

from benchmarks.engine_rivals.special_models import model, observations, serve

ARRAYS = SimpleNamespace(
    exp=jnp.exp,
    sigmoid=jax.nn.sigmoid,
    cholesky=jnp.linalg.cholesky,
    array=lambda x: jnp.asarray(x, jnp.float32),
)
#: NumPyro's distributions, called as in ``special_models``.
NAMES = SimpleNamespace(
    **{
        **vars(dist),
        "Bernoulli": dist.BernoulliLogits,
        "Binomial": lambda n, logits: dist.BinomialLogits(logits, n),
        "NegativeBinomial": dist.NegativeBinomialLogits,
        "ZeroInflatedNegativeBinomial": lambda n, logits, gate: dist.ZeroInflatedDistribution(
            dist.NegativeBinomialLogits(n, logits), gate=gate
        ),
    }
)


class One(NumPyro):
    """SVI of one distribution, with a diagonal Gaussian as the guide."""

    def __init__(self, name, particles):
        self.args = (jnp.asarray(observations(name)),)
        of = model(name, numpyro, NAMES, ARRAYS)
        guide = AutoDiagonalNormal(of)
        self.svi = SVI(of, guide, numpyro.optim.Adam(1e-3), Trace_ELBO(particles))
        self.blocks = {}
        self.start()
        self.steps(BLOCK)


def main():
    (particles,) = sys.argv[1:]
    versions = {"jax": jax.__version__, "numpyro": numpyro.__version__}
    serve(lambda _, name: One(name, int(particles)), versions)


if __name__ == "__main__":
    main()
