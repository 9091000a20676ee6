"""Options of ``AutoFlow``, checked, and the flow made of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_nfvi._gaussian_vi.recipe import LOW_RANK
from pyro_nfvi.distributions._bases import Base
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._interop import adapt
from pyro_nfvi.flows._permutation import undo_permutations
from pyro_nfvi.flows._registry import check_formula, make_flow
from pyro_nfvi.flows._whitened_affine import WhitenedAffine
from pyro_nfvi.guides._recipe import GUIDES

#: What users pass as ``flow``.
FlowSpec: TypeAlias = str | Flow | Callable[[int], Any] | None
#: What users pass as ``base``.
BaseSpec: TypeAlias = Distribution | Base | Callable[[int], Base] | None


@dataclass(frozen=True)
class Recipe:
    """The options of a guide, checked as far as they can be without the model."""

    name: str
    flow: FlowSpec
    outer: str | Flow
    options: Mapping[str, Any]
    init_scale: float
    base: BaseSpec

    def __post_init__(self) -> None:
        name, flow, outer, scale = self.name, self.flow, self.outer, self.init_scale
        if isinstance(flow, str):
            check_formula(flow, self.options)
        elif self.options:
            raise OptionError(
                f"{name}: the options {', '.join(self.options)} go with a named flow; give them "
                "to the flow itself."
            )
        elif flow is not None and not callable(flow):
            raise OptionError(
                f"{name} needs flow to be a name, a Flow, a callable of the latent dimension or "
                f"None; got {type(flow).__name__}."
            )
        if not (isinstance(outer, Flow) or outer in ("diagonal", "full", "whitened")):
            raise OptionError(
                f"{name} needs outer='diagonal', 'full', 'whitened' or a Flow; got {outer!r}."
            )
        if not (self.base is None or isinstance(self.base, Distribution) or callable(self.base)):
            raise OptionError(
                f"{name} needs base to be a distribution over vectors, a base of "
                "pyro_nfvi.distributions, "
                f"a callable of the latent dimension or None; got {type(self.base).__name__}."
            )
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if not (number and 0 < scale < math.inf):
            raise OptionError(f"{name} needs init_scale > 0; got {scale!r}.")

    def described(self) -> Recipe:
        """Return the part that a copy or a file keeps once the flow is built: no callables."""
        base = self.base if isinstance(self.base, Distribution) else None
        if isinstance(self.flow, str) and isinstance(self.outer, str):
            return replace(self, base=base)
        named = isinstance(self.flow, str)
        return replace(
            self,
            base=base,
            flow=self.flow if named else None,
            options=self.options if named else {},
            outer=self.outer if isinstance(self.outer, str) else "diagonal",
        )

    def build(self, like: Tensor) -> tuple[Flow | None, Flow | None]:
        """Make the flow and, if it is one, the outer flow, for vectors like ``like (D,)``.

        Permutations are undone behind the flow, so that the guide starts at the identity.
        """
        dim = len(like)
        # Forked: the noise of the fit does not depend on how many weights are drawn here.
        with torch.random.fork_rng(devices=[]):
            flow = self._flow(dim)
        outer = self.outer if isinstance(self.outer, Flow) else None
        if self.outer == "whitened":
            outer = whitened(like, self.init_scale)
        for role, part in (("flow", flow), ("outer", outer)):
            if part is not None and (part.dim != dim or part.context_dim):
                raise OptionError(
                    f"{self.name} needs a {role} of dim={dim} without context for this model; "
                    f"got dim={part.dim}, context_dim={part.context_dim}. Pass a callable of the "
                    "latent dimension."
                )
        if flow is not None:
            undo = undo_permutations(flow)
            flow = (flow if undo is None else Chain(flow, undo)).to(like)
        return flow, None if outer is None else outer.to(like)

    def build_base(self, like: Tensor) -> Distribution | Base | None:
        """Make the base, or check the given one, for vectors like ``like (D,)``."""
        base, dim = self.base, len(like)
        if base is None:
            return None
        with torch.random.fork_rng(devices=[]):
            if not isinstance(base, Distribution | Base):
                base = base(dim)
            if not isinstance(base, Distribution | Base):
                raise OptionError(
                    f"{self.name}: base returned {type(base).__name__}; a callable base takes the "
                    "latent dimension and returns a base of pyro_nfvi.distributions."
                )
            if tuple(base.event_shape) != (dim,):
                raise OptionError(
                    f"{self.name} needs a base over vectors of size {dim} for this model; got "
                    f"event_shape {tuple(base.event_shape)}."
                )
            if isinstance(base, Base) and base.periodic:
                raise OptionError(
                    f"{self.name} needs a base of real numbers, as its latents are; "
                    f"{type(base).__name__} are angles. Take StudentT(dim) or another, or write a "
                    "guide with FlowDensity(flow, UniformAngles(dim)).distribution()."
                )
            if isinstance(base, Base):
                return copy.deepcopy(base).to(like)
            noise = base.sample()
        if (noise.dtype, noise.device) != (like.dtype, like.device):
            raise OptionError(
                f"{self.name} needs a base of {like.dtype} on {like.device}, as the model's "
                f"latents; got {noise.dtype} on {noise.device}."
            )
        return base

    def _flow(self, dim: int) -> Flow | None:
        if self.flow is None or isinstance(self.flow, Flow):
            return self.flow
        if isinstance(self.flow, str):
            return make_flow(self.flow, dim, **self.options)
        return adapt(self.flow(dim), dim)


def whitened(loc: Tensor, scale: float) -> WhitenedAffine:
    """Return a whitened map: full up to ``GUIDES.full_dim``, above with a few directions."""
    return WhitenedAffine(
        loc, scale, None if len(loc) <= GUIDES.full_dim else LOW_RANK.most_directions
    )
