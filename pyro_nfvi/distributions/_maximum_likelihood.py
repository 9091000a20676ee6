"""Maximum likelihood for flow densities: mini-batches, early stopping, and no surprises."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_nfvi._eval_mode import evaluation, moving_buffers, training_pass
from pyro_nfvi._optim.early_stopping import EarlyStopping
from pyro_nfvi._optim.gradient_clipping import clip_gradient
from pyro_nfvi._optim.recipe import MAXIMUM_LIKELIHOOD as _RECIPE
from pyro_nfvi._optim.recovery import Action, Recovery
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._optim.torch_optimizers import Adam
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._progress_bar import progress_bar
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._user_warning import warn
from pyro_nfvi._validation import number, seed_number, whole
from pyro_nfvi.distributions._data_checks import Rows, log_density_ceiling, split_rows
from pyro_nfvi.distributions._density import Density
from pyro_nfvi.distributions._dequantization import Dequantizer, check_dequantizer
from pyro_nfvi.errors import DataWarning, DivergedError, OptionError
from pyro_nfvi.flows._data_initialization import normalise
from pyro_nfvi.flows._normalization import BatchNorm


@dataclass
class DensityFit:
    """Report of a fit by maximum likelihood; the parameters are in the density.

    Attributes:
        train: Mean negative log density of the training rows between two looks, in nats.
        valid: The same of the validation rows at each look; empty without validation.
        best: The lowest of them (of ``train`` without validation); its parameters were kept.
        steps: Steps taken.
        skipped: Steps skipped because a gradient was not finite.
        restores: Times that an earlier state came back at half the rate.
        seconds: Time taken.
        reason: Why it stopped: ``converged``, ``max_steps`` or ``interrupted``.
    """

    train: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    best: float = math.inf
    steps: int = 0
    skipped: int = 0
    restores: int = 0
    seconds: float = 0.0
    reason: str = ""


@knows_options
def fit_density(
    density: Density,
    x: Tensor,
    context: Tensor | None = None,
    *,
    valid: float | Tensor | tuple[Tensor, Tensor] = 0.1,
    dequantize: Dequantizer | None = None,
    batch_size: int = 256,
    max_steps: int = 10_000,
    lr: float = 2e-3,
    patience: int = 10,
    clip_norm: float = 5.0,
    initialize: bool = True,
    seed: int | None = None,
    progress: bool = True,
) -> DensityFit:
    r"""Fit a density to data by maximum likelihood, in place; ``density.fit`` is this.

    .. math:: \min_\theta\; -\frac1n \sum_i \log q_\theta(x_i \mid c_i)

    Adam on mini-batches drawn without replacement. The validation rows are scored every epoch
    (at least every 50 steps). When they have not improved for ``patience`` looks, the best
    parameters come back and the rate falls to 0.3 of it; after the third time, or ``max_steps``,
    the fit ends with the best parameters. A step without a finite gradient is skipped; after
    five in a row the last good state comes back at half the rate; after five times of that it gives
    up (the policy of all trainings, :class:`pyro_nfvi._optim.recovery.Recovery`).
    Ctrl-C ends the fit, the best parameters kept.

    Args:
        density: What is fitted. All its parameters that require a gradient are trained.
        x: Data ``(n, D)``, floating point; with ``dequantize`` integers.
        context: Context ``(n, C)`` of a conditional density.
        valid: Share of the rows held out, or the held-out rows (with a context: a pair). 0 holds
            none out: the training loss then decides.
        dequantize: Turns integers into points, and is trained too if it has parameters; the loss
            is then the bound it states.
        batch_size: Rows per step.
        max_steps: Steps at most.
        lr: Adam's rate at the start.
        patience: Looks without improvement before the rate falls.
        clip_norm: Largest norm of the whole gradient.
        initialize: Set each :class:`ActNorm` that is still at its start from the data, as it
            reaches the layer. :class:`BatchNorm` statistics move with every batch in any case.
        seed: Of the split, the order of the rows and the noise; drawn from torch's global
            generator if None, which is otherwise not touched.
        progress: Show a bar.

    Returns:
        A report; the parameters are in ``density``.

    Raises:
        DataError: Data that are empty, not finite, constant in a column, not of the right shape,
            of integer type (without ``dequantize``) or of half precision.
        ShapeError: A context is missing, superfluous or of another length.
        DivergedError: Gradients were not finite again and again, or the density of rounded data
            grows without bound (:func:`~pyro_nfvi.distributions._data_checks.log_density_ceiling`).

    Source: Papamakarios et al. 2021, arXiv:1912.02762, section 2.3.2; Papamakarios et al. 2017,
    arXiv:1705.07057, appendix D (early stopping).

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import make_flow
        >>> x = 3 + torch.randn(500, 2)
        >>> density = FlowDensity(make_flow("affine", dim=2))
        >>> report = density.fit(x, max_steps=200, lr=0.05, seed=0, progress=False)
        >>> density.rsample_and_log_prob((1000,))[0].mean().round().item()
        3.0
    """
    batch_size, max_steps = whole("fit: batch_size", batch_size), whole("fit: max_steps", max_steps)
    patience = whole("fit: patience", patience)
    lr, clip_norm = number("fit: lr", lr, above=0), number("fit: clip_norm", clip_norm, above=0)
    seed = seed_number(seed)
    if torch.is_inference_mode_enabled():
        raise OptionError("fit needs gradients: leave torch.inference_mode() first.")
    if seed is None:
        seed = int(torch.randint(2**31, ()).item())
    check_dequantizer(dequantize)
    parts = [density] if dequantize is None else [density, dequantize]
    module = nn.ModuleList(parts)
    params = [p for p in module.parameters() if p.requires_grad]
    if not params:
        raise OptionError("The density has no parameter that requires a gradient: nothing to fit.")
    if _unseen(density.base):
        warn(
            "The base has numbers that require a gradient, which fit does not train: it is no "
            "module. Take one of pyro_nfvi.distributions.",
            DataWarning,
        )
    like = params[0]
    generator = stream(seed, "maximum likelihood", device=like.device)
    train, held = split_rows(
        x, context, valid, flow=density.flow, like=like, generator=generator,
        whole=dequantize is not None,
    )  # fmt: skip
    loop = _Loop(density, dequantize, train, held, module, params, generator, seed)
    # Flows that draw noise, such as Hutchinson's, draw it from torch's own state.
    with seeded(seed, "maximum likelihood"):
        if initialize:
            first, seen = (None if part is None else part[: _RECIPE.init_rows] for part in train)
            assert first is not None
            with torch.no_grad(), evaluation(module):
                if dequantize is not None:
                    first = dequantize(first, generator=generator, like=like)[0]
                normalise(density.flow, first, seen, "initialise")
        # A caller's no_grad is about what it computes with the density, not about the fit.
        with torch.enable_grad():
            return loop.run(batch_size, max_steps, lr, patience, clip_norm, progress=progress)


def _unseen(base: object) -> bool:
    """Tell whether a distribution of torch holds tensors that require a gradient."""
    if not isinstance(base, Distribution):
        return False
    held = vars(base).values()
    tensors = (value for value in held if isinstance(value, Tensor))
    return any(value.requires_grad for value in tensors) or any(map(_unseen, held))


class _Loop:
    """One fit: data, state and optimiser."""

    def __init__(
        self,
        density: Density,
        dequantize: Dequantizer | None,
        train: Rows,
        held: Rows | None,
        module: nn.Module,
        params: list[nn.Parameter],
        generator: torch.Generator,
        seed: int,
    ) -> None:
        self.density, self.dequantize = density, dequantize
        self.train, self.held = train, held
        self.module, self.params, self.generator = module, params, generator
        self.ceiling = math.inf if dequantize is not None else log_density_ceiling(train[0])
        layers = [part for part in density.flow.modules() if isinstance(part, BatchNorm)]
        self.normalises = bool(layers)
        # What a step moves besides parameters; a step that is skipped gives it back.
        self.moving = [*moving_buffers(module), *(b for part in layers for b in part.buffers())]
        # Every look sees the same noise.
        self.seed = seed

    def loss(self, x: Tensor, context: Tensor | None, generator: torch.Generator) -> Tensor:
        """Negative log densities of rows, or the bound."""
        if self.dequantize is None:
            return -self.density.log_prob(x, context)
        return -self.dequantize.log_bound(self.density, x, context, generator=generator)

    def look(self, batch_size: int) -> float:
        """Mean loss of the validation rows; infinite where it is not finite."""
        assert self.held is not None
        noise = stream(self.seed, "validation", device=self.generator.device)
        x, context = self.held
        total = 0.0
        with torch.no_grad(), seeded(self.seed, "validation"), evaluation(self.module):
            size = max(batch_size, _RECIPE.valid_rows)
            for rows in torch.arange(len(x), device=x.device).split(size):
                part = self.loss(x[rows], None if context is None else context[rows], noise)
                total += float(part.sum())
        mean = total / len(x)
        return mean if math.isfinite(mean) else math.inf

    def batches(self, batch_size: int) -> Iterator[Rows]:
        """Mini-batches without end, each epoch in a new order."""
        x, context = self.train
        size = min(batch_size, len(x))
        while True:
            order = torch.randperm(len(x), generator=self.generator, device=x.device)
            # The rest of an epoch is left out: small batches are noisy.
            for rows in order[: len(x) // size * size].split(size):
                yield x[rows], None if context is None else context[rows]

    def parameters(self) -> dict[str, Tensor]:
        """Copy parameters and buffers."""
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def run(
        self,
        batch_size: int,
        max_steps: int,
        lr: float,
        patience: int,
        clip_norm: float,
        *,
        progress: bool,
    ) -> DensityFit:
        report = DensityFit(reason="max_steps")
        began = time.perf_counter()
        optimizer = Adam(self.params, lr=lr)
        every = max(_RECIPE.look_every, len(self.train[0]) // batch_size)
        recovery, stopping, decays = Recovery(), EarlyStopping(patience), 0
        tensors = [*self.params, *self.moving]
        good = Snapshot.take(0, tensors, optimizer)
        kept = self.parameters()
        recent: list[float] = []

        def rate() -> float:
            return lr * _RECIPE.decay**decays * recovery.rate

        batches = self.batches(batch_size)
        bar = progress_bar("density", max_steps, unit="step", show=progress)
        try:
            while report.steps < max_steps:
                value = self.step(optimizer, next(batches), clip_norm)
                report.steps += 1
                bar.update()
                if value is not None:
                    recent.append(value)
                action = recovery.after(1, ok=value is not None)
                report.skipped = recovery.skipped
                if action is Action.SNAPSHOT:
                    good = Snapshot.take(report.steps, tensors, optimizer)
                elif action is Action.RESTORE:
                    good.put(tensors, optimizer)
                    recovery.restored(report.steps)
                    report.restores = len(recovery.restores)
                    optimizer.param_groups[0]["lr"] = rate()
                elif action is Action.GIVE_UP:
                    raise _gave_up(report)
                last = report.steps == max_steps
                if not (report.steps % every == 0 or last) or not recent:
                    continue
                report.train.append(math.fsum(recent) / len(recent))
                recent = []
                if -report.train[-1] > self.ceiling:
                    raise _unbounded(report, self.ceiling)
                if self.held is not None:
                    report.valid.append(self.look(batch_size))
                now = report.train[-1] if self.held is None else report.valid[-1]
                bar.set_postfix_str(f"{now:.3f} nats", refresh=False)
                better, nothing = now < stopping.best, not math.isfinite(stopping.best)
                if better or nothing:  # nothing to choose by yet: the newest is kept
                    kept = self.parameters()
                if not stopping.see(now, counts=not nothing):
                    continue
                stopping.stale = 0
                decays += 1
                if decays > _RECIPE.decays:
                    report.reason = "converged"
                    break
                self.module.load_state_dict(kept)
                optimizer = Adam(self.params, lr=rate())
                good = Snapshot.take(report.steps, tensors, optimizer)
        except KeyboardInterrupt:
            report.reason = "interrupted"
            if not math.isfinite(stopping.best):
                kept = self.parameters()
        finally:
            bar.close()
            if report.steps:
                self.module.load_state_dict(kept)
            report.best, report.seconds = stopping.best, time.perf_counter() - began
        if report.skipped == report.steps and report.reason == "max_steps":
            raise _gave_up(report)
        if report.valid and not math.isfinite(report.best):
            self._warn_of_held()
        return report

    def _warn_of_held(self) -> None:
        """Say which held-out rows have no finite density, so that nothing could be chosen by."""
        assert self.held is not None
        x, context = self.held
        noise = stream(self.seed, "validation", device=self.generator.device)
        with torch.no_grad(), evaluation(self.module):
            bad = ~self.loss(x, context, noise).isfinite()
        what = "the mean over the held-out rows is not finite"
        if bool(bad.any()):
            what = (
                f"{int(bad.sum())} of {len(x)} held-out rows have no finite density, the first at "
                f"{x[bad][0].tolist()}"
            )
        warn(
            f"{what}: the last "
            "parameters are kept, with nothing to choose them by. Leave such rows out of valid, or "
            "scale the data.",
            DataWarning,
        )

    def step(self, optimizer: torch.optim.Optimizer, batch: Rows, clip_norm: float) -> float | None:
        """Take one step; None, and nothing changed, where loss or gradient are not finite."""
        x, context = batch
        saved = [(buffer, buffer.clone()) for buffer in self.moving]
        if self.normalises and len(x) > 1:
            self._update(x, context)
        optimizer.zero_grad(set_to_none=True)
        with training_pass():
            loss = self.loss(x, context, self.generator).mean()
        if bool(loss.isfinite()):
            loss.backward()
            if clip_gradient(self.params, clip_norm):
                optimizer.step()
                return float(loss.detach())
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
        return None

    def _update(self, x: Tensor, context: Tensor | None) -> None:
        """Move the statistics of batch-norm layers of the flow."""
        with torch.no_grad(), evaluation(self.module):
            if self.dequantize is not None:
                x = self.dequantize(x, generator=self.generator, like=self.params[0])[0]
            if bool(x.isfinite().all()):
                normalise(self.density.flow, x, context, "update")


def _unbounded(report: DensityFit, ceiling: float) -> DivergedError:
    error = DivergedError(
        f"After {report.steps} steps the mean log density is {-report.train[-1]:.1f} nats; data "
        f"rounded as these are can have {ceiling:.1f} at most. The density grows at the points "
        "without bound, and its likelihood means nothing: pass the integers with "
        "dequantize=UniformDequantize(levels, dim), or add noise of the size of the rounding."
    )
    error.fit = report
    return error


def _gave_up(report: DensityFit) -> DivergedError:
    error = DivergedError(
        f"The fit gave up after {report.steps} steps, {report.skipped} of them without a finite "
        "gradient. Standardise the data (an ActNorm as the flow's last layer does), remove "
        "outliers, lower lr, or dequantise data that are integers in disguise."
    )
    error.fit = report
    return error
