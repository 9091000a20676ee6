"""A density pulled back through a flow to the space of its noise, as in NeuTra."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.target import ScoredDensity
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.flows._base import Flow


class PulledBack:
    r"""A density of z as a density of base noise, through a flow.

    .. math:: \log p(f(\varepsilon)) + \log|\det \partial f / \partial \varepsilon|

    Where the flow has been fitted to p, this is close to the density of the noise, whatever the
    shape of p; NeuTra (Hoffman et al. 2019, arXiv:1903.03704) runs Hamiltonian chains there.

    Args:
        density: The density of z, with its gradient.
        flow: The flow; its parameters do not change meanwhile, and need no gradient.

    Cost:
        One evaluation of the density, one forward and one backward pass of the flow.

    Example:
        >>> import torch
        >>> from pyro_nfvi._mcmc.autograd_density import AutogradDensity
        >>> from pyro_nfvi.flows import Affine
        >>> normal = AutogradDensity(lambda z: -0.5 * (z - 3.0).square().sum(-1))
        >>> pulled = PulledBack(normal, Affine(torch.tensor([3.0]), torch.tensor([2.0])))
        >>> [found.tolist() for found in pulled.value_and_grad(torch.tensor([[0.5]]))]
        [[0.1931471824645996], [[-2.0]]]
    """

    def __init__(self, density: ScoredDensity, flow: Flow) -> None:
        self._density, self._flow = density, flow

    def value_and_grad(self, eps: Tensor) -> TensorPair:
        """Return log density ``(N,)`` and gradient ``(N, D)`` at noise ``(N, D)``."""
        with torch.enable_grad():
            noise = eps.detach().requires_grad_()
            z, ladj = self._flow(noise)
            log_p, score_of_z = self._density.value_and_grad(z.detach())
            # The vector-Jacobian product of both outputs at once.
            total = (z * score_of_z.to(z)).sum() + ladj.sum()
            (gradient,) = torch.autograd.grad(total, noise)
        return log_p + ladj.detach(), gradient
