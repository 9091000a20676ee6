"""A VAE from its description, so that a file can bring one back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pyro_nfvi._random import seeded
from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae._conv_networks import ConvDecoder, ConvEncoder
from pyro_nfvi.vae._dense_networks import DenseDecoder, DenseEncoder
from pyro_nfvi.vae._likelihoods import make_likelihood
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._recipe import NETWORKS

#: Names of the shipped encoders and decoders.
ARCHITECTURES = ("gated", "mlp", "conv")


@dataclass(frozen=True)
class Architecture:
    """Everything that says what a VAE is made of, with what JSON can hold.

    Args:
        shape: Shape of an image.
        latent_dim: D.
        flow: Formula of the flow, or ``"none"``.
        flow_options: Options of the flow.
        nets: ``"gated"`` (gated dense), ``"mlp"`` (ReLU) or ``"conv"`` (gated convolutions).
        hidden: Widths of the dense nets.
        context_dim: Size of the flow's context; None for the width of the encoder's last layer,
            as in the papers; 0 for one flow for all images.
        likelihood: ``likelihood.spec()``.
        prior: Formula of the prior's flow, or ``"none"``.
        condition_dim: Number of labels, 0 for none.
        amortize: As in :class:`FlowVAE`.

    Example:
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> vae = Architecture((8, 8), latent_dim=4, flow="planar*2", hidden=(16,)).build(seed=0)
        >>> vae.context_dim
        16
    """

    shape: tuple[int, ...]
    latent_dim: int = 40
    flow: str = "iaf*4"
    flow_options: dict[str, Any] = field(default_factory=dict)
    nets: str = "gated"
    hidden: tuple[int, ...] = (300, 300)
    context_dim: int | None = None
    likelihood: dict[str, Any] = field(default_factory=lambda: {"name": "bernoulli"})
    prior: str = "none"
    condition_dim: int = 0
    amortize: str = "linear"

    def __post_init__(self) -> None:
        if self.nets not in ARCHITECTURES:
            raise OptionError(f"nets is one of {', '.join(ARCHITECTURES)}; got {self.nets!r}.")
        # JSON has lists only.
        for name in ("shape", "hidden"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value))

    @property
    def context_size(self) -> int:
        """Size of the context, with the default filled in."""
        if self.flow == "none":
            return 0
        if self.context_dim is not None:
            return self.context_dim
        return NETWORKS.conv_width if self.nets == "conv" else self.hidden[-1]

    def build(self, *, seed: int) -> FlowVAE:
        """Build the VAE; torch's global random state is left as it was.

        Nets are drawn before the flow: VAEs of one seed share them, whatever the flow.
        """
        options = dict(self.likelihood)
        likelihood = make_likelihood(options.pop("name"), **options)
        with seeded(seed, "vae"):
            encoder, decoder = self._nets(likelihood.num_params)
            return FlowVAE(
                encoder,
                decoder,
                self.latent_dim,
                self.context_size,
                None if self.flow == "none" else self.flow,
                likelihood,
                prior=None if self.prior == "none" else self.prior,
                condition_dim=self.condition_dim,
                amortize=self.amortize,
                **self.flow_options,
            )

    def _nets(self, num_params: int) -> tuple[nn.Module, nn.Module]:
        # The head is drawn apart from its context, so that it is the same with and without one.
        ends: dict[str, Any] = {"condition_dim": self.condition_dim}
        if self.nets == "conv":
            return (
                ConvEncoder(self.shape, self.latent_dim, context_dim=self.context_size, **ends),
                ConvDecoder(self.latent_dim, self.shape, num_params=num_params, **ends),
            )
        widths: Sequence[int] = self.hidden
        dense = {**ends, "gated": self.nets == "gated"}
        return (
            DenseEncoder(
                self.shape, self.latent_dim, widths, context_dim=self.context_size, **dense
            ),
            DenseDecoder(self.latent_dim, self.shape, widths, num_params=num_params, **dense),
        )

    def spec(self) -> dict[str, Any]:
        """Describe the architecture with what JSON can hold."""
        return asdict(self)
