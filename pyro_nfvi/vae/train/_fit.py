"""``fit(vae, data)``: any nets, any data, and the training loop of the command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pyro_nfvi._optim.torch_optimizers import Adam
from pyro_nfvi._processes.launcher import ParentWatch, launched
from pyro_nfvi._processes.process_group import ProcessGroup, joined, leave_group
from pyro_nfvi._random import seeded
from pyro_nfvi._user_warning import warn
from pyro_nfvi._validation import number, whole
from pyro_nfvi._version import __version__
from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae._architecture import describe
from pyro_nfvi.vae._losses import ELBOLoss, VAELoss
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._recipe import TRAINER
from pyro_nfvi.vae.train._callbacks import Callback, callback_of
from pyro_nfvi.vae.train._distributed import join_group
from pyro_nfvi.vae.train._feeds import Feed, rows_of
from pyro_nfvi.vae.train._rates import Rates
from pyro_nfvi.vae.train._run import Run, open_folder
from pyro_nfvi.vae.train._run_folder import RunFolder
from pyro_nfvi.vae.train._signals import Signals
from pyro_nfvi.vae.train._trainer import Plan, Trainer

_Optimizer = torch.optim.Optimizer


def fit(
    vae: FlowVAE,
    train: Any,
    *,
    valid: Any = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    epochs: int = TRAINER.epochs,
    batch_size: int = TRAINER.batch_size,
    loss: VAELoss | None = None,
    optimizer: _Optimizer | Callable[[Iterable[nn.Parameter]], _Optimizer] | None = None,
    lr: float = TRAINER.rate,
    scheduler: Any = None,
    scheduler_interval: str | None = None,
    new_rate: bool = False,
    clip_norm: float = TRAINER.clip_norm,
    accumulate: int = 1,
    ema: float = 0.0,
    precision: str = "fp32",
    patience: int = 0,
    callbacks: Sequence[Callback | Callable[[Mapping[str, Any]], Any]] = (),
    save_steps: int = TRAINER.save_steps,
    seed: int = 0,
    progress: bool = True,
) -> Run:
    r"""Train a VAE in place, by the loop of ``python -m pyro_nfvi.vae.train``.

    With ``out`` the run may be killed at any time, ``kill -9`` included; called again with
    ``resume=True`` and the same arguments, on a CPU it ends with the bits of an uninterrupted run:
    order, noise and what data sets draw are functions of ``seed`` and step, and the checkpoint
    holds optimiser, scheduler and average. SIGTERM and Ctrl-C finish a step, save, and return a
    run whose ``progress.done`` is ``"interrupted"``. Steps without a finite gradient are skipped,
    and after five in a row the last good state comes back at half the rate. Under torchrun the
    processes divide each batch.

    Args:
        vae: The VAE, with any encoder and decoder.
        train: Images: a tensor or array ``(N, *shape)``; a ``Dataset``, a ``DataLoader``, an
            iterable of batches, or a function that makes one. Of pairs with labels, the labels are
            taken where the VAE is conditional; a pair of tensors is ``(images, labels)``.
        valid: Images to choose the best epoch by, in the same forms; None keeps the last.
        out: Folder for checkpoints and log; None for none.
        resume: Go on from ``out``; where there is nothing, begin.
        overwrite: Begin anew where ``out`` holds a run.
        epochs: Passes over the images, at most.
        batch_size: Images of a batch, for tensors and a ``Dataset``; loaders have their own.
        loss: What a step differentiates; None for ``ELBOLoss()``.
        optimizer: An optimiser, whose groups keep their own rates, or a function of the
            parameters; None for Adam, fused where torch has that.
        lr: Learning rate of the default optimiser.
        scheduler: A scheduler of torch over the optimiser, or a function of it that makes one.
        scheduler_interval: ``"step"`` or ``"epoch"``; None for what its class is made for: steps
            for ``OneCycleLR`` and ``CyclicLR``, epochs for all others.
        new_rate: With ``resume``, take the rates of the optimiser passed, not the checkpoint's; a
            schedule goes on, scaled.
        clip_norm: Largest norm of the gradient; ``math.inf`` for none.
        accumulate: Batches of a step, as if they were one.
        ema: Decay of an exponential moving average of the weights, such as 0.999, which is
            validated and kept instead of the weights; 0 for none.
        precision: ``"bf16"``: while training, nets compute in bfloat16; densities, validation and
            the weights stay in full precision.
        patience: Epochs without a better validation after which training ends; 0 for never.
        callbacks: :class:`Callback` objects, such as :class:`CSVLogger`, or functions of each
            epoch's line.
        save_steps: Steps between checkpoints within an epoch.
        seed: Of everything that is random in the run.
        progress: Show a bar, where there is a terminal.

    Returns:
        The :class:`Run`: ``run.vae`` is ``vae``, with the parameters that were best on ``valid``;
        ``run.history`` has a line for each epoch, in nats.

    Cost:
        A step costs one pass through encoder, flow and decoder per draw, and its gradient. A
        checkpoint writes weights and optimiser once an epoch, and every ``save_steps`` steps.

    Raises:
        OptionError, DataError: Arguments or batches that cannot be used; the message says what to
            do.
        FileError: ``out`` holds another run, is in use, or cannot be written.
        DivergedError: Gradients were not finite again and again; says which layer began.

    Source: Kingma and Welling 2014, arXiv:1312.6114.

    Example:
        >>> import torch
        >>> from pyro_nfvi import vae
        >>> encoder = vae.DenseEncoder((8,), latent_dim=2, hidden=(16,), context_dim=16)
        >>> decoder = vae.DenseDecoder(2, (8,), hidden=(16,))
        >>> model = vae.FlowVAE(encoder, decoder, latent_dim=2, context_dim=16, flow="planar*2")
        >>> x = torch.bernoulli(torch.full((60, 8), 0.5))
        >>> run = vae.fit(model, x[:50], valid=x[50:], epochs=2, batch_size=10, progress=False)
        >>> run.progress.step, run.progress.done, len(run.history)
        (10, 'all epochs done', 2)
    """
    if not isinstance(vae, FlowVAE):
        raise OptionError(f"fit trains a FlowVAE; got {type(vae).__name__}.")
    if out is None and (resume or overwrite or new_rate):
        raise OptionError("resume, overwrite and new_rate belong to a folder: pass out='runs/...'.")
    counts = {
        "epochs": epochs, "batch_size": batch_size, "accumulate": accumulate,
        "save_steps": save_steps,
    }  # fmt: skip
    for name, value in counts.items():
        whole(f"fit: {name}", value)
    whole("fit: patience", patience, 0)
    whole("fit: seed", seed, 0)
    number("fit: lr", lr, above=0)
    if not clip_norm > 0:
        raise OptionError(f"fit: clip_norm is above 0, or math.inf for none; got {clip_norm!r}.")
    loss = ELBOLoss() if loss is None else loss
    plan = Plan(
        loss, epochs, batch_size, clip_norm, patience, save_steps, seed, accumulate, ema, precision
    )
    labelled = bool(vae.condition_dim)
    feed = Feed(
        rows_of(train, batch_size=batch_size, labelled=labelled),
        None
        if valid is None
        else rows_of(valid, batch_size=batch_size, labelled=labelled, shuffle=False),
    )
    told = [callback_of(one) for one in callbacks]
    with ParentWatch(launched=launched()) as parent:  # before others are waited for
        ours = not joined()
        team = join_group(str(next(vae.parameters()).device))
        try:
            # Nets of a user's own may draw from torch's state, which checkpoints hold.
            with seeded(seed, "vae"):
                vae.to(team.device)
                team.share(vae)
                rates = _rates(vae, optimizer, lr, scheduler, scheduler_interval)
                session = _Session(vae, feed, plan, rates, team, told, progress, parent)
                if out is None:
                    return session.run(None)
                with open_folder(out, team, resume=resume, overwrite=overwrite) as folder:
                    return session.run(folder, resume=resume, new_rate=new_rate)
        finally:
            if ours:
                leave_group(team)


def _rates(vae: FlowVAE, optimizer: Any, lr: float, scheduler: Any, interval: str | None) -> Rates:
    if optimizer is None:
        optimizer = adam(vae, lr)
    elif not isinstance(optimizer, _Optimizer):
        optimizer = optimizer(list(vae.parameters()))
    if not isinstance(optimizer, _Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise OptionError(
            "optimizer is one of torch.optim whose steps need no closure, or a function of the "
            f"parameters that makes it; got {type(optimizer).__name__}."
        )
    if callable(scheduler) and not hasattr(scheduler, "step"):
        scheduler = scheduler(optimizer)
    return Rates(optimizer, scheduler, interval)


def adam(vae: FlowVAE, lr: float) -> Adam:
    """Return Adam, in one pass over all parameters where torch has that for their device."""
    leaves = [one for one in vae.parameters() if one.requires_grad]
    real = all(one.is_floating_point() for one in leaves)
    fused = real and {one.device.type for one in leaves} in ({"cpu"}, {"cuda"})
    return Adam(leaves, lr=lr, fused=fused)


class _Session:
    """A call of :func:`fit` whose processes have met."""

    def __init__(
        self,
        vae: FlowVAE,
        feed: Feed,
        plan: Plan,
        rates: Rates,
        team: ProcessGroup,
        callbacks: list[Callback],
        show: bool,  # noqa: FBT001
        parent: ParentWatch,
    ) -> None:
        self.vae, self.feed, self.plan, self.rates = vae, feed, plan, rates
        self.team, self.callbacks, self.show, self.parent = team, callbacks, show, parent

    def run(self, folder: RunFolder | None, *, resume: bool = False, new_rate: bool = False) -> Run:
        lines: list[Mapping[str, Any]] = []
        signals = Signals()
        trainer = Trainer(
            self.vae, self.feed, self.plan, self.rates,
            folder=folder, spec=None if folder is None else self._spec(), team=self.team,
            callbacks=[callback_of(lines.append), *self.callbacks], show=self.show,
            stop=lambda: signals.came() or self.parent.lost(),
        )  # fmt: skip
        steps = trainer.steps_per_epoch
        short = "" if steps is None else self.plan.loss.unfinished(self.plan.epochs * steps)
        if short and self.team.leads:
            warn(short)
        if folder is not None and resume and folder.last.exists():
            trainer.resume(new_rate=new_rate)
        with signals:
            at = trainer.run()
        self.team.wait()
        if at.done != "interrupted":
            trainer.take_best()
        return Run(self.vae, at, None, folder, lines if folder is None else folder.lines())

    def _spec(self) -> dict[str, Any]:
        plan, rates = self.plan, self.rates
        groups = [sum(p.numel() for p in one["params"]) for one in rates.optimizer.param_groups]
        kind = type(rates.scheduler).__name__ if rates.scheduler is not None else "none"
        size = {"size": plan.batch_size, "seed": plan.seed}
        data = self.feed.train.described(**size)
        if self.feed.valid is not None:
            data += f"; valid {self.feed.valid.described(**size)}"
        return {
            "architecture": describe(self.vae),
            "options": {
                "batch_size": plan.batch_size, "accumulate": plan.accumulate, "ema": plan.ema,
                "precision": plan.precision, "clip_norm": plan.clip_norm, "seed": plan.seed,
                "optimizer": type(rates.optimizer).__name__, "groups": groups, "scheduler": kind,
                "scheduler_interval": rates.interval, "loss": _as_json(plan.loss.spec()),
            },
            "data": data,
            "rates": rates.initial,
            "version": __version__,
            "epochs": plan.epochs,
        }  # fmt: skip


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
