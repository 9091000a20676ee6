"""The negative log-likelihood of images by annealed importance sampling from the posterior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_nfvi._mcmc.hmc import State, trajectory
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.vae._elbo_terms import joint_terms
from pyro_nfvi.vae._generative_model import GenerativeModel
from pyro_nfvi.vae._importance_nll import NLL, nll_of_weights
from pyro_nfvi.vae._memory_tiles import rows_at_once
from pyro_nfvi.vae._posterior import Posterior
from pyro_nfvi.vae._recipe import ANNEALING

#: Base noise ``(C, D)`` to the log importance weight there and its gradient, in float64.
_Ratio = Callable[[Tensor], TensorPair]


@dataclass(frozen=True)
class _Annealed:
    r"""The density :math:`N(\varepsilon; 0, I)\, w(\varepsilon)^\beta`, unnormalised.

    Attributes:
        ratio: The logarithm of w, with its gradient.
        beta: Inverse temperature of each row ``(C,)``.
    """

    ratio: _Ratio
    beta: Tensor

    def value_and_grad(self, z: Tensor) -> TensorPair:
        """Return log density and gradient of noise ``(C, D)``."""
        return self.of(z, *self.ratio(z))

    def of(self, z: Tensor, log_w: Tensor, gradient: Tensor) -> TensorPair:
        """Return them where the ratio is known."""
        log_p = self.beta * log_w - 0.5 * z.square().sum(-1)
        return log_p, self.beta.unsqueeze(-1) * gradient - z

    def back(self, state: State) -> TensorPair:
        """Return the ratio at a state, in double precision: beta may be small."""
        z = state.position
        log_w = (state.log_p + 0.5 * z.square().sum(-1)) / self.beta
        return log_w, (state.gradient + z) / self.beta.unsqueeze(-1)


@dataclass(frozen=True)
class _Course:
    """A run of the annealing.

    Attributes:
        log_w: Log weights ``(K, b)``.
        first: Log importance weights of the draws that it began with ``(K, b)``.
        acceptance: Mean probability of acceptance at each temperature ``(T - 1, b)``.
        spread: Standard deviation over the chains of the log importance weight at the beginning of
            each interval ``(T, b)``.
        steps: Step sizes ``(T - 1, b)``.
    """

    log_w: Tensor
    first: Tensor
    acceptance: Tensor
    spread: Tensor
    steps: Tensor


class _Noise:
    """The noise of each image, from a stream of its own: values do not depend on neighbours."""

    def __init__(self, part: str, images: Sequence[int], seed: int, like: Tensor) -> None:
        device = like.device
        self._streams = [stream(seed, part, image, device=device) for image in images]
        self._dim, self._device = like.shape[-1], device

    def normal(self, count: int) -> Tensor:
        """Draw ``(K, b, D)``."""
        size, kind = (count, self._dim), torch.float64
        drawn = [torch.randn(size, dtype=kind, device=self._device, generator=g)
                 for g in self._streams]  # fmt: skip
        return torch.stack(drawn, 1)

    def uniform(self, count: int) -> Tensor:
        """Draw ``(K, b)``."""
        drawn = [torch.rand(count, dtype=torch.float64, device=self._device, generator=g)
                 for g in self._streams]  # fmt: skip
        return torch.stack(drawn, 1)


def annealed_nll(
    vae: GenerativeModel,
    x: Tensor,
    y: Tensor | None,
    *,
    num_samples: int,
    temperatures: int,
    seed: int,
    tile: int,
    numbers: Sequence[int],
    show: bool,
) -> NLL:
    """Estimate ``-log p(x)``; see ``FlowVAE.nll``.

    A first run with few chains finds step sizes, and temperatures between which the weights vary
    alike; the run that counts has other noise and takes them as they are, so that its weights are
    unbiased.
    """
    vae.check(x)
    c = vae.condition(None if y is None else y[:1], x[:1])
    # The gradient keeps what the decoder computes.
    tile = max(1, rows_at_once(vae, x, c, most=tile) // ANNEALING.tile_share)
    width = max(1, min(len(x), tile // max(num_samples, ANNEALING.pilot_chains)))
    rows: list[Tensor] = []
    accepted: list[Tensor] = []
    with tqdm(total=len(x), disable=not show, desc="AIS", unit="image") as bar:
        for start in range(0, len(x), width):
            part = x[start : start + width]
            labels = None if y is None else y[start : start + width]
            with torch.no_grad():
                posterior = vae.encode(part, labels)
            ours = numbers[start : start + width]
            ratio = _ratio_of(vae, part, vae.condition(labels, part), posterior)
            course = _both_runs(ratio, posterior, ours, num_samples, temperatures, seed)
            rows.append(nll_of_weights(course.log_w, course.first))
            # With one temperature there is no transition, and nothing to reject.
            some = temperatures > 1
            rate = course.acceptance.mean(0) if some else torch.ones(len(part))
            accepted.append(rate.cpu())
            bar.update(len(part))
    value, se, ess, khat, bound = torch.cat(rows).unbind(-1)
    return NLL(
        value, se, ess, khat, bound, num_samples, "ais", temperatures, torch.cat(accepted)
    )  # fmt: skip


def _ratio_of(
    vae: GenerativeModel, x: Tensor, c: Tensor | None, posterior: Posterior
) -> Callable[[Tensor], TensorPair]:
    """The log importance weight as a function of noise ``(K, b, D)``."""

    def ratio(eps: Tensor) -> TensorPair:
        with torch.enable_grad():
            leaf = eps.to(posterior.loc.dtype).requires_grad_()
            log_w = joint_terms(vae, x, c, posterior.push(leaf)).log_w
            (gradient,) = torch.autograd.grad(log_w.sum(), leaf)
        return log_w.detach().double(), gradient.double()

    return ratio


def _both_runs(
    ratio: Callable[[Tensor], TensorPair],
    posterior: Posterior,
    images: Sequence[int],
    num_samples: int,
    temperatures: int,
    seed: int,
) -> _Course:
    count, dim = len(posterior), posterior.dim
    ladder = torch.ones(2, count, dtype=torch.float64, device=posterior.loc.device)
    ladder[0] = 0.0
    steps = ladder.new_zeros(0, count)
    if temperatures > 1:
        places = min(temperatures, ANNEALING.pilot_temperatures)
        # Finer at the beginning, where the draws of a posterior that is too narrow meet the model.
        even = torch.linspace(0, 1, places + 1, dtype=torch.float64, device=ladder.device)
        grid = even.square().unsqueeze(-1).expand(-1, count)
        noise = _Noise("annealing: step sizes", images, seed, posterior.loc)
        first = ladder.new_full((count,), dim**-0.25)
        pilot = _anneal(ratio, grid, None, noise, ANNEALING.pilot_chains, first)
        ladder = _ladder(grid, pilot.spread, temperatures)
        steps = _at(ladder[1:-1], grid[1:-1], pilot.steps)
    noise = _Noise("annealing", images, seed, posterior.loc)
    return _anneal(ratio, ladder, steps, noise, num_samples)


def _anneal(
    ratio: Callable[[Tensor], TensorPair],
    ladder: Tensor,
    steps: Tensor | None,
    noise: _Noise,
    chains: int,
    first_step: Tensor | None = None,
) -> _Course:
    """Anneal from the posterior to the model.

    Args:
        ratio: The log importance weight and its gradient.
        ladder: Inverse temperatures from 0 to 1 ``(T + 1, b)``.
        steps: Step sizes ``(T - 1, b)``; None to find them by the rate of acceptance.
        noise: Of draws, momenta and acceptance.
        chains: Number K of chains of each image.
        first_step: Where step sizes are found: the first one ``(b,)``.
    """
    eps = noise.normal(chains)
    shape = eps.shape[:2]

    def flat(z: Tensor) -> TensorPair:
        log_w, gradient = ratio(z.view(eps.shape))
        return log_w.reshape(-1), gradient.reshape(-1, eps.shape[-1])

    z = eps.reshape(-1, eps.shape[-1])
    log_w, gradient = flat(z)
    first, total = log_w, torch.zeros_like(log_w)
    accepted, spread, taken = [], [], []
    for index in range(1, len(ladder)):
        total = total + (ladder[index] - ladder[index - 1]).expand(shape).reshape(-1) * log_w
        spread.append(log_w.view(shape).clamp_min(ANNEALING.least_log_weight).std(0))
        if index == len(ladder) - 1:
            break
        density = _Annealed(flat, ladder[index].expand(shape).reshape(-1))
        size = first_step if steps is None else steps[index - 1]
        assert size is not None
        begin = State(z, *density.of(z, log_w, gradient))
        momentum = noise.normal(chains).reshape(z.shape)
        row = size.expand(shape).reshape(-1, 1)
        proposal = trajectory(density, begin, momentum, row, ANNEALING.leapfrogs)
        moves = noise.uniform(chains).reshape(-1) < proposal.acceptance
        state = begin.chosen(proposal.state, moves)
        moved_w, moved_gradient = density.back(state)
        z = state.position
        log_w = torch.where(moves, moved_w, log_w)
        gradient = torch.where(moves.unsqueeze(-1), moved_gradient, gradient)
        rate = proposal.acceptance.view(shape).mean(0)
        accepted.append(rate)
        taken.append(size)
        if steps is None:
            first_step = size * (ANNEALING.gain * (rate - ANNEALING.acceptance)).exp()
    none = ladder.new_zeros(0, shape[1])
    return _Course(
        total.view(shape), first.view(shape), torch.stack(accepted) if accepted else none,
        torch.stack(spread), torch.stack(taken) if taken else none,
    )  # fmt: skip


def _ladder(grid: Tensor, spread: Tensor, temperatures: int) -> Tensor:
    r"""Place temperatures so that the weights vary alike between each two of them.

    The variance of an interval's log weight is :math:`(\Delta\beta)^2 \mathrm{Var}(\log w)`, so the
    density of temperatures is proportional to the standard deviation; a tenth of its mean is added,
    since that of few chains may be too small.

    Source: Gelman and Meng 1998, Statistical Science 13, section 4.4.
    """
    spread = spread.nan_to_num(0.0)
    mean = (spread * (grid[1:] - grid[:-1])).sum(0).clamp_min(1e-12)  # none: all alike
    density = spread + ANNEALING.even_share * mean
    reach = torch.cat([torch.zeros_like(grid[:1]), (density * (grid[1:] - grid[:-1])).cumsum(0)])
    reach = reach / reach[-1]
    even = torch.linspace(0, 1, temperatures + 1, dtype=grid.dtype, device=grid.device)
    ladder = _at(even.unsqueeze(-1).expand(-1, grid.shape[1]), reach, grid)
    ladder[0], ladder[-1] = 0.0, 1.0
    return ladder


def _at(x: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Interpolate linearly, column by column; beyond the known places the nearest value."""
    if len(known) == 1:
        return values.expand(len(x), -1).clone()
    right = torch.searchsorted(known.T.contiguous(), x.T.contiguous()).T.clamp(1, len(known) - 1)
    low, high = known.gather(0, right - 1), known.gather(0, right)
    share = ((x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
    return torch.lerp(values.gather(0, right - 1), values.gather(0, right), share)
