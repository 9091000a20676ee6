"""Stochastic normalizing flows: flow and Markov-chain layers in turn, with weights of paths."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._eval_mode import scoring, training_pass
from pyro_nfvi._optim.gradient_clipping import clip_gradient
from pyro_nfvi._optim.learning_rate import cosine
from pyro_nfvi._optim.recovery import Action, Recovery
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._optim.torch_optimizers import Adam
from pyro_nfvi._progress_bar import progress_bar
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorPair
from pyro_nfvi._validation import number, seed_number, whole
from pyro_nfvi.distributions._bases import Base, DiagonalNormal
from pyro_nfvi.errors import DivergedError, OptionError, ShapeError
from pyro_nfvi.flows._base import Flow

#: An unnormalised log density: ``(S, D) -> (S,)`` in nats.
LogDensity = Callable[[Tensor], Tensor]


class PathLayer(nn.Module, ABC):
    r"""A random move of points, with the probabilities of the move and of its way back.

    The layer aims at :math:`\pi_\beta(x) \propto N(x; 0, I)^{1-\beta}\, p(x)^\beta`: with a small
    ``beta`` it crosses barriers of p.

    Args:
        beta: How far towards the target, above 0 and at most 1.
        step_size: Size of a move at the start; it is trained.
        num_steps: Moves per call.
    """

    def __init__(self, *, beta: float, step_size: float, num_steps: int) -> None:
        super().__init__()
        name = type(self).__name__
        if not number(f"{name}: beta", beta, above=0) <= 1:
            raise OptionError(f"{name} needs beta in (0, 1]; got {beta!r}.")
        number(f"{name}: step_size", step_size, above=0)
        self.beta, self.num_steps = beta, whole(f"{name}: num_steps", num_steps)
        self.log_step = nn.Parameter(torch.tensor(math.log(step_size)))

    def tempered(self, log_density: LogDensity) -> LogDensity:
        """The log density that the layer aims at."""
        if self.beta == 1:
            return log_density

        def between(x: Tensor) -> Tensor:
            return self.beta * log_density(x) - (1 - self.beta) * 0.5 * x.square().sum(-1)

        return between

    @abstractmethod
    def move(
        self, x: Tensor, log_density: LogDensity, generator: torch.Generator | None = None
    ) -> TensorPair:
        r"""Move points; return them and :math:`\log \tilde P(y \to x) - \log P(x \to y)`."""

    def extra_repr(self) -> str:
        return f"beta={self.beta}, num_steps={self.num_steps}"


@final
class Langevin(PathLayer):
    r"""Overdamped Langevin moves, without rejection.

    .. math:: y = x + h\,\nabla \log \pi(x) + \sqrt{2h}\,\eta, \qquad
        \Delta = \tfrac12\bigl(|\eta|^2 - |\tilde\eta|^2\bigr), \quad
        \tilde\eta = \frac{x - y - h\,\nabla\log\pi(y)}{\sqrt{2h}}

    Differentiable in the step size h and in all before it.

    Args:
        beta: How far towards the target.
        step_size: h at the start.
        num_steps: Moves per call.

    Cost:
        One gradient of the target per move, and one at the end.

    Source: Wu, Köhler and Noé 2020, arXiv:2002.06707, section 3.2 (overdamped Langevin).

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import Langevin
        >>> target = lambda x: -x.square().sum(-1)
        >>> y, delta = Langevin(step_size=0.1).move(torch.zeros(5, 2), target)
        >>> y.shape, delta.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, *, beta: float = 1.0, step_size: float = 0.01, num_steps: int = 5) -> None:
        super().__init__(beta=beta, step_size=step_size, num_steps=num_steps)

    def move(
        self, x: Tensor, log_density: LogDensity, generator: torch.Generator | None = None
    ) -> TensorPair:
        target, step = self.tempered(log_density), self.log_step.exp()
        total = x.new_zeros(x.shape[:-1])
        score = _score(target, x)
        for _ in range(self.num_steps):
            noise = _randn_like(x, generator)
            y = x + step * score + (2 * step).sqrt() * noise
            after = _score(target, y)
            back = (x - y - step * after) / (2 * step).sqrt()
            total = total + 0.5 * (noise.square() - back.square()).sum(-1)
            x, score = y, after
        return x, total


@final
class Metropolis(PathLayer):
    r"""Random-walk Metropolis moves: they keep :math:`\pi_\beta`, and cross between its modes.

    .. math:: \Delta = \log\pi(x) - \log\pi(y)

    by detailed balance, whatever was accepted on the way. Training takes the pathwise gradient;
    what changes through the accept decisions is left out.

    Args:
        beta: How far towards the target.
        step_size: Standard deviation of a proposal at the start.
        num_steps: Moves per call.

    Cost:
        One evaluation of the target per move, and one at the start.

    Source: Wu, Köhler and Noé 2020, arXiv:2002.06707, section 3.2 (Metropolis).

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import Metropolis
        >>> target = lambda x: -x.square().sum(-1)
        >>> y, delta = Metropolis(num_steps=3).move(torch.zeros(5, 2), target)
        >>> bool(torch.allclose(delta, y.square().sum(-1)))
        True
    """

    def __init__(self, *, beta: float = 1.0, step_size: float = 0.3, num_steps: int = 10) -> None:
        super().__init__(beta=beta, step_size=step_size, num_steps=num_steps)

    def move(
        self, x: Tensor, log_density: LogDensity, generator: torch.Generator | None = None
    ) -> TensorPair:
        target, step = self.tempered(log_density), self.log_step.exp()
        start = now = target(x)
        for _ in range(self.num_steps):
            proposal = x + step * _randn_like(x, generator)
            there = target(proposal)
            uniform = torch.rand(now.shape, dtype=now.dtype, device=now.device, generator=generator)
            accepted = (uniform.log() < there - now).detach()
            x = torch.where(accepted.unsqueeze(-1), proposal, x)
            now = torch.where(accepted, there, now)
        # A chain that stays has a ratio of one, at a density of zero too: infinite logs do not
        # say so.
        none = (start == now) & start.isinf()
        return x, torch.where(none, 0.0, start) - torch.where(none, 0.0, now)


@final
class PathSampler(nn.Module):
    r"""Draws by flow layers and Markov-chain layers in turn, with weights of their paths.

    .. math:: \log w = \log p(z_T) - \log q_0(z_0)
        + \sum_{\text{flows}} \log|\det J_t| + \sum_{\text{chains}} \Delta_t

    A flow is a homeomorphism: from one normal it cannot make two pieces, and leaves a bridge
    between them. Random moves can cross. The density of z itself is not known any more, but the
    weight is exact on the path: :math:`\mathbb{E}[w] = \int p`, so importance sampling, evidence
    and k-hat work as for a flow, and :math:`\mathbb{E}[\log w]` bounds the log evidence. This is
    why it stands outside ``AutoFlow``, which promises ``log_prob``.

    Args:
        log_density: The target, unnormalised: ``(S, D) -> (S,)`` in nats; a ``LogJoint`` too.
        layers: :class:`Flow` without context, and :class:`PathLayer`, in the order of sampling.
        base: The base, of the flows' D; a learned diagonal normal by default.

    Shape:
        ``sample(n)`` -> ``z (n, D)``, ``log_w (n,)`` in nats.

    Cost:
        That of its layers.

    Raises:
        OptionError: No layer, sizes that do not agree, or a D that nothing determines.

    Source: Wu, Köhler and Noé 2020, arXiv:2002.06707, equations 6-13.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import make_flow
        >>> from pyro_nfvi.distributions import Metropolis, PathSampler
        >>> target = lambda z: -0.5 * (z.square().sum(-1) - 4).square()
        >>> sampler = PathSampler(target, [make_flow("realnvp*2", 2), Metropolis()])
        >>> z, log_w = sampler.sample(7)
        >>> z.shape, log_w.shape
        (torch.Size([7, 2]), torch.Size([7]))
    """

    def __init__(
        self,
        log_density: LogDensity,
        layers: Sequence[Flow | PathLayer],
        *,
        base: Base | None = None,
    ) -> None:
        super().__init__()
        if not callable(log_density):
            raise OptionError(
                "PathSampler needs log_density, a callable (S, D) -> (S,); got "
                f"{type(log_density).__name__}."
            )
        if not (base is None or isinstance(base, Base)):
            raise OptionError(
                f"PathSampler needs a base of pyro_nfvi.distributions, or None; got {base!r}."
            )
        if base is not None and base.periodic:
            raise OptionError(
                f"PathSampler needs a base of real numbers; {type(base).__name__} are angles. "
                "Take DiagonalNormal(dim) or another."
            )
        if not isinstance(layers, Iterable) or isinstance(layers, (Flow, PathLayer)):
            raise OptionError(f"PathSampler needs a list of layers; got {layers!r}.")
        layers = list(layers)
        wrong = [type(part).__name__ for part in layers if not isinstance(part, (Flow, PathLayer))]
        if wrong or not layers:
            raise OptionError(
                f"PathSampler takes Flow and PathLayer objects, at least one; "
                f"got {wrong or 'none'}."
            )
        dims = {part.dim for part in layers if isinstance(part, Flow)}
        dims |= set() if base is None else {base.dim}
        if len(dims) != 1:
            raise OptionError(
                "PathSampler needs flows and a base of one dim (with Markov-chain layers alone, "
                f"give base=DiagonalNormal(D)); got dims {sorted(dims)}."
            )
        if any(part.context_dim for part in layers if isinstance(part, Flow)):
            raise OptionError("PathSampler takes flows without context.")
        # In a tuple, so that a target with parameters of its own is no part of what is trained.
        self._target = (log_density,)
        self.base = DiagonalNormal(dims.pop()) if base is None else base
        self.layers = nn.ModuleList(layers)

    def log_density(self, z: Tensor) -> Tensor:
        """The target at points ``(S, D)``, in nats.

        Raises:
            ShapeError: It does not return one number for each point.
        """
        found = self._target[0](z)
        if not isinstance(found, Tensor) or found.shape != z.shape[:-1]:
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ShapeError(
                f"PathSampler needs a log_density that returns {tuple(z.shape[:-1])} for points "
                f"{tuple(z.shape)}, one number each; got {came}. Sum over the last axis alone."
            )
        return found

    @full_precision
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> TensorPair:
        """Draw ``(z, log_w)``, differentiable in the parameters; ``fit`` alone trains."""
        with scoring(self):
            return self._paths(num_samples, generator)

    def _paths(self, num_samples: int, generator: torch.Generator | None) -> TensorPair:
        z = self.base.rsample(whole("num_samples", num_samples), generator=generator)
        log_w = -self.base.log_prob(z)
        for layer in self.layers:
            if isinstance(layer, PathLayer):
                z, change = layer.move(z, self.log_density, generator)
            else:
                z, change = layer(z)
            log_w = log_w + change
        log_w = log_w + self.log_density(z)
        # A chain that left the reals is where the target has nothing.
        return z, torch.where(z.isfinite().all(-1), log_w, -math.inf)

    def fit(
        self,
        num_steps: int = 1000,
        *,
        num_samples: int = 256,
        lr: float = 5e-3,
        clip_norm: float = 5.0,
        seed: int | None = None,
        progress: bool = True,
    ) -> list[float]:
        r"""Maximise the bound :math:`\mathbb{E}[\log w]` with Adam; return it step by step.

        The rate falls to a hundredth along a cosine. A step without a finite gradient is skipped;
        after five in a row the last good state comes back at half the rate (the policy of all
        trainings, :class:`pyro_nfvi._optim.recovery.Recovery`).

        Raises:
            DivergedError: After five times of that.
            OptionError: An option that is no number of its kind, or nothing that could be trained.
        """
        num_steps = whole("fit: num_steps", num_steps)
        num_samples = whole("fit: num_samples", num_samples)
        lr, clip_norm = number("fit: lr", lr, above=0), number("fit: clip_norm", clip_norm, above=0)
        seed = seed_number(seed)
        if seed is None:
            seed = int(torch.randint(2**31, ()).item())
        params = [p for p in self.parameters() if p.requires_grad]
        if not params:
            raise OptionError("PathSampler has no parameter that requires a gradient to fit.")
        noise = stream(seed, "path sampler", device=params[0].device)
        optimizer = Adam(params, lr=lr)
        recovery, good = Recovery(), Snapshot.take(0, params, optimizer)
        bounds: list[float] = []
        with progress_bar("paths", num_steps, unit="step", show=progress) as bar:
            for step in range(num_steps):
                optimizer.param_groups[0]["lr"] = lr * recovery.rate * cosine(step / num_steps)
                optimizer.zero_grad(set_to_none=True)
                # A caller's no_grad is about what it computes, not about the fit.
                with torch.enable_grad(), training_pass():
                    bound = self.sample(num_samples, generator=noise)[1].mean()
                    (-bound).backward()
                ok = clip_gradient(params, clip_norm) and bool(bound.isfinite())
                if ok:
                    optimizer.step()
                bounds.append(float(bound.detach()))
                action = recovery.after(1, ok=ok)
                if action is Action.SNAPSHOT:
                    good = Snapshot.take(step + 1, params, optimizer)
                elif action is Action.RESTORE:
                    good.put(params, optimizer)
                    recovery.restored(step + 1)
                elif action is Action.GIVE_UP:
                    raise DivergedError(
                        f"The fit gave up after {step + 1} steps, {recovery.skipped} of them "
                        "without a finite gradient. Lower lr or the layers' step_size, or begin "
                        "nearer to the target."
                    )
                bar.update()
        return bounds


def _randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def _score(log_density: LogDensity, x: Tensor) -> Tensor:
    """Gradient of a log density, itself differentiable where gradients are on."""
    outside = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if outside and x.requires_grad else x.detach().requires_grad_()
        value = log_density(point)
        if not value.requires_grad:
            raise OptionError(
                "Langevin moves need the gradient of log_density, which carries none to its points "
                "(detached, of NumPy, or in inference mode). Write it in torch, or take Metropolis."
            )
        (score,) = torch.autograd.grad(value.sum(), point, create_graph=outside)
    return score
