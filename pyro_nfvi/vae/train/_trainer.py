"""The training loop: steps, validation, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_nfvi._autocast import full_dtype
from pyro_nfvi._eval_mode import evaluation, mode_free, moving_buffers, training_pass
from pyro_nfvi._optim.early_stopping import EarlyStopping
from pyro_nfvi._optim.gradient_clipping import clip_gradient
from pyro_nfvi._optim.recovery import Action, Recovery
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._processes.process_group import ProcessGroup
from pyro_nfvi._progress_bar import ProgressBar, progress_bar
from pyro_nfvi._random import seeded, stream
from pyro_nfvi.errors import DataError, DivergedError, OptionError
from pyro_nfvi.vae._losses import VAELoss
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._recipe import TRAINER
from pyro_nfvi.vae.train._callbacks import Callback
from pyro_nfvi.vae.train._feeds import NETS, NOISE, PIXELS, VALID, Batch, Feed, Rows
from pyro_nfvi.vae.train._nonfinite_step import locate_nonfinite
from pyro_nfvi.vae.train._rates import Rates
from pyro_nfvi.vae.train._run_folder import Progress, RunFolder, RunState
from pyro_nfvi.vae.train._weight_average import WeightAverage

#: Images, labels and noise of this process in a part of a step.
_Part = tuple[Tensor, Tensor | None, Tensor]


@dataclass(frozen=True)
class Plan:
    """Options of a run's training loop.

    Attributes:
        loss: What a step differentiates.
        epochs: Passes over the training images, at most.
        batch_size: Images per batch, over all processes.
        clip_norm: Largest norm of the gradient.
        patience: Epochs without improvement after the warm-up; 0 for no early stopping.
        save_steps: Steps between checkpoints within an epoch.
        seed: Of order, noise and pixels.
        accumulate: Batches of a step, whose gradient is that of one batch of all their images.
        ema: Decay of the average of the weights that is validated and kept as the best; 0 for none.
        precision: ``"fp32"``, or ``"bf16"``: nets compute in bfloat16 while they train.
    """

    loss: VAELoss
    epochs: int
    batch_size: int
    clip_norm: float = TRAINER.clip_norm
    patience: int = 0
    save_steps: int = TRAINER.save_steps
    seed: int = 0
    accumulate: int = 1
    ema: float = 0.0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise OptionError(f"precision is 'fp32' or 'bf16'; got {self.precision!r}.")


class Trainer:
    """Trains a VAE, and can be killed at any time.

    All randomness is a function of the seed and of the step: order, noise and drawn pixels. A run
    that goes on from a checkpoint therefore ends with the parameters it would have had, and
    several processes see the noise that one would.

    A step without a finite gradient is skipped; after five in a row the last good state comes back
    at half the rate; after five times of that the run gives up (:class:`Recovery`). States to go
    back to are those of checkpoints, also where none are written.

    Args:
        vae: The VAE.
        feed: The data.
        plan: How.
        rates: The optimiser of the VAE's parameters, with its scheduler.
        folder: Where checkpoints and the log go; None for none.
        spec: What has to be the same for a run to go on.
        team: The processes.
        callbacks: Told of steps and epochs in the process that leads.
        show: Show a bar.
        stop: Asked after each step: whether to save and end (a signal came).
    """

    def __init__(
        self,
        vae: FlowVAE,
        feed: Feed,
        plan: Plan,
        rates: Rates,
        *,
        folder: RunFolder | None = None,
        spec: dict[str, Any] | None = None,
        team: ProcessGroup | None = None,
        callbacks: Sequence[Callback] = (),
        show: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.vae, self.feed, self.plan = vae, feed, plan
        self.rates, self.optimizer = rates, rates.optimizer
        self.folder, self.spec = folder, spec or {}
        self.team = team or ProcessGroup(0, 1, torch.device("cpu"))
        self.callbacks = callbacks if self.team.leads else ()
        self.show, self.stop = show and self.team.leads, stop
        self.progress = Progress()
        self._params = _trained(vae, self.optimizer)
        # Running statistics and the like; nets of a user's own may draw noise of their own.
        self._moving = moving_buffers(vae)
        self._tensors = [*self._params, *self._moving]
        self._foreign = any(not mode_free(part) for part in vae.modules())
        self._normalised = any(
            isinstance(part, _BatchNorm) and part.training for part in vae.modules()
        )
        if self.team.size > 1 and feed.train.divided:
            raise OptionError(
                "The loader gives each process batches of its own (DistributedSampler), and here "
                "the processes divide each batch. Pass a loader with an ordinary sampler."
            )
        size = plan.batch_size
        self.length = feed.train.length(size)
        smallest = feed.train.smallest(size)
        if smallest is not None:
            self._check_rows(smallest)
        if plan.patience and feed.valid is None:
            raise OptionError("Early stopping (patience) needs validation images: pass valid.")
        self.average = WeightAverage(plan.ema, self._tensors) if plan.ema else None
        self._recovery, self._cause = Recovery(), ""
        self._judged = ""  # the newest ELBO of the validation images, for the bar
        self._best: list[Tensor] | None = None
        self._good = Snapshot.take(0, self._tensors, self.optimizer)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch; None where they are not known beforehand."""
        return None if self.length is None else -(-self.length // self.plan.accumulate)

    def _check_rows(self, rows: int) -> None:
        """Refuse a batch that does not divide among the processes."""
        size, team = self.plan.batch_size, self.team.size
        if rows < team:
            raise OptionError(
                f"Each of {team} processes needs an image of every batch, and "
                f"{self._images()} in batches of {size} leave one of "
                f"{rows}. Take another --batch-size, or fewer processes."
            )
        if rows < 2 * team and self._normalised:
            raise OptionError(
                "Batch normalisation needs two images of every batch in each process, and "
                f"{self._images()} in batches of {size} leave one of {rows} "
                f"for {team}. Take another --batch-size."
            )

    def _images(self) -> str:
        rows = self.feed.train
        return f"{len(rows)} images" if isinstance(rows, Sized) else "the loader's images"

    def resume(self, *, new_rate: bool = False) -> None:
        """Go on from the folder's checkpoint.

        Args:
            new_rate: Take the optimiser's present rates instead of those of the checkpoint.
        """
        assert self.folder is not None
        initial, began = self.rates.initial, self.folder.held("rates")
        self.progress, good = self.folder.load_last(
            self._state(), self.spec, self.team.device, self._tensors, new_rate=new_rate
        )
        at = self.progress
        if new_rate and began:
            self.rates.rebase(began, initial)
        now = Snapshot.take(at.step, self._tensors, self.optimizer)
        self._good = now if good is None else good
        self._recovery = Recovery(
            bad_in_a_row=at.bad_in_a_row, skipped=at.skipped, rate=at.rate, restores=at.restores
        )
        # Asked again: --epochs and --patience may have changed.
        self.progress.done = ""
        self._judge()
        self.team.wait()
        if self.team.leads:
            self.folder.rewind(self.progress.epoch)

    def run(self) -> Progress:
        """Train until the end; return where it came to.

        Raises:
            DivergedError: Gradients were not finite again and again; says which layer began.
        """
        at = self.progress
        steps = self.steps_per_epoch
        total = None if steps is None else self.plan.epochs * steps
        for callback in self.callbacks:
            callback.begin(at.epoch)
        try:
            with progress_bar(
                "training", total, unit="step", show=self.show,
                done=at.step if total is None else min(at.step, total),
            ) as bar:  # fmt: skip
                while not at.done and at.epoch < self.plan.epochs:
                    if not self._epoch(bar):
                        at.done = "interrupted"
                        self._save()
                        return at
                    self._end_of_epoch(bar)
        finally:
            for callback in self.callbacks:
                callback.end()
        if at.step and at.skipped == at.step:
            raise self._gave_up()
        at.done = at.done or "all epochs done"
        return at

    # ---------------------------------------------------------------------------- an epoch

    def _epoch(self, bar: ProgressBar) -> bool:
        """Run the rest of an epoch; False if a signal came."""
        at, plan = self.progress, self.plan
        batches = self.feed.train.shuffled(at.epoch, at.batch, size=plan.batch_size, seed=plan.seed)
        while group := list(islice(batches, plan.accumulate)):
            self._step(group, bar)
            at.batch += len(group)
            if at.step % plan.save_steps == 0 and at.batch != self.length:
                self._save_good()
            if self.team.any(self.stop()):
                return False
        if not at.batch:
            raise DataError(
                f"The loader gave no batch in epoch {at.epoch + 1}: what it reads has come to its "
                "end. Pass a function that makes it anew."
            )
        return True

    def _step(self, group: list[Batch], bar: ProgressBar) -> None:
        at = self.progress
        total = sum(len(x) for x, _ in group)
        parts = self._parts(group, total)
        self.vae.zero_grad(set_to_none=True)
        before = [buffer.clone() for buffer in self._moving]
        sums: list[Tensor] = []
        with training_pass(), self._noise_of_nets():
            for x, y, eps in parts:
                with self._precision():
                    loss = self.plan.loss(
                        self.vae, x, y, eps=eps, step=at.step, mean=self.team.mean
                    )
                (loss.surrogate.sum() / total).backward()
                terms = loss.terms
                found = torch.stack([loss.bound, terms.reconstruction, terms.kl]).double().sum(1)
                sums.append(torch.cat([found, found.new_tensor([float(len(x))])]))
        self.team.sum_gradients(self._params)
        finite = clip_gradient(self._params, self.plan.clip_norm)
        numbers: Sequence[float] = ()
        if finite:
            self.rates.step(at.rate)
            mine = sum(len(x) for x, _, _ in parts)
            self.team.average_changes(self._moving, before, mine / total)
            if self.average is not None:
                self.average.update()
            at.kl_weight = loss.weight
            numbers = self.team.sum(torch.stack(sums).sum(0)).tolist()
            at.sums = tuple(a + b for a, b in zip(at.sums, numbers))
        else:
            with torch.no_grad():  # statistics of images that gave no step
                for buffer, value in zip(self._moving, before):
                    buffer.copy_(value)
        at.step += 1
        self._recover(parts, ok=finite)
        self._tell(numbers, bar)
        self.rates.after_step()

    def _tell(self, numbers: Sequence[float], bar: Any) -> None:
        """Show the numbers of a step; there are none where it was skipped."""
        at = self.progress
        if numbers:
            bound, reconstruction, kl, count = numbers
            told = {
                "bound": bound / count, "reconstruction": reconstruction / count, "kl": kl / count,
                "kl_weight": at.kl_weight, "rate": self.rates.now(at.rate)[0],
            }  # fmt: skip
            for callback in self.callbacks:
                callback.step(at.step, told)
        if at.step % TRAINER.bar_steps == 0 and at.sums[3]:
            bound, _, kl, count = at.sums
            bar.set_postfix_str(
                f"epoch {at.epoch + 1}: bound {bound / count:.2f}, KL {kl / count:.2f} nats, "
                f"KL weight {at.kl_weight:.2f}{self._judged}",
                refresh=False,
            )
        bar.update()

    def _parts(self, group: list[Batch], total: int) -> list[_Part]:
        """Images, labels and noise of this process, batch by batch.

        The noise is that of the whole step, so that the batches of a step are as one.
        """
        at, seed = self.progress, self.plan.seed
        shape = (self.plan.loss.num_samples, total, self.vae.latent_dim)
        noise = torch.randn(shape, generator=stream(seed, NOISE, at.step))
        preparation = self.feed.preparation
        drawn = preparation is not None and preparation.noisy
        pixels = torch.empty(0)
        if drawn:
            generator = stream(seed, PIXELS, at.step)
            pixels = torch.rand(total, *group[0][0].shape[1:], generator=generator)
        found: list[_Part] = []
        start = 0
        for x, y in group:
            self._check_rows(len(x))
            rows = self.team.part(len(x))
            place = slice(start + rows.start, start + rows.stop)
            start += len(x)
            mine = x[rows]
            if drawn and preparation is not None:
                mine = preparation.draw(mine, pixels[place])
            images, labels = self._placed(mine, None if y is None else y[rows])
            found.append((images, labels, self._real(noise[:, place])))
        return found

    def _real(self, x: Tensor) -> Tensor:
        return x.to(self.team.device, full_dtype(self._params[0].dtype))

    def _placed(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Images and labels on the device, images in the type of the nets where they are real."""
        x = self._real(x) if x.is_floating_point() else x.to(self.team.device)
        return x, None if y is None else y.to(self.team.device)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.plan.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.team.device.type, torch.bfloat16)

    def _noise_of_nets(self) -> AbstractContextManager[None]:
        """Noise that nets draw from torch's own state, as of seed, step and process."""
        if not self._foreign:
            return nullcontext()
        return seeded(self.plan.seed, NETS, self.progress.step, self.team.rank)

    def _recover(self, parts: Iterable[_Part], *, ok: bool) -> None:
        """Do what the recovery policy says of a step; processes agree, since its gradient is one.

        Args:
            parts: Images, labels and noise of the step.
            ok: Its gradient was finite.

        Raises:
            DivergedError: The policy gives up.
        """
        at, recovery = self.progress, self._recovery
        action = recovery.after(1, ok=ok)
        if action in (Action.RESTORE, Action.GIVE_UP):
            with training_pass(), self._noise_of_nets():
                self._cause = locate_nonfinite(self.vae, *next(iter(parts)))
            with self.rates.kept():
                self._good.put(self._tensors, self.optimizer)
        if action is Action.RESTORE:
            recovery.restored(at.step)
        at.skipped, at.bad_in_a_row = recovery.skipped, recovery.bad_in_a_row
        at.rate, at.restores = recovery.rate, recovery.restores
        if action is Action.GIVE_UP:
            raise self._gave_up()

    def _gave_up(self) -> DivergedError:
        at = self.progress
        kept = ""
        if self.folder is not None and self.folder.best.exists():
            kept = f" The best parameters until now, of epoch {at.best_epoch}: {self.folder.best}."
        cause = f": {self._cause}" if self._cause else ""
        return DivergedError(
            f"The run gave up at step {at.step}{cause}. {at.skipped} steps had no finite gradient, "
            f"and it went back to an earlier state {len(at.restores)} times, each time at half the "
            "learning rate. Start anew (--overwrite, or another --out) with a smaller --lr or "
            f"--clip-norm.{kept}"
        )

    # ------------------------------------------------------------------- the end of an epoch

    def _end_of_epoch(self, bar: ProgressBar) -> None:
        at = self.progress
        bound, reconstruction, kl, count = at.sums
        train = _means(reconstruction - kl, reconstruction, kl, count)
        train["bound"] = bound / count if count else math.nan
        with self._averaged():
            valid = self.validate()
            at.epoch, at.batch, at.sums = at.epoch + 1, 0, (0.0, 0.0, 0.0, 0.0)
            better = self._compare(valid)
            if better:
                self._keep_best(valid)
        self._judge()
        line = {
            "epoch": at.epoch,
            "step": at.step,
            "train": train,
            "valid": valid,
            "rate": self.rates.now(at.rate)[0],
            "rates": self.rates.now(at.rate),
            "kl_weight": at.kl_weight,
            "weights": self.plan.loss.weights(max(at.step - 1, 0)),
            "skipped": at.skipped,
            "restores": len(at.restores),
            "time": round(time.time(), 1),
        }
        elbo = (valid or train)["elbo"]
        if valid is not None:
            self._judged = f", valid ELBO {elbo:.2f}"
        bar.set_postfix_str(f"epoch {at.epoch}{self._judged}", refresh=False)
        if self.folder is not None and self.team.leads:
            self.folder.append(line)
        for callback in self.callbacks:
            callback.epoch(line)
        self.rates.after_epoch(-elbo)
        self._save_good()

    def _keep_best(self, valid: dict[str, float] | None) -> None:
        """Keep the parameters as the best until now: in the folder, or in memory without one."""
        if self.folder is None:
            self._best = [tensor.detach().clone() for tensor in self._tensors]
        elif self.team.leads:
            spec = {**self.spec, "epoch": self.progress.epoch, "valid": valid}
            self.folder.save_best(self.vae, spec)

    def take_best(self) -> None:
        """Put the best parameters into the VAE.

        Raises:
            DivergedError: No epoch had a finite ELBO of the validation images.
        """
        folder = self.folder
        if folder is not None and folder.best.exists():
            folder.load_best(self.vae, self.team.device)
        elif folder is None and self._best is not None:
            with torch.no_grad():
                for tensor, value in zip(self._tensors, self._best, strict=True):
                    tensor.copy_(value)
        else:
            numbers = "" if folder is None else f" ({folder.log} has the numbers)"
            raise DivergedError(
                f"No epoch of {self.progress.epoch} had a finite ELBO of the validation images: "
                f"there is no best one{numbers}. Start anew (--overwrite) with a smaller "
                "--lr, or look for images that no likelihood describes."
            )

    def _averaged(self) -> AbstractContextManager[None]:
        """The state that is validated and kept: the average, where there is one."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _compare(self, valid: dict[str, float] | None) -> bool:
        """Compare with the best until now; True if this is it. Without validation the last is."""
        at = self.progress
        if valid is None:
            at.best_epoch = at.epoch
            return True
        loss = -valid["elbo"]
        better, stopping = loss < at.best, self._stopping()
        stopping.see(loss, counts=at.step >= self.plan.loss.settled)
        at.best, at.stale = stopping.best, stopping.stale
        if better:
            at.best_epoch = at.epoch
        return better

    def _stopping(self) -> EarlyStopping:
        return EarlyStopping(self.plan.patience, self.progress.best, self.progress.stale)

    def _judge(self) -> None:
        """End a run that has stopped getting better."""
        at = self.progress
        if self._stopping().exhausted:
            at.done = f"no improvement in {at.stale} epochs"

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """Plain ELBO of the validation images, in eval mode and full precision, the same noise."""
        if self.feed.valid is None:
            return None
        with evaluation(self.vae), seeded(self.plan.seed, VALID, "vae nets"):
            return self._validate(self.feed.valid)

    def _validate(self, rows: Rows) -> dict[str, float]:
        sums = torch.zeros(4, dtype=torch.float64, device=self.team.device)
        seed = self.plan.seed
        for number, batch in enumerate(rows.ordered(size=TRAINER.valid_rows, seed=seed)):
            if number % self.team.size != self.team.rank:
                continue
            x, y = self._placed(*batch)
            shape = (1, len(x), self.vae.latent_dim)
            eps = torch.randn(shape, generator=stream(seed, VALID, number))
            terms = self.vae.elbo(x, y, eps=self._real(eps))
            found = torch.stack([terms.bound, terms.reconstruction, terms.kl]).double().sum(1)
            sums += torch.cat([found, found.new_tensor([float(len(x))])])
        return _means(*self.team.sum(sums).tolist())

    def _state(self) -> RunState:
        return RunState(self.vae, self.rates, self.average)

    def _save_good(self) -> None:
        """Take the present state as one to go back to, and write it, unless its last step was bad.

        A state after bad steps is not one to go back to; at the end of an epoch it is written all
        the same.
        """
        at = self.progress
        if not at.bad_in_a_row:
            self._good = Snapshot.take(at.step, self._tensors, self.optimizer)
        if not at.bad_in_a_row or not at.batch:
            self._save()

    def _save(self) -> None:
        if self.folder is not None and self.team.leads:
            # The file's own state is the one to go back to, unless it was written in between.
            good = None if self._good.step == self.progress.step else self._good
            self.folder.save_last(self._state(), self.progress, self.spec, good)


def _means(bound: float, reconstruction: float, kl: float, count: float) -> dict[str, float]:
    if not count:  # no step of the epoch was taken
        return dict.fromkeys(("elbo", "reconstruction", "kl"), math.nan)
    return {"elbo": bound / count, "reconstruction": reconstruction / count, "kl": kl / count}


def _trained(vae: FlowVAE, optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Return the parameters of the VAE that the optimiser moves.

    Raises:
        OptionError: It moves none, or some that are not the VAE's.
    """
    given = {id(one) for group in optimizer.param_groups for one in group["params"]}
    ours = [one for one in vae.parameters() if id(one) in given]
    if len(ours) < len(given) or not ours:
        raise OptionError(
            f"The optimiser has {len(given)} parameters, of which {len(ours)} are the VAE's. Make "
            "it of vae.parameters(), after the VAE was moved to its device and type."
        )
    moved = [one for one in ours if one.requires_grad]
    if not moved:
        raise OptionError(
            "All of the optimiser's parameters are frozen: there is nothing to train."
        )
    return moved
