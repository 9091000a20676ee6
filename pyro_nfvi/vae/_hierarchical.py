"""A VAE with two layers of latents, each with its flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._typing import TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae._assemble import posterior_flow, prior_density
from pyro_nfvi.vae._hierarchical_flow import HierarchicalFlow
from pyro_nfvi.vae._hierarchical_prior import HierarchicalPrior
from pyro_nfvi.vae._likelihoods import Likelihood
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._recipe import NETWORKS


class HierarchicalVAE(FlowVAE):
    r"""A VAE with two layers of latents, each with a flow of its own in the posterior.

    .. math:: p(z_2)\, N\bigl(z_1; m(z_2), s^2(z_2)\bigr)\, p(x \mid z_1), \qquad
        q(z_2 \mid x)\, q(z_1 \mid z_2, x)

    The latent vector is :math:`z = (z_1, z_2)`, of size D1 + D2. Posterior and prior are normalised
    densities of it, so that :meth:`elbo`, :meth:`nll` (annealed too), losses, ``fit`` and ``load``
    are those of :class:`FlowVAE`; :meth:`kl_of_layers` divides the KL divergence between the two.

    Args:
        encoder: ``encoder(x) -> (loc, scale, context)`` with sizes D1 + D2 and ``context_dim``: the
            Gaussian that both layers start from. A net of the upper layer and the context moves
            and scales the lower one.
        decoder: ``decoder(z_1)``: it sees the lower layer.
        latent_dims: ``(D1, D2)``, lower and upper.
        context_dim: Size of the context, which both layers see; 0 for none.
        flow: A formula for both layers, or a pair for lower and upper; None for no flow.
        likelihood: As in :class:`FlowVAE`.
        prior: Of the upper layer: None, a formula as ``"maf*2"`` or ``"mixture*10"``.
        hidden: Width of the nets between the layers.
        condition_dim: Size of labels, which encoder and decoder see beside image and point.
        amortize: As in :class:`FlowVAE`.
        **flow_options: Passed to the formulas.

    Raises:
        OptionError: Options that do not fit together.

    Source: Rezende et al. 2014, arXiv:1401.4082; Sønderby et al. 2016, arXiv:1602.02282.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import DenseDecoder, DenseEncoder, HierarchicalVAE
        >>> encoder = DenseEncoder((8,), latent_dim=4 + 2, hidden=(16,), context_dim=16)
        >>> decoder = DenseDecoder(4, (8,), hidden=(16,))
        >>> vae = HierarchicalVAE(encoder, decoder, (4, 2), context_dim=16, flow="planar*2")
        >>> x = torch.bernoulli(torch.full((5, 8), 0.5))
        >>> vae.elbo(x).bound.shape, [tuple(part.shape) for part in vae.kl_of_layers(x)]
        (torch.Size([5]), [(5,), (5,)])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dims: Sequence[int],
        context_dim: int = 0,
        flow: str | Sequence[str | None] | None = "iaf*2",
        likelihood: str | Likelihood = "bernoulli",
        *,
        prior: str | None = None,
        hidden: int = NETWORKS.between_layers,
        condition_dim: int = 0,
        amortize: str = "linear",
        **flow_options: Any,
    ) -> None:
        if isinstance(latent_dims, int) or len(latent_dims) != 2:
            raise OptionError(
                f"HierarchicalVAE: latent_dims is a pair (lower, upper); got {latent_dims!r}."
            )
        first, second = (whole("HierarchicalVAE: latent_dims", size) for size in latent_dims)
        hidden = whole("HierarchicalVAE: hidden", hidden)
        pair = _pair_of(flow)
        if not (prior is None or isinstance(prior, str)):
            raise OptionError(
                "HierarchicalVAE's prior is a formula for the upper layer, such as 'maf*2'; got "
                f"{type(prior).__name__}."
            )
        lower, upper = (
            posterior_flow(one, size, code, amortize, {} if one == "none" else flow_options)
            for one, size, code in zip(pair, (first, second), (hidden, context_dim), strict=True)
        )
        super().__init__(
            encoder,
            decoder,
            first + second,
            context_dim,
            HierarchicalFlow((first, second), context_dim, lower, upper, hidden=hidden),
            likelihood,
            prior=HierarchicalPrior(
                (first, second), prior_density(prior, second, 0), hidden=hidden
            ),
            condition_dim=condition_dim,
            amortize=amortize,
        )
        self.latent_dims = (first, second)
        self.made_of = {
            "class": type(self).__name__, "latent_dims": [first, second],
            "context_dim": context_dim, "condition_dim": condition_dim, "amortize": amortize,
            "flow": pair, "prior": prior or "none", "hidden": hidden, "flow_options": flow_options,
        }  # fmt: skip

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameters from the lower layer of points ``(*b, D1 + D2)``."""
        return super().decode(z[..., : self.latent_dims[0]], c)

    def kl_of_layers(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        num_samples: int = 1,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TensorPair:
        r"""Divide the KL divergence between the layers: means over draws, ``(B,)`` each, in nats.

        .. math:: \mathbb{E}\bigl[\log q(z_1 \mid z_2, x) - \log p(z_1 \mid z_2)\bigr], \qquad
            \mathbb{E}\bigl[\log q(z_2 \mid x) - \log p(z_2)\bigr]

        Their sum is ``elbo(x).kl`` of the same noise. An upper layer near 0 is not used.

        Args:
            x: Images ``(B, *shape)``.
            y: Labels of a conditional VAE.
            num_samples: Draws S per image.
            eps: Base noise ``(S, B, D1 + D2)`` to use instead of drawing it.
            generator: Where noise is drawn from; torch's global state if None.
        """
        num_samples = whole("kl_of_layers: num_samples", num_samples)
        flow, prior = self.flow, self.prior
        assert isinstance(flow, HierarchicalFlow)
        assert isinstance(prior, HierarchicalPrior)
        with scoring(self):
            posterior = self.encode(x, y)
            noise = posterior.noise(num_samples, generator=generator) if eps is None else eps
            base = standard_normal_log_prob(noise) - posterior.scale.log()
            lower, upper = base.split(self.latent_dims, -1)
            found = flow.parts(posterior.loc + posterior.scale * noise, posterior.context)
            priors = prior.parts(torch.cat([found.lower, found.upper], -1))
            first = lower.sum(-1) - found.lower_ladj - priors[0]
            second = upper.sum(-1) - found.upper_ladj - priors[1]
        if first.dim() == 1:
            return first, second
        return first.mean(0), second.mean(0)


def _pair_of(flow: str | Sequence[str | None] | None) -> list[str]:
    """Return the formulas of lower and upper layer."""
    pair = [flow, flow] if flow is None or isinstance(flow, str) else list(flow)
    if len(pair) != 2 or not all(one is None or isinstance(one, str) for one in pair):
        raise OptionError(
            "HierarchicalVAE's flow is a formula, or a pair for lower and upper layer; got "
            f"{flow!r}."
        )
    return ["none" if one is None else one for one in pair]
