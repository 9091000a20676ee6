"""The flow-augmented VAE: model and guide in one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_nfvi._autocast import full_dtype, lift
from pyro_nfvi._eval_mode import evaluation, recorded, scoring
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._validation import whole
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import DataError, OptionError, ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides._param_store import sync_module
from pyro_nfvi.vae._annealed_nll import annealed_nll
from pyro_nfvi.vae._assemble import call_net, encoder_output, plate, posterior_flow, prior_density
from pyro_nfvi.vae._elbo_terms import ELBO, elbo_terms
from pyro_nfvi.vae._importance_nll import NLL, importance_nll
from pyro_nfvi.vae._likelihood_names import make_likelihood
from pyro_nfvi.vae._likelihoods import Likelihood
from pyro_nfvi.vae._losses import ELBOLoss, Loss, VAELoss
from pyro_nfvi.vae._posterior import Posterior
from pyro_nfvi.vae._priors import Prior
from pyro_nfvi.vae._recipe import ANNEALING, EVALUATION


class FlowVAE(PyroModule):
    r"""A VAE whose posterior is a Gaussian bent by a flow.

    .. math::
        z_0 \sim N(\mu(x), \sigma^2(x)), \quad z = f(z_0; h(x)), \qquad
        \log p(x) \ge \mathbb{E}\bigl[\log p(x \mid z)\bigr]
        - \mathbb{E}\bigl[\log q_0(z_0) - \log|\det J_f| - \log p(z)\bigr]

    The flow starts as the identity, so that the VAE with a flow starts as the plain one. How much
    of the flow depends on the image:

    - ``context_dim=0``: nothing; one flow for all images, which moves each image's Gaussian;
    - a context, and layers that do not look at the point for their parameters (planar, radial,
      Sylvester, affine maps): all their parameters, linear in the context;
    - a context, and layers with a net of their own (IAF, coupling, splines): the context goes into
      the net's hidden layers beside the point.

    ``model`` and ``guide`` go into ``pyro.infer.SVI``; :meth:`elbo` and :meth:`nll` are the same
    numbers without Pyro's machinery between.

    Args:
        encoder: ``encoder(x) -> (loc, scale, context)``, sizes ``(B, D)``, ``(B, D)`` and
            ``(B, context_dim)``; without a context the third may be None or left out. The scale
            is positive. With ``condition_dim`` it is called ``encoder(x, c)``.
        decoder: ``decoder(z)``, ``(N, D)`` to the likelihood's parameters ``(N, *shape)``
            (``(N, *shape, P)`` for P numbers per pixel); with ``condition_dim`` ``decoder(z, c)``.
        latent_dim: D.
        context_dim: Size of the context of the flow; 0 for one flow for all images.
        flow: A formula as ``"iaf*4"``, a :class:`pyro_nfvi.flows.Flow`, or None (``"none"``).
            ``"tril"`` gives a Gaussian with full covariance.
        likelihood: A name (bernoulli, categorical, gaussian, logit-normal, student-t,
            logistic-mixture, poisson, negative-binomial, zero-inflated-negative-binomial) or a
            :class:`Likelihood`, such as ``Masked(Gaussian())`` where pixels are missing.
        prior: None for the standard normal; a formula as ``"maf*2"``, a flow from base to z (with
            ``context_dim=condition_dim`` or 0), or a :class:`pyro_nfvi.FlowDensity`;
            ``"mixture*10"`` (:class:`MixturePrior`), a :class:`VampPrior`, or a :class:`Prior` of
            your own.
        condition_dim: Size of labels c on which everything is conditioned; integer labels are
            turned into one-hot rows. 0 for none.
        amortize: ``"linear"``: the context's linear map gives the layers' parameters, as in the
            papers; ``"mlp"``: a net with one hidden layer does.
        **flow_options: Passed to the flow of a formula: ``hidden_dim``, ``gate``, ``rank``, ...

    Shape:
        Images ``x (B, *shape)``.

    Cost:
        An image costs one pass of the encoder, and one of flow and decoder per sample.

    Raises:
        OptionError: Options that do not fit together.
        DataError, ShapeError: When called: images, outputs of encoder or decoder,
            or labels that do not fit; the message says what to do.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770; Kingma et al. 2016, arXiv:1606.04934;
    van den Berg et al. 2018, arXiv:1803.05649.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.optim import Adam
        >>> from pyro_nfvi.vae import DenseDecoder, DenseEncoder, FlowVAE
        >>> encoder = DenseEncoder((8, 8), latent_dim=2, hidden=(16,), context_dim=4)
        >>> decoder = DenseDecoder(2, (8, 8), hidden=(16,))
        >>> vae = FlowVAE(encoder, decoder, latent_dim=2, context_dim=4, flow="iaf*2")
        >>> x = torch.bernoulli(torch.full((5, 8, 8), 0.5))
        >>> svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(x)
        >>> terms = vae.elbo(x)
        >>> terms.bound.shape, torch.equal(terms.bound, terms.reconstruction - terms.kl)
        (torch.Size([5]), True)
        >>> vae.nll(x, num_samples=100).value.shape
        torch.Size([5])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        context_dim: int = 0,
        flow: str | Flow | None = "iaf*4",
        likelihood: str | Likelihood = "bernoulli",
        *,
        prior: str | Flow | FlowDensity | Prior | None = None,
        condition_dim: int = 0,
        amortize: str = "linear",
        **flow_options: Any,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("latent_dim", latent_dim, 1),
            ("context_dim", context_dim, 0),
            ("condition_dim", condition_dim, 0),
        ):
            whole(f"FlowVAE: {name}", value, least)
        if amortize not in ("linear", "mlp"):
            raise OptionError(f"amortize is 'linear' or 'mlp'; got {amortize!r}.")
        self.latent_dim, self.context_dim = latent_dim, context_dim
        self.condition_dim = condition_dim
        #: Options that files describe the VAE by; parts that are no formula stand as they are.
        self.made_of = {
            "latent_dim": latent_dim, "context_dim": context_dim, "condition_dim": condition_dim,
            "amortize": amortize, "flow": "none" if flow is None else flow,
            "prior": "none" if prior is None else prior, "flow_options": flow_options,
        }  # fmt: skip
        self.likelihood = make_likelihood(likelihood)
        self.encoder, self.decoder = encoder, decoder
        self.flow = posterior_flow(flow, latent_dim, context_dim, amortize, flow_options)
        self.prior = prior_density(prior, latent_dim, condition_dim)
        if isinstance(self.prior, Prior):
            self.prior.bind(self)

    # ------------------------------------------------------------------------- loss to train on

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call :meth:`forward` as ``nn.Module`` does, without statements of Pyro inside."""
        return nn.Module.__call__(self, *args, **kwargs)

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        loss: VAELoss | None = None,
        eps: Tensor | None = None,
        step: int = 0,
    ) -> Loss:
        """Return the loss of a batch: ``vae(x).surrogate.mean().backward()``.

        For loops of your own, and for wrappers that call modules (``DistributedDataParallel``,
        Lightning, Accelerate).

        Args:
            x: Images ``(B, *shape)``.
            y: Labels of a conditional VAE.
            loss: The loss; None for ``ELBOLoss()``.
            eps: Base noise ``(S, B, D)``; drawn from torch's global state if None.
            step: Steps taken so far, for the loss's schedules.
        """
        found: Loss = (ELBOLoss() if loss is None else loss)(self, x, y, eps=eps, step=step)
        return found

    # ------------------------------------------------------------------ encoder and decoder

    def encode(self, x: Tensor, y: Tensor | None = None) -> Posterior:
        """Run the encoder once, in eval mode; the result can be drawn from many times.

        Args:
            x: Images ``(B, *shape)``.
            y: Labels, with ``condition_dim``: integers ``(B,)`` or rows ``(B, condition_dim)``.
        """
        self.check(x)
        return self.posterior_of(self.likelihood.encoder_input(x), self.condition(y, x))

    def posterior_of(self, given: Tensor, c: Tensor | None = None) -> Posterior:
        """Run the encoder once on its own input, such as a prior's pseudo-images.

        Args:
            given: What ``likelihood.encoder_input`` makes of images ``(B, *shape)``.
            c: Labels as rows, of a conditional VAE.
        """
        like = next(self.encoder.parameters(), None)
        # Categories stay integers, which the encoder looks up.
        if like is not None and getattr(self.likelihood, "ordered", True):
            given = given.to(like.dtype)
        with scoring(self):
            found = call_net("encoder", self.encoder, given, *(() if c is None else (c,)))
            loc, scale, context = encoder_output(
                found, len(given), self.latent_dim, self.context_dim, flow=self.flow is not None
            )
            return Posterior(loc, scale, self.flow, context)

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameters, in eval mode: ``(*b, D) -> (*b, ...)``.

        Args:
            z: Latent points.
            c: Labels as rows, ``(condition_dim,)`` on the last axis, broadcast against ``z``.
        """
        batch = z.shape[:-1]
        flat = z.reshape(-1, z.shape[-1])
        like = next(self.decoder.parameters(), None)
        # What is drawn is in full precision, also where all nets were turned to half.
        half = like is not None and lift(like).dtype != like.dtype
        given = [flat.to(like.dtype) if half and like is not None else flat]
        if self.condition_dim:
            if c is None:
                raise ShapeError("This VAE is conditional: decode needs the labels c.")
            given.append(c.expand(*batch, self.condition_dim).reshape(-1, self.condition_dim))
        with scoring(self.decoder):
            params = call_net("decoder", self.decoder, *given)
        if not isinstance(params, Tensor) or params.shape[:1] != flat.shape[:1]:
            came = tuple(params.shape) if isinstance(params, Tensor) else type(params).__name__
            raise ShapeError(
                f"The decoder needs to return a tensor with {len(flat)} rows for z of shape "
                f"{tuple(flat.shape)}; it gave {came}. Stack several parameters per pixel on the "
                "last axis."
            )
        return params.reshape(*batch, *params.shape[1:])

    def prior_log_prob(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Log density of the prior, ``(*b, D) -> (*b,)``, in nats."""
        z = lift(z)
        if self.prior is None:
            return standard_normal_log_prob(z).sum(-1)
        if isinstance(self.prior, Prior):
            return self.prior.log_prob(z)
        return self.prior.log_prob(z, c if self.prior.flow.context_dim else None)

    def check(self, x: Tensor) -> None:
        """Refuse images that cannot be encoded or scored; values are not read in compiled code."""
        if not isinstance(x, Tensor) or x.dim() < 2 or len(x) == 0:
            came = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise DataError(f"A VAE needs a batch of images, a tensor (B, *shape); got {came}.")
        if not torch.compiler.is_compiling():  # what Python decides by a value breaks the graph
            self.likelihood.check(x)

    def condition(self, y: Tensor | None, x: Tensor) -> Tensor | None:
        """Turn labels into rows ``(B, condition_dim)``; None for a VAE without labels."""
        size = self.condition_dim
        if not size:
            if y is not None:
                raise ShapeError("This VAE takes no labels; build it with condition_dim=...")
            return None
        if y is None:
            raise ShapeError(f"This VAE is conditional: pass labels y (condition_dim={size}).")
        like = next(self.parameters(), torch.empty(()))
        y = torch.as_tensor(y, device=like.device)
        if y.dim() == 1 and not y.is_floating_point():
            unread = torch.compiler.is_compiling()
            if len(y) != len(x) or not (unread or bool(((y >= 0) & (y < size)).all())):
                raise ShapeError(
                    f"Labels need to be {len(x)} integers from 0 to {size - 1}; got {len(y)} from "
                    f"{int(y.min())} to {int(y.max())}."
                )
            return nn.functional.one_hot(y.long(), size).to(like)
        if y.shape != (len(x), size):
            raise ShapeError(
                f"Labels need shape ({len(x)},), integers, or ({len(x)}, {size}); got "
                f"{tuple(y.shape)}."
            )
        return y.to(like)

    # ----------------------------------------------------------------------- use from Pyro

    def model(self, x: Tensor, y: Tensor | None = None, *, num_data: int | None = None) -> Tensor:
        """Pyro model: prior of ``z``, likelihood of ``x``, in the plate ``data``.

        Args:
            x: Images of a mini-batch ``(B, *shape)``.
            y: Labels of a conditional VAE.
            num_data: Size N of the whole data set; the batch's log densities then count N/B times.

        Returns:
            The likelihood's parameters at the drawn ``z``.
        """
        self.check(x)
        self._sync("decoder", self.decoder)
        self._sync("prior", self.prior)
        c = self.condition(y, x)
        with plate(x, num_data), recorded(self):
            z = pyro.sample("z", self._prior_distribution(x, c))
            params = self.decode(z, c)
            self.likelihood.check_params(params.reshape(-1, *params.shape[z.dim() - 1 :]), x)
            pixels, values = self.likelihood.observe(params, x)
            pyro.sample("x", pixels.to_event(x.dim() - 1), obs=values)
        return params

    def guide(self, x: Tensor, y: Tensor | None = None, *, num_data: int | None = None) -> Tensor:
        """Pyro guide: draws ``z`` from the flow posterior; arguments as :meth:`model`."""
        self.check(x)
        self._sync("encoder", self.encoder)
        self._sync("flow", self.flow)
        with plate(x, num_data), recorded(self):
            drawn: Tensor = pyro.sample("z", self.encode(x, y).distribution())
        return drawn

    def _prior_distribution(self, x: Tensor, c: Tensor | None) -> Any:
        if self.prior is None:
            like = next(self.parameters(), torch.empty((), device=x.device))
            # Drawn and scored in full precision, whatever the nets compute in.
            dtype = full_dtype(like.dtype)
            loc = like.new_zeros(len(x), self.latent_dim, dtype=dtype)
            return dist.Normal(loc, torch.ones_like(loc)).to_event(1)
        if isinstance(self.prior, Prior):
            return self.prior.distribution(len(x))
        seen = c if self.prior.flow.context_dim else None
        return self.prior.distribution(seen).expand((len(x),))

    def _sync(self, part: str, module: nn.Module | None) -> None:
        """Keep the parameters and Pyro's store one and the same: loaded values are taken over.

        Those of another VAE of this process are not: nets come with weights of their own, and the
        VAE that is trained next would begin with trained ones.
        """
        sync_module(self, f"{type(self).__name__}.{part}", module, adopt=False)

    # ------------------------------------------------------------------------- without Pyro

    def elbo(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        num_samples: int = 1,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ELBO:
        """Return the ELBO of each image in parts, in nats, differentiable; nets are in eval mode.

        Args:
            x: Images ``(B, *shape)``.
            y: Labels of a conditional VAE.
            num_samples: Draws S per image, averaged.
            eps: Base noise ``(S, B, D)`` to use instead of drawing it.
            generator: Where noise is drawn from; torch's global state if None.

        To train nets with dropout or batch normalisation take a loss, or call this inside of
        :func:`pyro_nfvi.vae.training_pass`.
        """
        num_samples = whole("elbo: num_samples", num_samples)
        with scoring(self):
            posterior = self.encode(x, y)
            noise = posterior.noise(num_samples, generator=generator) if eps is None else eps
            return elbo_terms(self, x, self.condition(y, x), posterior, noise)

    def nll(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        num_samples: int | None = None,
        method: str = "importance",
        temperatures: int | None = None,
        seed: int = 0,
        tile: int | None = None,
        first: int | Sequence[int] = 0,
        progress: bool = False,
    ) -> NLL:
        r"""Estimate ``-log p(x)`` of each image, by importance sampling or annealed.

        Annealed importance sampling goes from the flow posterior to the model in T steps, through
        :math:`q(z \mid x)^{1-\beta} p(x, z)^{\beta}`, with a Hamiltonian transition in the space
        of the flow's noise at each: right where the weights of importance sampling are not (k-hat),
        and on average an upper bound all the same.

        Args:
            x: Images ``(B, *shape)``.
            y: Labels of a conditional VAE.
            num_samples: Draws S per image, 5000 by default, or chains, 128.
            method: ``"importance"`` or ``"ais"``.
            temperatures: Steps T of the annealing, 100 by default; 1 is importance sampling.
            seed: Of the noise, which is that of image ``first + i`` whatever the tiles are.
            tile: Decoder rows at a time, images times samples: bounds the memory. None takes
                what fits a processor's cache, on a GPU 65,536.
            first: Number of the first image, where a data set is evaluated in parts, or the number
                of each image, where it is a subset: numbers choose the noise.
            progress: Show a bar.

        Cost:
            S decoded points per image; annealed, 4 S T points with their gradients.

        Source: Burda et al. 2016, arXiv:1509.00519, equation 8; Neal 2001, Statistics and Computing
        11; Wu et al. 2017, arXiv:1611.04273 (annealing for decoders).
        """
        if method not in ("importance", "ais"):
            raise OptionError(f"nll: method is 'importance' or 'ais'; got {method!r}.")
        if temperatures is not None and method != "ais":
            raise OptionError("nll: temperatures belong to method='ais'.")
        annealed = method == "ais"
        usual = ANNEALING.chains if annealed else EVALUATION.nll_samples
        num_samples = whole("nll: num_samples", usual if num_samples is None else num_samples)
        steps = ANNEALING.temperatures if temperatures is None else temperatures
        steps = whole("nll: temperatures", steps)
        if tile is None:
            on_cpu = x.device.type == "cpu"
            tile = EVALUATION.nll_rows_cpu if on_cpu else EVALUATION.tile_rows
        tile = whole("nll: tile", tile)
        self.check(x)
        numbers = range(first, first + len(x)) if isinstance(first, int) else first
        if len(numbers) != len(x):
            raise OptionError(
                f"nll: first needs a number for each of {len(x)} images; got {len(numbers)}."
            )
        # Nets that draw from torch's own state in eval mode too give one value for one seed.
        with evaluation(self), seeded(seed, "vae nets"):
            if annealed:
                return annealed_nll(
                    self, x, y, num_samples=num_samples, temperatures=steps, seed=seed, tile=tile,
                    numbers=numbers, show=progress,
                )  # fmt: skip
            return importance_nll(
                self, x, y, num_samples=num_samples, seed=seed, tile=tile, numbers=numbers,
                show=progress,
            )  # fmt: skip

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        y: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        mean: bool = True,
    ) -> Tensor:
        """Draw images from the model: expected ones, or with ``mean=False`` pixels drawn too.

        Args:
            num_samples: Number of images.
            y: Labels, one per image, of a conditional VAE.
            generator: Of the latent points; torch's global state if None.
            mean: Return the expected pixels.
        """
        num_samples = whole("sample: num_samples", num_samples)
        like = next(self.parameters(), torch.empty(()))
        z = torch.randn(
            num_samples,
            self.latent_dim,
            generator=generator,
            dtype=full_dtype(like.dtype),
            device=like.device,
        )
        c = self.condition(y, z)
        with evaluation(self):
            if isinstance(self.prior, Prior):
                z = self.prior.sample(num_samples, generator=generator)
            elif self.prior is not None:
                z, _ = self.prior.push(z, c if self.prior.flow.context_dim else None)
            params = self.decode(z, c)
        return self.likelihood.mean(params) if mean else self.likelihood.sample(params)

    @torch.no_grad()
    def get_latent(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        num_samples: int = EVALUATION.latent_draws,
        seed: int = 0,
    ) -> Tensor:
        """Return the posterior mean of each image's latent point ``(B, D)``, in eval mode.

        To plot, to cluster, or as features. A flow moves the mean away from ``encode(x).loc``, so
        that it is a mean over draws; without a flow it is that location.

        Args:
            x: Images ``(B, *shape)``, as many as the data set has.
            y: Labels of a conditional VAE.
            num_samples: Draws of each image.
            seed: Of the draws.

        Example:
            >>> import torch
            >>> from pyro_nfvi.vae._architecture import Architecture
            >>> vae = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,)).build(seed=0)
            >>> vae.get_latent(torch.ones(5, 4, 4)).shape
            torch.Size([5, 2])
        """
        num_samples = whole("get_latent: num_samples", num_samples)
        self.check(x)
        found: list[Tensor] = []
        with evaluation(self), seeded(seed, "vae nets"):
            for number, start in enumerate(range(0, len(x), EVALUATION.rows)):
                rows = slice(start, start + EVALUATION.rows)
                posterior = self.encode(x[rows], None if y is None else y[rows])
                if self.flow is None:
                    found.append(posterior.loc)
                    continue
                generator = stream(seed, EVALUATION.latent_stream, number, device=x.device)
                found.append(posterior.draw(num_samples, generator=generator).z.mean(0))
        return torch.cat(found)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, y: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the expected image at one draw of each image's posterior ``(B, *shape)``."""
        with evaluation(self):
            z = self.encode(x, y).draw(1, generator=generator).z[0]
            return self.likelihood.reconstruction(self.decode(z, self.condition(y, x)), x)
