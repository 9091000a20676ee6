"""The importance-weighted bound of several draws: Rényi's of order 0."""

from __future__ import annotations

from pyro_nfvi.objectives._renyi import RenyiELBO


class ImportanceELBO(RenyiELBO):
    r"""The importance-weighted bound of K draws.

    .. math:: \mathcal{L}_K = \mathbb{E}\Bigl[\log\frac1K\sum_{k=1}^K
        \frac{p(z_k)}{q(z_k)}\Bigr] \le \log p(x)

    It rises with K, from the ELBO at K = 1. What it fits is q as a proposal of importance
    sampling, not q as an approximation of the posterior: use the fit **reweighted**. Plain draws
    of it are wider than those of an ELBO fit, and the ELBO of the fit is lower.

    **When it helps.** A family that is too small, for the evidence or for reweighted draws. A flow
    fitted by the ELBO and reweighted afterwards is as good or better on nearly all models that
    were compared (Agrawal et al. 2020, arXiv:2006.10343): it is an option, not an advice.

    **What it costs, and gradients:** as :class:`RenyiELBO` with ``alpha=0``; its ``"dreg"`` is
    the doubly reparametrised gradient :math:`\sum_k \bar w_k^2 (\partial z_k/\partial\theta)^\top
    \nabla\log (p/q)`, which is unbiased for :math:`\mathcal{L}_K`.

    Args:
        num_samples: K; it divides ``num_particles``.
        estimator: ``"dreg"`` or ``"total"``.

    Raises:
        OptionError: An option that cannot be used.

    Source: Burda et al. 2016, arXiv:1509.00519, equation 8; Tucker et al. 2019,
    arXiv:1810.04152, equation 8 (dreg).

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> from pyro_nfvi.objectives import ImportanceELBO
        >>> density = FlowDensity(DiagonalAffine(2))
        >>> target = lambda z: -0.5 * (z - 1.0).square().sum(-1)
        >>> estimate = ImportanceELBO(num_samples=4)(density, target, density.sample_base(16))
        >>> estimate.log_w.shape
        torch.Size([16])
    """

    def __init__(self, num_samples: int = 8, estimator: str = "dreg") -> None:
        super().__init__(0.0, num_samples, estimator)
        self.name = f"iw(num_samples={num_samples}, {estimator})"
