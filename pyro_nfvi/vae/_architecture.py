"""A VAE from its description, so that a file can bring one back."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pyro_nfvi._random import seeded
from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae._conv_networks import ConvDecoder, ConvEncoder
from pyro_nfvi.vae._dense_networks import DenseDecoder, DenseEncoder
from pyro_nfvi.vae._hierarchical import HierarchicalVAE
from pyro_nfvi.vae._likelihood_names import likelihood_kind, make_likelihood
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._recipe import NETWORKS
from pyro_nfvi.vae._resnet_networks import ResNetDecoder, ResNetEncoder

#: Names of the shipped encoders and decoders.
ARCHITECTURES = ("gated", "mlp", "conv", "resnet")

#: Encoder and decoder of each name that are made of convolutions.
_CONVOLUTIONS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "conv": (ConvEncoder, ConvDecoder),
    "resnet": (ResNetEncoder, ResNetDecoder),
}


@dataclass(frozen=True)
class Architecture:
    """Everything that says what a VAE is made of, with what JSON can hold.

    Args:
        shape: Shape of an image.
        latent_dim: D.
        flow: Formula of the flow, or ``"none"``.
        flow_options: Options of the flow.
        nets: ``"gated"`` (gated dense), ``"mlp"`` (ReLU), ``"conv"`` (gated convolutions) or
            ``"resnet"`` (residual ones); ``"module:function"`` for nets of a user's own, which are
            handed to ``build``.
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
    latent_dim: int = NETWORKS.latent_dim
    flow: str = "iaf*4"
    flow_options: dict[str, Any] = field(default_factory=dict)
    nets: str = "gated"
    hidden: tuple[int, ...] = NETWORKS.hidden
    context_dim: int | None = None
    likelihood: dict[str, Any] = field(default_factory=lambda: {"name": "bernoulli"})
    prior: str = "none"
    condition_dim: int = 0
    amortize: str = "linear"

    def __post_init__(self) -> None:
        if self.nets not in ARCHITECTURES and ":" not in self.nets:
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
        return NETWORKS.conv_width if self.nets in _CONVOLUTIONS else self.hidden[-1]

    def build(
        self, *, seed: int, nets: tuple[nn.Module, nn.Module] | Callable[..., Any] | None = None
    ) -> FlowVAE:
        """Build the VAE; torch's global random state is left as it was.

        Nets are drawn before the flow: VAEs of one seed share them, whatever the flow.

        Args:
            seed: Of the initial weights.
            nets: Encoder and decoder of a user's own, or a function that makes them.
        """
        options = dict(self.likelihood)
        likelihood = make_likelihood(options.pop("name"), **options)
        with seeded(seed, "vae"):
            encoder, decoder = self._nets(likelihood.num_params, nets)
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

    def _nets(
        self, num_params: int, own: tuple[nn.Module, nn.Module] | Callable[..., Any] | None
    ) -> tuple[nn.Module, nn.Module]:
        if callable(own):
            return _made(self, own, num_params)
        if own is not None:
            return own
        # The head is drawn apart from its context, so that it is the same with and without one.
        ends: dict[str, Any] = {"condition_dim": self.condition_dim}
        if self.nets in _CONVOLUTIONS:
            encoder, decoder = _CONVOLUTIONS[self.nets]
            return (
                encoder(self.shape, self.latent_dim, context_dim=self.context_size, **ends),
                decoder(self.latent_dim, self.shape, num_params=num_params, **ends),
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


def _made(
    architecture: Architecture, function: Callable[..., Any], num_params: int
) -> tuple[nn.Module, nn.Module]:
    """Call a user's function that makes the nets, with those sizes that it has arguments for.

    Raises:
        OptionError: It returned no encoder and decoder.
    """
    sizes = {
        "shape": architecture.shape, "latent_dim": architecture.latent_dim,
        "context_dim": architecture.context_size, "num_params": num_params,
        "condition_dim": architecture.condition_dim,
    }  # fmt: skip
    known = inspect.signature(function).parameters
    every = any(one.kind is one.VAR_KEYWORD for one in known.values())
    found = function(**{name: value for name, value in sizes.items() if every or name in known})
    if isinstance(found, tuple | list) and len(found) == 2:
        encoder, decoder = found
        if isinstance(encoder, nn.Module) and isinstance(decoder, nn.Module):
            return encoder, decoder
    raise OptionError(
        f"{architecture.nets} needs to return a pair of modules, encoder and decoder; it returned "
        f"{type(found).__name__}."
    )


_NETS: dict[str, Callable[..., nn.Module]] = {
    one.__name__: one
    for one in (
        ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder, ResNetDecoder, ResNetEncoder,
    )
}  # fmt: skip


def describe(vae: FlowVAE) -> dict[str, Any]:
    """Describe a VAE with what JSON can hold; of parts of a user's own, their class alone.

    Example:
        >>> from pyro_nfvi.vae._architecture import Architecture, describe, rebuilt
        >>> vae = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,)).build(seed=0)
        >>> describe(vae)["flow"]
        'planar*2'
        >>> rebuilt(describe(vae), {}).latent_dim
        2
    """
    found = dict(vae.made_of)
    for name in ("encoder", "decoder"):
        net = getattr(vae, name)
        # A subclass is a net of a user's own.
        own = type(net) is not _NETS.get(type(net).__name__)
        found[name] = _own(net) if own else net.made_of
    held = vae.likelihood.spec()
    shipped = likelihood_kind(held["name"]) is type(vae.likelihood)
    found["likelihood"] = held if shipped else _own(vae.likelihood)
    for name in ("flow", "prior"):
        if not isinstance(found[name], str | list):  # a list: formulas of several layers
            found[name] = _own(found[name])
    try:
        described: dict[str, Any] = json.loads(json.dumps(found))
    except TypeError:  # an option of the flow that no file can hold: the flow is passed again
        described = json.loads(json.dumps({**found, "flow": _own(vae.flow), "flow_options": {}}))
    return described


def _own(part: Any) -> dict[str, str]:
    kind = type(part)
    return {"own": f"{kind.__module__}.{kind.__qualname__}"}


def rebuilt(spec: Mapping[str, Any], given: Mapping[str, Any]) -> FlowVAE:
    """Build a VAE from :func:`describe` or ``Architecture.spec``, and parts of a user's own.

    Args:
        spec: The description.
        given: Parts by name: ``encoder``, ``decoder``, ``flow``, ``prior``, ``likelihood``.

    Raises:
        OptionError: A part of a user's own is missing, or given where the file has its own.
    """
    if "nets" in spec:
        missing = {"encoder", "decoder"} - set(given)
        if ":" not in spec["nets"]:
            _refuse_others(given, set())
            return Architecture(**spec).build(seed=0)
        _require(missing, {name: spec["nets"] for name in missing})
        return Architecture(**spec).build(seed=0, nets=(given["encoder"], given["decoder"]))
    options = dict(spec)
    parts = ("encoder", "decoder", "flow", "prior", "likelihood")
    own = {name: options[name]["own"] for name in parts if _is_own(options[name])}
    _require(set(own) - set(given), own)
    _refuse_others(given, set(own))
    for name in ("encoder", "decoder"):
        if name not in own:
            held = dict(options[name])
            options[name] = _NETS[held.pop("kind")](**held)
    if "likelihood" not in own:
        held = dict(options["likelihood"])
        options["likelihood"] = make_likelihood(held.pop("name"), **held)
    flow_options = options.pop("flow_options")
    options |= {name: given[name] for name in own}
    kind = {one.__name__: one for one in (FlowVAE, HierarchicalVAE)}[
        options.pop("class", "FlowVAE")
    ]
    if kind is HierarchicalVAE and options["prior"] == "none":
        options["prior"] = None
    with seeded(0, "vae"):
        return kind(**options, **flow_options)


def _is_own(held: Any) -> bool:
    return isinstance(held, Mapping) and "own" in held


def _require(missing: set[str], own: Mapping[str, str]) -> None:
    if missing:
        words = ", ".join(f"{name}=... (it was a {own[name]})" for name in sorted(missing))
        raise OptionError(
            "the VAE has parts of its user's own, of which the file holds the weights alone: pass "
            f"{words}."
        )


def _refuse_others(given: Mapping[str, Any], own: set[str]) -> None:
    stray = sorted(set(given) - own)
    if stray:
        raise OptionError(
            f"the file describes {', '.join(stray)} itself: leave out {', '.join(stray)}."
        )
