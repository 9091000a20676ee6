"""A flow density as a Pyro distribution: prior and likelihood in models."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_nfvi._math import broadcast_shape
from pyro_nfvi.distributions._density import Density
from pyro_nfvi.errors import ShapeError


class FlowDistribution(TorchDistribution):
    """The distribution of a :class:`pyro_nfvi.FlowDensity` at a context, for ``pyro.sample``.

    Made by ``density.distribution(context)``. A value that it drew itself is scored without an
    inversion: its ``FlowTransform``, which lives as long, remembers the last pair.

    Args:
        density: The density.
        context: Its context, ``(*b, C)``, which gives the batch shape ``b``.
        batch_shape: A batch shape to which ``b`` expands.

    Shape:
        Draws are ``(*sample, *batch, D)``, log densities ``(*sample, *batch)``, in nats.

    Raises:
        ShapeError: The context does not expand to the batch shape.

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import make_flow
        >>> density = FlowDensity(make_flow("iaf*1", dim=2, context_dim=3))
        >>> both = density.distribution(torch.zeros(5, 3))
        >>> both.batch_shape, both.event_shape, both().shape
        (torch.Size([5]), torch.Size([2]), torch.Size([5, 2]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        density: Density,
        context: Tensor | None = None,
        batch_shape: torch.Size | None = None,
        validate_args: bool | None = None,  # noqa: FBT001 (the signature of distributions)
    ) -> None:
        own = torch.Size() if context is None else context.shape[:-1]
        batch = own if batch_shape is None else torch.Size(batch_shape)
        if context is not None and own != batch:
            try:
                context = context.expand(*batch, context.shape[-1])
            except RuntimeError as error:
                raise ShapeError(
                    f"A context of shape {tuple(context.shape)} does not expand to the batch "
                    f"shape {tuple(batch)}."
                ) from error
        self.density = density
        self.context = context
        self._transform = density.flow.as_transform(context)
        super().__init__(batch, torch.Size((density.flow.dim,)), validate_args=validate_args)

    @property
    def periodic(self) -> bool:
        """True for a distribution of angles, whose density repeats itself from turn to turn."""
        return self.density.periodic

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Return the distribution with a larger batch shape."""
        return FlowDistribution(
            self.density, self.context, torch.Size(batch_shape), self._validate_args
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample, *batch, D)``, reparametrised."""
        eps = self.density.sample_base((*sample_shape, *self.batch_shape))
        drawn: Tensor = self._transform(eps)
        return self.density.representative(drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score a value, ``(*sample, *batch, D) -> (*sample, *batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        eps = self._transform._inverse(value)
        ladj = self._transform.log_abs_det_jacobian(eps, value)
        log_prob = self.density.base_log_prob(eps) - ladj
        return log_prob.expand(broadcast_shape(log_prob.shape, self.batch_shape))
