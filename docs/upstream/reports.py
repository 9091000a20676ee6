"""Faults of Pyro 1.9.2 that this library meets, each as a function that shows it.

Run as a script: every function prints expected and found. ``tests/test_upstream.py`` fails when
one of them is mended, so that the report, and what works around it here, can go.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal, AutoNormal
from pyro.infer.reparam import LocScaleReparam


def sylvester_log_det() -> tuple[float, float]:
    """Log-determinants of ``Sylvester``, by autograd and as it reports them; they should agree.

    ``_call`` computes ``tanh(x @ (S Q^T) + b) @ (Q R)``. The formula of the log-determinant is that
    of ``tanh(x @ (Q S^T) + b) @ (R^T Q^T)``: there Q cancels, and what is left is triangular.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = transforms.sylvester(3, count_transforms=1)
        for parameter in flow.parameters():
            parameter.data = 0.5 * torch.randn_like(parameter)
        x = torch.randn(3)
    found = flow.log_abs_det_jacobian(x, flow(x))
    jacobian = torch.autograd.functional.jacobian(flow._call, x)
    return float(torch.linalg.slogdet(jacobian).logabsdet), float(found)


def mended_sylvester_log_det() -> tuple[float, float]:
    """The same with both matrices transposed, as proposed."""

    class Mended(transforms.Sylvester):
        def _call(self, x):
            q, r, s = self.Q(x), self.R(), self.S()
            inside = x @ q @ s.T + self.b
            slope = self.dtanh_dx(inside) * r.diagonal() * s.diagonal()
            self._cached_logDetJ = torch.log1p(slope).sum(-1)
            return x + self.tanh(inside) @ r.T @ q.T

    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = Mended(3, count_transforms=1)
        for parameter in flow.parameters():
            parameter.data = 0.5 * torch.randn_like(parameter)
        x = torch.randn(3)
    found = flow.log_abs_det_jacobian(x, flow(x))
    jacobian = torch.autograd.functional.jacobian(flow._call, x)
    return float(torch.linalg.slogdet(jacobian).logabsdet), float(found)


def aliased_prototype() -> tuple[str, str]:
    """Step of ``JitTrace_ELBO`` with ``AutoIAFNormal``; expected: a loss.

    ``AutoNormalizingFlow.get_posterior`` sets ``self._prototype_tensor = p`` to one of its own
    parameters, which registers this under a second name; ``pyro.ops.jit`` then finds two
    unconstrained tensors for it. ``self._prototype_tensor = p.detach()`` would do.
    """

    def model(y):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 1.0).expand([3]).to_event(1), obs=y)

    with pyro.get_param_store().scope():
        elbo = JitTrace_ELBO(ignore_jit_warnings=True)
        svi = SVI(model, AutoIAFNormal(model), pyro.optim.Adam({"lr": 0.01}), elbo)
        try:
            svi.step(torch.ones(3))
        except AssertionError as error:
            return "a loss", f"{type(error).__name__}"
    return "a loss", "a loss"


def subsampled_locals() -> tuple[str, int]:
    """Latents of ``AutoDiagonalNormal`` for 10 rows of which 3 are drawn at a time, and a global.

    The guide has a number for each *place* in the mini-batch, so that all rows share three. Wanted:
    11 numbers, as ``AutoNormal`` has them, or an error that says so.
    """

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample_size=3):
            pyro.sample("x", dist.Normal(mu, 1.0))

    with pyro.get_param_store().scope():
        guide = AutoDiagonalNormal(model)
        guide()
        return "11, or an error", guide.latent_dim


def reparameterised_in_a_plate() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the location that ``AutoNormal`` has for a plate of 4, expected and found.

    A reparameteriser inside of the plate asks ``InitMessenger`` for the first value of its site
    before the plate has broadcast the distribution. The auxiliary site gets a value of one row,
    and the guide one latent for all. Outside of the plate it is right.
    """

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4), poutine.reparam(config={"x": LocScaleReparam(0.0)}):
            pyro.sample("x", dist.Normal(mu, 1.0))

    with pyro.get_param_store().scope():
        guide = AutoNormal(model)
        guide()
        return (4,), tuple(guide.locs.x_decentered.shape)


REPORTS = (sylvester_log_det, aliased_prototype, subsampled_locals, reparameterised_in_a_plate)

if __name__ == "__main__":
    for report in REPORTS:
        print(report.__name__, *report(), sep=" | ")
    print("with the proposal", *mended_sylvester_log_det(), sep=" | ")
