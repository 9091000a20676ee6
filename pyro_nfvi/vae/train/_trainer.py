"""The training loop: steps, validation, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from pyro_nfvi._autocast import full_dtype
from pyro_nfvi._eval_mode import evaluation, mode_free, moving_buffers, training_pass
from pyro_nfvi._optim.early_stopping import EarlyStopping
from pyro_nfvi._optim.gradient_clipping import clip_gradient
from pyro_nfvi._optim.learning_rate import cosine
from pyro_nfvi._optim.recovery import Action, Recovery
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._processes.team import Team
from pyro_nfvi._random import seeded, stream
from pyro_nfvi.errors import DataError, DivergedError, OptionError
from pyro_nfvi.vae._losses import VAELoss
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._pixels import Preparation
from pyro_nfvi.vae._recipe import TRAINER
from pyro_nfvi.vae.train._nonfinite_step import locate_nonfinite
from pyro_nfvi.vae.train._run_folder import Progress, RunFolder

#: What a stream of random numbers is for.
_ORDER, _NOISE, _PIXELS, _VALID, _NETS = range(5)


@dataclass(frozen=True)
class Feed:
    """Data of a run, to train and to validate on.

    Attributes:
        train: Images to train on, as the preparation wants them.
        valid: Images to validate on, prepared.
        preparation: How training images are drawn at each step.
        labels: Labels of train and valid, or None.
    """

    train: Tensor
    valid: Tensor
    preparation: Preparation
    labels: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.train) == 0 or len(self.valid) == 0:
            raise DataError(
                f"There are {len(self.train)} images to train on and {len(self.valid)} to validate "
                "on; both need at least one."
            )


@dataclass(frozen=True)
class Plan:
    """Options of a run's training loop.

    Attributes:
        loss: What a step differentiates.
        epochs: Passes over the training images, at most.
        batch_size: Images per step, over all processes.
        lr: Learning rate at the start.
        decay: ``"none"``, or ``"cosine"`` down to zero at the last step.
        clip_norm: Largest norm of the gradient.
        patience: Epochs without improvement after the warm-up; 0 for no early stopping.
        save_steps: Steps between checkpoints within an epoch.
        seed: Of order, noise and pixels.
    """

    loss: VAELoss
    epochs: int
    batch_size: int
    lr: float
    decay: str = "none"
    clip_norm: float = 100.0
    patience: int = 0
    save_steps: int = 500
    seed: int = 0


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
        optimizer: Of the VAE's parameters.
        folder: Where checkpoints and the log go; None for none.
        spec: What has to be the same for a run to go on.
        team: The processes.
        show: Show a bar.
        stop: Asked after each step: whether to save and end (a signal came).
    """

    def __init__(
        self,
        vae: FlowVAE,
        feed: Feed,
        plan: Plan,
        optimizer: torch.optim.Optimizer,
        *,
        folder: RunFolder | None = None,
        spec: dict[str, Any] | None = None,
        team: Team | None = None,
        show: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.vae, self.feed, self.plan, self.optimizer = vae, feed, plan, optimizer
        self.folder, self.spec = folder, spec or {}
        self.team = team or Team(0, 1, torch.device("cpu"))
        self.show, self.stop = show and self.team.leads, stop
        self.progress = Progress()
        self._params = [p for p in vae.parameters() if p.requires_grad]
        # Running statistics and the like; nets of a user's own may draw noise of their own.
        self._moving = moving_buffers(vae)
        self._tensors = [*self._params, *self._moving]
        self._foreign = any(not mode_free(part) for part in vae.modules())
        whole, rest = divmod(len(feed.train), plan.batch_size)
        smallest = min(plan.batch_size, rest or plan.batch_size)
        if smallest < self.team.size:
            raise OptionError(
                f"Each of {self.team.size} processes needs an image of every batch, and "
                f"{len(feed.train)} images in batches of {plan.batch_size} leave one of "
                f"{smallest}. Take another --batch-size, or fewer processes."
            )
        if smallest < 2 * self.team.size and any(
            isinstance(part, _BatchNorm) and part.training for part in vae.modules()
        ):
            raise OptionError(
                "Batch normalisation needs two images of every batch in each process, and "
                f"{len(feed.train)} images in batches of {plan.batch_size} leave one of {smallest} "
                f"for {self.team.size}. Take another --batch-size."
            )
        self.steps_per_epoch = whole + (rest > 0)
        self._recovery, self._cause = Recovery(), ""
        self._good = Snapshot.take(0, self._tensors, optimizer)

    def resume(self) -> None:
        """Go on from the folder's checkpoint."""
        assert self.folder is not None
        self.progress, good = self.folder.load_last(
            self.vae, self.optimizer, self.spec, self.team.device, self._tensors
        )
        at = self.progress
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
        total = self.plan.epochs * self.steps_per_epoch
        with tqdm(
            total=total, initial=min(at.step, total), disable=not self.show, unit="step"
        ) as bar:
            while not at.done and at.epoch < self.plan.epochs:
                if not self._epoch(bar):
                    at.done = "interrupted"
                    self._save()
                    return at
                self._end_of_epoch(bar)
        if at.step and at.skipped == at.step:
            raise self._gave_up()
        at.done = at.done or "all epochs done"
        return at

    # ---------------------------------------------------------------------------- an epoch

    def _epoch(self, bar: Any) -> bool:
        """Run the rest of an epoch; False if a signal came."""
        at = self.progress
        order = torch.randperm(
            len(self.feed.train), generator=stream(self.plan.seed, _ORDER, at.epoch)
        )
        while at.batch < self.steps_per_epoch:
            start = at.batch * self.plan.batch_size
            self._step(order[start : start + self.plan.batch_size], bar)
            at.batch += 1
            if at.step % self.plan.save_steps == 0 and at.batch < self.steps_per_epoch:
                self._save_good()
            if self.team.any(self.stop()):
                return False
        return True

    def _step(self, rows: Tensor, bar: Any) -> None:
        at = self.progress
        x, y, eps = self._batch(rows)
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        before = [buffer.clone() for buffer in self._moving]
        with training_pass(), self._noise_of_nets():
            loss = self.plan.loss(self.vae, x, y, eps=eps, step=at.step, mean=self.team.mean)
            (loss.surrogate.sum() / len(rows)).backward()
        self.team.sum_gradients(self._params)
        finite = clip_gradient(self._params, self.plan.clip_norm)
        if finite:
            self.optimizer.step()
            self.team.average_changes(self._moving, before, len(x) / len(rows))
            at.kl_weight = loss.weight
            terms = loss.terms
            parts = torch.stack([loss.bound, terms.reconstruction, terms.kl]).double().sum(1)
            parts = self.team.sum(torch.cat([parts, parts.new_tensor([float(len(x))])]))
            at.sums = tuple(a + b for a, b in zip(at.sums, parts.tolist()))
        else:
            with torch.no_grad():  # statistics of images that gave no step
                for buffer, value in zip(self._moving, before):
                    buffer.copy_(value)
        at.step += 1
        self._recover(x, y, eps, ok=finite)
        if at.step % 10 == 0 and at.sums[3]:
            bound, _, kl, count = at.sums
            bar.set_postfix_str(
                f"epoch {at.epoch + 1}: bound {bound / count:.2f}, KL {kl / count:.2f} nats, "
                f"KL weight {loss.weight:.2f}",
                refresh=False,
            )
        bar.update()

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images, labels and noise of this process, out of those of the whole batch."""
        at, seed = self.progress, self.plan.seed
        mine = self.team.part(len(rows))
        x = self.feed.train[rows[mine]]
        if self.feed.preparation.noisy:
            noise = torch.rand(len(rows), *x.shape[1:], generator=stream(seed, _PIXELS, at.step))
            x = self.feed.preparation.draw(x, noise[mine])
        y = None if self.feed.labels is None else self.feed.labels[0][rows[mine]]
        eps = torch.randn(
            self.plan.loss.num_samples,
            len(rows),
            self.vae.latent_dim,
            generator=stream(seed, _NOISE, at.step),
        )[:, mine]
        device = self.team.device
        dtype = full_dtype(self._params[0].dtype)
        x = x.to(device, dtype) if x.is_floating_point() else x.to(device)
        return x, None if y is None else y.to(device), eps.to(device, dtype)

    def _rate(self) -> float:
        rate = self.plan.lr * self.progress.rate
        if self.plan.decay == "none":
            return rate
        share = self.progress.step / (self.plan.epochs * self.steps_per_epoch)
        return rate * cosine(min(1.0, share), end=0.0)

    def _noise_of_nets(self) -> AbstractContextManager[None]:
        """Noise that nets draw from torch's own state, as of seed, step and process."""
        if not self._foreign:
            return nullcontext()
        return seeded(self.plan.seed, _NETS, self.progress.step, self.team.rank)

    def _recover(self, x: Tensor, y: Tensor | None, eps: Tensor, *, ok: bool) -> None:
        """Do what the recovery policy says of a step; processes agree, since its gradient is one.

        Args:
            x: Images of the step.
            y: Their labels.
            eps: Noise of the step.
            ok: Its gradient was finite.

        Raises:
            DivergedError: The policy gives up.
        """
        at, recovery = self.progress, self._recovery
        action = recovery.after(1, ok=ok)
        if action in (Action.RESTORE, Action.GIVE_UP):
            with training_pass(), self._noise_of_nets():
                self._cause = locate_nonfinite(self.vae, x, y, eps)
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

    def _end_of_epoch(self, bar: Any) -> None:
        at = self.progress
        valid = self.validate()
        bound, reconstruction, kl, count = at.sums
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, (0.0, 0.0, 0.0, 0.0)
        loss = -valid["elbo"]
        better, stopping = loss < at.best, self._stopping()
        stopping.see(loss, counts=at.step >= self.plan.loss.settled)
        at.best, at.stale = stopping.best, stopping.stale
        if better:
            at.best_epoch = at.epoch
        self._judge()
        line = {
            "epoch": at.epoch,
            "step": at.step,
            "train": _means(reconstruction - kl, reconstruction, kl, count)
            | {"bound": bound / count if count else math.nan},
            "valid": valid,
            "rate": self._rate(),
            "kl_weight": at.kl_weight,
            "weights": self.plan.loss.weights(max(at.step - 1, 0)),
            "skipped": at.skipped,
            "restores": len(at.restores),
            "time": round(time.time(), 1),
        }
        bar.set_description_str(f"valid ELBO {valid['elbo']:.2f}", refresh=False)
        if self.folder is not None and self.team.leads:
            self.folder.append(line)
            if better:
                self.folder.save_best(self.vae, {**self.spec, "epoch": at.epoch, "valid": valid})
        self._save_good()

    def _stopping(self) -> EarlyStopping:
        return EarlyStopping(self.plan.patience, self.progress.best, self.progress.stale)

    def _judge(self) -> None:
        """End a run that has stopped getting better."""
        at = self.progress
        if self._stopping().exhausted:
            at.done = f"no improvement in {at.stale} epochs"

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Plain ELBO of the validation images, in eval mode, the same noise each time."""
        with evaluation(self.vae), seeded(self.plan.seed, _VALID, "vae nets"):
            return self._validate()

    def _validate(self) -> dict[str, float]:
        sums = torch.zeros(3, dtype=torch.float64, device=self.team.device)
        count = len(self.feed.valid)
        for number, start in enumerate(range(0, count, TRAINER.valid_rows)):
            if number % self.team.size != self.team.rank:
                continue
            x = self.feed.valid[start : start + TRAINER.valid_rows]
            y = None if self.feed.labels is None else self.feed.labels[1][start : start + len(x)]
            eps = torch.randn(
                1, len(x), self.vae.latent_dim, generator=stream(self.plan.seed, _VALID, number)
            )
            dtype, device = full_dtype(self._params[0].dtype), self.team.device
            x = x.to(device, dtype) if x.is_floating_point() else x.to(device)
            y = None if y is None else y.to(device)
            terms = self.vae.elbo(x, y, eps=eps.to(device, dtype))
            sums += torch.stack([terms.bound, terms.reconstruction, terms.kl]).double().sum(1)
        bound, reconstruction, kl = self.team.sum(sums).tolist()
        return _means(bound, reconstruction, kl, count)

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
            self.folder.save_last(self.vae, self.optimizer, self.progress, self.spec, good)


def _means(bound: float, reconstruction: float, kl: float, count: float) -> dict[str, float]:
    if not count:  # no step of the epoch was taken
        return dict.fromkeys(("elbo", "reconstruction", "kl"), math.nan)
    return {"elbo": bound / count, "reconstruction": reconstruction / count, "kl": kl / count}
